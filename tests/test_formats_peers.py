"""Files of sparsify, dictionary_learning, Gemma Scope and OpenAI.

The files in tests/goldens, and the outputs in them, are the originals' own
(benchmarks/format_goldens). Files of torch are there as their state dicts too: the
tests have no torch, and benchmarks/format_goldens/check.py reads and writes the files.
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from test_formats import assert_same_bits, params_of

import jaxae
from jaxae import formats
from jaxae.formats import _dictionary_learning, _openai

GOLDENS = pathlib.Path(__file__).parent / "goldens" / "formats"
FOLDERS = {
    f"{format}/{path.name}": path
    for format in ("sparsify", "dictionary_learning", "gemma_scope", "openai")
    for path in sorted((GOLDENS / format).iterdir())
}
REFUSED = "sparsify/groupmax"
LOADED = [name for name in FOLDERS if name != REFUSED]
# The outputs of both libraries are a few float32 roundings of numbers of one size.
TOLERANCE = 1e-6
FOLDED = {
    "dictionary_learning/backup": ("the norm of the data, 2.5, in the biases",),
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


def read(name, **changes):
    """The model of a golden; of a file of torch, that of its state dict."""
    format, folder = name.partition("/")[0], FOLDERS[name]
    if format == "openai":
        state = state_of(folder) | changes
        return _openai.from_state(folder / "autoencoder.pt", state, True)
    if format == "dictionary_learning":
        config = json.loads((folder / "config.json").read_bytes())
        state = state_of(folder) | changes
        return _dictionary_learning.from_state(folder / "ae.pt", state, config)
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


@pytest.mark.parametrize("name", LOADED)
def test_the_outputs_are_those_of_the_original(name):
    model = read(name)
    assert model.folded == FOLDED.get(name, ())
    assert_outputs(model.ae, model.params, outputs_of(name))


# ---- round trips ---------------------------------------------------------------------


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


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


@pytest.mark.parametrize("name", LOADED)
def test_what_was_loaded_returns_to_the_bit(name, tmp_path):
    ae, params, metadata, _ = read(name)
    format = name.partition("/")[0]
    again = read_back(tmp_path, format, ae, params, metadata)
    assert (again.ae, again.metadata, again.folded) == (ae, metadata, ())
    if ae.activation.name == "gated":  # b_mag = shift + exp(r_mag) b_gate is rounded
        for x, y in zip(jax.tree.leaves(again.params), jax.tree.leaves(params)):
            np.testing.assert_allclose(x, y, rtol=1e-6)
    else:
        assert_same_bits(again.params, params)


# Not the backup, which is written as a finished model, nor the entries activation.k and
# activation.postact_fn, which OpenAI's library writes and does not read.
@pytest.mark.parametrize("name", [n for n in LOADED if n not in FOLDED])
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
    again = read_back(tmp_path, format, ae, params_of(ae), {"normalize": True})
    assert again.ae == ae
    assert_same_bits(again.params, params_of(ae))


def test_sparsify_keeps_bfloat16(tmp_path):
    ae = OWN["sparsify", "topk"]
    params = jaxae.autoencoder.parametrizations.as_dtype(params_of(ae), jnp.bfloat16)
    again = read_back(tmp_path, "sparsify", ae, params, {})
    assert_same_bits(again.params, params)


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
