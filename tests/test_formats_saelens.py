"""Folders of SAELens: its outputs, bits after round trips, what is refused by name.

The folders in tests/goldens, and the outputs in them, are SAELens' own
(benchmarks/format_goldens/saelens.py).
"""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from test_formats import assert_same_bits, params_of

import jaxae
from jaxae import formats, manual

pytestmark = pytest.mark.usefixtures("no_step_norms")

GOLDENS = pathlib.Path(__file__).parent / "goldens" / "formats" / "saelens"
FOLDERS = sorted(p.name for p in GOLDENS.iterdir())
LOADED = [name for name in FOLDERS if name != "layer_norm"]
FOLDED = {
    "batchtopk": ("the norms of the decoder rows",),
    "matryoshka_batchtopk": ("the norms of the decoder rows",),
    "topk_rescaled": ("the norms of the decoder rows",),
    "standard_scaled": ("the input scale 0.37",),
    "jumprelu_log_threshold": ("the exponential of log_threshold",),
}
# The outputs of both libraries are a few float32 roundings of numbers of one size.
TOLERANCE = 1e-6
WEIGHTS = "sae_weights.safetensors"


def outputs_of(name):
    return safetensors.numpy.load_file(GOLDENS / name / "outputs.safetensors")


def assert_outputs(ae, params, expected, inputs=None, undo=lambda x_hat: x_hat):
    """As SAELens computes them in float32, whatever the dtype of the file."""
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    X = jnp.asarray(expected["inputs"] if inputs is None else inputs)
    Z = jax.vmap(ae.encode, (None, 0))(params, X)
    X_hat = undo(np.asarray(jax.vmap(ae.reconstruct, (None, 0))(params, X)))
    for found, name in ((Z, "latents"), (X_hat, "reconstructions")):
        atol = TOLERANCE * np.abs(expected[name]).max()
        np.testing.assert_allclose(found, expected[name], rtol=0, atol=atol)
    np.testing.assert_array_equal(Z != 0, expected["latents"] != 0)


def saved(folder, model, **changes):
    """The folder, with the model written as SAELens'."""
    ae, params, metadata, _ = model._replace(**changes)
    formats.save(folder, ae, params, format="saelens", metadata=metadata)
    return folder


def tensors_of(folder):
    return safetensors.numpy.load_file(folder / WEIGHTS)


@pytest.mark.parametrize("name", LOADED)
def test_the_outputs_are_those_of_saelens(name):
    model = formats.read(GOLDENS / name)
    assert model.folded == FOLDED.get(name, ())
    assert_outputs(model.ae, model.params, outputs_of(name))


@pytest.mark.parametrize("name", LOADED)
def test_what_was_loaded_returns_to_the_bit(name, tmp_path):
    model = formats.read(GOLDENS / name)
    again = formats.read(saved(tmp_path, model))
    assert again.ae == model.ae
    assert_same_bits(again.params, model.params)
    assert again.folded == ()
    assert again.metadata == {"sae_lens_version": "6.0.0", **model.metadata}


# Not the folded ones, nor b_mag of a gated one, which a rounding may change.
@pytest.mark.parametrize("name", [n for n in LOADED if n not in FOLDED])
def test_a_file_returns_to_the_bit(name, tmp_path):
    found = tensors_of(saved(tmp_path, formats.read(GOLDENS / name)))
    expected = tensors_of(GOLDENS / name)
    assert set(found) == set(expected)
    for key in set(found) - {"b_mag"}:
        assert found[key].dtype == expected[key].dtype
        np.testing.assert_array_equal(found[key], expected[key], strict=True)


def floats(low, high):
    """Four float32 numbers."""
    number = st.floats(low, high, width=32, allow_subnormal=False)
    return st.lists(number, min_size=4, max_size=4).map(jnp.float32)


