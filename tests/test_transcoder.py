"""Models whose output is not the input: transcoders, skip connections; aligned rows."""

import dataclasses
import json
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import HPARAMS, batch, scaled_gaussian
from judges import judge_backprop, judge_objective, judge_paths, moved

import jaxae
from jaxae import gradcheck, manual, metrics
from jaxae.autoencoder import Parametrization, SkipParams, aligned, skip, untied

KEY = jax.random.key(0)
D, H, O = 6, 4, 3  # noqa: E741


def model(activation="tanh", observation="gaussian", **choices):
    choices = {"tied": False, **choices}
    if "parametrization" in choices:
        del choices["tied"]
    return jaxae.Autoencoder(
        input_dim=D,
        latent_dim=H,
        activation=activation,
        observation=observation,
        **choices,
    )


def pair(num_rows=8, width=O, dtype=jnp.float32):
    return batch(num_rows, D, dtype), batch(num_rows, width, dtype, seed=4)


def start(ae, dtype=jnp.float64):
    return moved(ae.init(KEY, dtype=dtype))


MODELS = {
    "transcoder": {"output_dim": O},
    "transcoder-bernoulli": {"output_dim": O, "observation": "bernoulli"},
    "transcoder-no_bias": {"output_dim": O, "bias": False},
    "skip": {"skip": True},
    "skip-pre_bias": {"skip": True, "pre_bias": True},
    "skip-transcoder": {"skip": True, "output_dim": O},
    "skip-transcoder-no_bias": {"skip": True, "output_dim": O, "bias": False},
    "aligned": {"parametrization": aligned},
    "aligned-pre_bias": {"parametrization": aligned, "pre_bias": True},
    "aligned-no_bias": {"parametrization": aligned, "bias": False},
}


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def ae(request):
    return model(**request.param)


# Of these, every choice is in one that is not slow.
COMBINED = (
    "transcoder-bernoulli",
    "skip-pre_bias",
    "skip-transcoder-no_bias",
    "aligned-pre_bias",
)
combined = pytest.mark.parametrize(
    "ae",
    [
        pytest.param(
            choices, id=name, marks=[] if name in COMBINED else pytest.mark.slow
        )
        for name, choices in MODELS.items()
    ],
    indirect=True,
)


# ---- the functions -------------------------------------------------------------------


