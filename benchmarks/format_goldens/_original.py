"""What the scripts of this folder share: originals imported, goldens written."""

import importlib
import importlib.machinery
import json
import sys
import types
from pathlib import Path

import numpy as np
import safetensors.numpy

GOLDENS = Path(__file__).parents[2] / "tests" / "goldens" / "formats"
INPUT_DIM, LATENT_DIM, NUM_EXAMPLES, K = 6, 10, 8, 3


def original(name: str):
    """Import a module of an original without the `__init__` of its package.

    That would import language models. The scripts here have the names of the packages.
    """
    package = name.partition(".")[0]
    if package not in sys.modules:
        folders = [path for path in sys.path if Path(path) != Path(__file__).parent]
        spec = importlib.machinery.PathFinder.find_spec(package, folders)
        assert spec is not None, f"{package} is not installed"
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = list(spec.submodule_search_locations)
    return importlib.import_module(name)


def write_outputs(folder: Path, inputs, latents, reconstructions) -> None:
    """Write `outputs.safetensors`: inputs, and what the original computes from them.

    Latents with a value that roundings could decide are an error: take another seed.
    """
    arrays = {
        "inputs": inputs,
        "latents": latents,
        "reconstructions": reconstructions,
    }
    arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    assert all(np.isfinite(array).all() for array in arrays.values())
    active = np.abs(arrays["latents"][arrays["latents"] != 0])
    assert 0 < active.size and active.min() > 1e-3, folder
    safetensors.numpy.save_file(arrays, folder / "outputs.safetensors")


def randomize(module, seed: int) -> None:
    """Draw every parameter of a torch module: none is without effect."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn / INPUT_DIM**0.5)


def draw_inputs(seed: int):
    """`[NUM_EXAMPLES, INPUT_DIM]`, the inputs of every golden of a seed."""
    import torch

    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(NUM_EXAMPLES, INPUT_DIM, generator=generator)


def write_state(folder: Path, name: str, state: dict) -> None:
    """Write a state dict by `torch.save`, and in files that need no torch.

    These are `state.npz`, its tensors, and `state.json`, its plain values, with the
    keys of nested dictionaries joined by "/".
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / name)
    flat = dict(_flat(state))
    tensors = {key: v.numpy() for key, v in flat.items() if torch.is_tensor(v)}
    plain = {key: v for key, v in flat.items() if key not in tensors}
    np.savez(folder / "state.npz", **tensors)
    if plain:
        (folder / "state.json").write_text(json.dumps(plain))


def _flat(state: dict, prefix: str = ""):
    for key, value in state.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value
