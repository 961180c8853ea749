import functools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxae
from jaxae import gradcheck
from jaxae.gradcheck.differences import Line, slopes_along


class Params(NamedTuple):
    W: jax.Array  # [H, D]
    b: jax.Array  # [H]
    c: jax.Array  # [D]


def tied_loss(params, X):
    """Bernoulli loss of a tied sigmoid autoencoder, mean over the batch."""
    z = jax.nn.sigmoid(X @ params.W.T + params.b[None])
    eta = z @ params.W + params.c[None]
    return jnp.mean(jnp.sum(jax.nn.softplus(eta) - X * eta, axis=1))


autodiff = jax.jit(jax.grad(tied_loss))


def tied_case(size, dtype=jnp.float32):
    input_dim, latent_dim, batch_size = size
    rng = np.random.default_rng(0)
    W = rng.normal(size=(latent_dim, input_dim)) / np.sqrt(input_dim)
    b, c = 0.1 * rng.normal(size=latent_dim), 0.1 * rng.normal(size=input_dim)
    X = rng.uniform(size=(batch_size, input_dim))
    return Params(*(jnp.asarray(p, dtype) for p in (W, b, c))), jnp.asarray(X, dtype)


def verdicts(report):
    return {path: leaf.verdict for path, leaf in report.leaves.items()}


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def sum_of_sines(p):
    return jnp.sum(jnp.sin(p))


# --- Right claims are correct -----------------------------------------------------


@pytest.mark.parametrize("n", [1, 2000])
def test_sines_are_correct(n):
    report = gradcheck.check(sum_of_sines, normal(n))
    leaf = report.leaves[""]
    assert report.ok and leaf.verdict == "correct"
    assert leaf.error < 1e-6 and leaf.resolution < 1e-5
    assert leaf.slope == pytest.approx(2, abs=0.3)


def test_an_empty_array_is_no_batch_whose_size_explains_a_factor():
    params = normal(3)

    def fn(params, empty):
        return jnp.sum(params**2) + jnp.sum(empty)

    report = gradcheck.check(fn, params, jnp.zeros(0), grad=lambda p, _: 6 * p)
    assert report.leaves[""].verdict == "wrong" and "size" not in str(report).split()


@pytest.mark.parametrize(
    "dtype, resolution",
    [
        pytest.param("float16", 2e-2, marks=pytest.mark.float16),
        ("bfloat16", 1e-1),
        ("float32", 1e-5),
    ],
)
def test_a_correct_autoencoder_is_correct_in_every_dtype(dtype, resolution):
    report = gradcheck.check(tied_loss, *tied_case((20, 10, 8), dtype), grad=autodiff)
    assert set(verdicts(report).values()) == {"correct"}, str(report)
    assert all(leaf.resolution < resolution for leaf in report.leaves.values())
    assert report.leaves["W"].dtype == dtype


def test_float64_claims_are_judged_to_the_resolution_of_differences():
    with jax.enable_x64(True):
        params, X = tied_case((5, 3, 4), jnp.float64)
        right = gradcheck.check(tied_loss, params, X)
        wrong = gradcheck.check(
            tied_loss,
            params,
            X,
            grad=lambda p, X: autodiff(p, X)._replace(b=1.00001 * autodiff(p, X).b),
        )
    assert right.ok and right.leaves["W"].dtype == "float64"
    assert all(leaf.resolution < 1e-7 for leaf in right.leaves.values())
    assert verdicts(wrong) == {"W": "correct", "b": "wrong", "c": "correct"}


def test_numpy_and_python_params_are_checked_at_the_point_that_jax_reads():
    params = {"w": np.linspace(0.1, 1, 5), "scale": 1.3}
    report = gradcheck.check(lambda p: p["scale"] * sum_of_sines(p["w"]), params)
    assert report.ok
    assert {leaf.dtype for leaf in report.leaves.values()} == {"float32"}


def test_scalars_empty_and_ignored_leaves():
    params = {"a": jnp.float32(2), "e": jnp.zeros((0, 3)), "n": 3, "x": None, "f": True}
    report = gradcheck.check(lambda p: p["a"] ** p["n"] + jnp.sum(p["e"]), params)
    assert report.ok and set(report.leaves) == {"a", "e"}
    assert report.ignored == ("f", "n", "x")
    assert "ignored, not real numbers: f, n, x" in str(report)


def complex_case():
    def fn(p):
        mixed = p["z"] @ (p["w"] * (1 + 2j))
        return jnp.sum(jnp.abs(mixed) ** 2) + jnp.sum(jnp.real(p["big"] ** 3))

    def numbers(*shape):
        return jnp.asarray(normal(*shape) + 1j * normal(*shape, seed=1), jnp.complex64)

    return fn, {"z": numbers(3, 4), "w": normal(4), "big": numbers(20, 30)}