def oracle(ae, params, x):
    """a, z and eta from the equations, in NumPy."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    W_enc, W_dec = p.W_enc, p.W_dec
    if ae.parametrization.name == "aligned":
        rows = zip(W_enc, W_dec)
        W_enc = np.array([V + (1 - V @ d) * d / (d @ d) for V, d in rows])
    a = W_enc @ (x - p.b_dec if ae.pre_bias else x)
    a = a + p.b_enc if ae.bias else a
    z = np.tanh(a)
    eta = W_dec.T @ z + p.b_dec
    return a, z, eta + p.W_skip @ x if ae.skip else eta


def test_forward_is_the_equations(ae, x64):
    params, x = start(ae), np.random.default_rng(0).uniform(size=D)
    a, z, eta = oracle(ae, params, x)
    forward = ae.forward(params, x)
    assert forward.eta.shape == (ae.output_dim,)
    chex.assert_trees_all_close(tuple(forward), (a, z, eta), rtol=1e-12, atol=1e-13)
    decoded = ae.decoder_pre_acts(params, forward.z, x)
    np.testing.assert_array_equal(decoded, forward.eta)
    x_hat = ae.reconstruct(params, x)
    np.testing.assert_array_equal(ae.decode(params, forward.z, x), x_hat)
    is_bernoulli = ae.observation.name == "bernoulli"
    expected = 1 / (1 + np.exp(-eta)) if is_bernoulli else eta
    np.testing.assert_allclose(x_hat, expected, rtol=1e-12)


def test_the_loss_scores_the_target(ae, x64):
    params, x = start(ae), np.random.default_rng(0).uniform(size=D)
    target = np.random.default_rng(1).uniform(size=ae.output_dim)
    eta = oracle(ae, params, x)[2]
    expected = {
        "gaussian": 0.5 * np.sum((eta - target) ** 2),
        "bernoulli": np.sum(np.logaddexp(0, eta) - target * eta),
    }[ae.observation.name]
    np.testing.assert_allclose(ae.loss(params, x, target), expected, rtol=1e-12)
    _, aux = jaxae.Objective(ae)(params, (x[None], target[None]), None, {})
    np.testing.assert_allclose(aux.metrics["reconstruction"], expected, rtol=1e-12)


def test_at_first_a_skip_model_is_the_one_without():
    with_skip, without = model(skip=True, output_dim=O), model(output_dim=O)
    params, others = with_skip.init(KEY), without.init(KEY)
    assert params.W_skip.shape == (O, D) and not params.W_skip.any()
    for name in others._fields:
        chex.assert_trees_all_equal(getattr(params, name), getattr(others, name))
    x = batch(1, D)[0]
    np.testing.assert_array_equal(
        with_skip.reconstruct(params, x), without.reconstruct(others, x)
    )


def test_a_transcoder_of_equal_widths_is_the_autoencoder():
    same = jaxae.Autoencoder(input_dim=D, latent_dim=H, output_dim=D)
    plain = jaxae.Autoencoder(input_dim=D, latent_dim=H)
    assert same == plain and hash(same) == hash(plain) and repr(same) == repr(plain)
    assert plain.output_dim == D


# ---- the gradients -------------------------------------------------------------------


@combined
def test_hand_gradients_are_derivatives_and_equal_autodiff(ae, x64):
    params, (X, T) = start(ae), pair(width=ae.output_dim, dtype=jnp.float64)
    x, target = X[0], T[0]
    judge_backprop(ae, params, x, target)
    judge_paths(ae, params, x, target)
    grads = manual.backprop(ae, params, x, target).grads
    expected = jax.grad(ae.loss)(params, x, target)
    assert type(grads) is type(params)
    chex.assert_trees_all_close(grads, expected, rtol=1e-12, atol=1e-13)
    paths = manual.path_grads(ae, params, x, target)
    halves = jax.grad(ae.path_loss, (0, 1))(params, params, x, target)
    chex.assert_trees_all_close(tuple(paths), halves, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "ae",
    [
        pytest.param(
            choices,
            id=name,
            # The two have a skip, aligned rows, another width, no bias and a pre-bias;
            # test_contracts.py has objectives of each observation.
            marks=[pytest.mark.slow]
            * (name not in ("skip-transcoder-no_bias", "aligned-pre_bias")),
        )
        for name, choices in MODELS.items()
    ],
    indirect=True,
)
def test_hand_gradients_of_objectives_are_derivatives(ae, x64):
    penalties = "contractive", "weight_decay", "l1"
    objective = jaxae.Objective(ae, penalties=penalties, corruption="masking")
    data = pair(width=ae.output_dim, dtype=jnp.float64)
    arguments = start(ae), data, KEY, HPARAMS
    judge_objective(objective, *arguments)
    _, grads = manual.value_and_grad(objective)(*arguments)
    expected = jax.grad(objective, has_aux=True)(*arguments)[0]
    chex.assert_trees_all_close(grads, expected, rtol=1e-12, atol=1e-13)


def test_the_skips_gradient_is_the_outer_product_on_the_decoders_path(x64):
    ae = model(skip=True, output_dim=O)
    params, (X, T) = start(ae), pair(dtype=jnp.float64)
    bp = manual.backprop(ae, params, X[0], T[0])
    paths = manual.path_grads(ae, params, X[0], T[0])
    expected = np.outer(bp.x_hat - T[0], X[0])
    np.testing.assert_allclose(bp.grads.W_skip, expected, rtol=1e-13)
    np.testing.assert_allclose(paths.decoder.W_skip, expected, rtol=1e-13)
    assert not paths.encoder.W_skip.any() and expected.any()


@pytest.mark.parametrize(
    "bias, pre_bias", [(True, True), pytest.param(False, False, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("base", [skip, aligned], ids=str)
def test_pullback_is_the_adjoint_of_expand(base, bias, pre_bias, x64):
    ae = model(parametrization=base, bias=bias, pre_bias=pre_bias)
    p = ae.parametrization
    gradcheck.check_vjp(p.expand, start(ae), vjp=p.pullback).assert_ok()


def test_a_learned_observation_of_a_transcoder_has_a_parameter_an_output(x64):
    ae = model(observation=scaled_gaussian, output_dim=O)
    params, (X, T) = start(ae), pair(dtype=jnp.float64)
    (log_scale,) = params.observation
    assert log_scale.shape in ((O,), ())
    judge_backprop(ae, params, X[0], T[0])


# ---- aligned weights -----------------------------------------------------------------


def test_aligned_rows_have_inner_product_1_and_the_nearest_encoder(x64):
    params = start(model(parametrization=aligned))
    expanded = aligned.expand(params)
    products = np.einsum("hd,hd->h", expanded.W_enc, expanded.W_dec)
    np.testing.assert_allclose(products, 1, rtol=1e-12)
    np.testing.assert_array_equal(expanded.W_dec, params.W_dec)
    # The nearest: what is added is along the decoder row.
    for added, row in zip(expanded.W_enc - params.W_enc, params.W_dec):
        along = (added @ row) * row / (row @ row)
        np.testing.assert_allclose(added, along, rtol=1e-10, atol=1e-13)
    again = aligned.expand(expanded)
    np.testing.assert_allclose(again.W_enc, expanded.W_enc, rtol=1e-12, atol=1e-13)


def test_aligned_rows_of_zeros_stay_so_with_gradient_0(x64):
    ae = model(parametrization=aligned)
    params, (X, T) = start(ae), pair(width=D, dtype=jnp.float64)
    params = jax.tree.map(lambda leaf: leaf.at[0].set(0), params)
    objective = jaxae.Objective(ae)
    arguments = params, (X, T), None, {"latent_dim": H}
    assert not ae.expand(params).W_enc[0].any()
    for grads in (
        manual.value_and_grad(objective)(*arguments)[1],
        jax.grad(objective, has_aux=True)(*arguments)[0],
    ):
        chex.assert_tree_all_finite(grads)


# ---- identity: equality, printing, pickles, files ------------------------------------


def test_a_model_survives_pickling_replacing_and_saving(ae, tmp_path):
    assert pickle.loads(pickle.dumps(ae)) == ae
    assert pickle.loads(pickle.dumps(ae.parametrization)) is ae.parametrization
    wider = dataclasses.replace(ae, latent_dim=7)
    assert (wider.latent_dim, wider.output_dim) == (7, ae.output_dim)
    assert wider != ae and dataclasses.replace(wider, latent_dim=H) == ae
    assert hash(dataclasses.replace(wider, latent_dim=H)) == hash(ae)
    params = start(ae, jnp.float32)
    jaxae.save(tmp_path, ae, params)
    loaded, loaded_params = jaxae.load(tmp_path)
    assert loaded == ae
    chex.assert_trees_all_equal(loaded_params, params)


def test_choices_are_printed_and_saved_only_where_they_differ(tmp_path):
    def saved(ae):
        jaxae.save(tmp_path, ae, ae.init(KEY))
        return json.loads((tmp_path / "config.json").read_text())["model"]

    plain, transcoder = model(), model(skip=True, output_dim=O)
    assert "skip" not in repr(plain) and "output_dim" not in repr(plain)
    assert "latent_dim=4, output_dim=3," in repr(transcoder)
    assert repr(transcoder).endswith("tied=False, skip=True)")
    assert not {"skip", "output_dim", "parametrization"} & saved(plain).keys()
    found = saved(transcoder)
    assert found["skip"] is True and found["output_dim"] == O
    assert "parametrization" not in found
    ae = model(parametrization=aligned)
    assert saved(ae)["parametrization"] == "aligned"
    assert "parametrization=aligned" in repr(ae)


def test_the_names_of_the_choices_select_the_parametrization():
    assert model(skip=True).parametrization is skip
    assert model(parametrization=skip) == model(skip=True)
    assert dataclasses.replace(model(skip=True), skip=False) == model()
    assert dataclasses.replace(model(), skip=True).parametrization is skip
    tied = dataclasses.replace(model(skip=True), skip=False, tied=True)
    assert tied.tied and not tied.skip
    no_bias = model(parametrization=aligned, bias=False)
    assert dataclasses.replace(no_bias, bias=True) == model(parametrization=aligned)


def test_older_untied_maps_of_two_weights_and_the_rest_still_work(x64):
    """`*untied[2:]` of a parametrization of the user's own."""
    own = Parametrization(
        "own",
        jaxae.UntiedParams,
        expand=lambda p: jaxae.UntiedParams(p.W_enc, 2 * p.W_dec, *p[2:]),
        pullback=lambda p, g: jaxae.UntiedParams(g.W_enc, 2 * g.W_dec, *g[2:]),
        from_untied=lambda p: jaxae.UntiedParams(*p[:2], *p[2:]),
        weights=("W_enc", "W_dec"),
    )
    ae = model(parametrization=own, output_dim=O)
    params, (X, T) = start(ae), pair(dtype=jnp.float64)
    judge_backprop(ae, params, X[0], T[0])


