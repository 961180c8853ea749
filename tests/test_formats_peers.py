"""Files of sparsify, dictionary_learning, Gemma Scope and OpenAI.

The files in tests/goldens, and the outputs in them, are the originals' own
(benchmarks/format_goldens). Files of torch are there as their state dicts too: the
tests have no torch, and benchmarks/format_goldens/check.py reads and writes the files.
"""

import json
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from judges import assert_falls
from test_formats import assert_same_bits, params_of

import jaxae
from jaxae import formats, manual
from jaxae.formats import _dictionary_learning, _openai, _torch

GOLDENS = pathlib.Path(__file__).parent / "goldens" / "formats"
FOLDERS = {
    f"{format}/{path.name}": path
    for format in ("sparsify", "dictionary_learning", "gemma_scope", "openai")
    for path in sorted((GOLDENS / format).iterdir())
}
# The outputs of both libraries are a few float32 roundings of numbers of one size.
TOLERANCE = 1e-6
FOLDED = {
    "dictionary_learning/backup": ("the norm of the data 2.5",),
}


def state_of(folder):
    """The state dict of a file of torch, with NumPy arrays."""
    plain = folder / "state.json"
    values = json.loads(plain.read_bytes()) if plain.exists() else {}
    state = {}
    for path, value in (values | dict(np.load(folder / "state.npz"))).items():
        *parents, name = path.split("/")
        level = state
        for parent in parents:
            level = level.setdefault(parent, {})
        level[name] = value
    return state


def read(name):
    """The model of a golden; of a file of torch, that of its state dict."""
    format, folder = name.partition("/")[0], FOLDERS[name]
    if format == "openai":
        return _openai.from_state(folder / "autoencoder.pt", state_of(folder), True)
    if format == "dictionary_learning":
        config = json.loads((folder / "config.json").read_bytes())
        path, state = folder / "ae.pt", state_of(folder)
        return _dictionary_learning.from_state(path, state, config)
    return formats.read(folder)


def outputs_of(name):
    return safetensors.numpy.load_file(FOLDERS[name] / "outputs.safetensors")


def outputs(ae, params, X):
    """Latents and reconstructions, in float32."""
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    Z = jax.vmap(ae.encode, (None, 0))(params, X)
    return Z, jax.vmap(ae.reconstruct, (None, 0))(params, X)


def assert_outputs(ae, params, expected):
    Z, X_hat = outputs(ae, params, jnp.asarray(expected["inputs"]))
    for found, name in ((Z, "latents"), (X_hat, "reconstructions")):
        atol = TOLERANCE * np.abs(expected[name]).max()
        np.testing.assert_allclose(found, expected[name], rtol=0, atol=atol)
    np.testing.assert_array_equal(Z != 0, expected["latents"] != 0)


@pytest.mark.parametrize("name", FOLDERS)
def test_the_outputs_are_those_of_the_original(name):
    model = read(name)
    assert model.folded == FOLDED.get(name, ())
    assert_outputs(model.ae, model.params, outputs_of(name))


# ---- round trips ---------------------------------------------------------------------


def write(folder, format, ae, params, metadata):
    """What the file holds that `formats.save` writes, by name."""
    if format == "openai":
        return _openai.to_state(ae, params, metadata)
    if format == "dictionary_learning":
        return _dictionary_learning.to_state(ae, params, metadata)[0]
    formats.save(folder, ae, params, format=format, metadata=metadata)
    return tensors_of(folder)


def tensors_of(folder):
    if (folder / "params.npz").exists():
        return dict(np.load(folder / "params.npz"))
    return safetensors.numpy.load_file(folder / "sae.safetensors")


def read_back(folder, format, ae, params, metadata):
    """The model after a round trip through the format."""
    written = write(folder, format, ae, params, metadata)
    if format == "openai":
        return _openai.from_state(folder, written, True)
    if format == "dictionary_learning":
        config = _dictionary_learning.to_state(ae, params, metadata)[1]
        config = json.loads(json.dumps(config))
        return _dictionary_learning.from_state(folder, written, config)
    return formats.read(folder)


@pytest.mark.parametrize("name", FOLDERS)
def test_what_was_loaded_returns_to_the_bit(name, tmp_path):
    ae, params, metadata, _ = read(name)
    format = name.partition("/")[0]
    again = read_back(tmp_path, format, ae, params, metadata)
    assert (again.ae, again.metadata, again.folded) == (ae, metadata, ())
    assert_same_bits(again.params, params)


