"""Files of torch, and what the originals compute from the files that jaxae writes.

    pip install torch==2.13.0 eai-sparsify==1.3.3 --editable .
    pip install --no-deps dictionary-learning==0.1.0
    git clone https://github.com/openai/sparse_autoencoder ORIGINAL    # commit 4965b94
    PYTHONPATH=ORIGINAL python benchmarks/format_goldens/check.py

The tests of jaxae have no torch. This asserts that jaxae reads the goldens of torch
with the outputs of the originals, that the originals compute from files of jaxae's what
jaxae does, and that files with other objects than tensors are refused.
"""

import os
import re
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import torch
from _original import GOLDENS, INPUT_DIM, LATENT_DIM, K, draw_inputs, original

import jaxae
from jaxae import formats

dictionary = original("dictionary_learning.dictionary")
trainers = "dictionary_learning.trainers"
DICTIONARIES = {
    "AutoEncoder": dictionary.AutoEncoder,
    "AutoEncoderNew": dictionary.AutoEncoderNew,
    "GatedAutoEncoder": dictionary.GatedAutoEncoder,
    "JumpReluAutoEncoder": dictionary.JumpReluAutoEncoder,
    "AutoEncoderTopK": original(f"{trainers}.top_k").AutoEncoderTopK,
    "BatchTopKSAE": original(f"{trainers}.batch_top_k").BatchTopKSAE,
    "MatryoshkaBatchTopKSAE": original(
        f"{trainers}.matryoshka_batch_top_k"
    ).MatryoshkaBatchTopKSAE,
}
SparseCoder = original("sparsify.sparse_coder").SparseCoder
openai = original("sparse_autoencoder.model")


def outputs(ae, params, inputs) -> list[np.ndarray]:
    """The latents and reconstructions of jaxae."""
    x = jnp.asarray(inputs)
    functions = ae.encode, ae.reconstruct
    return [np.asarray(jax.vmap(f, (None, 0))(params, x)) for f in functions]


def assert_close(found, expected, what: str, tolerance: float = 1e-6) -> None:
    """Assert that latents and reconstructions are equal but for float32 roundings."""
    for a, b in zip(found, expected, strict=True):
        error = np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(b).max()
        assert error <= tolerance, (what, error)
    print(f"equal outputs: {what}")


# ---- what the originals read ---------------------------------------------------------


def of_sparsify(folder: Path, x: torch.Tensor):
    """The outputs of sparsify."""
    sae = SparseCoder.load_from_disk(folder)
    top_acts, top_indices, _ = sae.encode(x)
    z = torch.zeros(len(x), sae.num_latents).scatter_(1, top_indices, top_acts)
    return z, sae(x).sae_out


def of_dictionary_learning(folder: Path, x: torch.Tensor):
    """The outputs of dictionary_learning, whose class is in `config.json`."""
    config = formats.metadata(folder)["trainer"]
    cls = DICTIONARIES[config["dict_class"]]
    # AutoEncoder's default makes the norms of the decoder 1, and scales the latents.
    options = {"normalize_decoder": False} if cls is dictionary.AutoEncoder else {}
    ae = cls.from_pretrained(folder / "ae.pt", **options)
    z = ae.encode(x)
    return z, ae.decode(z)


def of_openai(folder: Path, x: torch.Tensor):
    """The outputs of OpenAI's model, without its normalization of the inputs."""
    state = torch.load(folder / "autoencoder.pt")
    ae = openai.Autoencoder.from_state_dict(state)
    ae.normalize = False
    z, _ = ae.encode(x)
    return z, ae.decode(z)


ORIGINALS = {
    "sparsify": of_sparsify,
    "dictionary_learning": of_dictionary_learning,
    "openai": of_openai,
}


# ---- checks --------------------------------------------------------------------------


def check_goldens() -> None:
    """Read each golden, and let the original read what jaxae writes of it."""
    for format, of_original in ORIGINALS.items():
        for folder in sorted((GOLDENS / format).iterdir()):
            expected = safetensors.numpy.load_file(folder / "outputs.safetensors")
            ae, params, metadata, _ = formats.read(folder, inputs_normalized=True)
            params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
            found = outputs(ae, params, expected["inputs"])
            wanted = expected["latents"], expected["reconstructions"]
            assert_close(found, wanted, f"{format}, {folder.name}, read by jaxae")
            if folder.name == "tied":  # which the original writes and cannot read
                continue
            if metadata.get("multi_topk"):  # the original returns a term of training
                metadata["multi_topk"] = False
            check_written(format, ae, params, metadata, folder.name, of_original)


