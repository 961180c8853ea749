import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxae import gradcheck
from jaxae.gradcheck import Deviation

MODES = ["bfloat16", "float16", "float32", "float32, default matmul"]
EXACT = Deviation(0.0, 1.0, 0.0, 0.0, 0.0)
STEP = 2.0**-7  # between bfloat16 numbers from 1 to 2; float16 has 8 in there


def half_square(p):
    """Its gradient is p."""
    return jnp.sum(p**2) / 2


def tied_loss(params, X):
    z = jax.nn.sigmoid(X @ params["W"].T + params["b"][None])
    eta = z @ params["W"] + params["c"][None]
    return jnp.mean(jnp.sum(jax.nn.softplus(eta) - X * eta, axis=1))


def tied_grad_in_numpy(params, X):
    """The lecture's equations for sigmoid and Bernoulli, mean over the batch."""
    W, b, c, X = (np.asarray(leaf, np.float64) for leaf in (*params.values(), X))
    h = 1 / (1 + np.exp(-(X @ W.T + b)))
    d_c = (1 / (1 + np.exp(-(h @ W + c))) - X) / len(X)
    d_a = (d_c @ W.T) * h * (1 - h)
    return {"W": d_a.T @ X + h.T @ d_c, "b": d_a.sum(axis=0), "c": d_c.sum(axis=0)}


def tied_case():
    rng = np.random.default_rng(0)
    params = {"W": rng.normal(size=(6, 12)) / 3, "b": rng.normal(size=6)}
    params["c"] = rng.normal(size=12)
    X = rng.uniform(size=(16, 12))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (params, X))


# --- Deviations with a known value -------------------------------------------------


def test_rounding_the_params_is_measured_exactly():
    p = jnp.asarray([1 + STEP / 8, 0.5, -0.25])  # bfloat16 has 1 for the first
    modes = gradcheck.precision(half_square, p).leaves[""]
    assert list(modes) == MODES
    assert modes["bfloat16"].error == (STEP / 8) / (1 + STEP / 8)
    assert 1 - 1e-5 < modes["bfloat16"].cosine < 1
    assert modes["bfloat16"]._replace(error=0.0, cosine=1.0) == EXACT
    for mode in MODES[1:]:
        assert modes[mode] == EXACT._replace(cosine=pytest.approx(1, abs=1e-15))


def test_a_gradient_too_small_for_float16_underflows_there_only():
    def fn(p):
        return jnp.sum(p * jnp.asarray([1e-9, 1.0, 0.0], p.dtype))

    modes = gradcheck.precision(fn, jnp.ones(3)).leaves[""]
    assert modes["float16"].underflow == 1 / 2  # of the two that are not zero
    assert modes["float16"].error == pytest.approx(1e-9, rel=1e-6)
    assert all(modes[mode].underflow == 0 for mode in MODES if mode != "float16")


def test_a_gradient_too_large_for_float16_overflows_there_only():
    def fn(p):
        return jnp.sum(p * jnp.asarray([1e6, 1.0, 0.0, -1e6], p.dtype))

    modes = gradcheck.precision(fn, jnp.ones(4)).leaves[""]
    error, cosine, sign_flips, underflow, not_finite = modes["float16"]
    assert error == math.inf and math.isnan(cosine)
    assert (sign_flips, underflow, not_finite) == (0, 0, 1 / 2)
    assert modes["bfloat16"].not_finite == 0 and modes["bfloat16"].error < 2**-8


def test_a_value_too_large_for_float16_overflows_in_the_params():
    modes = gradcheck.precision(half_square, jnp.asarray([1e6, 1.0])).leaves[""]
    assert modes["float16"].not_finite == 1 / 2


def test_cancellation_flips_signs():
    def fn(p, x, y):  # its gradient is p + x - y - 1
        return jnp.sum(p**2 / 2 + p * (x - y - 1))

    x = jnp.asarray([1 + 0.4 * STEP, 1.0])  # bfloat16 rounds down
    y = jnp.asarray([1 + 0.6 * STEP, 0.5])  # bfloat16 rounds up
    modes = gradcheck.precision(fn, x, x, y).leaves[""]
    assert modes["bfloat16"].sign_flips == 1 / 2  # 0.2 STEP became -STEP
    assert modes["bfloat16"].error == pytest.approx(1.2 * STEP / 0.5, rel=1e-4)
    assert modes["float32"].sign_flips == 0