# Not the backup, which is written as a finished model, nor the entries activation.k and
# activation.postact_fn, which OpenAI's library writes and does not read.
@pytest.mark.parametrize("name", [n for n in FOLDERS if n not in FOLDED])
def test_a_file_returns_to_the_bit(name, tmp_path):
    model, folder = read(name), FOLDERS[name]
    format = name.partition("/")[0]
    found = write(tmp_path, format, model.ae, model.params, model.metadata)
    is_torch = format in ("openai", "dictionary_learning")
    expected = state_of(folder) if is_torch else tensors_of(folder)
    expected = {key: v for key, v in expected.items() if "activation." not in key}
    assert {"activation_state_dict": {}, **expected}.keys() == {
        "activation_state_dict": {},
        **found,
    }.keys()
    for key, value in expected.items():
        if isinstance(value, np.ndarray) and key != "mag_bias":
            np.testing.assert_array_equal(found[key], value, strict=True)
        elif key != "mag_bias":
            assert found[key] == value


def model_of(activation, **choices):
    fields = {"input_dim": 6, "latent_dim": 10, "observation": "gaussian"}
    fields |= {"tied": False, "pre_bias": True}
    return jaxae.Autoencoder(activation=activation, **{**fields, **choices})


# Each model that a format holds as it is.
OWN = {
    ("sparsify", "topk"): model_of("topk(3)"),
    ("sparsify", "transcoder"): model_of("topk(3)", pre_bias=False),
    ("sparsify", "skip"): model_of("topk(3)", skip=True),
    ("dictionary_learning", "relu"): model_of("relu"),
    ("dictionary_learning", "no pre_bias"): model_of("relu", pre_bias=False),
    ("dictionary_learning", "topk"): model_of("topk(3)"),
    ("dictionary_learning", "gated"): model_of("gated"),
    ("dictionary_learning", "jumprelu"): model_of("jumprelu()", pre_bias=False),
    ("gemma_scope", "jumprelu"): model_of("jumprelu()", pre_bias=False),
    ("openai", "relu"): model_of("relu"),
    ("openai", "tied"): model_of("relu", tied=True),
    ("openai", "identity"): model_of("identity"),
    ("openai", "topk"): model_of("topk(3)"),
}


@pytest.mark.parametrize("case", OWN, ids="-".join)
def test_models_of_jaxae_return_to_the_bit(case, tmp_path):
    (format, _), ae = case, OWN[case]
    is_normalized = case == ("openai", "topk")
    metadata = {"normalize_activations": "layer_norm"} if is_normalized else {}
    again = read_back(tmp_path, format, ae, params_of(ae), metadata)
    assert again.ae == ae
    assert_same_bits(again.params, params_of(ae))


SIZES = st.integers(1, 5)


@settings(max_examples=30, deadline=None)
@given(D=SIZES, H=SIZES, case=st.sampled_from(sorted(OWN)), seed=st.integers(0, 99))
def test_models_of_any_size_return_to_the_bit(D, H, case, seed, tmp_path_factory):
    """Also square ones, whose transposes have their shape."""
    format, own = case[0], OWN[case]
    topk = own.activation.max_active is not None
    ae = model_of(
        jaxae.activations.topk(1) if topk else own.activation,
        **{"input_dim": D, "latent_dim": H, "tied": own.tied},
        **{"pre_bias": own.pre_bias, "skip": own.skip},
    )
    shapes = jax.eval_shape(ae.init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype), shapes
    )
    is_normalized = topk and format == "openai"
    metadata = {"normalize_activations": "layer_norm"} if is_normalized else {}
    again = read_back(tmp_path_factory.mktemp("any"), format, ae, params, metadata)
    assert again.ae == ae
    assert_same_bits(again.params, params)


def test_sparsify_keeps_bfloat16(tmp_path):
    ae = OWN["sparsify", "topk"]
    params = jaxae.autoencoder.parametrizations.as_dtype(params_of(ae), jnp.bfloat16)
    again = read_back(tmp_path, "sparsify", ae, params, {})
    assert_same_bits(again.params, params)


def test_sparsify_s_tensors_have_one_dtype(tmp_path):
    """The original reads all of them in the dtype of the first."""
    ae = OWN["sparsify", "topk"]
    params = params_of(ae)
    narrow = params._replace(W_enc=params.W_enc.astype(jnp.bfloat16))
    again = read_back(tmp_path, "sparsify", ae, narrow, {})
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow)
    assert_same_bits(again.params, wide)


