"""Monte Carlo arithmetic: a function with its rounding errors perturbed at random.

Every rounded result is changed by one last bit, up or down. The change of the outputs
then estimates their rounding error. Source: Parker, "Monte Carlo arithmetic", 1997.
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
    bind_primitive,
    called_program,
    evaluate,
    programs_in,
    propagate_dependence,
)

# The primitives that round. All others select, compare or rearrange values, so equal
# values stay equal. Of a loop or a branch only the outputs are perturbed.
_ROUNDING = frozenset(
    "acos acosh add add_any asin asinh atan atan2 atanh cbrt cond conv_general_dilated "
    "cos cosh cumlogsumexp cumprod cumsum digamma div dot_general erf erf_inv erfc exp "
    "exp2 expm1 integer_pow lgamma log log1p logistic mul pow reduce_prod reduce_sum "
    "rsqrt scan scatter-add sin sinh sqrt square sub tan tanh while".split()
)
_MAX_COMPILED_EQUATIONS = 500  # compiling a longer program takes longer than running it


def perturb_rounding(
    function: Callable[[Any], Any], tree: Any
) -> Callable[[Any, int], Any] | None:
    """`(tree, seed) -> function(tree)` with the result of every rounding perturbed.

    None if the function cannot be traced, as one that branches in Python on values.
    """

    def run(consts: list[Any], leaves: list[Any], seed: Any) -> list[Any]:
        inputs = [Value(leaf, True) for leaf in leaves]
        bound = ClosedJaxpr(program.jaxpr, consts)
        outputs = evaluate(bound, inputs, _Perturber(jnp.uint32(seed)).apply)
        return [out.array for out in outputs]

    def perturbed_function(tree: Any, seed: int) -> Any:
        outputs = compute(program.consts, jax.tree.leaves(tree), np.uint32(seed))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    try:
        program, shapes = jax.make_jaxpr(function, return_shape=True)(tree)
        is_long = _num_equations(program.jaxpr) > _MAX_COMPILED_EQUATIONS
        compute = run if is_long else jax.jit(run)
        jax.eval_shape(run, program.consts, jax.tree.leaves(tree), np.uint32(0))
    except Exception:  # a function may fail on tracers in its own way
        return None
    return perturbed_function


class _Perturber:
    """Evaluates equations and perturbs the results that depend on the inputs.

    Other results are exact, so random numbers below a threshold draw the same mask.
    """

    def __init__(self, seed: Any) -> None:
        self.salt = seed

    def apply(self, eqn: Any, operands: list[Value]) -> list[Value]:
        program = called_program(eqn)
        if program is not None:
            return evaluate(program, operands, self.apply)
        outputs = bind_primitive(eqn, [x.array for x in operands], eqn.params)
        is_dependent = any(x.is_dependent for x in operands)
        if is_dependent and eqn.primitive.name in _ROUNDING:
            bits = _last_bits(eqn)
            outputs = [self.perturb(out, bits) for out in outputs]
        return [Value(out, is_dependent) for out in outputs]

    def perturb(self, x: Any, bits: float) -> Any:
        """x (1 + 2 u bits s), with a sign s hashed from the salt and the index."""
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            real = self.perturb(jnp.real(x), bits)
            return jax.lax.complex(real, self.perturb(jnp.imag(x), bits))
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
    """The rounding error of an operation's result in last bits: 1, more for sums.

    A sum of N terms in 16 SIMD lanes is rounded N / 16 times in sequence.
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
    """Whether any operation on the inputs may round to less than float64."""
    dependent: list[Any] = []
    propagate_dependence(jaxpr, [True] * len(jaxpr.invars), dependent.append)
    return any(map(_is_coarse, dependent))


def _is_coarse(eqn: Any) -> bool:
    """Whether an operation rounds to less than float64, or is a call to the host."""
    is_rounded = eqn.params.get("mantissa_bits", math.inf) < 52
    is_callback = "callback" in eqn.primitive.name and bool(eqn.outvars)
    return is_rounded or is_callback or any(_is_narrow(v.aval) for v in eqn.outvars)


def _is_narrow(aval: Any) -> bool:
    dtype = getattr(aval, "dtype", np.dtype(bool))
    return jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits < 64


def _num_equations(jaxpr: Jaxpr) -> int:
    programs = (program for eqn in jaxpr.eqns for program in programs_in(eqn))
    return len(jaxpr.eqns) + sum(_num_equations(inner.jaxpr) for inner in programs)