def test_a_skip_map_of_the_users_own_must_say_so(x64):
    doubled = skip._replace(
        name="doubled",
        expand=lambda p: p._replace(W_skip=2 * p.W_skip),
        pullback=lambda p, g: g._replace(W_skip=2 * g.W_skip),
    )
    ae = model(parametrization=doubled)
    params, (X, _) = start(ae), pair(dtype=jnp.float64)
    judge_backprop(ae, params, X[0], X[0])
    ae = model(parametrization=doubled._replace(skip=False))
    with pytest.raises(ValueError, match="expand must return UntiedParams, got Skip"):
        ae.expand(params)
    silent = untied._replace(name="silent", skip=True)
    with pytest.raises(ValueError, match="expand must return SkipParams"):
        ae = model(parametrization=silent)
        ae.reconstruct(ae.init(KEY), X[0])


# ---- errors --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choices, sentence",
    [
        ({"output_dim": O, "tied": True}, "output_dim must be input_dim, 6, with tied"),
        ({"output_dim": O, "pre_bias": True}, "with pre_bias, which subtracts b_dec"),
        ({"output_dim": O, "parametrization": aligned}, "for aligned weights"),
        ({"output_dim": 0}, "output_dim must be an integer of at least 1, got 0"),
        ({"output_dim": 2.5}, "output_dim must be an integer of at least 1"),
        ({"skip": True, "tied": True}, "skip must be False with tied.*tied=False"),
        ({"skip": True, "tied": None}, "skip must be False with tied.*tied=False"),
        ({"parametrization": skip, "tied": True}, "skip must be False with tied"),
        ({"skip": "yes"}, "skip must be True or False"),
        ({"parametrization": aligned, "tied": True}, "tied must be False for .* align"),
        ({"parametrization": aligned, "skip": True}, "skip must be False for .* align"),
    ],
)
def test_contradictions_are_refused_in_one_sentence(choices, sentence):
    with pytest.raises(jaxae.ArgumentError, match=sentence):
        jaxae.Autoencoder(
            input_dim=D,
            latent_dim=H,
            **{"tied": False, **choices}
            if "parametrization" not in choices
            else choices,
        )