# The other formats compute in float32, which holds any narrower number.
@pytest.mark.parametrize("format", ["dictionary_learning", "openai", "gemma_scope"])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_narrow_parameters_are_widened(format, dtype, tmp_path):
    activation = "jumprelu()" if format == "gemma_scope" else "relu"
    ae = model_of(activation, pre_bias=format != "gemma_scope")
    params = jaxae.autoencoder.parametrizations.as_dtype(params_of(ae), dtype)
    again = read_back(tmp_path, format, ae, params, {})
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    assert_same_bits(again.params, wide)


SAME_FUNCTION = {
    "tied": ("sparsify", model_of("topk(3)", tied=True)),
    "without bias": ("sparsify", model_of("topk(3)", bias=False)),
    "pre_bias": ("gemma_scope", model_of("jumprelu()")),
    "scaled": (
        "gemma_scope",
        model_of("jumprelu(bandwidth=0.1, threshold=0.2, scale=3.0)", pre_bias=False),
    ),
    "gated": ("dictionary_learning", model_of("gated")),
    "gated without pre_bias": (
        "dictionary_learning",
        model_of("gated", pre_bias=False),
    ),
    "topk without pre_bias": (
        "dictionary_learning",
        model_of("topk(3)", pre_bias=False),
    ),
    "aligned": (
        "openai",
        model_of("relu", tied=None, parametrization=jaxae.autoencoder.aligned),
    ),
}


@pytest.mark.parametrize("name", SAME_FUNCTION)
def test_other_models_keep_their_function(name, tmp_path):
    format, ae = SAME_FUNCTION[name]
    params = params_of(ae)
    X = jax.random.normal(jax.random.key(2), (5, 6))
    again = read_back(tmp_path, format, ae, params, {})
    for found, expected in zip(
        outputs(again.ae, again.params, X), outputs(ae, params, X)
    ):
        # Biases of the size of 10 are added and subtracted.
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_metadata_are_what_is_not_the_function():
    assert read("sparsify/multi_topk").metadata == {
        "expansion_factor": 32,
        "normalize_decoder": True,
        "multi_topk": True,
    }
    trainer = read("dictionary_learning/MatryoshkaBatchTopKSAE").metadata["trainer"]
    assert (trainer["k"], trainer["group_sizes"], trainer["layer"]) == (3, [2, 3, 5], 8)
    # Not set, and so not part of the function: the latents are those of relu.
    unset = read("dictionary_learning/BatchTopKSAE_unset")
    np.testing.assert_array_equal(unset.params.activation.threshold, -np.ones(10))
    counts = read("openai/topk").metadata
    assert counts["normalize_activations"] == "layer_norm"
    assert counts["latents_activation_frequency"] == [1.0] * 10


def test_metadata_that_a_format_has_no_entries_for(tmp_path):
    """sparsify and dictionary_learning keep them in their configuration."""
    ae, metadata = model_of("topk(3)"), {"model_name": "gpt2"}
    for format in ("sparsify", "dictionary_learning"):
        again = read_back(tmp_path / format, format, ae, params_of(ae), metadata)
        assert again.metadata["model_name"] == "gpt2"


# ---- files of torch ------------------------------------------------------------------

OF_TORCH = [n for n in FOLDERS if n.startswith(("dictionary_learning", "openai"))]


@pytest.mark.parametrize("name", OF_TORCH)
def test_files_of_torch_are_recognized_and_need_torch(name, monkeypatch):
    """By the folder and by the file."""
    monkeypatch.setitem(sys.modules, "torch", None)
    for path in (FOLDERS[name], *FOLDERS[name].glob("*.pt")):
        with pytest.raises(ImportError, match=r"\.pt, .*needs the .*'jaxae\[torch\]'"):
            formats.load(path)