@settings(max_examples=25, deadline=None)
@given(log_scale=floats(-8, 8), shift=floats(-1e6, 1e6), b_enc=floats(-1e6, 1e6))
def test_a_gated_model_returns_to_the_bit(log_scale, shift, b_enc, tmp_path_factory):
    """Also where shift is lost in b_mag = shift + exp(log_scale) b_enc."""
    W = jnp.ones((4, 6))
    theta = jaxae.activations.Gated(log_scale, shift)
    params = jaxae.UntiedParams(W, W, b_enc, jnp.ones(6), theta)
    folder = tmp_path_factory.mktemp("gated")
    ae = model_of("gated", latent_dim=4)
    formats.save(folder, ae, params, format="saelens")
    assert_same_bits(formats.load(folder)[1], params)


def model_of(activation, **choices):
    fields = {"input_dim": 6, "latent_dim": 10, "observation": "gaussian"}
    fields |= {"tied": False, "pre_bias": True}
    return jaxae.Autoencoder(activation=activation, **{**fields, **choices})


def test_a_changed_b_mag_wins_over_the_shift_that_the_file_repeats(tmp_path):
    ae = model_of("gated")
    formats.save(tmp_path, ae, params_of(ae), format="saelens")
    with safetensors.safe_open(tmp_path / WEIGHTS, framework="np") as file:
        header = file.metadata()
    tensors = tensors_of(tmp_path)
    tensors["b_mag"][3] += 1
    safetensors.numpy.save_file(tensors, tmp_path / WEIGHTS, metadata=header)
    shift = formats.load(tmp_path)[1].activation.shift
    expected = params_of(ae).activation.shift
    np.testing.assert_array_equal(shift[:3], expected[:3])
    np.testing.assert_allclose(shift[3], expected[3] + 1, rtol=1e-5)
    for other in ("[1, 2]", "3"):
        header = {"jaxae_shift": other}
        safetensors.numpy.save_file(tensors, tmp_path / WEIGHTS, metadata=header)
        loaded = formats.load(tmp_path)[1].activation.shift
        np.testing.assert_allclose(loaded, shift, rtol=1e-5)


# Each activation and parametrization that SAELens has a place for.
OWN = {
    "relu": model_of("relu"),
    "no pre_bias": model_of("topk(3)", pre_bias=False),
    "abs_topk": model_of("abs_topk(3)"),
    "jumprelu": model_of("jumprelu()"),
    "gated": model_of("gated"),
    "matching_pursuit": model_of("matching_pursuit(3)", tied=True, bias=False),
    "transcoder": model_of("relu", output_dim=4, pre_bias=False),
    "skip": model_of("jumprelu()", skip=True, pre_bias=False),
}


@pytest.mark.parametrize("ae", OWN.values(), ids=OWN.keys())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_models_of_jaxae_return_to_the_bit(ae, dtype, tmp_path):
    params = jaxae.autoencoder.parametrizations.as_dtype(params_of(ae), dtype)
    formats.save(tmp_path, ae, params, format="saelens")
    again, loaded = formats.load(tmp_path)
    assert again == ae
    assert_same_bits(loaded, params)


def test_other_models_keep_their_function(tmp_path):
    """Tied weights are written twice, and a transcoder's pre_bias is in its b_enc."""
    X = jax.random.normal(jax.random.key(2), (5, 6))
    for name, ae in {
        "tied": model_of("relu", tied=True),
        "without bias": model_of("topk(3)", bias=False),
        "aligned": model_of(
            "relu", tied=None, parametrization=jaxae.autoencoder.aligned
        ),
        "skip": model_of("relu", skip=True),
        "scaled": model_of("jumprelu(bandwidth=0.1, threshold=0.2, scale=3.0)"),
    }.items():
        params = params_of(ae)
        formats.save(tmp_path / name, ae, params, format="saelens")
        again, loaded = formats.load(tmp_path / name)
        expected = jax.vmap(ae.reconstruct, (None, 0))(params, X)
        found = jax.vmap(again.reconstruct, (None, 0))(loaded, X)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5, err_msg=name)


