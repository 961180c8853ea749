import dataclasses
import json
import os
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from catalogue import lectures, prelu, scaled_gaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from judges import FLOAT16, judge_paths
from oracle import lecture

import jaxae
from jaxae import activations, gradcheck, observations
from jaxae.autoencoder import tied, untied, without_encoder_bias

KEY = jax.random.key(0)
AE = jaxae.Autoencoder(input_dim=6, latent_dim=4)
X = jnp.linspace(0.0, 1.0, 6)


def model(
    activation="sigmoid", observation="bernoulli", *, D=6, H=4, tied=True, bias=True
):
    return jaxae.Autoencoder(
        input_dim=D,
        latent_dim=H,
        activation=activations.get(activation),
        observation=observations.get(observation),
        tied=tied,
        bias=bias,
    )


# ---- the lecture's equations ---------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    activation=st.sampled_from(sorted(activations.CATALOGUE)),
    observation=st.sampled_from(sorted(observations.CATALOGUE)),
    is_tied=st.booleans(),
    D=st.integers(1, 7),
    H=st.integers(1, 9),
    seed=st.integers(0, 2**31 - 1),
)
def test_of_any_model_forward_and_loss_equal_the_lecture(**drawn):
    forward_is_right(**drawn)


@pytest.mark.parametrize("drawn", lectures(), ids=str)
def test_forward_and_loss_equal_the_lecture(drawn):
    forward_is_right(*drawn)


def forward_is_right(activation, observation, is_tied, D, H, seed):
    with jax.enable_x64(True):
        ae = model(activation, observation, D=D, H=H, tied=is_tied)
        rng = np.random.default_rng(seed)
        params = jax.tree.map(
            lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)),
            ae.init(KEY, dtype="float64"),
        )
        x, target = rng.uniform(size=(2, D))
        untied = jaxae.untie(params)
        expected = lecture(*untied[:4], x, target, activation, observation)
        a, z = ae.encoder_pre_acts(params, x), ae.encode(params, x)
        chex.assert_trees_all_close(
            [a, z, ae.decoder_pre_acts(params, z), ae.decode(params, z)],
            [expected[name] for name in ("a", "z", "eta", "x_hat")],
            rtol=1e-12,
            atol=1e-13,
        )
        np.testing.assert_array_equal(ae.reconstruct(params, x), ae.decode(params, z))
        loss = ae.loss(params, x, target)
        np.testing.assert_allclose(loss, expected["loss"], rtol=1e-9)
        np.testing.assert_array_equal(loss, ae.path_loss(params, params, x, target))
        np.testing.assert_array_equal(ae.loss(params, x), ae.loss(params, x, x))
        forward = ae.forward(params, x)
        chex.assert_trees_all_equal(
            tuple(forward), (a, z, ae.decoder_pre_acts(params, z))
        )


def test_log_prob_is_minus_loss_plus_what_is_free_of_parameters():
    params, binary = AE.init(KEY), jnp.round(X)
    np.testing.assert_allclose(AE.log_prob(params, binary), -AE.loss(params, binary))
    ae = model(observation="gaussian")
    expected = -ae.loss(params, X) - 3 * np.log(2 * np.pi)
    np.testing.assert_allclose(ae.log_prob(params, X), expected, rtol=1e-6)


def test_log_prob_of_a_loss_that_is_no_likelihood_is_refused():
    lossy = observations.gaussian._replace(name="lossy", base_measure="none")
    ae = jaxae.Autoencoder(input_dim=6, latent_dim=4, observation=lossy)
    with pytest.raises(ValueError, match="lossy is a loss, not a likelihood"):
        ae.log_prob(ae.init(KEY), X)


def test_grey_levels_are_refused_by_log_prob():
    with pytest.raises(ValueError, match="0 or 1"):
        AE.log_prob(AE.init(KEY), X)


# ---- the parametrization -------------------------------------------------------------


