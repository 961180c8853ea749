import ast
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import HPARAMS, lectures, prelu, scaled_gaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from judges import judge_backprop, judge_paths
from oracle import lecture
from test_autoencoder import model

import jaxae
from jaxae import activations, manual, observations, penalties
from jaxae.terms import add

KEY = jax.random.key(0)
PACKAGE = pathlib.Path(jaxae.__file__).parent
MODELS = st.tuples(
    st.sampled_from(sorted(activations.CATALOGUE)),
    st.sampled_from(sorted(observations.CATALOGUE)),
    st.booleans(),
    st.integers(1, 6),  # D
    st.integers(1, 8),  # H: D = 1, H = 1 and H > D are all drawn
    st.integers(0, 2**31 - 1),
)


def draw(seed, ae):
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)),
        jax.eval_shape(lambda: ae.init(KEY, dtype=jnp.float64)),
    )
    return params, *rng.uniform(size=(2, ae.input_dim))


def assert_close(found, expected):
    chex.assert_trees_all_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(MODELS)
def test_of_any_model_backprop_and_paths_are_derivatives(drawn):
    backprop_is_right(drawn)
    paths_are_right(drawn)


@pytest.mark.parametrize("drawn", lectures(), ids=str)
def test_backprop_is_the_derivative_and_equals_the_lecture_and_autodiff(drawn):
    backprop_is_right(drawn)


@pytest.mark.parametrize(
    "drawn",
    [
        # The first two have each observation, tied and untied.
        pytest.param(drawn, id=str(drawn), marks=[pytest.mark.slow] * (i >= 2))
        for i, drawn in enumerate(lectures())
    ],
)
def test_each_path_is_the_derivative_by_its_own_copy_of_the_parameters(drawn):
    paths_are_right(drawn)


def backprop_is_right(drawn):
    activation, observation, is_tied, D, H, seed = drawn
    with jax.enable_x64(True):
        ae = model(activation, observation, D=D, H=H, tied=is_tied)
        params, x, target = draw(seed, ae)
        expected = lecture(*jaxae.untie(params)[:4], x, target, activation, observation)
        bp = manual.backprop(ae, params, x, target)
        for name in ("a", "z", "eta", "x_hat", "d_eta", "d_z", "d_a"):
            assert_close(getattr(bp, name), expected[name])
        if is_tied:  # the sum of two gradients
            assert_close(bp.grads.W, expected["W_enc"] + expected["W_dec"])
        else:
            assert_close(bp.grads.W_enc, expected["W_enc"])
            assert_close(bp.grads.W_dec, expected["W_dec"])
        assert_close(bp.grads.b_enc, expected["b_enc"])
        assert_close(bp.grads.b_dec, expected["b_dec"])
        judge_backprop(ae, params, x, target)
        assert_close(bp.grads, jax.grad(ae.loss)(params, x, target))


def paths_are_right(drawn):
    activation, observation, is_tied, D, H, seed = drawn
    with jax.enable_x64(True):
        ae = model(activation, observation, D=D, H=H, tied=is_tied)
        params, x, target = draw(seed, ae)
        judge_paths(ae, params, x, target)
        paths = manual.path_grads(ae, params, x, target)
        encoder, decoder = jax.grad(ae.path_loss, (0, 1))(params, params, x, target)
        assert type(paths.encoder) is type(paths.decoder) is type(params)
        assert_close(paths.encoder, encoder)
        assert_close(paths.decoder, decoder)
        grads = manual.backprop(ae, params, x, target).grads
        assert_close(jax.tree.map(jnp.add, *paths), grads)


def test_paths_of_a_tied_model_are_the_two_outer_products(x64):
    ae = model()
    params, x, _ = draw(0, ae)
    bp, paths = manual.backprop(ae, params, x), manual.path_grads(ae, params, x)
    assert_close(paths.encoder.W, jnp.outer(bp.d_a, x))
    assert_close(paths.decoder.W, jnp.outer(bp.z, bp.d_eta))
    assert not paths.encoder.b_dec.any() and not paths.decoder.b_enc.any()
    assert_close(bp.d_eta, bp.x_hat - x)
    assert paths.encoder.W.any() and paths.decoder.W.any()