def test_inputs_that_the_user_normalizes():
    """A model whose inputs SAELens standardizes, row by row."""
    expected = outputs_of("layer_norm")
    folder = GOLDENS / "layer_norm"
    with pytest.raises(ValueError, match=r"normalize_activations='layer_norm'.*inputs"):
        formats.load(folder)
    ae, params = formats.load(folder, inputs_normalized=True)
    X = expected["inputs"]
    mean, std = X.mean(1, keepdims=True), X.std(1, ddof=1, keepdims=True)
    inputs = (X - mean) / (std + 1e-5)
    assert_outputs(ae, params, expected, inputs, lambda x_hat: x_hat * std + mean)


def test_a_normalization_that_the_user_does_is_written_back(tmp_path):
    model = formats.read(GOLDENS / "layer_norm", inputs_normalized=True)
    assert formats.metadata(GOLDENS / "layer_norm", inputs_normalized=True) == (
        model.metadata
    )
    config = json.loads((saved(tmp_path, model) / "cfg.json").read_bytes())
    assert config["normalize_activations"] == "layer_norm"


def test_the_scale_of_a_checkpoint_is_left_to_the_user_on_request():
    ae, params = formats.load(GOLDENS / "standard_scaled", inputs_normalized=True)
    expected = outputs_of("standard_scaled")
    scale = np.float32(0.37)
    inputs = expected["inputs"] * scale
    assert_outputs(ae, params, expected, inputs, lambda x_hat: x_hat / scale)


def test_a_transcoder_of_equal_widths_stays_one(tmp_path):
    ae = model_of("relu", pre_bias=False)
    metadata = {"architecture": "transcoder"}
    formats.save(tmp_path, ae, params_of(ae), format="saelens", metadata=metadata)
    assert json.loads((tmp_path / "cfg.json").read_bytes())["d_out"] == 6
    assert formats.load(tmp_path)[0] == ae
    assert formats.metadata(tmp_path)["architecture"] == "transcoder"


def test_metadata_are_what_is_not_the_function():
    metadata = formats.metadata(GOLDENS / "matryoshka_batchtopk")
    assert metadata["model_name"] == "gpt2"
    assert metadata["training_architecture"] == "matryoshka_batchtopk"
    assert (metadata["k"], metadata["matryoshka_widths"]) == (3, [4, 10])
    flat = formats.metadata(GOLDENS / "flat_topk")
    assert flat["hook_name"] == "blocks.3.hook_resid_pre"
    assert not {"d_in", "k", "architecture", "activation_fn"} & set(flat)
    assert formats.metadata(GOLDENS / "hook_z")["reshape_activations"] == "hook_z"


# ---- refused by name -----------------------------------------------------------------


@pytest.fixture
def edit(tmp_path):
    """A function that copies a golden folder, with other entries in its cfg.json."""

    def edited(name, **entries):
        folder = tmp_path / name
        shutil.copytree(GOLDENS / name, folder, dirs_exist_ok=True)
        config = json.loads((folder / "cfg.json").read_bytes())
        config = {n: v for n, v in {**config, **entries}.items() if v != "absent"}
        (folder / "cfg.json").write_text(json.dumps(config))
        return folder

    return edited