def test_complex_leaves_are_judged_by_the_convention_of_jax():
    fn, params = complex_case()
    report = gradcheck.check(fn, params)
    assert report.ok and report.leaves["z"].dtype == "complex64"
    assert report.leaves["big"].shape == (20, 30)
    assert report.leaves["big"].resolution < 1e-5

    def claim(p):
        grads = jax.grad(fn)(p)
        big = grads["big"].at[3, 7].mul(1.1)
        return grads | {"z": jnp.conj(grads["z"]), "big": big}

    report = gradcheck.check(fn, params, grad=claim)
    assert verdicts(report) == {"z": "wrong", "w": "correct", "big": "wrong"}
    assert report.leaves["z"].hint == "conjugated"
    worst = report.leaves["big"].worst
    assert worst.index == (3, 7)
    assert worst.claimed == pytest.approx(1.1 * worst.true, rel=1e-5)
    assert json.loads(report.to_json())["leaves"]["big"]["worst"]["true"] == [
        worst.true.real,
        worst.true.imag,
    ]


def test_a_complex_number_and_a_complex_factor():
    def fn(z):
        return jnp.real(z * jnp.conj(z))

    assert gradcheck.check(fn, 1.0 + 2j).ok
    with jax.enable_x64(True):
        report = gradcheck.check(fn, 1.0 + 2j, grad=lambda z: 2j * jnp.conj(z))
    assert report.leaves[""].hint == "off by a factor 0.000+1.000j"


@pytest.mark.parametrize(
    "dtype, shape",
    [
        ("float32", (400, 50)),
        pytest.param("float16", (4, 5), marks=pytest.mark.float16),
        ("bfloat16", (40, 5)),
    ],
)
def test_casts_inside_are_measured_as_noise_and_noted(dtype, shape):
    def fn(p, X):
        a = X.astype(dtype) @ p["W"].astype(dtype).T
        return jnp.mean(jnp.sum(a.astype(jnp.float32) ** 2, axis=1)) + jnp.sum(
            p["b"] ** 2  # a term without a cast
        )

    params = {"W": normal(*shape), "b": normal(5)}
    report = gradcheck.check(fn, params, normal(32, shape[1], seed=1))
    if dtype == "float32":  # the params' own precision: the cast does not round
        assert report.ok and not report.notes, str(report)
        return
    for leaf in report.leaves.values():  # the noise of half precision may be too large
        is_too_noisy = leaf.verdict == "undecided" and leaf.hint.endswith("too noisy")
        assert leaf.ok or is_too_noisy, str(report)
    assert "rounds to less than float64 inside" in report.notes[0]


def test_the_cost_is_counted():
    calls = []

    def fn(p):
        jax.debug.callback(lambda: calls.append(1))
        return sum_of_sines(p)

    report = gradcheck.check(fn, normal(5), grad=jnp.cos)
    jax.effects_barrier()
    in_float32 = 9
    assert len(calls) == report.cost["fn"] + in_float32 + report.cost["autodiff"]
    assert f"evaluations: fn {report.cost['fn']}, claim 10" in str(report)


def test_a_zero_gradient_needs_a_zero_claim_up_to_its_rounding():
    def fn(p):  # the shift cancels: autodiff gives rounding, about 1e-8
        return jnp.sum(jax.nn.softmax(p["w"] + p["shift"]) * jnp.arange(7.0))

    params = {"w": normal(7), "shift": jnp.float32(0.3)}
    assert gradcheck.check(fn, params).ok

    grad = jax.jit(jax.grad(fn))

    def claim(value):
        return lambda p: grad(p) | {"shift": jnp.float32(value)}

    assert gradcheck.check(fn, params, grad=claim(0.0)).ok
    report = gradcheck.check(fn, params, grad=claim(1e-3))
    assert verdicts(report) == {"w": "correct", "shift": "wrong"}


def test_a_loop_without_reverse_mode_is_judged_by_differences_alone():
    def power(p):
        steps = jnp.int32(3 + 0 * p[0])
        return jax.lax.fori_loop(0, steps, lambda _, y: y * jnp.sum(p), p[0] * 0 + 1)

    def claim(factor):
        return lambda p: jnp.full(3, factor * 3 * jnp.sum(p) ** 2)

    params = jnp.asarray([0.5, 1.0, 0.7])
    report = gradcheck.check(power, params, grad=claim(1))
    assert report.ok and "no float64 autodiff" in report.notes[0]
    assert gradcheck.check(power, params, grad=claim(1.5)).leaves[""].verdict == "wrong"


def test_python_branches_static_arguments_keys_and_aux_work():
    def fn(p, key, count):
        keep = jax.random.bernoulli(key, jnp.float32(0.5), (count,))
        if p[0] > 0:
            p = 2 * p
        return jnp.sum(keep * p[:count] ** 2), {"keep": keep}

    params = jnp.abs(normal(3))
    assert gradcheck.check(fn, params, jax.random.key(1), 2, has_aux=True).ok


def test_random_numbers_drawn_in_the_precision_of_the_data_are_the_same_ones():
    def fn(p, key, x):
        return jnp.sum(jnp.sin(p * (x + jax.random.normal(key, x.shape, x.dtype))))

    assert gradcheck.check(fn, normal(5), jax.random.key(1), normal(5, seed=1)).ok


