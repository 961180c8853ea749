"""Checks of rules in isolation: check_vjp and check_jvp."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxae.gradcheck import check_jvp, check_vjp


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def verdicts(report):
    return {path: leaf.verdict for path, leaf in report.leaves.items()}


def failed(report):
    return {path for path, leaf in report.leaves.items() if not leaf.ok}


PARAMS = {"W": normal(6, 4), "b": normal(6, seed=1)}
X = normal(8, 4, seed=2)


def top_k(p, X):
    """The latents of a top-k encoder, their indices, and all pre-activations."""
    a = X @ p["W"].T + p["b"][None]
    values, indices = jax.lax.top_k(jax.nn.relu(a), 3)
    return {"z": values, "index": indices, "pre_acts": a}


@jax.custom_vjp
def fused(p, X):
    return top_k(p, X)


def _fused_bwd(residuals, cotangents):
    p, X = residuals  # the bug: the cotangent of pre_acts is ignored
    _, pull = jax.vjp(lambda p, X: top_k(p, X)["z"], p, X)
    return pull(cotangents["z"])


fused.defvjp(lambda p, X: (top_k(p, X), (p, X)), _fused_bwd)


def right_vjp(p, X, cotangents):
    return jax.vjp(lambda p: top_k(p, X), p)[1](cotangents)[0]


def right_jvp(p, X, tangents):
    return jax.jvp(lambda p: top_k(p, X), (p,), (tangents,))[1]


# --- Vector-Jacobian products -----------------------------------------------------


@pytest.mark.parametrize("vjp", [None, right_vjp], ids=["its own", "claimed"])
def test_every_output_of_a_right_rule_is_correct(vjp):
    report = check_vjp(top_k, PARAMS, X, vjp=vjp)
    assert report.ok and report.ignored == ("index",)
    assert set(report.leaves) == {
        f"{output} -> {leaf}" for output in ("z", "pre_acts", "all") for leaf in "Wb"
    }


def test_an_ignored_cotangent_is_detected_and_the_other_output_is_correct():
    report = check_vjp(fused, PARAMS, X)
    assert failed(report) == {"pre_acts -> W", "pre_acts -> b", "all -> W", "all -> b"}
    assert report.leaves["pre_acts -> W"].hint == "zero"
    claimed = check_vjp(
        top_k, PARAMS, X, vjp=lambda p, X, dy: _fused_bwd((p, X), dy)[0]
    )
    assert failed(claimed) == failed(report)
    assert set(verdicts(claimed).values()) == {"correct", "wrong"}


def test_a_rule_right_for_each_output_but_not_for_both_is_detected():
    def fn(x):
        return jnp.sin(x), x**2

    def vjp(x, cotangents):
        first, second = cotangents
        both = jnp.any(first != 0) & jnp.any(second != 0)
        return jnp.cos(x) * first + 2 * x * second * jnp.where(both, 0.5, 1.0)

    assert failed(check_vjp(fn, normal(5), vjp=vjp)) == {"all -> params"}


def test_one_output_and_one_leaf_are_keyed_by_the_leafs_path():
    report = check_vjp(jnp.sin, normal(5), vjp=lambda x, dy: dy * jnp.cos(x))
    assert report.ok and set(report.leaves) == {""}
    wrong = check_vjp(jnp.sin, normal(5), vjp=lambda x, dy: 1.01 * dy * jnp.cos(x))
    assert wrong.leaves[""].hint == "off by a factor 1.010"
    assert report.cost["claim"] == 10 and report.cost["fn"] > 20


def test_a_declared_straight_through_output_is_ok():
    def fn(x):
        return x + jax.lax.stop_gradient(jnp.round(x) - x)

    x = jnp.asarray([0.3, 1.2, -0.7])
    assert verdicts(check_vjp(fn, x)) == {"": "surrogate"}
    assert check_vjp(fn, x, surrogate=[""]).ok


# --- Jacobian-vector products -----------------------------------------------------


@pytest.mark.parametrize("jvp", [None, right_jvp], ids=["its own", "claimed"])
def test_every_leaf_of_a_right_jvp_is_correct(jvp):
    report = check_jvp(top_k, PARAMS, X, jvp=jvp)
    assert report.ok and report.ignored == ("index",)
    assert set(report.leaves) == {
        f"{leaf} -> {output}"
        for leaf in ("W", "b", "all")
        for output in ("z", "pre_acts")
    }


def test_an_ignored_tangent_is_detected():
    def jvp(p, X, tangents):
        return right_jvp(p, X, tangents | {"b": jnp.zeros_like(tangents["b"])})

    report = check_jvp(top_k, PARAMS, X, jvp=jvp)
    outputs = ("z", "pre_acts")
    assert failed(report) == {
        f"{leaf} -> {o}" for leaf in ("b", "all") for o in outputs
    }
    assert report.leaves["b -> z"].hint == "zero"


def test_one_wrong_output_among_2000_is_detected():
    def jvp(x, dx):
        return (jnp.cos(x) * dx).at[77].add(0.01)

    assert check_jvp(jnp.sin, normal(2000)).ok
    leaf = check_jvp(jnp.sin, normal(2000), jvp=jvp).leaves[""]
    assert leaf.verdict == "wrong" and leaf.worst.index == (77,)


def test_a_steep_custom_rule_is_detected_at_any_size():
    @jax.custom_jvp
    def sine(x):
        return jnp.sin(x)

    @sine.defjvp
    def _(primals, tangents):
        return jnp.sin(primals[0]), 1.5 * jnp.cos(primals[0]) * tangents[0]

    for size in (1, 600, 2000):
        leaf = check_jvp(sine, normal(size)).leaves[""]
        assert leaf.verdict == "surrogate" and leaf.hint == "off by a factor 1.500"


def test_a_declared_leaf_does_not_excuse_the_others():
    def fn(p):
        return jnp.round(p["w"]) * p["v"]

    def jvp(p, t):
        return t["w"] * p["v"] + 2 * jnp.round(p["w"]) * t["v"]

    p = {"w": jnp.asarray([1.2, -0.7]), "v": normal(2)}
    straight = check_jvp(fn, p, jvp=jvp, surrogate=["w"])
    assert not straight.leaves["v -> output"].ok
    assert "all -> output" not in straight.leaves


def test_a_jump_in_a_tangent_is_a_kink():
    def claim(slope):
        return lambda x, dx: jnp.where(x > 0, dx, jnp.where(x < 0, 0, slope * dx))

    x = jnp.asarray([-1.0, 0.0, 2.0])
    inside = check_jvp(jax.nn.relu, x, jvp=claim(0.5)).leaves[""]
    outside = check_jvp(jax.nn.relu, x, jvp=claim(2.0)).leaves[""]
    assert inside.verdict == outside.verdict == "kink"
    assert inside.ok and not outside.ok


# --- Complex numbers, other leaves, errors ----------------------------------------

Z = jnp.asarray(normal(4) + 1j * normal(4, seed=1), jnp.complex64)


def test_complex_rules_follow_the_conventions_of_jax():
    def fn(z):
        return {"a": jnp.sin(z) * 2, "b": jnp.abs(z)}

    assert check_vjp(fn, Z).ok and check_jvp(fn, Z).ok
    assert check_vjp(jnp.sin, Z, vjp=lambda z, dy: dy * jnp.cos(z)).ok
    assert not check_vjp(jnp.sin, Z, vjp=lambda z, dy: dy * jnp.conj(jnp.cos(z))).ok
    assert check_jvp(jnp.conj, Z, jvp=lambda z, dz: jnp.conj(dz)).ok
    leaf = check_jvp(jnp.conj, Z, jvp=lambda z, dz: dz).leaves[""]
    assert leaf.hint == "conjugated" and isinstance(leaf.worst.true, complex)


def test_integer_leaves_get_float0_as_in_jax():
    params = {"w": normal(3), "n": jnp.int32(2), "none": None}

    def fn(p):
        return p["w"] ** p["n"], p["n"] + 1

    def vjp(p, cotangents):
        dy, dn = cotangents
        assert dn.dtype == jax.dtypes.float0
        return {"w": 2 * p["w"] * dy, "n": None, "none": None}

    def jvp(p, t):
        assert t["n"].dtype == jax.dtypes.float0 and t["none"] is None
        return 2 * p["w"] * t["w"], None

    report = check_vjp(fn, params, vjp=vjp)
    assert report.ok and report.ignored == ("1", "n", "none")
    assert check_jvp(fn, params, jvp=jvp).ok
    assert check_vjp(fn, params).ok and check_jvp(fn, params).ok


def on_the_host(p):
    return jax.pure_callback(np.sum, jax.ShapeDtypeStruct((), p.dtype), p)


def test_each_error_is_one_sentence():
    x = normal(3)
    for function, arguments, options, message in [
        (check_vjp, (3, x), {}, "fn must be a function"),
        (check_vjp, (jnp.sin, x), {"vjp": 3}, "vjp must be a function"),
        (check_jvp, (jnp.sin, x), {"jvp": 3}, "jvp must be a function"),
        (check_vjp, (jnp.argmax, x), {}, "at least one floating-point array"),
        (check_jvp, (jnp.argmax, x), {}, "at least one floating-point array"),
        (
            check_vjp,
            (jnp.sin, x),
            {"vjp": lambda x, dy: dy[:2]},
            "vjp must return real",
        ),
        (
            check_jvp,
            (jnp.sin, x),
            {"jvp": lambda x, dx: dx[:2]},
            "jvp must return real",
        ),
        (
            check_jvp,
            (lambda p: fused(p, X), PARAMS),
            {},
            "fn must be differentiable in leaf 'W', but JAX says can't apply forward",
        ),
        (check_vjp, (on_the_host, x), {}, "in leaf 'params', but JAX says Pure"),
        (check_jvp, (on_the_host, x), {}, "pass tangents of your own as jvp="),
        (check_jvp, (jnp.sin, x), {"key": 0}, "key must be one JAX random key"),
        (check_jvp, (jnp.sin, x), {"surrogate": ["W"]}, "paths among ['params']"),
    ]:
        with pytest.raises(ValueError) as caught:
            function(*arguments, **options)
        assert message in str(caught.value), str(caught.value)


def test_the_same_key_gives_the_same_report():
    def fn(x):
        return jnp.sin(x), jnp.cos(x)

    for function in (check_vjp, check_jvp):
        one, two, other = (
            function(fn, normal(200), key=jax.random.key(seed)).to_json()
            for seed in (1, 1, 2)
        )
        assert one == two != other
