"""A function in which whatever is rounded moves by its last bit.

Parker, "Monte Carlo arithmetic", 1997: what then changes is what rounding may change.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxae.gradcheck.programs import (
    Value,
    bind,
    called,
    evaluate,
    follow,
    programs_in,
)

# The primitives that round; all others select, compare or rearrange, so that what is
# equal stays equal. Loops and branches move as a whole, by what comes out of them.
_ROUNDING = frozenset(
    "acos acosh add add_any asin asinh atan atan2 atanh cbrt cond conv_general_dilated "
    "cos cosh cumlogsumexp cumprod cumsum digamma div dot_general erf erf_inv erfc exp "
    "exp2 expm1 integer_pow lgamma log log1p logistic mul pow reduce_prod reduce_sum "
    "rsqrt scan scatter-add sin sinh sqrt square sub tan tanh while".split()
)
_MANY = 500  # equations


def perturbed_claim(
    function: Callable[[Any], Any], tree: Any
) -> Callable[[Any, int], Any] | None:
    """`(tree, seed) -> function(tree)`, all that rounds in it moved at random.

    None if the function cannot be traced: Python's branches and NumPy look at values.
    """

    def run(consts: list[Any], leaves: list[Any], seed: Any) -> list[Any]:
        inputs = [Value(leaf, True) for leaf in leaves]
        bound = ClosedJaxpr(closed.jaxpr, consts)
        outputs = evaluate(bound, inputs, _Shaker(jnp.uint32(seed)).apply)
        return [out.array for out in outputs]

    def shake(tree: Any, seed: int) -> Any:
        outputs = compute(closed.consts, jax.tree.leaves(tree), np.uint32(seed))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    try:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(tree)
        # Where there are very many operations, compiling them takes longest.
        is_long = _num_equations(closed.jaxpr) > _MANY
        compute = run if is_long else jax.jit(run)
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

    def apply(self, eqn: Any, operands: list[Value]) -> list[Value]:
        program = called(eqn)
        if program is not None:
            return evaluate(program, operands, self.apply)
        outputs = bind(eqn, [x.array for x in operands], eqn.params)
        is_moving = any(x.is_moving for x in operands)
        if is_moving and eqn.primitive.name in _ROUNDING:
            bits = _last_bits(eqn)
            outputs = [self.move(out, bits) for out in outputs]
        return [Value(out, is_moving) for out in outputs]

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
    moving: list[Any] = []
    follow(jaxpr, [True] * len(jaxpr.invars), moving.append)
    return any(map(_is_coarse, moving))


def _is_coarse(eqn: Any) -> bool:
    """Whether an operation rounds to less than float64, or leaves JAX."""
    is_rounded = eqn.params.get("mantissa_bits", math.inf) < 52
    is_out_of_sight = "callback" in eqn.primitive.name and bool(eqn.outvars)
    return is_rounded or is_out_of_sight or any(_is_narrow(v.aval) for v in eqn.outvars)


def _is_narrow(aval: Any) -> bool:
    dtype = getattr(aval, "dtype", np.dtype(bool))
    return jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits < 64


def _num_equations(jaxpr: Jaxpr) -> int:
    inner = (part for eqn in jaxpr.eqns for part in programs_in(eqn))
    return len(jaxpr.eqns) + sum(_num_equations(part.jaxpr) for part in inner)