def test_rounding_of_an_ill_conditioned_claim_is_measured_and_allowed():
    leaf = gradcheck.check(lambda p: sum_of_sines(1e4 * p), normal(10)).leaves[""]
    assert leaf.verdict == "correct" and leaf.error > 1e-5 and leaf.resolution < 0.1


def test_a_sum_of_20000_terms_in_float32_is_correct():
    X = normal(20000, 5)
    report = gradcheck.check(lambda p: jnp.sum(jnp.tanh(X @ p)), normal(5))
    assert report.ok and report.leaves[""].resolution < 1e-4, str(report)


def test_a_cast_to_less_than_the_params_precision_shows_as_noise():
    def fn(p):
        return jnp.sum(jnp.sin(p.astype(jnp.float32)))

    leaf = gradcheck.check(fn, normal(20)).leaves[""]
    assert leaf.verdict == "correct" and leaf.resolution < 2e-6
    with jax.enable_x64(True):
        leaf = gradcheck.check(fn, normal(20).astype(jnp.float64)).leaves[""]
    assert leaf.verdict == "correct" and 1e-6 < leaf.resolution < 1e-2


def rounding_case(input_dim, seed):
    """A model in which x_hat - x cancels, the main source of rounding error."""
    ae = jaxae.Autoencoder(input_dim=input_dim, latent_dim=1)
    x = np.random.default_rng(seed).uniform(size=input_dim).astype(np.float32)
    return ae, ae.init(jax.random.key(seed)), x


@pytest.mark.parametrize("input_dim, seed", [(1, 1), (1, 13), (1, 24)])
def test_rounding_of_intermediate_results_is_measured_and_allowed(input_dim, seed):
    ae, params, x = rounding_case(input_dim, seed)
    gradcheck.check(ae.loss, params, x).assert_ok()


def test_rounding_does_not_excuse_a_thousandth():
    ae, params, x = rounding_case(2, 55)

    @jax.jit
    def by_hand(params, x, factor):
        grads = jaxae.manual.backprop(ae, params, x).grads
        return grads._replace(b_dec=factor * grads.b_dec)

    def check(factor):
        return gradcheck.check(
            ae.loss, params, x, grad=lambda p, x: by_hand(p, x, factor)
        )

    check(1.0).assert_ok()
    expected = {"W": "correct", "b_enc": "correct", "b_dec": "wrong"}
    assert verdicts(check(1.001)) == expected


# --- Wrong claims are wrong, in their own leaf only -------------------------------


def wrong_sign(params, X):
    grads = autodiff(params, X)
    return grads._replace(c=-grads.c)


def one_percent(params, X):
    grads = autodiff(params, X)
    return grads._replace(b=1.01 * grads.b)


@jax.jit
def no_encoder_path(params, X):
    def loss(W_dec):
        z = jax.nn.sigmoid(X @ params.W.T + params.b[None])
        eta = z @ W_dec + params.c[None]
        return jnp.mean(jnp.sum(jax.nn.softplus(eta) - X * eta, axis=1))

    return autodiff(params, X)._replace(W=jax.grad(loss)(params.W))


def transposed(params, X):
    grads = autodiff(params, X)
    return grads._replace(W=grads.W.T)


def one_entry(params, X):
    grads = autodiff(params, X)
    return grads._replace(W=grads.W.at[1, 2].add(0.01 * jnp.max(jnp.abs(grads.W))))


MUTANTS = {
    "no encoder path": (no_encoder_path, "W", ""),
    "one entry": (one_entry, "W", "in 1 of "),
}


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS.keys())
def test_a_mutant_is_wrong_in_its_own_leaf_only(mutant):
    grad, path, hint = mutant
    report = gradcheck.check(tied_loss, *tied_case((20, 10, 8)), grad=grad)
    expected = {"W": "correct", "b": "correct", "c": "correct"} | {path: "wrong"}
    assert verdicts(report) == expected, str(report)
    leaf = report.leaves[path]
    assert hint in leaf.hint
    assert leaf.error > leaf.resolution and leaf.worst is not None
    assert leaf.slope is None or leaf.slope < 1.5


def test_three_mutants_at_once_have_their_own_hints_in_a_tiny_model():
    def grad(params, X):
        W, b = no_encoder_path(params, X).W, one_percent(params, X).b
        return Params(W, b, wrong_sign(params, X).c)

    report = gradcheck.check(tied_loss, *tied_case((5, 5, 4)), grad=grad)
    assert set(verdicts(report).values()) == {"wrong"}
    assert report.leaves["b"].hint == "off by a factor 1.010"
    assert report.leaves["c"].hint == "sign"


def test_a_missing_transpose_is_named():
    report = gradcheck.check(tied_loss, *tied_case((5, 5, 4)), grad=transposed)
    assert verdicts(report) == {"W": "wrong", "b": "correct", "c": "correct"}
    assert report.leaves["W"].hint == "transposed"


def batch_case():
    def fn(W, X):
        return jnp.mean(jnp.sum((X @ W.T) ** 2, axis=1))

    return fn, jax.grad(fn), normal(4, 5), normal(32, 5, seed=1)


