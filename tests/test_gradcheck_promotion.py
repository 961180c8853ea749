"""The function checked is the caller's program, promoted to float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxae import gradcheck
from jaxae.gradcheck.functions import Float64Function


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


KEY = jax.random.key(3)
KERNEL, MATRIX = normal(3, 1, 3, 3, seed=1), np.asarray(normal(6, 6, seed=2))


def dropout(p, key):
    return jnp.sum(jax.random.bernoulli(key, 0.5, p.shape) * p**2)


def dropout_at_a_learned_rate(p, key):
    keep = jax.random.bernoulli(key, jax.nn.sigmoid(p[0]), p.shape)
    return jnp.sum(keep * p**2)


def noise(p, _):
    return jnp.sum(jnp.sin(p * jax.random.normal(KEY, p.shape)))


def convolution(p, _):
    image = p.reshape(1, 1, 2, 3)
    return jnp.sum(lax.conv_general_dilated(image, KERNEL, (1, 1), "SAME") ** 2)


def numpy_constant(p, _):
    return jnp.sum(jnp.tanh(MATRIX @ p))


def scan_with_noise(p, _):
    def step(carry, key):
        carry = jnp.cos(carry + p * jax.random.uniform(key, p.shape))
        return carry, jnp.sum(carry)

    carry, sums = lax.scan(step, jnp.zeros(6, jnp.float32), jax.random.split(KEY, 3))
    return jnp.sum(carry) + jnp.sum(sums**2)


def loops_and_branches(p, _):
    def body(i, carry):
        return jnp.sin(carry * p) + lax.cond(i < 2, lambda: 0.1, lambda: 0.3)

    first = lax.fori_loop(0, 3, body, jnp.ones(6, jnp.float32))
    return jnp.sum(first) * lax.cond(p[0] > -9, jnp.sum, lambda p: p[0], p**2)


@pytest.mark.parametrize(
    "terms",
    [
        (dropout, dropout_at_a_learned_rate, noise, convolution, numpy_constant),
        (scan_with_noise, loops_and_branches),
    ],
    ids=["one after another", "loops and branches"],
)
def test_the_callers_program_is_checked(terms):
    """Each term has one leaf with a right claim and one with a wrong claim."""

    def fn(p, key):
        leaves = {name: jnp.stack(list(pair.values())) for name, pair in p.items()}
        return sum(
            jnp.sum(jax.vmap(f, (0, None))(leaves[f.__name__], key)) for f in terms
        )

    def claim(p, key):
        grads = jax.grad(fn)(p, key)
        for term_grads in grads.values():
            k = jnp.argmax(jnp.abs(term_grads["wrong"]))
            term_grads["wrong"] = term_grads["wrong"].at[k].mul(1.001)
        return grads

    params = {f.__name__: {"right": normal(6), "wrong": normal(6)} for f in terms}
    report = gradcheck.check(fn, params, KEY, grad=claim)
    for path, leaf in report.leaves.items():
        expected = "correct" if path.endswith("right") else "wrong"
        assert leaf.verdict == expected and leaf.resolution < 1e-5, str(report)
    assert not report.notes


def test_the_callers_custom_rules_are_checked():
    @functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
    def square(x, factor):
        return jnp.sum(factor * x**2)

    square.defvjp(
        lambda x, factor: (square(x, factor), x),
        lambda factor, x, dy: (2 * factor * x * dy,),
    )

    @jax.custom_jvp
    def sine(x):
        return jnp.sin(x)

    sine.defjvp(lambda x, dx: (sine(*x), 1.01 * jnp.cos(x[0]) * dx[0]))

    def fn(p, factor):
        right = lax.scan(
            lambda c, _: (0.5 * c + square(p["right"] + c, factor), None),
            jnp.float32(0),
            length=2,
        )[0]
        return right + jnp.sum(jax.checkpoint(sine)(p["wrong"]))

    params = {"right": 0.1 * normal(3), "wrong": normal(3)}
    report = gradcheck.check(fn, params, jnp.float32(0.7))
    verdicts = {path: leaf.verdict for path, leaf in report.leaves.items()}
    assert verdicts == {"right": "correct", "wrong": "surrogate"}, str(report)
    assert report.leaves["wrong"].hint == "off by a factor 1.010"
    assert not report.notes


def test_promoted_values_are_those_of_numpy_in_float64():
    weights, steps = normal(4, 3), 5

    def fn(floats, args):
        def step(carry):
            i, y = carry
            return i + 1, jnp.tanh(weights.T @ (weights @ y)) * 0.7

        y = lax.while_loop(lambda c: c[0] < steps, step, (0, floats["p"]))[1]
        loss = jnp.mean(jnp.exp(y.astype(jnp.float32)))
        # A solve and a scatter hold programs of their own.
        matrix = jnp.eye(3).at[0, 1].add(y[0]) * 3
        return {"y": y, "loss": loss, "solved": jnp.linalg.solve(matrix, y)}

    p = normal(3, seed=1)
    promoted = Float64Function(fn, {"p": p}, ())
    y = expected = np.asarray(p, np.float64)
    for _ in range(steps):
        weights64 = np.asarray(weights, np.float64)
        y = np.tanh(weights64.T @ (weights64 @ y)) * np.float64(np.float32(0.7))
    with jax.enable_x64(True):
        out = promoted({"p": expected})
    assert out["y"].dtype == out["loss"].dtype == np.float64 and not promoted.note
    np.testing.assert_allclose(out["y"], y, rtol=1e-12)  # some 100 roundings
    np.testing.assert_allclose(out["loss"], np.mean(np.exp(y)), rtol=1e-12)
    matrix = 3 * (np.eye(3) + np.outer([1, 0, 0], [0, y[0], 0]))
    np.testing.assert_allclose(out["solved"], np.linalg.solve(matrix, y), rtol=1e-12)


def test_random_numbers_are_those_that_the_caller_draws():
    def gradient(floats, args, seed):
        draw = jax.random.normal(KEY, (5,)) * 0.1 + args[0]
        loss = jax.vjp(lambda p: jnp.sum(p * draw), floats["p"])[1]
        return loss(seed)[0]

    shift = normal(5, seed=1)
    expected = jax.jit(lambda: jax.random.normal(KEY, (5,)) * 0.1 + shift)()
    promoted = Float64Function(gradient, {"p": normal(5)}, (shift,), jnp.float32(1))
    with jax.enable_x64(True):
        draw = promoted({"p": np.zeros(5)}, np.float64(1))
    np.testing.assert_allclose(draw, expected, rtol=3e-7)  # a fused multiply-add


def test_a_function_that_cannot_be_promoted_is_run_again_with_a_note():
    def branch(p):
        return jnp.sum(p**2) if p[0] > -9 else p[0]

    def on_the_host(p):
        shape = jax.ShapeDtypeStruct(p.shape, p.dtype)
        return jnp.sum(jax.pure_callback(lambda p: 2 * np.asarray(p), shape, p))

    for fn, grad, reason in (
        (branch, None, "boolean conversion"),
        (on_the_host, lambda p: jnp.full_like(p, 2), "pure_callback"),
    ):
        report = gradcheck.check(fn, normal(3), grad=grad)
        assert report.ok, str(report)
        assert any(
            note.startswith("fn is run again as Python") and reason in note
            for note in report.notes
        )