def test_an_observation_of_fixed_columns_has_those_of_the_output():
    weights = (1.0, 0.5, 2.0)
    observation = jaxae.observations.gaussian_with("identity", weights)
    ae = model(observation=observation, output_dim=3)
    assert ae.loss(ae.init(KEY), jnp.ones(D), jnp.ones(3)).shape == ()
    with pytest.raises(ValueError, match=f"output_dim must be 3 for {'observation'}"):
        model(observation=observation, output_dim=4)
    with pytest.raises(ValueError, match="input_dim must be 3 for observation"):
        model(observation=observation)


def test_wrong_examples_and_batches_are_refused_in_one_sentence():
    ae = model(output_dim=O)
    params, (X, T) = ae.init(KEY), pair()
    objective = jaxae.Objective(ae)
    for call, sentence in [
        (lambda: ae.loss(params, X[0]), r"target is missing, of shape \[3\]"),
        (lambda: ae.log_prob(params, X[0]), r"target is missing, of shape \[3\]"),
        (lambda: ae.loss(params, X[0], X[0]), r"target has shape \[6\]"),
        (lambda: ae.loss(params, T[0], T[0]), r"x has shape \[3\]"),
        (lambda: ae.loss(params, X, T), "vmap it"),
        (lambda: manual.backprop(ae, params, X[0]), "target is missing"),
        (lambda: manual.path_grads(ae, params, X[0], X[0]), r"target has shape \[6\]"),
        (lambda: objective(params, X, None, {}), r"batch must be a pair \(inputs \[N"),
        (
            lambda: objective(params, (X, X), None, {}),
            r"targets must have .*\[B, 3",
        ),
        (lambda: objective(params, (T, T), None, {}), r"batch must have shape \[B, 6"),
        (lambda: ae.init(KEY, data_mean=X[0]), r"data_mean must have shape \[3\]"),
        (lambda: metrics.bits_per_dim(ae, params, X), "target is missing"),
        (
            lambda: ae.check_params(model().init(KEY)),
            r"params.W_dec must have shape \[4, 3\].*output_dim=3",
        ),
    ]:
        with pytest.raises(jaxae.ArgumentError, match=sentence):
            call()


def test_decoding_with_a_skip_needs_the_input():
    ae, plain = model(skip=True), model()
    params, z, x = ae.init(KEY), jnp.ones(H), jnp.ones(D)
    for name in ("decode", "decoder_pre_acts"):
        with pytest.raises(ValueError, match=rf"x is missing.*ae.{name}\(params, z, x"):
            getattr(ae, name)(params, z)
        with pytest.raises(ValueError, match=r"x has shape \[4\]"):
            getattr(ae, name)(params, z, z)
        decode = getattr(plain, name)  # which takes x too, and ignores it
        others = plain.init(KEY)
        np.testing.assert_array_equal(decode(others, z, x), decode(others, z))
    with pytest.raises(ValueError, match="must be SkipParams"):
        ae.reconstruct(model().init(KEY), x)


