"""The program that the caller traced, in float64.

A Python function that is run again under x64 may be another function: it draws other
random numbers, and what it closes over keeps its dtype. So the function is traced once,
in the caller's precision, and the equations of the trace are evaluated in two ways:

* Whatever depends on the params is float64. Constants and data that meet it are
  converted, which is exact.
* Everything else (random draws, what is computed from data alone) is computed as the
  caller had it.

Values less precise than every param stay so: a cast to bfloat16 in a function of
float32 params is a rounding that the function means. Derivatives need no rule here: the
gradient is itself a traced program, in which the caller's custom rules have been used.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxae.gradcheck.programs import (
    Value,
    bind,
    called,
    carried,
    closed,
    evaluate,
    outputs_that_move,
)
from jaxae.gradcheck.rounding import unit_roundoff


class NotPromotableError(Exception):
    """Names the operation that has no counterpart in float64."""


def promoted(
    program: ClosedJaxpr, unit: float
) -> Callable[[Sequence[Any], Sequence[Any]], list[Any]]:
    """`(constants, inputs) -> outputs` of a program, to be called under x64.

    What depends on its inputs is in float64, if its unit roundoff is at most `unit`.
    """

    def run(constants: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        bound = ClosedJaxpr(program.jaxpr, constants)
        moving = [Value(x, True) for x in inputs]
        return [out.array for out in evaluate(bound, moving, _Promoter(unit).apply)]

    return run


class _Promoter:
    def __init__(self, unit: float) -> None:
        self.unit = unit

    def apply(self, eqn: Any, operands: list[Value]) -> list[Value]:
        program = called(eqn)
        if program is not None:
            return evaluate(program, operands, self.apply)
        arrays = [x.array for x in operands]
        if not any(x.is_moving for x in operands):
            return [Value(out, False) for out in bind(eqn, arrays, eqn.params)]
        moving = [x.is_moving for x in operands]
        rules = {"scan": self.scan, "while": self.loop, "cond": self.branch}
        rule = rules.get(eqn.primitive.name, self.operation)
        outputs = outputs_that_move(eqn, moving)
        return list(map(Value, rule(eqn, arrays, moving, outputs), outputs))

    def operation(
        self, eqn: Any, arrays: list[Any], _: list[bool], __: list[bool]
    ) -> list[Any]:
        name = eqn.primitive.name
        if "callback" in name and not name.startswith("debug"):
            raise NotPromotableError(f"{name} leaves JAX")
        if name == "bitcast_convert_type" or any(map(_is_key, arrays)):
            dtypes = [atom.aval.dtype for atom in eqn.invars]
            arrays = list(map(_convert, arrays, dtypes))
            return list(map(self.widen, bind(eqn, arrays, eqn.params)))
        arrays = list(map(self.widen, arrays))
        if name == "reduce_precision" and self.is_kept(eqn.params["mantissa_bits"]):
            return arrays
        params = {k: jax.tree.map(self.parameter, v) for k, v in eqn.params.items()}
        outputs = bind(eqn, arrays, params)
        for out, var in zip(outputs, eqn.outvars, strict=True):
            if (out.shape, out.dtype) != (var.aval.shape, self.wide(var.aval.dtype)):
                raise NotPromotableError(f"{name} stays {out.dtype}{list(out.shape)}")
        return outputs

    def scan(
        self, eqn: Any, arrays: list[Any], moving: list[bool], outputs: list[bool]
    ) -> list[Any]:
        params, (first, last) = eqn.params, carried(eqn.params)
        num_carry = last - first
        moving = [*moving[:first], *outputs[:num_carry], *moving[last:]]
        arrays = self.widen_where(moving, arrays)

        def step(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
            inputs = [*arrays[:first], *carry, *x]
            found = self.run(closed(params["jaxpr"]), inputs, moving, outputs)
            return found[:num_carry], found[num_carry:]

        options = {name: params[name] for name in ("length", "reverse", "unroll")}
        carry, ys = jax.lax.scan(step, arrays[first:last], arrays[last:], **options)
        return [*carry, *ys]

    def loop(
        self, eqn: Any, arrays: list[Any], moving: list[bool], outputs: list[bool]
    ) -> list[Any]:
        first = eqn.params["cond_nconsts"]
        last = first + eqn.params["body_nconsts"]

        def goes_on(carry: Any) -> Any:
            inputs, marks = [*arrays[:first], *carry], [*moving[:first], *outputs]
            return self.run(eqn.params["cond_jaxpr"], inputs, marks, [False])[0]

        def step(carry: Any) -> Any:
            inputs = [*arrays[first:last], *carry]
            marks = [*moving[first:last], *outputs]
            return self.run(eqn.params["body_jaxpr"], inputs, marks, outputs)

        carry = self.widen_where(outputs, arrays[last:])
        return list(jax.lax.while_loop(goes_on, step, carry))

    def branch(
        self, eqn: Any, arrays: list[Any], moving: list[bool], outputs: list[bool]
    ) -> list[Any]:
        def taken(program: ClosedJaxpr) -> Callable[..., list[Any]]:
            return lambda *inputs: self.run(program, inputs, moving[1:], outputs)

        index, *operands = arrays
        return list(
            jax.lax.switch(index, list(map(taken, eqn.params["branches"])), *operands)
        )

    def run(
        self,
        program: ClosedJaxpr,
        inputs: Sequence[Any],
        moving: Sequence[bool],
        outputs: Sequence[bool],
    ) -> list[Any]:
        """A program whose inputs and outputs are wide where they are marked."""
        found = evaluate(program, list(map(Value, inputs, moving)), self.apply)
        return self.widen_where(outputs, [out.array for out in found])

    def parameter(self, value: Any) -> Any:
        """A parameter of an operation: dtypes and programs in it are wide."""
        if isinstance(value, np.dtype):
            return self.wide(value)
        if not isinstance(value, Jaxpr | ClosedJaxpr):
            return value
        program = closed(value)
        inputs = [
            jax.ShapeDtypeStruct(x.aval.shape, self.wide(x.aval.dtype))
            for x in program.jaxpr.invars
        ]
        marks = [True] * len(inputs), [True] * len(program.jaxpr.outvars)
        wide = jax.make_jaxpr(lambda *arrays: self.run(program, arrays, *marks))(
            *inputs
        )
        return wide if isinstance(value, ClosedJaxpr) else wide.jaxpr

    def wide(self, dtype: Any) -> Any:
        """float64, or complex128, for what is at least as precise as the params."""
        if not jnp.issubdtype(dtype, jnp.inexact) or unit_roundoff(dtype) > self.unit:
            return dtype
        is_complex = jnp.issubdtype(dtype, jnp.complexfloating)
        return np.dtype(np.complex128 if is_complex else np.float64)

    def is_kept(self, mantissa_bits: int) -> bool:
        """Whether rounding to so many bits is to the params' precision, or finer."""
        return 2.0 ** -(mantissa_bits + 1) <= self.unit

    def widen(self, array: Any) -> Any:
        return _convert(array, self.wide(array.dtype))

    def widen_where(self, moving: Sequence[bool], arrays: Sequence[Any]) -> list[Any]:
        return [
            self.widen(array) if is_moving else array
            for array, is_moving in zip(arrays, moving, strict=True)
        ]


def _convert(array: Any, dtype: Any) -> Any:
    same = array.dtype == dtype
    return array if same else jax.lax.convert_element_type(array, dtype)


def _is_key(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