def test_pullback_is_the_adjoint_of_expand(x64):
    leaves = jax.random.normal(KEY, (6, 4, 6))
    p = jaxae.TiedParams(leaves[0], leaves[1, :, 0], leaves[2, 0])
    g = jaxae.UntiedParams(leaves[3], leaves[4], leaves[5, :, 0], leaves[5, 1])

    def inner(left, right):
        return sum(map(jnp.vdot, jax.tree.leaves(left), jax.tree.leaves(right)))

    left, right = inner(tied.pullback(p, g), p), inner(g, tied.expand(p))
    np.testing.assert_allclose(left, right, rtol=1e-13)
    _, vjp = jax.vjp(tied.expand, p)
    chex.assert_trees_all_equal(tied.pullback(p, g), vjp(g)[0])
    gradcheck.check_vjp(tied.expand, p, vjp=tied.pullback).assert_ok()


def test_untie_keeps_the_function_and_copies():
    params = AE.init(KEY)
    untied = jaxae.untie(params)
    ae = model(tied=False)
    np.testing.assert_array_equal(ae.loss(untied, X), AE.loss(params, X))
    pointers = {leaf.unsafe_buffer_pointer() for leaf in untied[:4]}
    assert len(pointers | {params.W.unsafe_buffer_pointer()}) == 5
    assert jaxae.untie(untied) is untied
    with pytest.raises(ValueError, match="TiedParams or UntiedParams, got dict"):
        jaxae.untie({"W": params.W})


# ---- without encoder bias ------------------------------------------------------------


@pytest.mark.parametrize("activation, is_tied", [("sigmoid", True), ("relu", False)])
def test_without_encoder_bias_is_the_lecture_with_b_0(activation, is_tied):
    with jax.enable_x64(True):
        ae = model(activation, "gaussian", tied=is_tied, bias=False)
        rng = np.random.default_rng(0)
        params = jax.tree.map(
            lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)),
            ae.init(KEY, dtype="float64"),
        )
        assert params.b_enc == () and params.b_dec.shape == (6,)
        x, target = rng.uniform(size=(2, 6))
        W_enc, W_dec, _, c = jaxae.untie(params)[:4]
        weights = W_enc, W_dec, np.zeros(4), c
        expected = lecture(*weights, x, target, activation, "gaussian")
        bp = jaxae.manual.backprop(ae, params, x, target)
        if is_tied:
            expected["W"] = expected["W_enc"] + expected["W_dec"]
        for name in ("a", "z", "eta", "x_hat", "d_eta", "d_z", "d_a"):
            np.testing.assert_allclose(getattr(bp, name), expected[name], rtol=1e-9)
        for name in (*ae.parametrization.weights, "b_dec"):
            found = getattr(bp.grads, name)
            np.testing.assert_allclose(found, expected[name], rtol=1e-9, atol=1e-12)
        assert type(bp.grads) is type(params) and bp.grads.b_enc == ()
        judge_paths(ae, params, x, target)


@pytest.mark.parametrize("base", [tied, untied], ids=lambda base: base.name)
def test_without_encoder_bias_pullback_is_the_adjoint_of_expand(base, x64):
    without = without_encoder_bias(base)
    assert without_encoder_bias(base) is without
    is_tied = base is tied
    params = model(tied=is_tied, bias=False).init(KEY, dtype="float64")
    gradcheck.check_vjp(without.expand, params, vjp=without.pullback).assert_ok()
    expanded = without.expand(params)
    assert expanded.b_enc.dtype == params.b_dec.dtype and not expanded.b_enc.any()
    # Weights rounded to compute in do not round the zeros.
    rounded = jax.tree.map(lambda W: W.astype("bfloat16"), params)
    rounded = rounded._replace(b_dec=params.b_dec)
    assert without.expand(rounded).b_enc.dtype == jnp.float64


@pytest.mark.parametrize("is_tied", [True, False])
def test_without_encoder_bias_is_the_same_model_with_it_0(is_tied):
    ae, biased = model(tied=is_tied, bias=False), model(tied=is_tied)
    params, others = ae.init(KEY), biased.init(KEY)
    chex.assert_trees_all_equal(params, others._replace(b_enc=()))
    np.testing.assert_array_equal(ae.loss(params, X), biased.loss(others, X))
    separate = jaxae.untie(params)
    assert separate.b_enc == () and isinstance(separate, jaxae.UntiedParams)
    apart = model(tied=False, bias=False)
    np.testing.assert_array_equal(apart.loss(separate, X), ae.loss(params, X))
    assert str(ae) == f"{str(biased)[:-1]}, bias=False)"
    assert ae != biased and pickle.loads(pickle.dumps(ae)) == ae