@pytest.mark.parametrize(
    "bug, hint",
    [
        (lambda g: 32 * g, "off by a factor 32.00: multiplied by the batch size 32"),
        (lambda g: g / 32, "off by a factor 0.03125: divided by the batch size 32"),
        (lambda g: g.at[2].set(0), "one row: 2"),
        (lambda g: g.at[:, 1].mul(1.5), "one column: 1"),
        (lambda g: g.at[1, 2].mul(1.5), "in 1 of 20 entries"),
        (lambda g: g.T.reshape(4, 5), "transposed"),
        (lambda g: 0 * g, "zero"),
        (lambda g: -g, "sign"),
        (lambda g: 2 * g, "off by a factor 2.000"),
    ],
)
def test_a_single_cause_is_named(bug, hint):
    fn, grad, W, X = batch_case()
    report = gradcheck.check(fn, W, X, grad=lambda W, X: bug(grad(W, X)))
    assert report.leaves[""].hint == hint


def test_one_wrong_entry_among_392000_is_detected_in_its_own_leaf_only():
    params, X = tied_case((784, 500, 64))
    report = gradcheck.check(tied_loss, params, X, grad=one_entry)
    assert verdicts(report) == {"W": "wrong", "b": "correct", "c": "correct"}
    worst = report.leaves["W"].worst
    assert worst.index == (1, 2)
    assert worst.true == pytest.approx(float(autodiff(params, X).W[1, 2]), rel=1e-3)


@jax.custom_jvp
def steep_sine(p):
    return jnp.sum(jnp.sin(p))


@steep_sine.defjvp
def _steep_sine_jvp(primals, tangents):
    (p,), (dp,) = primals, tangents
    return jnp.sum(jnp.sin(p)), jnp.sum(1.5 * jnp.cos(p) * dp)


def test_a_rule_too_steep_is_detected_at_600_inputs():
    leaf = gradcheck.check(steep_sine, normal(600)).leaves[""]
    assert leaf.verdict == "surrogate" and not leaf.ok
    assert leaf.hint == "off by a factor 1.500"


@jax.custom_vjp
def one_wrong_entry(p):
    return jnp.sum(p**2)


one_wrong_entry.defvjp(
    lambda p: (jnp.sum(p**2), p), lambda p, dy: ((2 * p * dy).at[123].add(2.0),)
)


def test_directions_detect_an_entry_that_autodiff_has_wrong_too():
    flat = 1 + 0.1 * normal(5000)  # no entry stands out
    claim = jax.grad(one_wrong_entry)
    params = flat.at[123].set(-1.0)  # the claim there is 0: it is not selected
    leaf = gradcheck.check(one_wrong_entry, params, grad=claim).leaves[""]
    assert leaf.verdict == "surrogate" and leaf.error > leaf.resolution
    assert leaf.worst.index == (123,)  # found by bisection
    assert leaf.worst.true == pytest.approx(-2.0, rel=1e-6)


def test_a_gradient_that_cancels_along_every_direction_is_judged_by_its_entries():
    def fn(p):
        return jax.lax.stop_gradient(jnp.sum(p[:2])) + 0.0 * jnp.sum(p)

    # With this key, the first two signs differ in every direction.
    report = gradcheck.check(fn, jnp.ones(100), key=jax.random.key(7))
    assert verdicts(report) == {"": "surrogate"}


def test_a_small_leaf_does_not_hide_behind_a_large_one():
    def fn(p):
        return 1e4 * jnp.sum(p["large"] ** 2) + 1e-3 * sum_of_sines(p["small"])

    def grad(p):
        return {"large": 2e4 * p["large"], "small": 0.98e-3 * jnp.cos(p["small"])}

    params = {"large": normal(50, 40), "small": normal(3)}
    report = gradcheck.check(fn, params, grad=grad)
    assert verdicts(report) == {"large": "correct", "small": "wrong"}
    assert report.leaves["small"].hint == "off by a factor 0.9800"


def test_a_leaf_is_judged_as_well_beside_a_term_of_1e9():
    """Steps of the leaf's size, 1e-3, change the function by less than its last bit."""

    def staircase(w):
        return 2 * jnp.sum(w + jax.lax.stop_gradient(jnp.round(w) - w))

    terms = {
        "sine": lambda w: jnp.sum(jnp.sin(w)),
        "square": lambda w: jnp.sum(w**2),
        "mostly zero": lambda w: jnp.sin(w[1]),
        "log": lambda w: jnp.sum(jnp.log(w)),  # ends one step away
        "abs": lambda w: jnp.sum(jnp.abs(w)),  # has a kink there
        "staircase": staircase,
        "wrong": lambda w: jnp.sum(jnp.sin(w)),
    }

    def fn(p):
        return 1e9 * jnp.mean(p["big"] ** 2) + sum(f(p[k]) for k, f in terms.items())

    def grad(p):
        grads = jax.grad(fn)(p)
        return grads | {"wrong": 1.001 * grads["wrong"]}

    small = jnp.asarray([1e-3, 0.7e-3, 1.3e-3])
    report = gradcheck.check(
        fn,
        {"big": normal(20), **dict.fromkeys(terms, small)},
        grad=grad,
        surrogate=["staircase"],
    )
    expected = dict.fromkeys(("big", *terms), "correct")
    assert verdicts(report) == expected | {"staircase": "surrogate", "wrong": "wrong"}
    assert report.leaves["staircase"].ok
    for name in ("sine", "square", "mostly zero"):
        assert report.leaves[name].resolution < 2e-4, str(report)


