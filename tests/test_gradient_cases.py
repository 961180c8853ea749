"""The cases of the study gradient_bugs: each is wrong in the leaves it names only."""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "experiments"))
from _gradient_cases import CASES, Size, published

SIZES = (Size(5, 3, 4), Size(20, 10, 8))
BUGS = [name for name, case in CASES.items() if case.kind == "bug"]
# Right gradients for which autodiff is no oracle. Each has a test of its own below.
NO_ORACLE = {"|w| at exactly 0", "gradient exactly 0", "AuxK, residual detached"}
RIGHT = [name for name in CASES if name not in {*BUGS, *NO_ORACLE}]


def to_float64(leaf):
    leaf = np.asarray(leaf)
    is_real = jnp.issubdtype(leaf.dtype, jnp.floating)
    return leaf.astype(np.float64) if is_real else leaf


def problem(name, size, seed):
    inputs = CASES[name].function.inputs(np.random.default_rng(seed), size)
    return jax.tree.map(to_float64, inputs)


def by_path(tree):
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path): np.asarray(leaf) for path, leaf in flat}


def errors(name, size, seed):
    """The error of each leaf of the claim, relative to the leaf's largest entry."""
    case = CASES[name]
    params, *args = problem(name, size, seed)
    claim = case.grad(params, *args)
    truth = jax.jit(jax.grad(case.function.loss))(params, *args)
    assert jax.tree.structure(claim) == jax.tree.structure(truth)
    claim, truth = by_path(claim), by_path(truth)
    return {
        path: np.max(np.abs(claim[path] - true)) / (np.max(np.abs(true)) or 1.0)
        for path, true in truth.items()
    }


def test_there_are_enough_distinct_causes():
    causes = {CASES[name].cause for name in BUGS}
    assert len(causes) == len(BUGS) >= 30
    assert len(CASES) - len(BUGS) >= 15
    assert sum(bool(case.source) for case in CASES.values()) >= 10


def every_fourth(names):
    """Every fourth name, as in the quick study; all with --slow."""
    return [
        pytest.param(name, marks=[pytest.mark.slow] * bool(i % 4))
        for i, name in enumerate(names)
    ]


@pytest.mark.parametrize("name", every_fourth(BUGS))
def test_a_bug_is_wrong_in_its_own_leaves_only(name, x64):
    for seed in range(2):
        leaf_errors = errors(name, SIZES[0], seed)
        assert CASES[name].wrong and set(CASES[name].wrong) <= set(leaf_errors)
        for path, error in leaf_errors.items():
            assert error > 1e-4 if path in CASES[name].wrong else error < 1e-12


@pytest.mark.parametrize("name", every_fourth(RIGHT))
def test_a_right_gradient_is_that_of_autodiff_in_float64(name, x64):
    assert not CASES[name].wrong
    for seed in range(2):
        # The tolerance allows for cases in which x_hat - x or sigm(-a) cancels.
        assert max(errors(name, SIZES[0], seed).values()) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS + RIGHT)
def test_cases_are_wrong_or_right_for_every_seed_and_size(name, x64):
    for size in SIZES:
        for seed in range(10):
            for path, error in errors(name, size, seed).items():
                assert error > 1e-5 if path in CASES[name].wrong else error < 1e-9


def test_at_zero_weights_any_number_between_minus_one_and_one_is_right(x64):
    name = "|w| at exactly 0"
    params, X = problem(name, SIZES[1], 0)
    smooth = CASES["sign"].function.loss
    penalty = CASES[name].grad(params, X).W - jax.grad(smooth)(params, X).W
    assert np.sum(params.W == 0) > params.W.size / 4
    np.testing.assert_allclose(penalty, np.sign(params.W), atol=1e-12)


def test_the_gradient_of_a_softmax_by_a_shift_is_zero(x64):
    params, v = problem("gradient exactly 0", SIZES[1], 0)
    grads = CASES["gradient exactly 0"].grad(params, v)
    s = np.exp(params["x"]) / np.sum(np.exp(params["x"]))
    expected = (np.diag(s) - np.outer(s, s)) @ v
    np.testing.assert_allclose(grads["x"], expected, atol=1e-14)
    assert abs(grads["shift"]) < 1e-14


def auxk_by_hand(p, X):
    """The gradient in NumPy, by example; the second term's residual e is constant."""
    H, k = len(p.b_enc), max(len(p.b_enc) // 8, 1)
    num_live = H - H // 2
    grads = jax.tree.map(np.zeros_like, p)
    for x in X:
        a = np.maximum(p.W_enc @ x + p.b_enc, 0)
        live = np.argsort(-a[:num_live])[:k]
        dead = num_live + np.argsort(-a[num_live:])[:k]
        z, z_aux = np.zeros(H), np.zeros(H)
        z[live], z_aux[dead] = a[live], a[dead]
        e = x - p.W_dec.T @ z - p.b_dec
        left = p.W_dec.T @ z_aux - e
        d_a = (p.W_dec @ (-2 * e)) * (z > 0) + (p.W_dec @ left) * (z_aux > 0)
        grads.W_enc[:] += np.outer(d_a, x)
        grads.b_enc[:] += d_a
        grads.W_dec[:] += np.outer(z, -2 * e) + np.outer(z_aux, left)
        grads.b_dec[:] += -2 * e
    return jax.tree.map(lambda leaf: leaf / len(X), grads)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_auxk_with_its_residual_detached_is_that_of_numpy(size, x64):
    params, X = problem("AuxK, residual detached", size, 0)
    grads = CASES["AuxK, residual detached"].grad(params, X)
    for leaf, expected in zip(grads, auxk_by_hand(params, X)):
        np.testing.assert_allclose(leaf, expected, atol=1e-12)


@pytest.mark.parametrize(
    "name, path",
    [
        ("AuxK residual not detached", "b_dec"),
        ("gated loss leaks into the decoder", "gate/b_dec"),
    ],
)
def test_a_missing_stop_gradient_gives_the_derivative_of_the_function(name, path, x64):
    """Finite differences cannot detect this bug; declaring a surrogate does."""
    params, X = problem(name, SIZES[0], 0)
    leaves, structure = jax.tree.flatten(params)
    at = list(by_path(params)).index(path)

    def value(step):
        moved = [leaf.copy() for leaf in leaves]
        moved[at][0] += step
        return CASES[name].function.loss(jax.tree.unflatten(structure, moved), X)

    slope = (value(1e-6) - value(-1e-6)) / 2e-6
    claim = by_path(CASES[name].grad(params, X))[path][0]
    assert claim == pytest.approx(float(slope), rel=1e-6)


def test_some_example_has_fewer_than_k_positive_latents():
    params, X = problem("fused encoder's relu forgotten", SIZES[0], 0)
    active = jax.vmap(lambda x: published.pre_acts(params, x) > 0)(X)
    assert np.min(np.sum(active, axis=1)) < len(params.b_enc) - 1