@pytest.mark.parametrize("format", ["dictionary_learning", "openai"])
def test_writing_a_file_of_torch_needs_torch(format, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    ae = model_of("relu")
    with pytest.raises(ImportError, match=r"\.pt, .*needs the .*'jaxae\[torch\]'"):
        formats.save(tmp_path / "out", ae, params_of(ae), format=format)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_has_its_configuration_in_the_folder_above(tmp_path, monkeypatch):
    """Without it, the class of this state dict is not known."""
    golden = FOLDERS["dictionary_learning/BatchTopKSAE"]
    checkpoint = tmp_path / "checkpoints" / "ae_1000.pt"
    checkpoint.parent.mkdir()
    shutil.copy(golden / "ae.pt", checkpoint)
    monkeypatch.setattr(_torch, "read", lambda path: state_of(golden))
    with pytest.raises(ValueError, match="AutoEncoderTopK or BatchTopKSAE"):
        formats.load(checkpoint)
    shutil.copy(golden / "config.json", tmp_path)
    assert formats.load(checkpoint)[0] == read("dictionary_learning/BatchTopKSAE").ae


# ---- refused by name -----------------------------------------------------------------


@pytest.fixture
def edit(tmp_path):
    """A function that copies a golden of sparsify with another cfg.json and tensors."""

    def edited(config=None, change=None, name="topk"):
        folder = tmp_path / "edited"
        shutil.copytree(FOLDERS[f"sparsify/{name}"], folder)
        entries = json.loads((folder / "cfg.json").read_bytes()) | (config or {})
        entries = {key: value for key, value in entries.items() if value != "absent"}
        (folder / "cfg.json").write_text(json.dumps(entries))
        if change is not None:
            tensors = tensors_of(folder)
            change(tensors)
            safetensors.numpy.save_file(tensors, folder / "sae.safetensors")
        return folder

    return edited


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"activation": "groupmax"}, "cfg.json has activation='groupmax'"),
        ({"signed": True}, "cfg.json has signed=True"),
        ({"gain": 2}, "cfg.json has gain=2, which jaxae does not know"),
        ({"metadata": 3}, "cfg.json has metadata=3"),
        ({"d_in": "absent"}, "cfg.json: d_in must be an integer"),
        ({"d_in": "6", "num_latents": 0}, "cfg.json: d_in must be an integer"),
        ({"k": "absent"}, "cfg.json: k must be an integer"),
        ({"k": 2.5}, "cfg.json: k must be an integer"),
        ({"k": 11}, "topk.11. needs at least 11 latents"),
        ({"transcode": "yes"}, "cfg.json: transcode must be True or False"),
        ({"skip_connection": 1}, "cfg.json: skip_connection must be True or False"),
        ({"skip_connection": True}, r"must hold W_dec.*W_skip\[6, 6\].*got W_dec"),
        ({"num_latents": 0}, r"must hold W_dec\[192, 6\].*got W_dec\[10, 6\]"),
        ({"num_latents": 0, "expansion_factor": 0}, "expansion_factor must be"),
        ({"num_latents": -1}, "num_latents must be an integer"),
    ],
)
def test_what_sparsify_s_configuration_has_wrong_is_named(entries, message, edit):
    with pytest.raises(ValueError, match=message):
        formats.load(edit(entries))


def test_sparsify_s_defaults(edit):
    """Early files lack the flags, and files may have the width as a factor."""
    absent = dict.fromkeys(("activation", "skip_connection", "transcode"), "absent")
    ae, params = formats.load(edit({**absent, "signed": False}))
    assert_outputs(ae, params, outputs_of("sparsify/topk"))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("b_dec"), r"must hold W_dec.*b_dec\[6\].*got W_dec"),
        (lambda t: t.update(gain=t["b_dec"]), r"got W_dec.*gain\[6\]"),
        # What SAELens' loader makes of this tensor.
        (
            lambda t: t.update(W_dec=np.ascontiguousarray(t["W_dec"].T)),
            r"got W_dec\[6, 10\]",
        ),
        (lambda t: t["W_dec"].fill(np.nan), "holds NaN in W_dec"),
        (lambda t: t.update(b_dec=t["b_dec"].astype(np.int32)), "floats in b_dec.*int"),
        (
            lambda t: t.update(b_dec=t["b_dec"].astype(np.float16)),
            "one dtype, got float16, float32",
        ),
        (
            lambda t: t.update({n: v.astype(np.float64) for n, v in t.items()}),
            "float64 parameters.*enable_x64",
        ),
    ],
)
def test_tensors_that_are_not_sparsify_s_are_refused(change, message, edit):
    with pytest.raises(ValueError, match=message):
        formats.load(edit(change=change))