def test_a_bias_where_there_is_none_is_refused():
    ae = model(bias=False)
    with pytest.raises(ValueError, match=r"b_enc must be \(\).*\(bias=False\), got fl"):
        ae.encode(AE.init(KEY), X)
    with pytest.raises(ValueError, match=r"b_enc must be a real floating.*got \(\)"):
        AE.encode(ae.init(KEY), X)
    with pytest.raises(ValueError, match="bias must be True or False, got 1"):
        model(bias=1)


def test_without_encoder_bias_is_saved_and_older_files_have_one(tmp_path):
    ae = model(bias=False)
    params = ae.init(KEY)
    jaxae.save(tmp_path / "without", ae, params)
    loaded, found = jaxae.load(tmp_path / "without")
    assert loaded == ae and found.b_enc == ()
    chex.assert_trees_all_equal(found, params)

    older = tmp_path / "older"
    jaxae.save(older, AE, PARAMS)
    config = json.loads((older / "config.json").read_text())
    assert config["model"].pop("bias") is True
    (older / "config.json").write_text(json.dumps(config))
    tensors = {name: np.asarray(leaf) for name, leaf in PARAMS._asdict().items()}
    tensors = {name: leaf for name, leaf in tensors.items() if leaf.size}
    path, metadata = (
        older / "params.safetensors",
        {"jaxae": json.dumps(config["model"])},
    )
    safetensors.numpy.save_file(tensors, path, metadata=metadata)
    loaded, found = jaxae.load(older)
    assert loaded == AE
    chex.assert_trees_all_equal(found, PARAMS)