# ---- training and sweeps -------------------------------------------------------------

SGD = jaxae.TrainConfig(num_epochs=2, batch_size=4, diagnostics=False)


@pytest.mark.parametrize("gradient", ["autodiff", "manual"])
def test_training_on_pairs_learns_a_linear_map(gradient):
    """A skip connection alone fits targets that are linear in the inputs."""
    X = batch(64, D)
    T = X @ jax.random.normal(KEY, (D, O))
    config = jaxae.TrainConfig(
        num_epochs=40, batch_size=8, gradient=gradient, diagnostics=False
    )
    objective = jaxae.Objective(model(skip=True, output_dim=O))
    hparams = {"learning_rate": 0.03}
    run = jaxae.train(
        objective, (X, T), hparams=hparams, key=KEY, config=config, validation=(X, T)
    )
    assert run.metrics["validation/fvu"][-1] < 0.05
    assert run.params.W_skip.any()


def test_bits_are_per_output():
    ae = model(observation="bernoulli", output_dim=O)
    params, (X, T) = ae.init(KEY), pair()
    T = jnp.round(T)
    log_probs = jax.vmap(ae.log_prob, (None, 0, 0))(params, X, T)
    expected = -float(log_probs.mean()) / (O * np.log(2))
    found = metrics.bits_per_dim(ae, params, (X, T))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    run = jaxae.train(
        jaxae.Objective(ae),
        (X, T),
        hparams={"learning_rate": 0.0},
        key=KEY,
        config=SGD,
        params=params,
        validation=(X, T),
    )
    bits = run.metrics["validation/bits_per_dim"][-1]
    np.testing.assert_allclose(bits, expected, rtol=1e-6)


def test_training_refuses_data_of_other_widths():
    objective, (X, T) = jaxae.Objective(model(output_dim=O)), pair()
    for data, sentence in [
        (X, r"data must be a pair \(inputs \[N, 6\], targets \[N, 3\]\)"),
        ((X, X), "must have 3 columns for this model"),
        ((T, T), "must have 6 columns for this model"),
        (lambda key, hparams: batch(4, D), "batch must be a pair"),
    ]:
        steps = {"steps_per_epoch": 2} if callable(data) else {}
        with pytest.raises(ValueError, match=sentence):
            jaxae.train(
                objective,
                data,
                hparams={"learning_rate": 0.1},
                key=KEY,
                config=dataclasses.replace(SGD, **steps),
            )


@pytest.mark.parametrize(
    "choices",
    [{"skip": True, "output_dim": O}, {"parametrization": aligned}],
    ids=["skip-transcoder", "aligned"],
)
def test_a_lane_of_a_padded_sweep_is_the_single_run(choices):
    """Padding latents leaves W_skip whole."""
    objective = jaxae.Objective(model(**choices))
    data = pair(width=objective.ae.output_dim)
    sweep = jaxae.sweep(
        objective,
        data,
        {"latent_dim": [2, 3]},
        hparams={"learning_rate": 0.05},
        key=KEY,
        config=SGD,
    )
    for lane, width in enumerate((2, 3)):
        run = jaxae.train(data=data, **sweep.trial(lane))
        params = sweep.params(lane)
        assert params.W_enc.shape == (width, D)
        if objective.ae.skip:
            assert params.W_skip.shape == (O, D) and params.W_skip.any()
        # A vmapped program, which a compiler may round differently.
        chex.assert_trees_all_close(params, run.params, rtol=1e-4, atol=1e-6)


def test_skip_params_are_rounded_for_compute_dtype():
    ae = model(skip=True)
    objective = jaxae.Objective(ae, compute_dtype="bfloat16")
    params, X = start(ae, jnp.float32), batch(4, D)
    assert objective.rounded(params).W_skip.dtype == jnp.bfloat16
    (_, _), grads = manual.value_and_grad(objective)(params, X, None, {})
    expected = jax.grad(jaxae.Objective(ae), has_aux=True)(params, X, None, {})[0]
    assert isinstance(grads, SkipParams)
    # bfloat16 has 8 bits.
    chex.assert_trees_all_close(grads, expected, rtol=0.05, atol=0.05)