MODELS = {
    "tied": ("sparsify", {"activation": "topk(3)", "tied": True}),
    "skip": ("sparsify", {"activation": "topk(3)", "skip": True, "pre_bias": False}),
    "gated": ("dictionary_learning", {"activation": "gated", "pre_bias": False}),
    "topk": ("dictionary_learning", {"activation": f"topk({K})", "pre_bias": False}),
    "jumprelu": ("dictionary_learning", {"activation": "jumprelu()"}),
    "relu": ("openai", {"activation": "relu", "pre_bias": False}),
}


def check_models() -> None:
    """Let the originals read models of jaxae that their files hold after a fold."""
    for seed, (name, (format, choices)) in enumerate(MODELS.items()):
        choices = {"tied": False, "pre_bias": True, **choices}
        ae = jaxae.Autoencoder(
            input_dim=INPUT_DIM,
            latent_dim=LATENT_DIM,
            observation="gaussian",
            **choices,
        )
        leaves, tree = jax.tree.flatten(ae.init(jax.random.key(seed)))
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        pairs = zip(keys, leaves, strict=True)
        random = [jax.random.normal(key, leaf.shape) for key, leaf in pairs]
        params = jax.tree.unflatten(tree, random)
        check_written(format, ae, params, {}, f"jaxae's {name}", ORIGINALS[format])


def check_written(format, ae, params, metadata, name, of_original) -> None:
    """Compare what the original and jaxae compute from a model that jaxae wrote."""
    with tempfile.TemporaryDirectory() as folder:
        formats.save(folder, ae, params, format=format, metadata=metadata)
        x = draw_inputs(seed=0)
        with torch.no_grad():
            expected = of_original(Path(folder), x)
        found = outputs(ae, params, x.numpy())
        # A folded bias adds numbers of the size of 10.
        assert_close(found, expected, f"{format}, {name}, written by jaxae", 5e-6)


class Malicious:
    """An object whose unpickling makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def check_refusals() -> None:
    """Read damaged files, and some with other objects than tensors."""
    state = torch.load(GOLDENS / "dictionary_learning" / "AutoEncoder" / "ae.pt")
    with tempfile.TemporaryDirectory() as root:
        file, target = Path(root, "ae.pt"), Path(root, "made")
        torch.save({**state, "extra": Malicious(str(target))}, file)
        assert_refused(file, "Cannot read .*ae.pt: .* holds other objects than")
        torch.save(["W_enc", Malicious(str(target))], file)
        assert_refused(file, "Cannot read .*ae.pt: .* holds other objects than")
        assert not target.exists()
        torch.save(list(state.items()), file)
        assert_refused(file, "it does not hold tensors by name")
        torch.save(list(state.values()), file)
        assert_refused(file, "does not have the format")
        torch.save(state, file)
        whole = file.read_bytes()
        for size in (len(whole) // 2, len(whole) - 10):
            file.write_bytes(whole[:size])
            assert_refused(file, "Cannot read .*ae.pt")
        torch.save({**state, "bias": state["bias"] * torch.nan}, file)
        assert_refused(file, "holds NaN in b_dec")
        torch.save({**state, "bias": state["bias"].int()}, file)
        assert_refused(file, "must hold floats in bias")
        sparse = state["encoder.weight"].to_sparse()
        torch.save({**state, "encoder.weight": sparse}, file)
        assert_refused(file, "Cannot read .*ae.pt")


def assert_refused(file: Path, message: str) -> None:
    """Assert that jaxae raises one sentence."""
    try:
        formats.load(file, format="dictionary_learning")
    except ValueError as error:
        assert re.search(message, str(error)), error
        print(f"refused: {str(error).replace(str(file.parent), '')}")
    else:
        raise AssertionError(f"{file} was read")


def check_dtypes() -> None:
    """Read a state dict of narrow floats, and one in torch's format before 1.6."""
    name = "AutoEncoder"
    folder = GOLDENS / "dictionary_learning" / name
    state = torch.load(folder / "ae.pt")
    expected = formats.load(folder)[1]
    with tempfile.TemporaryDirectory() as root:
        file = Path(root, "ae.pt")
        for dtype in (torch.bfloat16, torch.float16):
            torch.save({key: value.to(dtype) for key, value in state.items()}, file)
            found = formats.load(file)[1]
            narrow = state["encoder.weight"].to(dtype).float().numpy()
            np.testing.assert_array_equal(found.W_enc, narrow)
        torch.save(state, file, _use_new_zipfile_serialization=False)
        found = formats.load(file, format="dictionary_learning")[1]
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    print("read: bfloat16, float16, a file of the old format")


def main() -> None:
    """Run every check."""
    check_goldens()
    check_models()
    check_refusals()
    check_dtypes()


if __name__ == "__main__":
    main()