def test_a_batch_is_the_mean_of_its_examples(x64):
    ae = model("tanh", tied=False)
    params, *_ = draw(0, ae)
    X, T = np.random.default_rng(1).uniform(size=(2, 9, 6))
    objective = jaxae.Objective(ae)
    (loss, aux), grads = manual.value_and_grad(objective)(params, (X, T), None, {})
    each = jax.vmap(manual.backprop, (None, None, 0, 0))(ae, params, X, T).grads
    assert_close(grads, jax.tree.map(lambda leaf: leaf.mean(axis=0), each))
    losses = jax.vmap(ae.loss, (None, 0, 0))(params, X, T)
    assert_close(loss, losses.mean())
    assert_close(aux.metrics["reconstruction"], loss)


PARTS = [
    ("sigmoid", (penalties.kl_sparsity, penalties.weight_decay, penalties.l1)),
    ("tanh", (penalties.contractive, penalties.l1)),
    ("relu", ()),
]


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("activation, added", PARTS)
def test_paths_of_a_batch_are_derivatives_by_a_copy_each(
    activation, added, is_tied, x64
):
    """Penalties see the encoder's latents; what they see of params is in neither."""
    objective = jaxae.Objective(model(activation, tied=is_tied), penalties=added)
    judge_batch_paths(objective)


@pytest.mark.parametrize("is_tied", [True, False])
def test_what_is_learned_of_g_is_the_encoders_and_of_p_the_decoders(is_tied, x64):
    ae = jaxae.Autoencoder(
        input_dim=6,
        latent_dim=4,
        activation=prelu,
        observation=scaled_gaussian,
        tied=is_tied,
    )
    paths = judge_batch_paths(jaxae.Objective(ae, penalties=(penalties.l1,)))
    assert paths.encoder.activation[0].any() and paths.decoder.observation[0].any()
    assert not paths.decoder.activation[0].any()
    assert not paths.encoder.observation[0].any()


def judge_batch_paths(objective):
    ae, hparams = objective.ae, {name: HPARAMS[name] for name in objective.hparam_names}
    params, *_ = draw(0, ae)
    X, T = jnp.asarray(np.random.default_rng(1).uniform(size=(2, 9, 6)))

    def two_argument_value(encoder, decoder, direct):
        p = objective.forward(encoder, (X, T), None, HPARAMS)
        z = p.z
        eta = jax.vmap(ae.decoder_pre_acts, (None, 0))(decoder, z)
        in_axes = (0, 0, *(None for _ in params.observation))
        losses = jax.vmap(ae.observation.loss, in_axes)(eta, T, *decoder.observation)
        return losses.mean() + sum(
            hparams[term.name] * term.value(ae, direct, p._replace(eta=eta))
            for term in objective.penalties
        )

    p = objective.forward(params, (X, T), None, hparams)
    paths = manual.batch_path_grads(objective, params, p)
    grads = manual.batch_grads(objective, params, p)
    *expected, direct = jax.grad(two_argument_value, (0, 1, 2))(params, params, params)
    assert type(paths.encoder) is type(paths.decoder) is type(params)
    assert_close(paths, manual.Paths(*expected))
    assert_close(jax.tree.map(lambda *parts: sum(parts), *paths, direct), grads)
    by_penalties = objective.cotangents(params, p, objective.penalties).params
    total = add(jax.tree.map(jnp.add, *paths), by_penalties)
    assert_close(total, grads)  # the same terms in another order
    return paths


def test_paths_keep_the_parameters_dtype():
    objective = jaxae.Objective(model(), penalties=(penalties.contractive,))
    params = objective.ae.init(KEY, dtype="bfloat16")
    X = jnp.ones((2, 6), "bfloat16")
    p = objective.forward(params, X, None, {"contractive": jnp.float32(0.1)})
    paths = manual.batch_path_grads(objective, params, p)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(paths)} == {"bfloat16"}


def test_denoising_encodes_the_noisy_and_scores_the_clean(x64):
    ae = model()
    params, x, _ = draw(0, ae)
    objective = jaxae.Objective(ae, corruption=jaxae.corruptions.masking)
    hparams = {"corruption_rate": 0.5}
    p = objective.forward(params, x[None], KEY, hparams)
    assert (p.inputs != p.targets).any()
    _, grads = manual.value_and_grad(objective)(params, x[None], KEY, hparams)
    assert_close(grads, manual.backprop(ae, params, p.inputs[0], x).grads)