@pytest.mark.parametrize("is_tied", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_without_encoder_bias_is_trained_and_swept_padded(is_tied):
    objective = jaxae.Objective(
        model("tanh", "gaussian", tied=is_tied, bias=False),
        penalties=(jaxae.penalties.contractive, jaxae.penalties.weight_decay),
    )
    data = np.random.default_rng(0).normal(size=(64, 6)).astype("f4")
    sweep = jaxae.sweep(
        objective,
        data,
        {"latent_dim": [2, 4]},
        hparams={"learning_rate": 0.01, "contractive": 0.1, "weight_decay": 0.1},
        key=KEY,
        config=jaxae.TrainConfig(num_epochs=3, batch_size=16, gradient="manual"),
    )
    for lane, width in enumerate((2, 4)):
        params = sweep.params(lane)
        assert params.b_enc == () and params[0].shape == (width, 6)
        run = jaxae.train(data=data, **sweep.trial(lane))
        chex.assert_trees_all_close(params, run.params, rtol=1e-4, atol=1e-5)
    assert "gradient/b_enc" not in run.metrics
    assert np.isfinite(run.metrics["gradient/decoder/b_dec"]).all()


# ---- init ----------------------------------------------------------------------------


@pytest.mark.parametrize("name, gain", [("sigmoid", 4), ("relu", 1), ("tanh", 1)])
@pytest.mark.parametrize("is_tied", [True, False])
def test_init_is_glorot_uniform_with_gain_4_for_sigmoid_on_both_halves(
    name, gain, is_tied
):
    ae = model(name, D=300, H=200, tied=is_tied)
    untied = jaxae.untie(ae.init(KEY))
    limit = gain * np.sqrt(6 / 500)
    for W in (untied.W_enc, untied.W_dec):
        assert 0.999 * limit < abs(W).max() <= limit
        np.testing.assert_allclose(W.mean(), 0, atol=limit / 100)
        np.testing.assert_allclose(W.var(), limit**2 / 3, rtol=0.02)
    assert not untied.b_enc.any() and not untied.b_dec.any()
    if not is_tied:
        correlation = np.corrcoef(untied.W_enc.ravel(), untied.W_dec.ravel())[0, 1]
        assert abs(correlation) < 0.02


def test_row_i_of_W_does_not_depend_on_H():
    small, large = model(H=3).init(KEY).W, model(H=8).init(KEY).W
    scale = np.sqrt((6 + 3) / (6 + 8))
    np.testing.assert_allclose(large[:3], scale * small, rtol=1e-6)


def test_init_is_float32_unless_said_also_under_x64(x64):
    assert {leaf.dtype for leaf in AE.init(KEY)[:3]} == {jnp.dtype("float32")}
    double = AE.init(KEY, dtype=jnp.float64)
    assert double.W.dtype == jnp.float64
    chex.assert_trees_all_equal(
        jax.tree.map(lambda leaf: leaf.astype(jnp.float32), double), AE.init(KEY)
    )


def test_init_can_start_the_output_bias_at_the_data_mean():
    mean = jnp.array([0.0, 0.1, 0.5, 0.9, 1.0, 0.3])
    params = AE.init(KEY, data_mean=mean)
    np.testing.assert_allclose(
        AE.observation.mean(params.b_dec), mean.clip(1e-3, 0.999), rtol=1e-5
    )
    with pytest.raises(ValueError, match=r"data_mean must have shape \[6\], got \[5\]"):
        AE.init(KEY, data_mean=jnp.ones(5))
    no_inverse = observations.bernoulli._replace(name="b", eta_of_mean=None)
    ae = jaxae.Autoencoder(input_dim=6, latent_dim=4, observation=no_inverse)
    with pytest.raises(ValueError, match="leave data_mean out"):
        ae.init(KEY, data_mean=mean)


# ---- learned parts -------------------------------------------------------------------


@pytest.mark.parametrize("is_tied", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_what_a_part_learns_lives_in_params_and_gets_its_gradient(is_tied, x64):
    ae = jaxae.Autoencoder(
        input_dim=6,
        latent_dim=4,
        activation=prelu,
        observation=scaled_gaussian,
        tied=is_tied,
    )
    params = ae.init(KEY, dtype=jnp.float64)
    assert params.activation[0].shape == (4,) and params.observation[0].shape == (6,)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # no zero hides a factor
    x, batch = X.astype(jnp.float64), jax.random.uniform(KEY, (5, 6), jnp.float64)
    judge_paths(ae, params, x, x[::-1])
    objective = jaxae.Objective(ae)
    value_and_grad = jaxae.manual.value_and_grad(objective)
    arguments = (params, batch, None, {})
    gradcheck.check(
        objective, *arguments, grad=lambda *a: value_and_grad(*a)[1], has_aux=True
    ).assert_ok()
    _, grads = value_and_grad(*arguments)
    expected, _ = jax.grad(objective, has_aux=True)(*arguments)
    chex.assert_trees_all_close(grads, expected, rtol=1e-12, atol=1e-14)
    assert not np.allclose(grads.observation[0], 0)
    assert np.isfinite(ae.log_prob(params, x))


def test_learned_parts_train_and_are_saved(tmp_path):
    ae = jaxae.Autoencoder(
        input_dim=6, latent_dim=4, activation=prelu, observation=scaled_gaussian
    )
    data = np.random.default_rng(0).normal(size=(64, 6)).astype("f4")
    run = jaxae.train(
        jaxae.Objective(ae),
        data,
        hparams={"learning_rate": 0.01},
        key=KEY,
        config=jaxae.TrainConfig(
            num_epochs=3, batch_size=16, gradient="manual", diagnostics=False
        ),
    )
    assert not np.allclose(run.params.activation[0], 0.25)
    jaxae.save(tmp_path, ae, run.params)
    with pytest.raises(ValueError, match=r"'prelu', which is not one of.*activation="):
        jaxae.load(tmp_path)
    loaded, params = jaxae.load(tmp_path, activation=prelu, observation=scaled_gaussian)
    assert loaded == ae
    chex.assert_trees_all_equal(params, run.params)
    with pytest.raises(ValueError, match="saved with activation 'prelu', but 'relu'"):
        jaxae.load(tmp_path, activation=activations.relu)


# ---- the record ----------------------------------------------------------------------


def test_the_defaults_are_the_lecture():
    assert AE == model("sigmoid", "bernoulli", tied=True)
    assert repr(AE) == (
        "Autoencoder(input_dim=6, latent_dim=4, activation=sigmoid, "
        "observation=bernoulli, tied=True)"
    )


def test_frozen_hashable_picklable_and_normalised():
    with pytest.raises(AttributeError):
        AE.input_dim = 7
    with pytest.raises(TypeError):
        jaxae.Autoencoder(6, 4)
    same = jaxae.Autoencoder(input_dim=np.int64(6), latent_dim=np.int32(4))
    assert same == AE and hash(same) == hash(AE) and type(same.input_dim) is int
    assert pickle.loads(pickle.dumps(AE)) == AE


def test_a_model_is_a_static_argument():
    num_traces = []

    @jax.jit
    def inner(params, x):
        num_traces.append(1)
        return AE.loss(params, x)

    loss = jax.jit(lambda ae, params, x: ae.loss(params, x), static_argnums=0)
    params = AE.init(KEY)
    assert loss(AE, params, X) == loss(pickle.loads(pickle.dumps(AE)), params, X)
    assert loss._cache_size() == 1
    inner(params, X), inner(params, 2 * X)
    assert len(num_traces) == 1


# ---- bad input: one sentence ---------------------------------------------------------

PARAMS = AE.init(KEY)


@pytest.mark.parametrize(
    "method", ["encode", "reconstruct", "loss", "encoder_pre_acts"]
)
def test_a_batch_is_told_to_vmap(method):
    with pytest.raises(ValueError, match=rf"\[3, 6\].*vmap it: jax.vmap\(ae.{method},"):
        getattr(AE, method)(PARAMS, jnp.ones((3, 6)))


@pytest.mark.parametrize(
    "call, sentence",
    [
        (
            lambda: AE.encode(PARAMS, jnp.ones(5)),
            r"x has shape \[5\].*takes shape \[6\]",
        ),
        (lambda: AE.encode(PARAMS, 1.0), r"x has shape \[\]"),
        (
            lambda: AE.decode(PARAMS, jnp.ones(6)),
            r"z has shape \[6\].*takes shape \[4\]",
        ),
        (lambda: AE.encode(PARAMS, jnp.ones(6, int)), "dtype int32.*astype"),
        (lambda: AE.encode(PARAMS, jnp.ones(6, complex)), "dtype complex64"),
        (lambda: AE.encode(PARAMS, np.ones(6, bool)), "dtype bool"),
        (lambda: AE.encode(PARAMS, "x"), "x must hold numbers, got 'x'; read a file"),
        (lambda: AE.encode(PARAMS, None), "x must be an array of floats, got None"),
        (lambda: AE.loss(PARAMS, X, jnp.ones(5)), r"target has shape \[5\]"),
        (lambda: AE.encode(tuple(PARAMS), X), "must be TiedParams.*got tuple"),
        (lambda: AE.encode(jaxae.untie(PARAMS), X), "must be TiedParams.*UntiedParams"),
        (
            lambda: model(tied=False).encode(PARAMS, X),
            r"must be UntiedParams.*jaxae.untie\(params\)",
        ),
        (
            lambda: AE.encode(model(H=3).init(KEY), X),
            r"params.W must have shape \[4, 6\].*float32\[3, 6\]",
        ),
        (
            lambda: AE.encode(PARAMS._replace(b_dec=jnp.ones(5)), X),
            r"params.b_dec must have shape \[6\]",
        ),
        (
            lambda: AE.encode(PARAMS._replace(W=np.ones((4, 6), int)), X),
            "params.W must be a real floating array, got int64",
        ),
        (lambda: AE.init(KEY, data_mean=jnp.full(6, 2.0)), r"\[0, 1\] for bernoulli"),
        (lambda: AE.init(0), "key must be one JAX random key, got 0"),
        (lambda: AE.init(jax.random.split(KEY)), "key must be one JAX random key"),
        (lambda: AE.init(KEY, dtype="int32"), "real floating dtype.*'int32'"),
        (lambda: AE.init(KEY, dtype="float31"), "real floating dtype.*'float31'"),
        (lambda: AE.init(KEY, dtype="float64"), "round it to float32.*enable_x64"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("generator", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_initial_rows_are_the_same_at_any_width_and_in_any_vmap(generator):
    """rbg keys draw for a whole vmap from the first of them, and so by its length."""
    keys = jax.random.split(jax.random.key(0, impl=generator), 3)
    wide = dataclasses.replace(AE, latent_dim=7)
    together = jax.vmap(AE.init)(keys).W
    for i, key in enumerate(keys):
        W = AE.init(key).W
        np.testing.assert_allclose(together[i], W, rtol=1e-6)
        np.testing.assert_allclose(  # up to the limit, by which rows are multiplied
            wide.init(key).W[:4] / wide.init_limit, W / AE.init_limit, rtol=1e-6
        )
        assert len(np.unique(W)) == W.size


def test_raw_keys_are_those_of_the_default_generator():
    with jax.default_prng_impl("rbg"):
        raw = jax.random.PRNGKey(0)
        assert AE.init(raw).W.shape == (4, 6)
    with pytest.raises(ValueError, match="one JAX random key, got uint32.4."):
        AE.init(raw)


@pytest.mark.parametrize("bad", [0, -3, 2.5, "4", None, True])
@pytest.mark.parametrize("name", ["input_dim", "latent_dim"])
def test_dimensions_below_1_or_no_integers_are_refused(name, bad):
    sizes = {"input_dim": 6, "latent_dim": 4, name: bad}
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1"):
        jaxae.Autoencoder(**sizes)


def test_parts_must_be_parts():
    with pytest.raises(ValueError, match="activation must be an Activation such as"):
        jaxae.Autoencoder(input_dim=6, latent_dim=4, activation=b"relu")
    with pytest.raises(ValueError, match="observation must be an Observation such as"):
        jaxae.Autoencoder(input_dim=6, latent_dim=4, observation=jnp.tanh)
    with pytest.raises(ValueError, match="tied must be True or False, got 'yes'"):
        jaxae.Autoencoder(input_dim=6, latent_dim=4, tied="yes")


def test_raw_uint32_keys_are_keys():
    chex.assert_trees_all_equal(AE.init(jax.random.PRNGKey(0)), AE.init(KEY))


# ---- save and load -------------------------------------------------------------------


def test_parameters_of_any_memory_layout_are_saved_as_they_read(tmp_path):
    ae = model(tied=False)
    params = jax.tree.map(np.asarray, ae.init(KEY))
    transposed = np.arange(24, dtype="f4").reshape(6, 4).T
    strided = np.arange(12, dtype="f4")[::2]
    params = params._replace(W_dec=transposed, b_dec=strided)
    jaxae.save(tmp_path, ae, params)
    _, loaded = jaxae.load(tmp_path)
    chex.assert_trees_all_equal(loaded, params)


def test_a_part_that_would_be_loaded_as_another_is_not_saved(tmp_path):
    impostor = prelu._replace(name="relu")
    ae = jaxae.Autoencoder(input_dim=6, latent_dim=4, activation=impostor)
    with pytest.raises(ValueError, match="'relu' has the name of one of jaxae's"):
        jaxae.save(tmp_path / "m", ae, ae.init(KEY))
    for run in ({"x": np.nan}, {"x": np.ones(2)}):
        with pytest.raises(ValueError, match="run must be JSON"):
            jaxae.save(tmp_path / "m", AE, PARAMS, run=run)
    with pytest.raises(ValueError, match=r"order is jaxae.save\(DIR, ae, params\)"):
        jaxae.save(tmp_path / "m", PARAMS, AE)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("dtype", [FLOAT16, "bfloat16", "float32"])
def test_save_and_load_are_exact(tmp_path, is_tied, dtype):
    ae = model("relu", "gaussian", tied=is_tied)
    params = ae.init(KEY, dtype=dtype)
    jaxae.save(tmp_path / "new" / "folder", ae, params)
    loaded, found = jaxae.load(tmp_path / "new" / "folder")
    assert loaded == ae
    chex.assert_trees_all_equal(found, params)
    chex.assert_trees_all_equal_dtypes(found, params)
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == [
        "README.md",
        "config.json",
        "params.safetensors",
    ]


def test_float64_parameters_are_not_rounded_on_loading(tmp_path):
    with jax.enable_x64(True):
        params = AE.init(KEY, dtype=jnp.float64)
        jaxae.save(tmp_path, AE, params)
        chex.assert_trees_all_equal(jaxae.load(tmp_path)[1], params)
    with pytest.raises(ValueError, match="round to float32.*enable_x64"):
        jaxae.load(tmp_path)


def test_saving_again_replaces_and_a_failed_save_harms_nothing(tmp_path, monkeypatch):
    jaxae.save(tmp_path, AE, PARAMS)
    other = jax.tree.map(lambda leaf: leaf + 1, PARAMS)

    def fail(*arguments):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="no space left"):
            jaxae.save(tmp_path, AE, other)
    assert len(os.listdir(tmp_path)) == 3  # no temporary file left
    chex.assert_trees_all_equal(jaxae.load(tmp_path)[1], PARAMS)
    jaxae.save(tmp_path, AE, other)
    chex.assert_trees_all_equal(jaxae.load(tmp_path)[1], other)


def test_save_refuses_another_models_params_and_a_file_for_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"params.W must have shape"):
        jaxae.save(tmp_path / "m", AE, model(H=3).init(KEY))
    assert not (tmp_path / "m").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="directory must be a folder"):
        jaxae.save(tmp_path / "file", AE, PARAMS)


def test_load_says_what_is_missing_or_damaged(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json does not exist"):
        jaxae.load(tmp_path)
    jaxae.save(tmp_path, AE, PARAMS)
    config, tensors = tmp_path / "config.json", tmp_path / "params.safetensors"
    good_config, good_tensors = config.read_bytes(), tensors.read_bytes()

    for damaged in (b"", b"{", b"[]", b'{"model": 3}', b"\xff\xfe", b"[" * 100_000):
        config.write_bytes(damaged)
        with pytest.raises(ValueError, match="is not the config.json of a jaxae model"):
            jaxae.load(tmp_path)
    for change in ({"latent_dim": 5}, {"tied": False}, {"activation": "tanh"}):
        changed = json.loads(good_config)
        changed["model"].update(change)
        config.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match="describes another model"):
            jaxae.load(tmp_path)
    config.write_bytes(good_config)

    for damaged in (b"", good_tensors[:50], good_tensors[:-3], b"\x80\x04pickle"):
        tensors.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged or not a safetensors file"):
            jaxae.load(tmp_path)
    tensors.unlink()
    with pytest.raises(FileNotFoundError, match="params.safetensors does not exist"):
        jaxae.load(tmp_path)


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=300), where=st.sampled_from(["config", "params"]))
def test_load_of_arbitrary_bytes_is_one_sentence(tmp_path_factory, content, where):
    folder = tmp_path_factory.mktemp("fuzz")
    jaxae.save(folder, AE, PARAMS)
    name = {"config": "config.json", "params": "params.safetensors"}[where]
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        jaxae.load(folder)
    assert "\n" not in str(error.value)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_load_of_a_flipped_byte_is_what_was_saved_or_an_error(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("flip")
    jaxae.save(folder, AE, PARAMS)
    path = folder / "params.safetensors"
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(
        st.integers(1, 255)
    )
    path.write_bytes(bytes(content))
    try:
        ae, params = jaxae.load(folder)
    except ValueError:
        return
    assert ae == AE
    chex.assert_trees_all_equal(params, PARAMS)


def test_a_flipped_bit_in_the_numbers_is_found(tmp_path):
    ae = model()
    jaxae.save(tmp_path, ae, ae.init(jax.random.key(0)))
    path = tmp_path / "params.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1  # the last bits of a number: it stays a number
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="its numbers are not those that were saved"):
        jaxae.load(tmp_path)