@pytest.mark.parametrize(
    "f, slope, resolution",
    [
        (lambda t: np.sin(1e-3 + t), np.cos(1e-3), 2e-4),
        (lambda t: (1e-3 + t) ** 2, 2e-3, 1e-6),
        (lambda t: np.log(1e-3 + t), 1e3, 1.0),
        (lambda t: abs(1e-3 + t), 1.0, 0.1),  # the kink is one step away
        (lambda t: np.round(t), 0.0, 0.1),
        (lambda t: 1e-8 * np.sin(1e3 * t), 1e-5, 0.1),  # hidden at every step
        (lambda t: 0.0, 0.0, 0.1),
    ],
)
def test_steps_grow_only_as_far_as_the_noise_requires(f, slope, resolution):
    def value(t):
        with np.errstate(invalid="ignore"):
            return float(1e9 + f(t))

    noise = np.spacing(1e9) / np.sqrt(12)  # of rounding to nearest
    slopes = slopes_along([Line(value, value(0.0), noise, 1e-3)], 1e-7)
    assert abs(slopes.slope[0] - slope) <= slopes.resolution[0] < resolution


@pytest.mark.parametrize("offset", [1e12, 1e13])
def test_long_steps_report_no_kinks_or_stairs_at_0(offset):
    """Long steps resolve a smooth entry. A kink or a stair beside 0 is not at 0."""

    def line(f):
        def value(t):
            return float(offset + f(t))

        return Line(value, value(0.0), np.spacing(offset) / np.sqrt(12), 1e-3)

    entries = (lambda t: np.sin(1e-3 + t), lambda t: abs(1e-3 + t), np.round)
    slopes = slopes_along(list(map(line, entries)), 1e-7)
    assert slopes.resolution[0] < 0.1 and min(slopes.resolution[1:]) > 1
    assert not np.any(slopes.jump)


# --- Kinks, surrogates and undecided leaves ---------------------------------------


@pytest.mark.parametrize("n", [3, 300])
def test_at_a_kink_the_claim_must_lie_between_the_one_sided_slopes(n):
    claims = {"left": 0.0, "right": 1.0, "outside": 2.0}
    report = gradcheck.check(
        lambda p: sum(jnp.sum(jnp.maximum(leaf, 0)) for leaf in p.values()),
        dict.fromkeys(claims, jnp.ones(n).at[1].set(0.0)),
        grad=lambda p: {
            path: jnp.where(p[path] == 0, claim, 1.0) for path, claim in claims.items()
        },
    )
    assert set(verdicts(report).values()) == {"kink"}
    assert {path for path, leaf in report.leaves.items() if leaf.ok} == {
        "left",
        "right",
    }
    assert report.leaves["outside"].worst.index == (1,)


def test_where_all_entries_are_kinks_whose_slopes_cancel_the_jump_is_the_scale():
    def fn(p):
        return jnp.sum(p * jnp.sign(p))

    for claim, is_ok in ((jnp.sign, True), (lambda p: 0 * p + 1.5, False)):
        leaf = gradcheck.check(fn, jnp.zeros(3), grad=claim).leaves[""]
        assert leaf.verdict == "kink" and leaf.ok == is_ok


def test_beside_a_kink_a_wrong_entry_is_wrong():
    report = gradcheck.check(
        lambda p: jnp.sum(jnp.maximum(p, 0)),
        jnp.asarray([0.0, 1.0, 2.0]),
        grad=lambda p: jnp.asarray([0.5, 1.0, 1.1]),
    )
    leaf = report.leaves[""]
    assert leaf.verdict == "wrong" and leaf.worst.index == (2,)


@pytest.mark.parametrize(
    "spacing, n",
    [
        (1.0, 10),
        (1.0, 1000),
        (0.1, 50_000),
        *(
            pytest.param(spacing, n, marks=pytest.mark.slow)
            for spacing, n in ((0.1, 10), (0.1, 1000), (1.0, 50_000))
        ),
    ],
)
def test_a_staircase_is_a_surrogate_however_many_steps_are_near(n, spacing):
    def fn(p):
        rounded = spacing * jnp.round(p["w"] / spacing)
        through = p["w"] + jax.lax.stop_gradient(rounded - p["w"])
        return jnp.sum((through * p["v"]) ** 2)

    params = {"w": 2 * normal(n), "v": normal(n, seed=1)}
    report = gradcheck.check(fn, params, surrogate=["w"])
    assert verdicts(report) == {"w": "surrogate", "v": "correct"}, str(report)
    assert report.ok