@pytest.mark.float16
def test_error_and_cosine_agree_with_numpy_in_an_autoencoder():
    params, X = tied_case()
    grad = jax.jit(jax.grad(tied_loss))
    result = gradcheck.precision(tied_loss, params, X, grad=grad)
    true = tied_grad_in_numpy(params, X)
    for mode in ("bfloat16", "float16", "float32"):
        cast = optax.tree.cast((params, X), mode)
        grads = jax.tree.map(lambda g: np.asarray(g, np.float64), grad(*cast))
        for path, modes in result.leaves.items():
            g, t = grads[path].ravel(), true[path].ravel()
            error = np.max(np.abs(g - t)) / np.max(np.abs(t))
            cosine = np.dot(g, t) / np.linalg.norm(g) / np.linalg.norm(t)
            assert modes[mode].error == pytest.approx(error, rel=1e-6)
            assert modes[mode].cosine == pytest.approx(cosine, abs=1e-14)
            assert modes[mode].sign_flips == np.mean(g * t < 0)


@pytest.mark.float16
def test_a_finer_precision_comes_closer():
    result = gradcheck.precision(tied_loss, *tied_case())
    for modes in result.leaves.values():
        for mode, unit in (("bfloat16", 2**-8), ("float16", 2**-11)):
            assert unit / 64 < modes[mode].error < 64 * unit
        # On a CPU, matrix products are in full precision by default.
        for mode in ("float32", "float32, default matmul"):
            assert 0 < modes[mode].error < 64 * 2**-24


# --- Zero, empty and tiny gradients ------------------------------------------------


@pytest.mark.float16
def test_a_zero_gradient_has_an_absolute_error():
    def grad(p):
        error = 1e-3 if p["wrong"].dtype == jnp.float16 else 0.0
        return {"wrong": jnp.full_like(p["wrong"], error), "right": 0 * p["right"]}

    params = {"wrong": jnp.ones(2), "right": jnp.ones(2)}
    result = gradcheck.precision(half_square, params, grad=grad)
    assert set(result.leaves["right"].values()) == {EXACT}
    assert result.leaves["wrong"]["float32"] == EXACT
    error = pytest.approx(1e-3, rel=1e-3)
    assert result.leaves["wrong"]["float16"] == EXACT._replace(error=error, cosine=0.0)


def test_empty_scalar_and_ignored_leaves():
    params = {"e": jnp.zeros((0, 3)), "n": 3, "s": 1.3, "x": None}
    result = gradcheck.precision(lambda p: p["s"] ** 2 / 2 + jnp.sum(p["e"]), params)
    assert set(result.leaves) == {"e", "s"} and result.ignored == ("n", "x")
    assert set(result.leaves["e"].values()) == {EXACT}
    assert result.leaves["s"]["float32"] == EXACT


def test_a_gradient_whose_squares_underflow_in_float64_still_has_a_direction():
    def grad(p):
        return jnp.asarray([3.0, 4.0], p.dtype) * (
            1e-200 if p.dtype == "float64" else 1
        )

    modes = gradcheck.precision(half_square, jnp.ones(2), grad=grad).leaves[""]
    assert modes["bfloat16"].cosine == pytest.approx(1)


# --- Casts of params and arguments -------------------------------------------------


def test_params_and_real_arrays_are_cast_and_nothing_else_is():
    calls = []

    def grad(p, x, labels, scale, name):
        assert type(scale) is float and name == "sum" and labels.dtype == jnp.int32
        calls.append((p.dtype, x.dtype, jax.config.jax_default_matmul_precision))
        return p

    args = np.ones(3), jnp.arange(3), 0.5, "sum"
    gradcheck.precision(half_square, jnp.ones(2), *args, grad=grad)
    oracle, *modes = [(str(p), str(x), matmul) for p, x, matmul in calls]
    assert oracle[:2] == ("float64", "float64")
    assert modes == [
        ("bfloat16", "bfloat16", "highest"),
        ("float16", "float16", "highest"),
        ("float32", "float32", "highest"),
        ("float32", "float32", "default"),
    ]


@pytest.mark.parametrize("fn", [lambda p, x: half_square(p), lambda p, x: p @ x])
def test_numpy_arrays_are_read_as_jax_reads_them(fn):
    x = np.linspace(0.1, 1, 7)

    def error_in_float32():
        return gradcheck.precision(fn, x, x).leaves[""]["float32"].error

    assert error_in_float32() == 0
    with jax.enable_x64(True):
        assert 2**-30 < error_in_float32() < 2**-24


def test_configuration_is_untouched():
    def settings():
        names = "jax_enable_x64", "jax_default_matmul_precision", "jax_default_device"
        return [getattr(jax.config, name) for name in names]

    before = settings()
    gradcheck.precision(half_square, jnp.ones(2))
    assert settings() == before
    assert jnp.asarray(1.0).dtype == jnp.float32


