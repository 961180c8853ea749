"""Folders of SAELens with their outputs, and a check of the folders that jaxae writes.

    python benchmarks/format_goldens/saelens.py make tests/goldens/formats/saelens
    python benchmarks/format_goldens/saelens.py write FOLDER
    python benchmarks/format_goldens/saelens.py check FOLDER

`make` needs an environment with sae-lens: it saves random models of each architecture,
and the latents and reconstructions of random inputs as SAELens computes them. The
tests compare jaxae with these. `write` needs jaxae: it saves the same models, and
models of jaxae's own, as folders of SAELens, with the outputs of jaxae. `check` needs
sae-lens again: it loads these folders and compares the outputs.

The folders in tests/goldens were made with sae-lens 6.54.12 and torch 2.13.0.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import safetensors.numpy

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens" / "formats" / "saelens"
OUTPUTS = "outputs.safetensors"
D, H, NUM_OUT, N = 6, 10, 4, 5  # NUM_OUT: the outputs of a transcoder; N: examples
TOLERANCE = 1e-6  # of the largest output: a few roundings of float32
METADATA = {"model_name": "gpt2", "hook_name": "blocks.3.hook_z", "context_size": 128}


def write_outputs(folder, inputs, latents, reconstructions):
    """Save the inputs and outputs of a folder's model beside it."""
    arrays = {
        "inputs": inputs,
        "latents": latents,
        "reconstructions": reconstructions,
    }
    arrays = {name: np.asarray(a, np.float32) for name, a in arrays.items()}
    safetensors.numpy.save_file(arrays, folder / OUTPUTS)


# ---- make: the models of SAELens -----------------------------------------------------

SAES = {  # name: (class of SAELens, settings)
    "standard": ("StandardSAE", {}),
    "standard_without_pre_bias": ("StandardSAE", {"apply_b_dec_to_input": False}),
    "standard_float16": ("StandardSAE", {"dtype": "float16"}),
    "topk": ("TopKSAE", {"k": 3}),
    "topk_rescaled": ("TopKSAE", {"k": 3, "rescale_acts_by_decoder_norm": True}),
    "abstopk": ("AbsTopKSAE", {"k": 3}),
    "gated": ("GatedSAE", {}),
    "jumprelu": ("JumpReLUSAE", {}),
    "jumprelu_bfloat16": ("JumpReLUSAE", {"dtype": "bfloat16"}),
    "jumprelu_training": ("JumpReLUTrainingSAE", {}),
    "matching_pursuit": (
        "MatchingPursuitSAE",
        {
            "max_iterations": 3,
            "residual_threshold": 0.0,
            "stop_on_duplicate_support": False,
        },
    ),
    "layer_norm": ("StandardSAE", {"normalize_activations": "layer_norm"}),
    "hook_z": ("StandardSAE", {"reshape_activations": "hook_z"}),
    **{
        name: (cls, {"apply_b_dec_to_input": False, "d_out": NUM_OUT})
        for name, cls in (
            ("transcoder", "Transcoder"),
            ("skip_transcoder", "SkipTranscoder"),
            ("jumprelu_transcoder", "JumpReLUTranscoder"),
            ("jumprelu_skip_transcoder", "JumpReLUSkipTranscoder"),
        )
    },
}
BATCH_TOPK = {
    "batchtopk": ("BatchTopKTrainingSAE", {"k": 2.5}),
    "matryoshka_batchtopk": (
        "MatryoshkaBatchTopKTrainingSAE",
        {"k": 3, "matryoshka_widths": [4, H]},
    ),
}


def random_sae(cls, settings):
    """A model of SAELens with random parameters, and a threshold above 0."""
    import sae_lens
    import torch

    metadata = sae_lens.saes.sae.SAEMetadata(**METADATA)
    config = getattr(sae_lens, f"{cls}Config")
    sae = getattr(sae_lens, cls)(config(d_in=D, d_sae=H, metadata=metadata, **settings))
    with torch.no_grad():
        for name, tensor in sae.named_parameters():
            tensor.copy_(torch.randn(tensor.shape))
            if name == "threshold":
                tensor.abs_()
    return sae