def test_state_is_carried_through():
    objective = jaxae.Objective(model())
    params, X = objective.ae.init(KEY), jnp.ones((2, 6))
    (_, aux), _ = manual.value_and_grad(objective)(params, X, None, {}, {"seen": 3})
    assert aux.state == {"seen": 3}


@pytest.mark.parametrize("function", [manual.backprop, manual.path_grads])
def test_bad_input_is_refused_in_one_sentence(function):
    ae = model()
    good = ae.init(KEY)
    for x, params, sentence in [
        (jnp.ones((3, 6)), good, r"\[3, 6\].*vmap it.*in_axes=\(None, None, 0\)"),
        (jnp.ones(5), good, r"\[5\]"),
        (jnp.ones(6, int), good, "dtype int32"),
        (jnp.ones(6), jaxae.untie(good), "must be TiedParams"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            function(ae, params, x)
    with pytest.raises(ValueError, match="order is manual"):
        function(good, ae, jnp.ones(6))
    with pytest.raises(ValueError, match="must be a jaxae.Objective"):
        manual.value_and_grad(ae)


# ---- independence --------------------------------------------------------------------

AUTODIFF = {
    "grad",
    "value_and_grad",
    "vjp",
    "jvp",
    "jacfwd",
    "jacrev",
    "jacobian",
    "hessian",
    "linearize",
    "linear_transpose",
    "custom_vjp",
    "custom_jvp",
    "custom_gradient",
    "stop_gradient",
}
# A value that holds a part of itself fixed says so by stop_gradient: a straight-through
# estimator, a cut between prefixes, a penalty. The derivatives by hand do not use it.
HOLDS_FIXED = [
    "activations/_jumprelu.py",
    "penalties/_dead_latents.py",
    "penalties/_gated.py",
    "prefixes.py",
]
HAND_MODULES = [
    "activations/_base.py",
    "activations/_elementwise.py",
    "activations/_gated.py",
    "activations/_matching_pursuit.py",
    "activations/_topk.py",
    "observations/by_hand.py",
    "autoencoder/parametrizations.py",
    "autoencoder/model.py",
    "penalties/_base.py",
    "penalties/_classical.py",
    "penalties/_sparsity.py",
    "sparse.py",
    "terms.py",
    "objective.py",
    "manual.py",
    *HOLDS_FIXED,
]


def autodiff_in(source):
    """Names of autodiff that a source takes from jax, however it spells them."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jax."):
            found |= {alias.name for alias in node.names} & AUTODIFF
        if isinstance(node, ast.ImportFrom) and node.module == "jax":
            found |= {alias.name for alias in node.names} & AUTODIFF
        if isinstance(node, ast.Attribute) and node.attr in AUTODIFF:
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in ("jax", "lax"):
                found.add(node.attr)
    return found


@pytest.mark.parametrize("module", HAND_MODULES)
def test_the_hand_modules_contain_no_autodiff(module):
    allowed = {"stop_gradient"} if module in HOLDS_FIXED else set()
    assert autodiff_in((PACKAGE / module).read_text()) == allowed


def test_every_module_of_activations_and_penalties_is_among_the_hand_modules():
    for package in ("activations", "penalties"):
        modules = {
            f"{package}/{p.name}" for p in (PACKAGE / package).glob("_[a-z]*.py")
        }
        assert modules <= {*HAND_MODULES}


def test_the_search_for_autodiff_finds_it():
    assert autodiff_in("import jax\njax.grad(f)") == {"grad"}
    assert autodiff_in("from jax import vjp as pull") == {"vjp"}
    assert autodiff_in("jax.lax.stop_gradient(x)") == {"stop_gradient"}
    recipes = (PACKAGE / "observations" / "recipes.py").read_text()
    assert autodiff_in(recipes) == {"grad", "vjp"}


def test_the_loss_carries_no_custom_rule():
    for penalty in penalties.CATALOGUE.values():
        objective = jaxae.Objective(model(), penalties=(penalty,))
        params = objective.ae.init(KEY)
        names = objective.hparam_names
        text = str(
            jax.make_jaxpr(objective)(
                params, jnp.ones((2, 6)), None, dict.fromkeys(names, 0.1)
            )
        )
        assert "custom_" not in text