@pytest.mark.float16
def test_branches_in_python_keys_and_aux_work():
    def fn(p, key, count):
        keep = jax.random.bernoulli(key, jnp.float32(0.5), (count,))
        if p[0] > 0:
            p = 2 * p
        return jnp.sum(jnp.where(keep, p, 0) ** 2), {"keep": keep}

    result = gradcheck.precision(fn, jnp.ones(3), jax.random.key(1), 3, has_aux=True)
    assert result.leaves[""]["float16"].error == 0 and not result.unavailable


def test_a_mode_that_fails_is_reported_with_its_reason():
    def fn(p):
        if p.dtype == jnp.float16:
            raise TypeError("no float16 here\nand much more")
        return half_square(p)

    result = gradcheck.precision(fn, jnp.ones(2))
    assert result.unavailable == {"float16": "TypeError: no float16 here"}
    assert set(result.leaves[""]) == set(MODES) - {"float16"}
    assert "no float16: TypeError: no float16 here" in str(result)


def test_the_error_of_a_function_that_fails_in_float64_has_a_note():
    def fn(p):
        return jax.lax.fori_loop(0, 3, lambda _, y: y * jnp.sum(p), jnp.float32(1))

    with pytest.raises(TypeError) as caught:
        gradcheck.precision(fn, jnp.ones(2))
    assert "float64 params and args" in caught.value.__notes__[-1]


# --- Errors and the table ----------------------------------------------------------


@pytest.mark.parametrize(
    "fn, params, options, message",
    [
        (3, jnp.ones(3), {}, "fn must be a function of the params, got 3"),
        (jnp.sum, jnp.ones(3), {"grad": 3}, "grad must be a function"),
        (lambda p: p, jnp.ones(3), {}, "fn must return a real scalar"),
        (lambda p: (jnp.sum(p), 0), jnp.ones(3), {}, "has_aux=False"),
        (lambda p: 1.0, {"n": 3}, {}, "at least one floating-point leaf"),
        (half_square, {"z": jnp.ones(2, "complex64")}, {}, "leaf 'z' is complex"),
        (half_square, jnp.ones(3), {"grad": lambda p: p[:2]}, "shape (3,)"),
        (half_square, jnp.ones(3), {"grad": lambda p: (p, p)}, "same structure"),
        (
            half_square,
            jnp.ones(3),
            {"grad": lambda p: p.astype("float32")},
            "got float32 for leaf ''",
        ),
        (
            lambda p: jnp.sum(jnp.sqrt(p["w"])),
            {"w": jnp.asarray([1.0, 0.0])},
            {},
            "finite in float64, got inf in leaf 'w'",
        ),
    ],
)
def test_bad_input_raises_one_sentence(fn, params, options, message):
    with pytest.raises(ValueError) as caught:
        gradcheck.precision(fn, params, **options)
    assert message in str(caught.value)


@pytest.mark.float16
def test_the_table_has_a_row_for_each_leaf_and_mode():
    def fn(p):
        return 1e-9 * half_square(p["a"]) + half_square(p["b"])

    params = {"a": jnp.ones(2), "b": jnp.ones(3), "n": 1}
    result = gradcheck.precision(fn, params)
    title, head, *rows, ignored = str(result).splitlines()
    assert title.startswith("precision") and ignored.endswith(": n")
    assert head.split() == ["leaf", "precision", *Deviation._fields]
    assert len(rows) == 8
    assert [row[:1] for row in rows] == ["a", " ", " ", " ", "b", " ", " ", " "]
    column = head.index("precision")
    assert [row[column:].startswith(m) for row, m in zip(rows, 2 * MODES)] == [True] * 8
    assert rows[1].split() == ["float16", "1.0e+00", "0.000000", "0", "1", "0"]


def test_the_result_as_json():
    def fn(p):
        return jnp.sum(p["w"] * jnp.asarray(1e6, p["w"].dtype))

    result = gradcheck.precision(fn, {"w": jnp.ones(2), "n": 1})
    read = json.loads(result.to_json())
    float16 = read["leaves"]["w"].pop("float16")
    assert float16["error"] == "inf" and float16["cosine"] == "nan"
    assert float16["not_finite"] == 1
    for mode, deviation in read["leaves"]["w"].items():
        assert Deviation(**deviation) == result.leaves["w"][mode]
    assert read["ignored"] == ["n"] and read["unavailable"] == {}