def save_outputs(folder, of=None):
    """Save the outputs of a folder, or those of another one with the same function."""
    import sae_lens
    import torch

    sae = sae_lens.SAE.load_from_disk(of or folder, dtype="float32")
    inputs = torch.randn(N, D)
    is_by_head = sae.cfg.reshape_activations == "hook_z"
    given = inputs.reshape(N, 2, D // 2) if is_by_head else inputs
    with torch.no_grad():
        latents, reconstructions = sae.encode(given), sae(given).reshape(N, -1)
    outputs = inputs, latents, reconstructions
    write_outputs(folder, *map(torch.Tensor.numpy, outputs))


def make(folder):
    """Save a folder of each architecture and layout, with the outputs of SAELens."""
    import torch

    torch.manual_seed(0)
    for name, (cls, settings) in SAES.items():
        random_sae(cls, settings).save_model(folder / name)
        save_outputs(folder / name)
    for name, (cls, settings) in BATCH_TOPK.items():
        sae = random_sae(cls, settings)
        sae.topk_threshold.fill_(0.7)
        exported = folder / f"{name}_exported"
        sae.save_inference_model(exported)
        save_outputs(exported)
        sae.save_model(folder / name)
        save_outputs(folder / name, of=exported)
    make_log_threshold(folder)
    make_scaled(folder)
    make_flat(folder)


def make_log_threshold(folder):
    """A checkpoint of JumpReLU as earlier versions wrote it."""
    name, source = "jumprelu_log_threshold", folder / "jumprelu_training"
    tensors = safetensors.numpy.load_file(source / "sae_weights.safetensors")
    log_threshold = np.log(tensors["threshold"])
    tensors["threshold"] = np.exp(log_threshold)
    with tempfile.TemporaryDirectory() as other:
        copy(source, Path(other), tensors)
        tensors["log_threshold"] = log_threshold
        del tensors["threshold"]
        copy(source, folder / name, tensors)
        save_outputs(folder / name, of=other)


def make_scaled(folder):
    """A checkpoint whose input scale is in a file of its own."""
    import torch
    from sae_lens.training.activation_scaler import ActivationScaler

    settings = {"normalize_activations": "expected_average_only_in"}
    sae = random_sae("StandardTrainingSAE", settings)
    sae.save_model(folder / "standard_scaled")
    scaler = ActivationScaler(scaling_factor=0.37)
    scaler.save(str(folder / "standard_scaled" / "activation_scaler.json"))
    inputs = torch.randn(N, D)
    with torch.no_grad():
        latents = sae.encode(scaler.scale(inputs))
        outputs = inputs, latents, scaler.unscale(sae.decode(latents))
    write_outputs(folder / "standard_scaled", *map(torch.Tensor.numpy, outputs))


def make_flat(folder):
    """Folders as version 5 wrote them, where all entries are at the top."""
    common = {
        "d_in": D,
        "d_sae": H,
        "dtype": "torch.float32",
        "hook_point": "blocks.3.hook_resid_pre",
        "hook_point_head_index": None,
        "model_name": "gpt2",
        "normalize_activations": False,
        "l1_coefficient": 1e-3,
    }
    topk = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}
    for name, source, entries in (
        ("flat_standard", "standard", {}),
        ("flat_topk", "topk", topk),
        ("flat_gated", "gated", {"architecture": "gated"}),
    ):
        weights = folder / source / "sae_weights.safetensors"
        copy(folder / source, folder / name, safetensors.numpy.load_file(weights))
        text = json.dumps({**common, **entries})
        (folder / name / "cfg.json").write_text(text)
        save_outputs(folder / name)


def copy(source, folder, tensors):
    """A folder with the configuration of another one, and these tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_bytes((source / "cfg.json").read_bytes())
    safetensors.numpy.save_file(tensors, folder / "sae_weights.safetensors")


# ---- write: the same models, and jaxae's own, saved by jaxae -------------------------


def write(folder):
    """Save with jaxae each model of tests/goldens, and models of jaxae's own."""
    import jax

    import jaxae
    from jaxae import formats

    def save(name, ae, params, metadata):
        formats.save(folder / name, ae, params, format="saelens", metadata=metadata)
        params = jax.tree.map(lambda leaf: leaf.astype("float32"), params)
        inputs = jax.random.normal(jax.random.key(1), (N, ae.input_dim))
        latents = jax.vmap(ae.encode, (None, 0))(params, inputs)
        outputs = jax.vmap(ae.reconstruct, (None, 0))(params, inputs)
        write_outputs(folder / name, inputs, latents, outputs)

    for path in sorted(p for p in GOLDENS.iterdir() if p.name != "layer_norm"):
        model = formats.read(path)
        save(path.name, model.ae, model.params, model.metadata)
    topk = {"activation": "topk(3)", "pre_bias": True}
    for name, settings, metadata in (
        ("tied", {**topk, "tied": True}, METADATA),
        ("without_bias", {**topk, "bias": False, "tied": False}, METADATA),
        (
            *("transcoder", {"activation": "relu", "tied": False}),
            {"architecture": "transcoder"},
        ),
    ):
        ae = jaxae.Autoencoder(
            input_dim=D, latent_dim=H, observation="gaussian", **settings
        )
        save(f"jaxae_{name}", ae, ae.init(jax.random.key(0)), metadata)


# ---- check: SAELens on the folders of jaxae ------------------------------------------


def check(folder):
    """Compare the outputs of SAELens with those in the folders of `write`."""
    import sae_lens
    import torch

    for path in sorted(folder.iterdir()):
        outputs = safetensors.numpy.load_file(path / OUTPUTS)
        sae = sae_lens.SAE.load_from_disk(path, dtype="float32")
        inputs = torch.from_numpy(outputs["inputs"])
        if sae.cfg.reshape_activations == "hook_z":
            inputs = inputs.reshape(N, 2, D // 2)
        with torch.no_grad():
            found = {"latents": sae.encode(inputs), "reconstructions": sae(inputs)}
        errors = [
            relative_error(values.reshape(N, -1).numpy(), outputs[name])
            for name, values in found.items()
        ]
        print(f"{path.name:28}{sae.cfg.architecture():26}{max(errors):.1e}")
        assert max(errors) <= TOLERANCE, path


def relative_error(found, expected):
    """The largest error, relative to the largest output."""
    return np.abs(found - expected).max() / np.abs(expected).max()


if __name__ == "__main__":
    commands = {"make": make, "write": write, "check": check}
    commands[sys.argv[1]](Path(sys.argv[2]))