@pytest.mark.parametrize(
    "name, entries, message",
    [
        (
            "standard",
            {"architecture": "temporal", "kval_topk": 4},  # an entry of its own
            "architecture must be one of .*'temp",
        ),
        ("standard", {"architecture": ["x"]}, "architecture must be one of"),
        ("standard", {"d_in": "6"}, "d_in must be"),
        ("standard", {"d_sae": "absent"}, "d_sae must be"),
        ("standard", {"d_sae": 11}, r"must hold W_dec\[11, 6\].*got W_dec\[10, 6\]"),
        ("standard", {"dtype": "int8"}, "dtype must be one of .*int8"),
        ("standard", {"apply_b_dec_to_input": 1}, "apply_b_dec_to_input must be"),
        ("standard", {"activation_fn": "tanh-relu"}, "activation_fn='tanh-relu'"),
        ("standard", {"use_error_term": True}, "use_error_term=True"),
        ("standard", {"reshape_activations": "x"}, "reshape_activations='x'"),
        ("standard", {"normalize_activations": "x"}, "normalize_activations='x'"),
        (
            *("standard", {"normalize_activations": "covariance_whitening"}),
            "normalize_activations='covariance_whitening'",
        ),
        (
            *("standard", {"normalize_activations": "expected_average_only_in"}),
            "normalize_activations=.expected_average_only_in.*set inputs_normalized",
        ),
        ("standard", {"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_.*=True"),
        ("standard", {"gain": 2}, "gain=2, which jaxae does not know"),
        ("standard", {"metadata": 1}, "metadata=1"),
        ("topk", {"k": 20}, "cfg.json: activation topk.20. needs at least 20 latents"),
        ("topk", {"k": "absent"}, "cfg.json: k must be"),
        ("topk", {"k": 2.5}, "cfg.json: k must be"),
        ("transcoder", {"apply_b_dec_to_input": True}, "apply_b_dec_to_input=True"),
        ("transcoder", {"d_out": "absent"}, "d_out must be"),
        ("matching_pursuit", {"residual_threshold": 0.01}, "residual_threshold=0.01"),
        ("matching_pursuit", {"max_iterations": 0}, "cfg.json: k must be"),
        (
            *("matching_pursuit", {"stop_on_duplicate_support": True}),
            "stop_on_duplicate_support=True",
        ),
        ("jumprelu_training", {"jumprelu_bandwidth": -1}, "bandwidth must be"),
        ("flat_standard", {"activation_fn_str": "gelu"}, "activation_fn='gelu'"),
        ("flat_standard", {"normalize_activations": True}, "expected_average_only_in"),
        ("flat_topk", {"activation_fn_kwargs": {}}, "cfg.json: k must be"),
        ("flat_topk", {"activation_fn_kwargs": 3}, "cfg.json: k must be"),
    ],
)
def test_what_has_no_place_in_the_model_is_refused_by_name(
    name, entries, message, edit
):
    with pytest.raises(ValueError, match=message):
        formats.load(edit(name, **entries))


def edit_tensors(folder, change):
    tensors = tensors_of(folder)
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("standard", lambda t: t.pop("b_enc"), r"must hold W_dec.*b_enc\[10\].*got"),
        ("standard", lambda t: t.update(gain=t["b_enc"]), r"got W_dec.*gain\[10\]"),
        (
            *("batchtopk", lambda t: t["topk_threshold"].fill(0)),
            "topk_threshold=0.0, which no step of training has set",
        ),
        (
            *("standard", lambda t: t.update(scaling_factor=t["b_enc"])),
            "a scaling_factor that is not 1, and finetuning_scaling_factor=False",
        ),
        (
            *("standard", lambda t: t.update(scaling_factor=t["b_dec"])),
            r"must hold.*scaling_factor\[10\].*got.*scaling_factor\[6\]",
        ),
    ],
)
def test_tensors_that_are_not_the_architecture_s_are_refused(
    name, change, message, edit
):
    with pytest.raises(ValueError, match=message):
        formats.load(edit_tensors(edit(name), change))


def test_float64_files_need_x64(edit):
    def widen(tensors):
        for name in tensors:
            tensors[name] = tensors[name].astype(np.float64)

    folder = edit_tensors(edit("standard", dtype="float64"), widen)
    with pytest.raises(ValueError, match=r"float64 parameters.*enable_x64"):
        formats.load(folder)
    with jax.enable_x64(True):
        assert formats.load(folder)[1].W_enc.dtype == np.float64


def test_damaged_files_are_named(edit):
    folder = edit("standard")
    (folder / WEIGHTS).write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=rf"Cannot read .*{WEIGHTS}"):
        formats.load(folder)
    for text in ("", "[1]", "{", "[" * 100_000):
        (folder / "cfg.json").write_text(text)
        with pytest.raises(ValueError, match=r"Cannot read .*cfg\.json"):
            formats.load(folder)


@pytest.mark.parametrize("text", ["nonsense", '"x"', '["x"]', '{"a": 1}'])
def test_a_damaged_header_of_a_gated_file_is_named(text, edit):
    folder = edit("gated")
    tensors = tensors_of(folder)
    header = {"jaxae_shift": text}
    safetensors.numpy.save_file(tensors, folder / WEIGHTS, metadata=header)
    with pytest.raises(ValueError, match=rf"Cannot read .*{WEIGHTS}"):
        formats.load(folder)


