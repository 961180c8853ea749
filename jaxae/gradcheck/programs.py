"""Traced programs (jaxprs): how to evaluate them, and what depends on the inputs."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


class Value(NamedTuple):
    """An array, and whether it depends on the inputs of the outermost program."""

    array: Any
    is_dependent: bool


def evaluate(
    program: ClosedJaxpr,
    inputs: Sequence[Value],
    apply: Callable[[Any, list[Value]], list[Value]],
) -> list[Value]:
    """The outputs of a program, each equation evaluated by `apply(eqn, operands)`."""
    jaxpr = program.jaxpr
    values = dict(zip(jaxpr.invars, inputs, strict=True))
    constants = (Value(const, False) for const in program.consts)
    values.update(zip(jaxpr.constvars, constants, strict=True))

    def read(atom: Any) -> Value:
        if not isinstance(atom, Literal):
            return values[atom]
        return Value(np.asarray(atom.val, getattr(atom.aval, "dtype", None)), False)

    for eqn in jaxpr.eqns:
        outputs = apply(eqn, [read(atom) for atom in eqn.invars])
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def bind_primitive(eqn: Any, arrays: Sequence[Any], params: Any) -> list[Any]:
    """The outputs of an equation's primitive for other arrays and parameters."""
    params = eqn.primitive.get_bind_params(params)
    outputs = eqn.primitive.bind(*arrays, **params)
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def programs_in(eqn: Any) -> list[ClosedJaxpr]:
    """The programs among the parameters of an equation."""
    leaves = jax.tree.leaves(tuple(eqn.params.values()))
    return [
        close_jaxpr(leaf) for leaf in leaves if isinstance(leaf, Jaxpr | ClosedJaxpr)
    ]


def close_jaxpr(program: Jaxpr | ClosedJaxpr) -> ClosedJaxpr:
    """The program as a ClosedJaxpr; an open one has no constants."""
    return program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, ())


def called_program(eqn: Any) -> ClosedJaxpr | None:
    """The program that `jit`, `remat` or a custom rule applies to its operands."""
    programs = programs_in(eqn)
    if eqn.primitive.name in _CONTROL_FLOW or len(programs) != 1:
        return None
    jaxpr = programs[0].jaxpr
    is_call = _types(jaxpr.invars) == _types(eqn.invars)
    is_call = is_call and _types(jaxpr.outvars) == _types(eqn.outvars)
    return programs[0] if is_call else None


def _types(atoms: Sequence[Any]) -> list[Any]:
    avals = (atom.aval for atom in atoms)
    return [
        (type(aval), getattr(aval, "shape", None), getattr(aval, "dtype", None))
        for aval in avals
    ]


def propagate_dependence(
    jaxpr: Jaxpr, dependent: Sequence[bool], visit: Callable[[Any], Any] = bool
) -> list[bool]:
    """Which outputs depend on the inputs marked `dependent`.

    `visit` is called with every dependent operation, at any depth. For a loop, a branch
    or a call these are the operations inside it.
    """
    marks = dict(zip(jaxpr.invars, dependent, strict=True))

    def read(atom: Any) -> bool:
        return not isinstance(atom, Literal) and marks.get(atom, False)

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        if any(operands):
            outputs = dependent_outputs(eqn, operands, visit)
            marks.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def dependent_outputs(
    eqn: Any, dependent: Sequence[bool], visit: Callable[[Any], Any] = bool
) -> list[bool]:
    """Which outputs of an equation depend on the operands marked `dependent`."""
    program = called_program(eqn)
    if program is not None:
        return propagate_dependence(program.jaxpr, dependent, visit)
    if eqn.primitive.name in _CONTROL_FLOW:
        return _CONTROL_FLOW[eqn.primitive.name](eqn.params, list(dependent), visit)
    visit(eqn)
    for program in programs_in(eqn):
        propagate_dependence(program.jaxpr, [True] * len(program.jaxpr.invars), visit)
    return [True] * len(eqn.outvars)


def carry_range(params: Any) -> tuple[int, int]:
    """The range of a scan's operands that are its carry: first, and last plus one."""
    if "ft_in" in params:  # from jax 0.12 on
        num_consts, num_carry, _ = map(len, params["ft_in"].unpack())
    else:
        num_consts, num_carry = params["num_consts"], params["num_carry"]
    return num_consts, num_consts + num_carry


def _through_scan(params: Any, dependent: list[bool], visit: Any) -> list[bool]:
    first, last = carry_range(params)
    body = close_jaxpr(params["jaxpr"]).jaxpr
    carry = dependent[first:last]
    while True:
        inputs = [*dependent[:first], *carry, *dependent[last:]]
        outputs = propagate_dependence(body, inputs, visit)
        next_carry = [a or b for a, b in zip(carry, outputs, strict=False)]
        if next_carry == carry:
            return [*carry, *outputs[len(carry) :]]
        carry = next_carry


def _through_while(params: Any, dependent: list[bool], visit: Any) -> list[bool]:
    """If the condition is dependent, so is the whole carry."""
    first = params["cond_nconsts"]
    last = first + params["body_nconsts"]
    condition, body = params["cond_jaxpr"].jaxpr, params["body_jaxpr"].jaxpr
    carry = dependent[last:]
    while True:
        inputs = [*dependent[:first], *carry]
        [is_condition_dependent] = propagate_dependence(condition, inputs, visit)
        inputs = [*dependent[first:last], *carry]
        outputs = propagate_dependence(body, inputs, visit)
        next_carry = [
            is_condition_dependent or a or b
            for a, b in zip(carry, outputs, strict=True)
        ]
        if next_carry == carry:
            return carry
        carry = next_carry


def _through_cond(params: Any, dependent: list[bool], visit: Any) -> list[bool]:
    index, *operands = dependent
    branches = [
        propagate_dependence(branch.jaxpr, operands, visit)
        for branch in params["branches"]
    ]
    return [index or any(outputs) for outputs in zip(*branches, strict=True)]


_CONTROL_FLOW = {
    "scan": _through_scan,
    "while": _through_while,
    "cond": _through_cond,
}
