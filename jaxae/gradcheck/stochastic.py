"""A function in which whatever is rounded moves by its last bit.

Parker, "Monte Carlo arithmetic", 1997: what then changes is what rounding may change.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Literal

# The primitives that round; all others select, compare or rearrange, so that what is
# equal stays equal. Loops and branches move as a whole, by what comes out of them.
_ROUNDING = frozenset(
    "acos acosh add add_any asin asinh atan atan2 atanh cbrt cond conv_general_dilated "
    "cos cosh cumlogsumexp cumprod cumsum digamma div dot_general erf erf_inv erfc exp "
    "exp2 expm1 integer_pow lgamma log log1p logistic mul pow reduce_prod reduce_sum "
    "rsqrt scan scatter-add sin sinh sqrt square sub tan tanh while".split()
)
_CALLS = {  # where each keeps what it calls
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "jit": "jaxpr",
    "remat2": "jaxpr",
}


_MANY = 500  # equations


class _Value(NamedTuple):
    array: Any
    is_moving: bool  # depends on the params


def shaken(
    function: Callable[[Any], Any], tree: Any
) -> Callable[[Any, int], Any] | None:
    """`(tree, seed) -> function(tree)`, all that rounds in it moved at random.

    None if the function cannot be traced: Python's branches and NumPy look at values.
    """

    def run(consts: list[Any], leaves: list[Any], seed: Any) -> list[Any]:
        inputs = [_Value(leaf, True) for leaf in leaves]
        outputs = _Shaker(jnp.uint32(seed)).evaluate(closed.jaxpr, consts, inputs)
        return [out.array for out in outputs]

    def shake(tree: Any, seed: int) -> Any:
        outputs = evaluate(closed.consts, jax.tree.leaves(tree), np.uint32(seed))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    try:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(tree)
        # Where there are very many operations, compiling them takes longest.
        is_long = _num_equations(closed.jaxpr) > _MANY
        evaluate = run if is_long else jax.jit(run)
        jax.eval_shape(run, closed.consts, jax.tree.leaves(tree), np.uint32(0))
    except Exception:  # a function may fail on tracers in its own way
        return None
    return shake


class _Shaker:
    """Evaluates expressions; what depends on no moving value stays as it is.

    So random numbers that are compared with a threshold draw the same mask.
    """

    def __init__(self, seed: Any) -> None:
        self.salt = seed

    def evaluate(
        self, jaxpr: Jaxpr, consts: Iterable[Any], inputs: Iterable[_Value]
    ) -> list[_Value]:
        values = dict(zip(jaxpr.invars, inputs, strict=True))
        still = (_Value(const, False) for const in consts)
        values.update(zip(jaxpr.constvars, still, strict=True))

        def read(atom: Any) -> _Value:
            if isinstance(atom, Literal):
                return _Value(atom.val, False)
            return values[atom]

        for eqn in jaxpr.eqns:
            outputs = self.apply(eqn, [read(atom) for atom in eqn.invars])
            values.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def apply(self, eqn: Any, operands: list[_Value]) -> list[_Value]:
        name, params = eqn.primitive.name, eqn.params
        if name in _CALLS:
            inner = params[_CALLS[name]]
            consts = getattr(inner, "consts", ())  # one that is not closed has none
            return self.evaluate(getattr(inner, "jaxpr", inner), consts, operands)
        params = eqn.primitive.get_bind_params(params)
        outputs = eqn.primitive.bind(*(x.array for x in operands), **params)
        outputs = outputs if eqn.primitive.multiple_results else [outputs]
        is_moving = any(x.is_moving for x in operands)
        if is_moving and name in _ROUNDING:
            bits = _last_bits(eqn)
            outputs = [self.move(out, bits) for out in outputs]
        return [_Value(out, is_moving) for out in outputs]

    def move(self, x: Any, bits: float) -> Any:
        """x (1 + 2 u bits s), s = 1 or -1 from a hash of a salt and the place."""
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            parts = (self.move(part(x), bits) for part in (jnp.real, jnp.imag))
            return jax.lax.complex(*parts)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        self.salt = self.salt * np.uint32(0x9E3779B1) + np.uint32(1)
        signs = jax.lax.iota(np.uint32, x.size) + self.salt
        for factor in (0x85EBCA6B, 0xC2B2AE35, 1):
            signs = (signs ^ (signs >> np.uint32(15))) * np.uint32(factor)
        eps = float(jnp.finfo(x.dtype).eps) * bits
        factors = jnp.where(signs >> np.uint32(31), 1 + eps, 1 - eps).astype(x.dtype)
        return x * factors.reshape(x.shape)


def _last_bits(eqn: Any) -> float:
    """By how many last bits what an operation returns may be off: 1, more for sums.

    A sum of N terms, added up in 16 lanes, is rounded N / 16 times in sequence.
    """
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        num_terms = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
    elif eqn.primitive.name in ("reduce_sum", "cumsum"):
        num_terms = eqn.invars[0].aval.size / max(eqn.outvars[0].aval.size, 1)
    else:
        return 1.0
    return math.sqrt(1 + num_terms / 16)


def rounds_coarsely(jaxpr: Jaxpr) -> bool:
    """Whether what depends on its inputs is rounded to less than float64 somewhere."""
    moving = set(jaxpr.invars)
    for eqn in jaxpr.eqns:
        operands = {atom for atom in eqn.invars if not isinstance(atom, Literal)}
        if not operands & moving:
            continue
        moving |= set(eqn.outvars)
        if "callback" in eqn.primitive.name or any(
            [_is_narrow(out.aval) for out in eqn.outvars]
            + [rounds_coarsely(part) for part in _inner(eqn)]
        ):
            return True
    return False


def _is_narrow(aval: Any) -> bool:
    dtype = getattr(aval, "dtype", np.dtype(bool))
    return jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits < 64


def _inner(eqn: Any) -> list[Jaxpr]:
    """What an equation calls."""
    params = jax.tree.leaves(tuple(eqn.params.values()))
    parts = (getattr(param, "jaxpr", param) for param in params)
    return [part for part in parts if isinstance(part, Jaxpr)]


def _num_equations(jaxpr: Jaxpr) -> int:
    inner = (part for eqn in jaxpr.eqns for part in _inner(eqn))
    return len(jaxpr.eqns) + sum(map(_num_equations, inner))