@pytest.mark.parametrize("n", [4, 200])
def test_straight_through_is_a_surrogate_and_ok_when_declared(n):
    def fn(p):
        rounded = p["w"] + jax.lax.stop_gradient(jnp.round(p["w"]) - p["w"])
        return jnp.sum((rounded * p["v"]) ** 2)

    rng = np.random.default_rng(0)
    w = rng.integers(1, 4, n) + rng.uniform(-0.3, 0.3, n)
    params = {"w": jnp.asarray(w, jnp.float32), "v": normal(n)}
    report = gradcheck.check(fn, params, surrogate=["v"])
    assert verdicts(report) == {"w": "surrogate", "v": "correct"} and not report.ok
    assert gradcheck.check(fn, params, surrogate=["w"]).ok


def test_a_single_array_is_declared_by_the_name_the_table_gives_it():
    def fn(w):
        return jnp.sum(jax.lax.stop_gradient(w) ** 2)

    assert gradcheck.check(fn, normal(3), surrogate=["params"]).ok


def test_a_wrong_claim_is_not_excused_by_a_declared_surrogate():
    report = gradcheck.check(
        lambda p: jnp.sum(p * jax.lax.stop_gradient(p)),
        normal(5),
        grad=lambda p: 3 * p,
        surrogate=[""],
    )
    assert verdicts(report) == {"": "wrong"} and not report.ok


def test_a_declared_surrogate_has_to_follow_autodiff():
    def fn(p, X):  # a target with a stopped gradient
        return jnp.mean((X @ p - jax.lax.stop_gradient(p[0])) ** 2)

    def attached(p, X):
        return jax.grad(lambda p: jnp.mean((X @ p - p[0]) ** 2))(p)

    params, X = normal(4), normal(9, 4, seed=1)
    assert gradcheck.check(fn, params, X, surrogate=[""]).ok
    report = gradcheck.check(fn, params, X, grad=attached, surrogate=[""])
    assert verdicts(report) == {"": "wrong"} and not report.ok
    assert "declared a surrogate" in report.leaves[""].hint
    assert gradcheck.check(fn, params, X, grad=attached).ok


@pytest.mark.parametrize("n", [30, pytest.param(200, marks=pytest.mark.slow), 5000])
def test_many_kinks_of_which_few_are_measured(n):
    w = normal(n).at[::3].set(0.0)

    def fn(p):
        return jnp.sum(jnp.abs(p))

    leaf = gradcheck.check(fn, w, grad=jnp.sign).leaves[""]
    assert leaf.verdict == "kink" and leaf.ok
    leaf = gradcheck.check(fn, w, grad=lambda p: jnp.sign(p).at[1].mul(1.01)).leaves[""]
    assert leaf.verdict == "wrong" and leaf.worst.index == (1,)
    leaf = gradcheck.check(fn, w, grad=lambda p: jnp.sign(p).at[3].set(1.5)).leaves[""]
    assert leaf.verdict == "kink" and not leaf.ok and leaf.worst.index == (3,)


def half_pruned():
    """A relu layer half of whose units are exactly 0: each weight there is a kink."""
    W, X, v = normal(20, 30).at[:, ::2].set(0), normal(64, 20, seed=2), normal(30)

    def fn(W):
        return jnp.mean(jax.nn.relu(X @ W) @ v)

    def right(W):  # with relu'(0) = 1, where autodiff has 0
        return X.T @ ((X @ W >= 0) * v[None] / 64)

    return fn, right, W


@pytest.mark.parametrize(
    "bug, hint",
    [
        (lambda g: g.at[:, 1].mul(-1), "one column: 1"),
        (lambda g: g.at[:, 1].mul(0.9), "one column: 1"),
        (lambda g: g.at[3, 1].mul(2), "in 1 of 600 entries"),
    ],
)
def test_kinks_do_not_excuse_errors_elsewhere(bug, hint):
    fn, right, W = half_pruned()
    leaf = gradcheck.check(fn, W, grad=right).leaves[""]
    assert leaf.verdict == "kink" and leaf.ok
    leaf = gradcheck.check(fn, W, grad=lambda W: bug(right(W))).leaves[""]
    assert leaf.verdict == "wrong" and leaf.hint == hint
    assert leaf.worst.index[1] == 1


@pytest.mark.parametrize("num_kinks", [5, 100])
def test_a_rule_wrong_in_few_entries_is_detected_beside_kinks(num_kinks):
    weights = 1 + jnp.arange(300.0) / 300

    @jax.custom_vjp
    def rectified(x):
        return jnp.sum(jax.nn.relu(x) * weights)

    def backward(x, dy):
        return (dy * jnp.where(x > 0, weights, 0).at[150:153].mul(-1),)

    rectified.defvjp(lambda x: (rectified(x), x), backward)
    x = jnp.abs(normal(300)).at[:num_kinks].set(0)
    report = gradcheck.check(rectified, x)
    assert not report.ok, str(report)
    assert 150 <= report.leaves[""].worst.index[0] < 153