def test_damaged_files_are_named(edit, tmp_path):
    folder = edit()
    whole = (folder / "sae.safetensors").read_bytes()
    for content in (b"", whole[:50], whole[:-1], b"x" * 100):
        (folder / "sae.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"Cannot read .*sae\.safetensors"):
            formats.load(folder)
    (folder / "cfg.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"Cannot read .*cfg\.json"):
        formats.load(folder)
    whole = (FOLDERS["gemma_scope/jumprelu"] / "params.npz").read_bytes()
    for content in (b"", whole[:500], whole[:-30], b"x" * 100):
        (tmp_path / "params.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"Cannot read .*params\.npz"):
            formats.load(tmp_path / "params.npz")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"threshold": None}, r"must hold W_dec.*threshold\[10\].*got W_dec"),
        ({"scaling_factor": np.ones(10)}, r"got .*scaling_factor\[10\]"),
        ({"W_enc": None}, "must hold a matrix W_enc, got none"),
        ({"W_enc": np.float32(3)}, r"must hold a matrix W_enc, got float32\[\]"),
        ({"W_enc": np.ones((10, 6), np.float32)}, r"must hold W_dec\[6, 10\]"),
        ({"b_enc": np.ones(10, np.int8)}, r"floats in b_enc, got int8\[10\]"),
        ({"threshold": np.full(10, np.nan, np.float32)}, "holds NaN in threshold"),
        ({"b_enc": np.array([None] * 10)}, r"Cannot read .*params\.npz.*pickle"),
        ({"b_enc": np.ones(10)}, "float64 parameters"),
    ],
)
def test_arrays_that_are_not_gemma_scope_s_are_refused(change, message, tmp_path):
    arrays = {**np.load(FOLDERS["gemma_scope/jumprelu"] / "params.npz"), **change}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    np.savez(tmp_path / "params.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        formats.load(tmp_path)


def test_the_layout_of_gemma_scope_2_is_refused_by_name(tmp_path):
    arrays = np.load(FOLDERS["gemma_scope/jumprelu"] / "params.npz")
    # Its files have the names of those of jaxae.
    lower = {name.replace("W_", "w_"): array for name, array in arrays.items()}
    file = tmp_path / "params.safetensors"
    safetensors.numpy.save_file(lower, file)
    (tmp_path / "config.json").write_text('{"architecture": "jump_relu"}')
    for source in (tmp_path, file):
        for format in (None, "jaxae", "gemma_scope"):
            with pytest.raises(ValueError, match="has the layout of Gemma Scope 2"):
                formats.load(source, format=format)
    file.write_bytes(b"x")
    with pytest.raises(ValueError, match="is not the config.json of a jaxae model"):
        formats.load(tmp_path)


def dictionary(name, config=None, **changes):
    """`from_state` of a golden with other entries; None removes one."""
    folder = FOLDERS[f"dictionary_learning/{name}"]
    state = {k: v for k, v in {**state_of(folder), **changes}.items() if v is not None}
    return _dictionary_learning.from_state(folder / "ae.pt", state, config or {})


@pytest.mark.parametrize(
    "name, config, changes, message",
    [
        ("AutoEncoder", {}, {"bias": None}, "must hold the tensors of one of the cl"),
        ("AutoEncoder", {}, {"gain": np.ones(1)}, "one of the classes.*got .*gain"),
        ("AutoEncoder", {"trainer": 3}, {}, "a JSON object as the trainer"),
        (
            "AutoEncoder",
            {"trainer": {"dict_size": 12}},
            {},
            r"\(6, 12\), got \(6, 10\)",
        ),
        (
            *("AutoEncoder", {"trainer": {"dict_class": "IdentityDict"}}, {}),
            "ae.pt: dict_class must be one of AutoEncoder, .*IdentityDict",
        ),
        (
            *("AutoEncoderNew", {"trainer": {"dict_class": "AutoEncoder"}}, {}),
            "must hold bias, .*for dict_class AutoEncoder, got decoder.bias",
        ),
        ("AutoEncoder", {"trainer": {"dict_class": ["x"]}}, {}, "dict_class must be"),
        ("AutoEncoderTopK", {}, {}, "AutoEncoderTopK or BatchTopKSAE, which encode"),
        (
            *("AutoEncoder", {}, {"decoder.weight": np.ones((10, 6), np.float32)}),
            r"must hold .*decoder.weight\[6, 10\].*got .*decoder.weight\[10, 6\]",
        ),
        (
            *("AutoEncoder", {}, {"encoder.weight": "x"}),
            "must hold a matrix encoder.weight",
        ),
        ("AutoEncoder", {}, {"bias": np.ones(6, int)}, "must hold floats in bias"),
        (
            *("AutoEncoder", {}, {"encoder.bias": np.full(10, np.nan, np.float32)}),
            "holds NaN in b_enc",
        ),
        (
            *("MatryoshkaBatchTopKSAE", {}, {"group_sizes": np.array([2, 3, 4])}),
            r"group_sizes must be integers .*sum is 10, got \[2, 3, 4\]",
        ),
        (
            *("MatryoshkaBatchTopKSAE", {}, {"group_sizes": np.array(10)}),
            r"must hold .*group_sizes\[1\].*got .*group_sizes\[\]",
        ),
        ("MatryoshkaBatchTopKSAE", {}, {"k": np.array(0)}, "k must be an integer"),
        ("MatryoshkaBatchTopKSAE", {}, {"k": np.array(2.5)}, "k must be an integer"),
        (
            *("MatryoshkaBatchTopKSAE", {}, {"threshold": np.ones(10, np.float32)}),
            r"must hold .*threshold\[\].*got .*threshold\[10\]",
        ),
        ("backup", {}, {"norm_factor": None}, "norm_factor must be finite and pos"),
        ("backup", {}, {"norm_factor": 0.0}, "norm_factor must be finite and pos"),
    ],
)
def test_what_is_not_of_dictionary_learning_is_refused(name, config, changes, message):
    with pytest.raises(ValueError, match=message):
        dictionary(name, config, **changes)


def test_the_class_is_known_without_a_configuration():
    """Where one class alone has these tensors."""
    for name in ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder"):
        model = dictionary(name)
        assert model.metadata["trainer"]["dict_class"] == name
        assert_outputs(
            model.ae, model.params, outputs_of(f"dictionary_learning/{name}")
        )


def test_early_files_of_top_k_have_k_in_the_configuration():
    config = {"trainer": {"dict_class": "AutoEncoderTopK", "k": 3}}
    model = dictionary("AutoEncoderTopK", config, k=None, threshold=None)
    assert_outputs(
        model.ae, model.params, outputs_of("dictionary_learning/AutoEncoderTopK")
    )


def test_a_model_of_another_class_than_its_metadata_say(tmp_path):
    """After fine-tuning, the thresholds of a BatchTopK model differ."""
    ae, params, metadata, _ = read("dictionary_learning/BatchTopKSAE")
    threshold = params.activation.threshold.at[0].add(0.5)
    params = params._replace(activation=jaxae.activations.Threshold(threshold))
    with pytest.raises(ValueError, match="more than one threshold as BatchTopKSAE"):
        _dictionary_learning.to_state(ae, params, metadata)
    state, config = _dictionary_learning.to_state(ae, params, {})
    assert config["trainer"]["dict_class"] == "JumpReluAutoEncoder"
    again = _dictionary_learning.from_state(tmp_path, state, config)
    X = outputs_of("dictionary_learning/BatchTopKSAE")["inputs"]
    pairs = zip(outputs(again.ae, again.params, X), outputs(ae, params, X))
    for found, expected in pairs:
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    trainer = {"dict_class": "BatchTopKSAE"}
    uniform = params._replace(activation=jaxae.activations.Threshold(jnp.ones(10)))
    with pytest.raises(ValueError, match="metadata: trainer: k must be"):
        _dictionary_learning.to_state(ae, uniform, {"trainer": trainer})
    trainer = {"dict_class": "MatryoshkaBatchTopKSAE", "k": 3, "group_sizes": [4]}
    with pytest.raises(ValueError, match="group_sizes must be integers.*sum is 10"):
        _dictionary_learning.to_state(ae, uniform, {"trainer": trainer})


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("topk", {}, "has activation='TopK'.*set inputs_normalized"),
        ("relu", {"activation": "GELU"}, "has activation='GELU', which is not ReLU"),
        ("relu", {"gain": np.ones(1)}, r"got .*gain\[1\]"),
        ("relu", {"pre_bias": np.ones(7, np.float32)}, r"got .*pre_bias\[7\]"),
        ("relu", {"latent_bias": np.ones(10, int)}, "floats in latent_bias"),
        (
            *("relu", {"latent_bias": np.full(10, np.nan, np.float32)}),
            "holds NaN in b_enc",
        ),
        (
            *("tied", {"decoder.linear.weight": np.ones((10, 6), np.float32)}),
            "decoder.linear.weight that is not encoder.weight",
        ),
        (
            *("topk", {"activation_state_dict": {"k": 3, "postact_fn": "Identity"}}),
            "postact_fn='Identity' after TopK",
        ),
        (
            *("topk", {"activation_state_dict": {"k": "3", "postact_fn": "ReLU"}}),
            "autoencoder.pt: k must be an integer",
        ),
        (
            "topk",
            {"activation_state_dict": 3, "activation.postact_fn": None},
            "postact_fn=None after TopK",
        ),
    ],
)
def test_what_is_not_of_openai_is_refused(name, changes, message):
    folder = FOLDERS[f"openai/{name}"]
    state = state_of(folder) | changes
    with pytest.raises(ValueError, match=message):
        _openai.from_state(folder / "autoencoder.pt", state, False)


