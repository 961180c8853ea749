"""The user's own function and files, for `jaxae gradcheck MODULE:FUNCTION`."""

import contextlib
import importlib
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

import jaxae
from jaxae import _checks
from jaxae._files import expanded
from jaxae.autoencoder.files import read_tensors

KINDS = "a .npz, .npy or .safetensors file, or a folder that jaxae.save wrote"


class YourCodeError(Exception):
    """The code that is to be judged raised, whatever it was."""


# ---- functions -----------------------------------------------------------------------


@contextlib.contextmanager
def importable(directory: str) -> Iterator[None]:
    """Modules of this folder are found first, as by `python -m`."""
    sys.path.insert(0, directory)
    try:
        yield
    finally:
        sys.path.remove(directory)


def read_function(name: str) -> Callable[..., Any]:
    """The function of that name, `module:function` or `module:object.method`.

    Raises:
      ValueError: it is not named so, or there is none.
      YourCodeError: its module raised when it was imported.
    """
    module_name, _, attributes = name.partition(":")
    if not all(map(str.isidentifier, f"{module_name}.{attributes}".split("."))):
        raise ValueError(
            "a function must be named MODULE:FUNCTION, e.g. mypackage.losses:loss, "
            f"got {name!r}."
        )
    found: Any = _import(module_name, name)
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            raise ValueError(
                f"{name} does not exist: {module_name} has no {attribute!r}"
                f"{_checks.closest(attribute, dir(found))}."
            )
        found = getattr(found, attribute)
    if not callable(found):
        raise ValueError(f"{name} must be a function, got {_checks.describe(found)}.")
    return found


def _import(module_name: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing = getattr(error, "name", None)
        is_missing = isinstance(error, ModuleNotFoundError) and missing is not None
        if is_missing and f"{module_name}.".startswith(f"{missing}."):
            raise ValueError(
                f"{name} does not exist: there is no module {missing!r}; it must be "
                f"installed or in the current folder, {os.getcwd()}."
            ) from error
        raise YourCodeError(f"importing {module_name} {raised(error)}") from error


def is_refusal(error: BaseException) -> bool:
    """Whether it is a sentence of gradcheck's own, and not raised by what it judges."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, ValueError) and _is_in(frames[-1].filename, [_TOOLS[-1]])


def raised(error: BaseException) -> str:
    """What was raised and where, in the words that follow a name."""
    line, kind = _checks.first_line(error), type(error).__name__
    said = line if line.startswith(f"{kind}: ") else f"{kind}: {line}"
    notes = getattr(error, "__notes__", [])
    # JAX, too, adds a note, about its own frames.
    where = [note.rstrip(".") for note in notes if note.startswith("gradcheck ")]
    if place := _place(error):
        where.insert(0, place)
    return f"raised {said}" + (f" ({'; '.join(where)})." if where else ".")


_LIBRARIES = [
    *(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")),
    str(Path(jax.__file__).parents[1]),
]
_JAXAE = str(Path(jaxae.__file__).parent)
_TOOLS = [os.path.join(_JAXAE, name) for name in ("cli", "gradcheck")]


def _place(error: BaseException) -> str | None:
    """Where: the innermost line that is the user's, else that is the library's."""
    frames = traceback.extract_tb(error.__traceback__)
    for excluded in ([_JAXAE], _TOOLS):
        for frame in reversed(frames):
            if not _is_in(frame.filename, [*_LIBRARIES, *excluded]):
                return f"{_short(frame.filename)}:{frame.lineno}"
    return None


def _is_in(filename: str, folders: Iterable[str]) -> bool:
    is_file = not filename.startswith("<")
    return not is_file or any(map(Path(filename).is_relative_to, folders))


def _short(filename: str) -> str:
    path, here = Path(filename), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


# ---- arrays --------------------------------------------------------------------------


def read_params(name: str) -> Any:
    """What `--params` names: a pytree of arrays. See `_read_tree`."""
    return _read_tree("--params", name, KINDS)


def read_arg(text: str) -> Any:
    """What `--arg` names: a number, `key:SEED`, or a file or folder of arrays.

    Raises:
      ValueError, FileNotFoundError: none of these; there is no such file.
    """
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    if text.startswith("key:"):
        seed = text.removeprefix("key:")
        if not re.fullmatch("[0-9]{1,10}", seed) or int(seed) >= 2**32:
            raise ValueError(
                "--arg key:SEED must hold an integer from 0 to 2**32 - 1, got "
                f"{_checks.describe(text)}."
            )
        return jax.random.key(int(seed))
    return _read_tree("--arg", text, f"a number, key:SEED, {KINDS}")


def _read_tree(option: str, name: str, kinds: str) -> Any:
    """One array, a dict of arrays, or a model's params; nothing is unpickled.

    Raises:
      ValueError: a file of another kind, or damaged.
      FileNotFoundError: nothing there.
    """
    path = expanded(name)
    if path.is_dir():
        return jaxae.load(path)[1]
    if path.suffix.lower() not in (".npz", ".npy", ".safetensors"):
        raise ValueError(f"{option} must be {kinds}, got {name!r}.")
    if not path.is_file():
        raise FileNotFoundError(f"{option} {name} does not exist; give {kinds}.")
    if path.suffix.lower() == ".safetensors":
        return _nested(read_tensors(path)[0], path)
    with _checks.reading(path, "store numbers, by np.save or np.savez"):
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            arrays = dict(found)
    return _nested(arrays, path)


def _nested(arrays: dict[str, Any], path: Path) -> dict[str, Any]:
    """`{"a/b": x}` as `{"a": {"b": x}}`."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or last in node:
            raise ValueError(
                f"{path} holds {name!r} beside an array whose name is a part of it, or "
                "the other way round; rename one."
            )
        node[last] = array
    return tree