@pytest.mark.parametrize("slope, is_ok", [(0.0, True), (0.5, True), (5.0, False)])
def test_at_the_tip_of_a_cone_the_claim_must_lie_between(slope, is_ok):
    def fn(x):
        return jnp.sqrt(jnp.sum(x**2))

    leaf = gradcheck.check(fn, jnp.zeros(2), grad=lambda x: x + slope).leaves[""]
    assert leaf.verdict == "kink" and leaf.ok == is_ok
    assert gradcheck.check(jnp.abs, 0j).ok


def test_a_claim_of_zero_for_a_staircase_is_correct():
    def fn(w):
        return jnp.sum((w + jax.lax.stop_gradient(jnp.round(w) - w)) ** 2)

    leaf = gradcheck.check(fn, normal(10), grad=lambda w: 0 * w).leaves[""]
    assert leaf.verdict == "correct"


@pytest.mark.parametrize("n", [5, 96])
def test_at_an_optimum_the_gradient_is_zero(n):
    def fn(p, t):
        return jnp.sum((p - t) ** 2)

    x = normal(n, seed=1)
    report = gradcheck.check(fn, x, x, grad=lambda p, t: 2 * (p - t))
    assert verdicts(report) == {"": "correct"}, str(report)


def test_arrays_among_args_are_jax_arrays_wherever_fn_is_evaluated():
    def fn(p, x):
        assert isinstance(x, jax.Array)
        return jnp.sum(p * x)

    assert gradcheck.check(fn, normal(3), np.ones(3)).ok


def test_numpy_integers_are_read_as_jax_reads_them():
    def fn(p, rows):
        return jnp.sum(p[rows] ** 2)

    report = gradcheck.check(fn, np.ones(4, np.float32), np.array([0, 1, 1]))
    assert report.ok, str(report)


def test_functions_that_are_not_deterministic_are_undecided():
    rng = np.random.default_rng(0)
    leaf = gradcheck.check(lambda p: jnp.sum(p) * rng.normal(), normal(3)).leaves[""]
    assert leaf.verdict == "undecided" and not leaf.ok
    assert "not deterministic" in leaf.hint
    rng = np.random.default_rng(0)

    def host(p):
        draw = jax.ShapeDtypeStruct((), p.dtype)
        noise = jax.pure_callback(lambda: rng.normal(size=()).astype(p.dtype), draw)
        return jnp.sum(p) * noise

    leaf = gradcheck.check(host, normal(3), grad=jnp.ones_like).leaves[""]
    assert leaf.verdict == "undecided" and "not deterministic" in leaf.hint


def test_a_claim_that_is_not_deterministic_is_undecided():
    rng = np.random.default_rng(1)

    def noisy(x):
        return 2 * x + 0.03 * rng.normal(size=50)

    leaf = gradcheck.check(lambda x: jnp.sum(x**2), normal(50), grad=noisy).leaves[""]
    assert leaf.verdict == "undecided" and "claim is not deterministic" in leaf.hint


def test_the_callers_jax_settings_do_not_affect_the_reference():
    def fn(x):
        return jnp.sum(x * jnp.log(x))

    x = jnp.asarray([1e-5, 1.0, 2.0])
    with jax.debug_nans(True):
        assert gradcheck.check(fn, x).ok
    with jax.numpy_dtype_promotion("strict"):
        assert gradcheck.check(lambda p: jnp.sum(p * p), x).ok


def test_a_claim_may_donate_its_params():
    grad = jax.jit(lambda p: 2 * p, donate_argnums=0)
    x = normal(4)
    assert gradcheck.check(lambda p: jnp.sum(p**2), x, grad=grad).ok
    assert not x.is_deleted()


def test_a_factor_near_1_shows_its_distance():
    leaf = gradcheck.check(
        sum_of_sines, normal(5), grad=lambda p: 1.0001 * jnp.cos(p)
    ).leaves[""]
    assert leaf.hint == "off by a factor 1 + 1.0e-04"


def test_random_numbers_that_differ_in_float64_are_named_as_the_cause():
    def fn(p, key):
        scale = 2 if p[0] > -9 else 3  # a Python branch, which cannot be traced
        return jnp.sum(scale * p * jax.random.normal(key, p.shape))

    leaf = gradcheck.check(fn, normal(5), jax.random.key(0)).leaves[""]
    assert leaf.verdict == "undecided" and "random numbers" in leaf.hint


def test_values_and_claims_that_are_not_finite_are_undecided():
    params = {"a": jnp.asarray([0.0, 1.0]), "b": normal(3)}
    report = gradcheck.check(
        lambda p: jnp.sum(p["a"]) + sum_of_sines(p["b"]),
        params,
        grad=lambda p: {"a": jnp.asarray([1.0, jnp.nan]), "b": jnp.cos(p["b"])},
    )
    assert verdicts(report) == {"a": "undecided", "b": "correct"}
    assert "(1,)" in report.leaves["a"].hint
    report = gradcheck.check(lambda p: jnp.sum(jnp.log(p)), jnp.asarray([-1.0, 2.0]))
    assert verdicts(report) == {"": "undecided"} and not report.ok
    report = gradcheck.check(lambda p: jnp.sum(jnp.sqrt(p)), jnp.asarray([0.0, 2.0]))
    assert verdicts(report) == {"": "undecided"}