def test_a_normalization_is_written_where_the_format_has_a_place_for_it(tmp_path):
    metadata = {"normalize_activations": "layer_norm"}
    for format, ae in (
        ("sparsify", model_of("topk(3)")),
        ("gemma_scope", model_of("jumprelu()")),
        ("dictionary_learning", model_of("topk(3)")),
        ("openai", model_of("relu")),
    ):
        with pytest.raises(ValueError, match="'normalize_activations'. has no place"):
            formats.save(tmp_path, ae, params_of(ae), format=format, metadata=metadata)
    ae = model_of("topk(3)")
    for other in ({}, {"normalize_activations": "constant_norm_rescale"}):
        with pytest.raises(ValueError, match="must be 'layer_norm' for topk"):
            _openai.to_state(ae, params_of(ae), other)


def test_openai_s_counts_are_of_each_latent():
    ae = model_of("relu")
    counts = {"latents_mean_square": [1.0]}
    with pytest.raises(ValueError, match="latents_mean_square.*for each latent"):
        _openai.to_state(ae, params_of(ae), counts)


@pytest.mark.parametrize(
    "format, ae, message",
    [
        ("sparsify", model_of("relu"), "activation relu, which the format 'sparsify'"),
        ("sparsify", model_of("batch_topk(3)"), "activation batch_topk.*run.model"),
        ("sparsify", model_of("topk(3)", observation="bernoulli"), "bernoulli"),
        (
            *("sparsify", model_of("topk(3)", output_dim=4, pre_bias=False)),
            "outputs of another width",
        ),
        ("gemma_scope", model_of("topk(3)"), r"activation topk\(3\), which"),
        ("gemma_scope", model_of("jumprelu()", skip=True), "a skip connection"),
        ("dictionary_learning", model_of("abs_topk(3)"), "activation abs_topk"),
        ("dictionary_learning", model_of("relu", skip=True), "a skip connection"),
        ("openai", model_of("gated"), "activation gated, which the format 'openai'"),
        ("openai", model_of("relu", skip=True), "a skip connection"),
    ],
)
def test_models_without_a_place_in_a_format_are_refused(format, ae, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        formats.save(tmp_path / "out", ae, params_of(ae), format=format)
    assert not (tmp_path / "out").exists()


# ---- a loaded model is a model -------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("sparsify/skip", "openai/tied", "gemma_scope/jumprelu"),
        *("dictionary_learning/GatedAutoEncoder", "dictionary_learning/BatchTopKSAE"),
    ],
)
def test_hand_derived_gradients_of_a_loaded_model(name):
    ae, params, *_ = read(name)
    x = jnp.asarray(outputs_of(name)["inputs"][0])
    expected = jax.grad(ae.loss)(params, x)
    found = manual.backprop(ae, params, x).grads
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        # Sums of ten products in another order.
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(abs(b).max()))


@pytest.mark.parametrize(
    "name", ["sparsify/skip", "dictionary_learning/GatedAutoEncoder", "openai/tied"]
)
def test_a_loaded_model_is_trained_and_saved(name, tmp_path):
    ae, params, *_ = read(name)
    X = jax.random.normal(jax.random.key(0), (64, 6))
    run = jaxae.train(
        *(jaxae.Objective(ae), X),
        hparams={"learning_rate": 1e-2},
        key=jax.random.key(1),
        config=jaxae.TrainConfig(num_epochs=2, batch_size=16),
        params=params,
    )
    assert_falls(run.metrics["train/loss"])
    jaxae.save(tmp_path, *run.model)
    assert_same_bits(jaxae.load(tmp_path)[1], run.params)