@pytest.mark.parametrize(
    "factors, is_finetuned, folded",
    [(1 + 1e-7, False, ()), (1.0, True, ()), (2.5, True, ("the finetuning factors",))],
)
def test_finetuning_factors_scale_the_decoder(factors, is_finetuned, folded, edit):
    folder = edit("flat_standard", finetuning_scaling_factor=is_finetuned)
    scaling_factor = np.full(10, factors, np.float32)
    edit_tensors(folder, lambda t: t.update(scaling_factor=scaling_factor))
    model = formats.read(folder)
    assert model.folded == folded
    W_dec = tensors_of(folder)["W_dec"] * (scaling_factor[0] if folded else 1)
    np.testing.assert_array_equal(model.params.W_dec, W_dec)


def test_a_zero_decoder_row_of_a_rescaled_model_stays_zero(edit):
    folder = edit_tensors(edit("topk_rescaled"), lambda t: t["W_dec"][3].fill(0))
    ae, params = formats.load(folder)
    z = jax.vmap(ae.encode, (None, 0))(params, outputs_of("topk_rescaled")["inputs"])
    assert not np.any(z[:, 3])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    "ae, message",
    [
        (model_of("sigmoid"), "activation sigmoid, which the format 'saelens'"),
        (model_of("batch_topk(3)"), "activation batch_topk.*run.model"),
        (model_of("relu", observation="bernoulli"), "observation bernoulli"),
        (model_of("topk(3)", skip=True), "activation topk.3. in a transcoder"),
        (model_of("matching_pursuit(3)"), "matching pursuit without tied weights"),
        (
            model_of("matching_pursuit(3)", tied=True, bias=False, pre_bias=False),
            "matching pursuit with a b_dec",
        ),
    ],
)
def test_models_without_a_place_in_saelens_are_refused(ae, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        formats.save(tmp_path / "out", ae, params_of(ae), format="saelens")
    assert not (tmp_path / "out").exists()


# ---- a loaded model is a model -------------------------------------------------------

ARCHITECTURES = [
    *("standard", "topk", "abstopk", "gated", "jumprelu"),
    *("matching_pursuit", "transcoder", "jumprelu_skip_transcoder"),
]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_hand_derived_gradients_of_a_loaded_model(name):
    ae, params = formats.load(GOLDENS / name)
    x = jnp.asarray(outputs_of(name)["inputs"][0])
    target = jnp.ones(ae.output_dim)
    expected = jax.grad(ae.loss)(params, x, target)
    found = manual.backprop(ae, params, x, target).grads
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        # Sums of ten products in another order.
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(abs(b).max()))


def test_a_loaded_model_is_trained_swept_and_saved(tmp_path):
    ae, params = formats.load(GOLDENS / "batchtopk")
    X = jax.random.normal(jax.random.key(0), (64, 6))
    objective = jaxae.Objective(ae)
    config = jaxae.TrainConfig(num_epochs=2, batch_size=16)
    key = jax.random.key(1)
    run = jaxae.train(
        *(objective, X),
        hparams={"learning_rate": 1e-2},
        key=key,
        config=config,
        params=params,
    )
    losses = run.metrics["train/loss"]
    assert losses[-1] < losses[0]
    sweep = jaxae.sweep(
        *(objective, X, {"learning_rate": [0.0, 1e-2]}),
        key=key,
        config=config,
        params=params,
        lanes_at_once=1,
    )
    assert_same_bits(sweep.params(0), params)
    assert not np.array_equal(sweep.params(1).W_enc, params.W_enc)
    jaxae.save(tmp_path / "tuned", *run.model)
    assert_same_bits(jaxae.load(tmp_path / "tuned")[1], run.params)
    ae, tuned = formats.load(
        saved(tmp_path / "again", formats.read(tmp_path / "tuned"))
    )
    assert_same_bits(tuned, run.params)