def test_a_gradient_lost_in_the_noise_of_the_function_is_undecided():
    report = gradcheck.check(lambda p: 1e14 + sum_of_sines(p), normal(5))
    assert verdicts(report) == {"": "undecided"}


def test_a_gradient_too_small_for_differences_is_undecided():
    report = gradcheck.check(lambda p: 1.0 + 1e-25 * jnp.sum(p**2), normal(5))
    leaf = report.leaves[""]
    assert leaf.verdict == "undecided" and "too small" in leaf.hint


# --- Errors, reproducibility and the report ---------------------------------------


def on_the_host(p):
    return jax.pure_callback(np.sum, jax.ShapeDtypeStruct((), p.dtype), p)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def scaled(p, factor):
    return jnp.sum(p * factor)


scaled.defvjp(
    lambda p, factor: (scaled(p, factor), ()), lambda factor, _, dy: (factor,)
)


@pytest.mark.parametrize(
    "fn, params, options, message",
    [
        (lambda p: p, jnp.ones(3), {}, "fn must return a real scalar"),
        (lambda p: jnp.sum(p) + 1j, jnp.ones(3), {}, "fn must return a real scalar"),
        (lambda p: (jnp.sum(p), 0), jnp.ones(3), {}, "has_aux=False"),
        (jnp.sum, jnp.ones(3), {"has_aux": True}, "has_aux=True"),
        (lambda p: 1.0, {"n": 3, "x": None}, {}, "at least one floating-point leaf"),
        (
            lambda p: jnp.abs(p["z"]),
            {"z": jnp.complex64(1)},
            {"grad": lambda p: {"z": jnp.ones(())}},
            "complex numbers of shape () for leaf 'z'",
        ),
        (jnp.sum, jnp.ones(3), {"grad": lambda p: (p, p)}, "same structure"),
        (jnp.sum, jnp.ones(3), {"grad": lambda p: p[:2]}, "shape (3,) for leaf"),
        (3, jnp.ones(3), {}, "fn must be a function of the params, got 3"),
        (jnp.sum, jnp.ones(3), {"grad": 3}, "grad must be a function"),
        (jnp.sum, jnp.ones(3), {"key": 0}, "key must be one JAX random key"),
        (jnp.sum, jnp.ones(3), {"surrogate": ["W"]}, "paths among ['params']"),
        (
            lambda p: jnp.sum(p["a"]) + on_the_host(p["b"]),
            {"a": jnp.ones(3), "b": jnp.ones(3)},
            {},
            "fn must be differentiable in leaf 'b', but JAX says Pure callbacks do not",
        ),
        (
            lambda p: scaled(p["a"], p["b"]),
            {"a": jnp.ones(3), "b": jnp.ones(3)},
            {},
            "in leaf 'b', but it is a nondiff argument of a custom rule; take it out",
        ),
    ],
)
def test_bad_input_raises_one_sentence(fn, params, options, message):
    with pytest.raises(ValueError) as caught:
        gradcheck.check(fn, params, **options)
    assert message in str(caught.value)


def test_the_report_prints_a_table_and_asserts_with_it():
    def fn(p):
        return jnp.sum(p.W**2) + jnp.sum(p.b**2) + jnp.sum(p.c**2)

    params = Params(normal(3, 5), normal(3), normal(5))
    good = gradcheck.check(fn, params)
    good.assert_ok()
    assert str(good).splitlines()[0] == "gradcheck: ok"
    bad = gradcheck.check(fn, params, grad=lambda p: Params(2 * p.W, 0 * p.b, 2 * p.c))
    with pytest.raises(AssertionError) as caught:
        bad.assert_ok()
    lines = str(bad).splitlines()
    assert str(caught.value) == str(bad)
    assert lines[0] == "gradcheck: not ok: b" and len(lines) == 6
    assert [line.split()[0] for line in lines[1:5]] == ["leaf", "W", "b", "c"]
    row = lines[3]
    assert "3" in row and "WRONG" in row and row.endswith("zero")
    assert len({line.index("float32") for line in lines[2:5]}) == 1  # aligned


def test_the_report_as_json():
    params = {"a": normal(2), "b": jnp.asarray([1.0])}
    report = gradcheck.check(
        lambda p: jnp.sum(p["a"]) + jnp.sum(p["b"]),
        params,
        grad=lambda p: {"a": p["a"] * jnp.nan, "b": 2 * p["b"]},
    )
    read = json.loads(report.to_json())
    assert read["ok"] is False
    assert read["leaves"]["a"]["resolution"] == "inf"
    assert read["leaves"]["b"]["worst"]["index"] == [0]
    assert read["leaves"]["b"]["worst"]["claimed"] == 2.0
    assert read["leaves"]["b"]["verdict"] == "wrong"


def test_the_same_key_gives_the_same_report_and_configuration_is_untouched():
    before = jax.config.jax_enable_x64
    first, again, other = (
        gradcheck.check(sum_of_sines, normal(200), key=jax.random.key(seed)).to_json()
        for seed in (1, 1, 2)
    )
    assert first == again and first != other
    assert jax.config.jax_enable_x64 == before
