"""What the scripts of this folder share: originals imported, goldens written."""

import importlib
import importlib.machinery
import sys
import types
from pathlib import Path

import numpy as np

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


def write_expected(folder: Path, x, z, x_hat) -> None:
    """Write `expected.npz`: inputs, and the original's codes and reconstructions.

    Codes with a value that roundings could decide are an error: choose another seed.
    """
    arrays = {"x": x, "z": z, "x_hat": x_hat}
    arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    assert all(np.isfinite(array).all() for array in arrays.values())
    active = np.abs(arrays["z"][arrays["z"] != 0])
    assert 0 < active.size and active.min() > 1e-3, folder
    np.savez(folder / "expected.npz", **arrays)


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
    """Write a state dict by `torch.save`, and as `state.npz`, nested keys joined by /.

    Strings become arrays of one string, numbers arrays of one number.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / name)
    np.savez(folder / "state.npz", **dict(_flat(state)))


def _flat(state: dict, prefix: str = ""):
    for key, value in state.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}/")
        elif not isinstance(value, list):  # an optimizer's groups
            yield f"{prefix}{key}", np.asarray(value)
