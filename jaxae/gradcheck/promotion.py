"""Promotion of a traced program to float64.

A Python function called again under x64 may compute something else: it draws other
random numbers, and arrays that it closes over keep their dtype. So the function is
traced once, in the caller's precision, and the equations of the trace are evaluated in
two ways:

* Values that depend on the params are float64. Constants and data that are combined
  with them are converted, which is exact.
* All other values (random numbers, results computed from data alone) are computed in
  the caller's precision.

Values less precise than every param stay so: a cast to bfloat16 in a function of
float32 params is a rounding that the function intends. Derivatives need no rule here:
the gradient is itself a traced program, in which the caller's custom rules have already
been applied.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxae.gradcheck.programs import (
    Value,
    bind_primitive,
    called_program,
    carry_range,
    close_jaxpr,
    dependent_outputs,
    evaluate,
)
from jaxae.gradcheck.rounding import unit_roundoff


class NotPromotableError(Exception):
    """An operation, named in the message, has no counterpart in float64."""


def promote(
    program: ClosedJaxpr, unit: float
) -> Callable[[Sequence[Any], Sequence[Any]], list[Any]]:
    """`(constants, inputs) -> outputs` of a program in float64; call it under x64.

    Promoted are the values that depend on the inputs and whose unit roundoff is at most
    `unit`.
    """

    def run(constants: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        bound = ClosedJaxpr(program.jaxpr, constants)
        values = [Value(x, True) for x in inputs]
        return [out.array for out in evaluate(bound, values, _Promoter(unit).apply)]

    return run


class _Promoter:
    """Evaluates equations; a method for each kind of operation.

    `dependent` and `outputs` mark the operands and the outputs that depend on the
    params, which are the promoted ones.
    """

    def __init__(self, unit: float) -> None:
        self.unit = unit

    def apply(self, eqn: Any, operands: list[Value]) -> list[Value]:
        program = called_program(eqn)
        if program is not None:
            return evaluate(program, operands, self.apply)
        arrays = [x.array for x in operands]
        dependent = [x.is_dependent for x in operands]
        if not any(dependent):
            outputs = bind_primitive(eqn, arrays, eqn.params)
            return [Value(out, False) for out in outputs]
        rules = {"scan": self.scan, "while": self.while_loop, "cond": self.cond}
        rule = rules.get(eqn.primitive.name, self.operation)
        marks = dependent_outputs(eqn, dependent)
        return list(map(Value, rule(eqn, arrays, dependent, marks), marks))

    def operation(
        self, eqn: Any, arrays: list[Any], dependent: list[bool], outputs: list[bool]
    ) -> list[Any]:
        del dependent, outputs
        name = eqn.primitive.name
        if "callback" in name and not name.startswith("debug"):
            raise NotPromotableError(f"{name} leaves JAX")
        if name == "bitcast_convert_type" or any(map(_is_key, arrays)):
            dtypes = [atom.aval.dtype for atom in eqn.invars]
            arrays = list(map(_convert, arrays, dtypes))
            return list(map(self.promote, bind_primitive(eqn, arrays, eqn.params)))
        arrays = list(map(self.promote, arrays))
        if name == "reduce_precision":
            unit = 2.0 ** -(eqn.params["mantissa_bits"] + 1)
            if unit <= self.unit:  # to the params' precision or finer: no rounding
                return arrays
        params = {
            k: jax.tree.map(self.promote_parameter, v) for k, v in eqn.params.items()
        }
        results = bind_primitive(eqn, arrays, params)
        for result, var in zip(results, eqn.outvars, strict=True):
            expected = (var.aval.shape, self.promoted_dtype(var.aval.dtype))
            if (result.shape, result.dtype) != expected:
                raise NotPromotableError(
                    f"{name} stays {result.dtype}{list(result.shape)}"
                )
        return results

    def scan(
        self, eqn: Any, arrays: list[Any], dependent: list[bool], outputs: list[bool]
    ) -> list[Any]:
        params, (first, last) = eqn.params, carry_range(eqn.params)
        num_carry = last - first
        dependent = [*dependent[:first], *outputs[:num_carry], *dependent[last:]]
        arrays = self.promote_where(dependent, arrays)
        body = close_jaxpr(params["jaxpr"])

        def step(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
            inputs = [*arrays[:first], *carry, *x]
            results = self.run(body, inputs, dependent, outputs)
            return results[:num_carry], results[num_carry:]

        options = {name: params[name] for name in ("length", "reverse", "unroll")}
        carry, ys = jax.lax.scan(step, arrays[first:last], arrays[last:], **options)
        return [*carry, *ys]

    def while_loop(
        self, eqn: Any, arrays: list[Any], dependent: list[bool], outputs: list[bool]
    ) -> list[Any]:
        first = eqn.params["cond_nconsts"]
        last = first + eqn.params["body_nconsts"]

        def condition(carry: Any) -> Any:
            inputs, marks = [*arrays[:first], *carry], [*dependent[:first], *outputs]
            return self.run(eqn.params["cond_jaxpr"], inputs, marks, [False])[0]

        def body(carry: Any) -> Any:
            inputs = [*arrays[first:last], *carry]
            marks = [*dependent[first:last], *outputs]
            return self.run(eqn.params["body_jaxpr"], inputs, marks, outputs)

        carry = self.promote_where(outputs, arrays[last:])
        return list(jax.lax.while_loop(condition, body, carry))

    def cond(
        self, eqn: Any, arrays: list[Any], dependent: list[bool], outputs: list[bool]
    ) -> list[Any]:
        def branch(program: ClosedJaxpr) -> Callable[..., list[Any]]:
            return lambda *inputs: self.run(program, inputs, dependent[1:], outputs)

        index, *operands = arrays
        branches = list(map(branch, eqn.params["branches"]))
        return list(jax.lax.switch(index, branches, *operands))

    def run(
        self,
        program: ClosedJaxpr,
        inputs: Sequence[Any],
        dependent: Sequence[bool],
        outputs: Sequence[bool],
    ) -> list[Any]:
        """The outputs of a program, promoted where `outputs` marks them."""
        results = evaluate(program, list(map(Value, inputs, dependent)), self.apply)
        return self.promote_where(outputs, [result.array for result in results])

    def promote_parameter(self, value: Any) -> Any:
        """A parameter of an operation, promoted if it is a dtype or a program."""
        if isinstance(value, np.dtype):
            return self.promoted_dtype(value)
        if not isinstance(value, Jaxpr | ClosedJaxpr):
            return value
        program = close_jaxpr(value)
        inputs = [
            jax.ShapeDtypeStruct(x.aval.shape, self.promoted_dtype(x.aval.dtype))
            for x in program.jaxpr.invars
        ]
        marks = [True] * len(inputs), [True] * len(program.jaxpr.outvars)
        promoted = jax.make_jaxpr(lambda *arrays: self.run(program, arrays, *marks))(
            *inputs
        )
        return promoted if isinstance(value, ClosedJaxpr) else promoted.jaxpr

    def promoted_dtype(self, dtype: Any) -> Any:
        """float64 or complex128 for a dtype at least as precise as the params."""
        if not jnp.issubdtype(dtype, jnp.inexact) or unit_roundoff(dtype) > self.unit:
            return dtype
        is_complex = jnp.issubdtype(dtype, jnp.complexfloating)
        return np.dtype(np.complex128 if is_complex else np.float64)

    def promote(self, array: Any) -> Any:
        return _convert(array, self.promoted_dtype(array.dtype))

    def promote_where(self, marks: Sequence[bool], arrays: Sequence[Any]) -> list[Any]:
        return [
            self.promote(array) if is_marked else array
            for array, is_marked in zip(arrays, marks, strict=True)
        ]


def _convert(array: Any, dtype: Any) -> Any:
    is_same = array.dtype == dtype
    return array if is_same else jax.lax.convert_element_type(array, dtype)


def _is_key(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
