"""Programs that JAX traced: how they are evaluated, and what depends on what."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


class Value(NamedTuple):
    """An array, and whether it depends on the params."""

    array: Any
    is_moving: bool


def evaluate(
    program: ClosedJaxpr,
    inputs: Sequence[Value],
    apply: Callable[[Any, list[Value]], list[Value]],
) -> list[Value]:
    """The outputs of a program whose equations are computed by `apply`."""
    jaxpr = program.jaxpr
    values = dict(zip(jaxpr.invars, inputs, strict=True))
    still = (Value(const, False) for const in program.consts)
    values.update(zip(jaxpr.constvars, still, strict=True))

    def read(atom: Any) -> Value:
        if not isinstance(atom, Literal):
            return values[atom]
        return Value(np.asarray(atom.val, getattr(atom.aval, "dtype", None)), False)

    for eqn in jaxpr.eqns:
        outputs = apply(eqn, [read(atom) for atom in eqn.invars])
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def bind(eqn: Any, arrays: Sequence[Any], params: Any) -> list[Any]:
    """What an equation computes of other arrays."""
    params = eqn.primitive.get_bind_params(params)
    outputs = eqn.primitive.bind(*arrays, **params)
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def programs_in(eqn: Any) -> list[ClosedJaxpr]:
    """The programs among the parameters of an equation."""
    leaves = jax.tree.leaves(tuple(eqn.params.values()))
    return [closed(leaf) for leaf in leaves if isinstance(leaf, Jaxpr | ClosedJaxpr)]


def closed(program: Any) -> ClosedJaxpr:
    """A program with its constants, of which one that is open has none."""
    return program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, ())


def called(eqn: Any) -> ClosedJaxpr | None:
    """What `jit`, `remat` or a custom rule calls on the operands of its equation."""
    inner = programs_in(eqn)
    if eqn.primitive.name in _STRUCTURES or len(inner) != 1:
        return None
    program = inner[0].jaxpr
    is_call = _types(program.invars) == _types(eqn.invars)
    is_call = is_call and _types(program.outvars) == _types(eqn.outvars)
    return inner[0] if is_call else None


def _types(atoms: Sequence[Any]) -> list[Any]:
    avals = (atom.aval for atom in atoms)
    return [
        (type(aval), getattr(aval, "shape", None), getattr(aval, "dtype", None))
        for aval in avals
    ]


def follow(
    jaxpr: Jaxpr, moving: Sequence[bool], visit: Callable[[Any], Any] = bool
) -> list[bool]:
    """Which outputs depend on the inputs that are marked.

    `visit` sees every operation, at any depth, that has an operand that does; loops,
    branches and calls are seen by what is in them.
    """
    marks = dict(zip(jaxpr.invars, moving, strict=True))

    def read(atom: Any) -> bool:
        return not isinstance(atom, Literal) and marks.get(atom, False)

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        if any(operands):
            outputs = outputs_that_move(eqn, operands, visit)
            marks.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def outputs_that_move(
    eqn: Any, moving: Sequence[bool], visit: Callable[[Any], Any] = bool
) -> list[bool]:
    """Which outputs of an equation depend on the operands that are marked."""
    inner = called(eqn)
    if inner is not None:
        return follow(inner.jaxpr, moving, visit)
    if eqn.primitive.name in _STRUCTURES:
        return _STRUCTURES[eqn.primitive.name](eqn.params, list(moving), visit)
    visit(eqn)
    for inner in programs_in(eqn):
        follow(inner.jaxpr, [True] * len(inner.jaxpr.invars), visit)
    return [True] * len(eqn.outvars)


def carried(params: Any) -> tuple[int, int]:
    """The first operand of a scan that is carried, and the first that is not."""
    if "ft_in" in params:  # from jax 0.12 on
        num_consts, num_carry, _ = map(len, params["ft_in"].unpack())
    else:
        num_consts, num_carry = params["num_consts"], params["num_carry"]
    return num_consts, num_consts + num_carry


def _through_scan(params: Any, moving: list[bool], visit: Any) -> list[bool]:
    first, last = carried(params)
    carry = moving[first:last]
    while True:
        inputs = [*moving[:first], *carry, *moving[last:]]
        outputs = follow(closed(params["jaxpr"]).jaxpr, inputs, visit)
        after = [a or b for a, b in zip(carry, outputs, strict=False)]
        if after == carry:
            return [*carry, *outputs[len(carry) :]]
        carry = after


def _through_while(params: Any, moving: list[bool], visit: Any) -> list[bool]:
    """All that is carried depends on what decides how often the loop runs."""
    first = params["cond_nconsts"]
    last = first + params["body_nconsts"]
    carry = moving[last:]
    while True:
        [decides] = follow(params["cond_jaxpr"].jaxpr, [*moving[:first], *carry], visit)
        outputs = follow(
            params["body_jaxpr"].jaxpr, [*moving[first:last], *carry], visit
        )
        after = [decides or a or b for a, b in zip(carry, outputs, strict=True)]
        if after == carry:
            return carry
        carry = after


def _through_cond(params: Any, moving: list[bool], visit: Any) -> list[bool]:
    index, *operands = moving
    branches = [follow(b.jaxpr, operands, visit) for b in params["branches"]]
    return [index or any(outputs) for outputs in zip(*branches, strict=True)]


_STRUCTURES = {"scan": _through_scan, "while": _through_while, "cond": _through_cond}
