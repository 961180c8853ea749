"""The sentences of refusal: which argument, what was found, what would do.

Everything here reads shapes, dtypes, types and names only, so that it costs nothing
under `jit`; `as_array` also converts tables and tensors. Values of hyperparameters are
checked by `Range`, unless they are traced; values of data by `data.check_array` and
`Observation.validate`.
"""

import contextlib
import difflib
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

T = TypeVar("T")


def lookup(kind: str, catalogue: Mapping[str, T], name: str) -> T:
    """`catalogue[name]`, or a ValueError that lists the known names."""
    if not isinstance(name, str) or name not in catalogue:
        raise ValueError(
            f"unknown {kind} {name!r}{closest(name, catalogue)}; "
            f"known: {', '.join(sorted(catalogue))}."
        )
    return catalogue[name]


def closest(name: Any, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" where a known name is near, else nothing."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def part(name: str, value: Any, get: Callable, kind: type[T], example: str) -> T:
    """`value` if it is a part of that kind; by a string, the part of that name."""
    if isinstance(value, str):
        return get(value)
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AO" else "a"
        raise ValueError(
            f"{name} must be {article} {kind.__name__} such as jaxae.{example}, or the "
            f"name of one, got {describe(value)}."
        )
    return value


def positive_int(name: str, value: Any) -> int:
    """`value` as a Python int of at least 1; a bool is not a number here."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")
    return number


def prng_key(key: Any) -> None:
    """Refuse what is not a JAX random key."""
    dtype = getattr(key, "dtype", None)
    typed = key
    if dtype == jnp.uint32:
        # A raw key is one of JAX's default generator, which decides its shape.
        with contextlib.suppress(TypeError):
            typed = jax.random.wrap_key_data(key)
            dtype = typed.dtype
    is_typed = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    if not (is_typed and jnp.shape(typed) == ()):
        raise ValueError(
            f"key must be one JAX random key, got {describe(key)}; "
            "make one with jax.random.key(0)."
        )


def describe(value: Any) -> str:
    """A value in a few words: dtype and shape for arrays, repr for the rest."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    try:
        text = " ".join(repr(value).split())  # the repr of a table has many lines
    except ValueError:  # Python writes no integer of more than 4300 digits
        text = f"a very long {type(value).__name__}"
    return text if len(text) <= 60 else f"{type(value).__name__} {text[:50]}..."


def one_example(
    name: str, value: Any, size: int, method: str, in_axes: str = "(None, 0)"
) -> jax.Array:
    """`value` as a real floating array of shape [size]; a batch is told to vmap."""
    array = floating(name, value)
    if array.shape == (size,):
        return array
    if array.ndim > 1 and array.shape[-1] == size:
        raise ValueError(
            f"{name} has shape {list(array.shape)} but {method} takes one example of "
            f"shape [{size}]; vmap it: jax.vmap({method}, in_axes={in_axes})."
        )
    raise ValueError(
        f"{name} has shape {list(array.shape)} but {method} of this model takes shape "
        f"[{size}]."
    )


def floating(name: str, value: Any) -> jax.Array:
    """`value` as a JAX array of a real floating dtype."""
    value = as_array(name, value)
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} must be an array of floats, got {describe(value)}."
        ) from None
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"{name} has dtype {array.dtype} but a real floating dtype is needed; "
            f"convert it first, e.g. {name}.astype(jnp.float32)."
        )
    return array


def as_array(name: str, value: Any) -> Any:
    """`value` itself, but a table or a tensor of another library as a NumPy array.

    Each row of a list is taken so. A table has `to_numpy` (pandas, polars) or
    `__dataframe__` (pyarrow), a tensor has `detach` (torch); none of these libraries
    is imported.

    Raises:
      ValueError: for text or a path, a masked array, a sparse matrix, and a table or
        tensor that is no array of numbers.
    """
    if isinstance(value, list):
        return [_as_array(name, row) for row in value]
    return _as_array(name, value)


def _as_array(name: str, value: Any) -> Any:
    refuse_masked(name, value)
    if isinstance(value, str | os.PathLike):
        raise ValueError(
            f"{name} must hold numbers, got {describe(value)}: of a file take "
            "jaxae.data.load(path).train."
        )
    for to_dense in ("toarray", "todense"):  # of a sparse matrix
        if hasattr(type(value), to_dense):
            raise ValueError(
                f"{name} must be dense, got a sparse {type(value).__name__}: give "
                f"X.{to_dense}(), or Rows whose X[rows] are dense."
            )
    if is_table(value):
        return _of_table(name, value)
    return _of_tensor(name, value) if is_tensor(value) else value


def refuse_masked(name: str, value: Any) -> None:
    """Refuse a NumPy masked array, whose mask a conversion would drop."""
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError(
            f"{name} must not be a masked array, for jaxae has no observation for "
            "missing values yet: fill them, X.filled(value), or drop their rows, "
            "np.ma.compress_rows(X)."
        )


def is_table(value: Any) -> bool:
    """Whether this is a data frame: a dtype for each column."""
    # xarray's arrays have to_numpy too, but one dtype, and can be read by blocks.
    kind = type(value)  # a frame has its columns for attributes, whatever their names
    is_frame = hasattr(kind, "to_numpy") or hasattr(kind, "__dataframe__")
    return is_frame and not hasattr(kind, "dtype")


def is_tensor(value: Any) -> bool:
    """Whether this is a tensor of torch."""
    return hasattr(type(value), "detach") and hasattr(type(value), "numpy")


def _of_table(name: str, table: Any) -> Any:
    is_arrow = not hasattr(table, "to_numpy")
    values = np.asarray(table) if is_arrow else table.to_numpy()
    if values.dtype.kind not in "biuf":
        columns = zip(
            getattr(table, "columns", ()), getattr(table, "dtypes", ()), strict=False
        )
        for column, dtype in columns:
            if not _is_numeric(dtype):
                raise ValueError(
                    f"{name} must hold numbers, but column {column!r} is {dtype}: drop "
                    "it, or convert it, frame.astype('float32')."
                )
    return values


def _is_numeric(dtype: Any) -> bool:
    """Of a column: of polars, or of pandas without a mask of its own."""
    if hasattr(dtype, "is_numeric"):
        return dtype.is_numeric()
    return isinstance(dtype, np.dtype) and dtype.kind in "iuf"


def _of_tensor(name: str, tensor: Any) -> Any:
    try:
        tensor = tensor.detach().cpu()
        # NumPy has no bfloat16; float32 holds each of its numbers exactly.
        return (tensor.float() if "bfloat16" in str(tensor.dtype) else tensor).numpy()
    except Exception as error:  # another's code may raise anything
        raise ValueError(
            f"{name} must be a tensor that NumPy can hold, but gave "
            f"{first_line(error)}: convert it first."
        ) from error


def floating_dtype(dtype: Any) -> Any:
    """`dtype` as a real floating dtype that JAX can hold now."""
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise ValueError(
            f"dtype must be a real floating dtype such as 'float32', got {dtype!r}."
        )
    if found == jnp.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            "dtype is float64 but JAX would round it to float32 here; work inside "
            "`with jax.enable_x64(True):`."
        )
    return found


def folder(name: str, value: Any) -> Path:
    """`value` as the path of a folder; text must not be empty."""
    if isinstance(value, str) and value:
        return Path(value)
    if isinstance(value, os.PathLike) and isinstance(os.fspath(value), str):
        return Path(value)
    raise ValueError(
        f"{name} must be a folder's path, such as 'runs/a', got {describe(value)}."
    )


# ---- hyperparameters -----------------------------------------------------------------


def hparams(values: Any) -> None:
    """Refuse what is not a dict of numbers by name; traced numbers are numbers too."""
    if not isinstance(values, Mapping):
        raise ValueError(f"hparams must be a dict of numbers, got {describe(values)}.")
    for name, value in values.items():
        if not isinstance(name, str):
            raise ValueError(
                "hparams must have names for keys, such as 'learning_rate', got "
                f"{name!r}."
            )
        refuse_masked(f"hparams[{name!r}]", value)
        if not is_real(value) or np.shape(value) != ():
            raise ValueError(
                f"hparams[{name!r}] must be a finite number, got {describe(value)}."
            )


def is_real(value: Any) -> bool:
    """Whether it is a real number or an array of such; text and bools are not."""
    if isinstance(value, int | float):
        return not isinstance(value, bool)
    if not isinstance(value, jax.Array | np.ndarray | np.generic):
        return False
    kinds = jnp.floating, jnp.integer
    return any(jnp.issubdtype(value.dtype, kind) for kind in kinds)


def untraced(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Those whose values can be seen, as NumPy's: JAX's comparisons would be traced."""
    is_traced = {n: isinstance(v, jax.core.Tracer) for n, v in hparams.items()}
    return {n: np.asarray(v)[()] for n, v in hparams.items() if not is_traced[n]}


class Range(NamedTuple):
    """The values that a hyperparameter may have.

    Attributes:
      contains: `(number) -> bool`.
      words: what an error says that the number must be.
      reason: why, where the words need one.
    """

    contains: Callable[[Any], Any]
    words: str
    reason: str = ""

    def check(self, name: str, hparams: Mapping[str, Any]) -> None:
        """Refuse the number of that name if it is out of range; it may be absent."""
        if name in hparams and not self.contains(hparams[name]):
            found = f"{hparams[name]!s}{self.reason and f'; {self.reason}'}"
            raise ValueError(f"hparams[{name!r}] must be {self.words}, got {found}.")


AT_LEAST_0 = Range(lambda x: x >= 0, "at least 0")
POSITIVE = Range(lambda x: x > 0, "positive")


# ---- what the functions of a part return ---------------------------------------------
# Checked where they are called, so that a mistake in a part of the user's own is one
# sentence that names the part, not an error from inside JAX.


def returned(what: str, value: Any, shape: tuple[int, ...]) -> jax.Array:
    """What `what` returned, as an array of floats of that shape."""
    array = _as_floats(value)
    if array is None or array.shape != shape:
        raise ValueError(
            f"{what} must return an array of floats of shape {list(shape)}, got "
            f"{describe(value)}."
        )
    return array


def returned_like(what: str, value: Any, like: Any) -> Any:
    """What `what` returned, as a pytree like `like`, of whose arrays it is a gradient.

    A tuple serves for a NamedTuple, and a dtype may be wider than that of `like`.
    """
    if isinstance(like, tuple) and isinstance(value, tuple) and len(value) == len(like):
        value = like._make(value) if hasattr(like, "_make") else tuple(value)
    found, structure = jax.tree.flatten(value, is_leaf=_is_none)
    expected: Any = jax.tree.structure(like)
    if structure != expected:
        raise ValueError(f"{what} must return {outline(like)}, got {outline(value)}.")
    arrays = [_as_floats(leaf) for leaf in found]
    for (path, leaf), array, given in zip(named(like), arrays, found, strict=True):
        if array is None or array.shape != leaf.shape or _is_narrower(array, leaf):
            place = f" as {path}" if path else ""
            raise ValueError(
                f"{what} must return {describe(leaf)}{place}, got {describe(given)}."
            )
    return jax.tree.unflatten(structure, arrays)


def returned_by_theta(
    what: str, function: Callable | None, arguments: tuple, theta: tuple
) -> tuple:
    """What `what` returns, the derivative by what a part learns, as a tuple like it."""
    if not theta:
        return ()
    if function is None:
        raise ValueError(
            f"{what} is missing, the derivative by what init returns; give it, or "
            "train with gradient='autodiff' and diagnostics=False."
        )
    return returned_like(what, function(*arguments, *theta), theta)


def returned_state(what: str, value: Any, before: Any) -> Any:
    """What `what` returned, if it has the structure, shapes and dtypes of `before`."""
    leaves, structure = jax.tree.flatten(value)
    expected: Any = jax.tree.structure(before)
    if structure != expected or not all(
        map(_has_same_type, leaves, jax.tree.leaves(before))
    ):
        raise ValueError(
            f"{what} must return {outline(before)}, got {outline(value)}; a state "
            "keeps its structure, shapes and dtypes."
        )
    return value


def _has_same_type(left: Any, right: Any) -> bool:
    return jnp.shape(left) == jnp.shape(right) and (
        jnp.result_type(left) == jnp.result_type(right)
    )


def _is_narrower(array: Any, leaf: Any) -> bool:
    return array.dtype != jnp.promote_types(array.dtype, leaf.dtype)


def named(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a pytree with their paths, such as "activation/slope"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_none)
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in leaves
    ]


def _is_none(leaf: Any) -> bool:
    return leaf is None  # which JAX takes for a pytree without leaves


def outline(tree: Any) -> str:
    """A pytree in a few words: its type, and each of its leaves."""
    leaves = named(tree)
    if leaves and not leaves[0][0]:
        return describe(tree)
    return (
        f"{type(tree).__name__}({', '.join(f'{n}: {describe(v)}' for n, v in leaves)})"
    )


def _as_floats(value: Any) -> jax.Array | None:
    """A number, or an array of floats, as an array; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return jnp.asarray(float(value))
    if not isinstance(value, jax.Array | np.ndarray | np.generic):
        return None
    return jnp.asarray(value) if jnp.issubdtype(value.dtype, jnp.floating) else None


@contextlib.contextmanager
def reading(path: Path, advice: str) -> Iterator[None]:
    """Whatever goes wrong inside is one sentence: the file, why, and the advice."""
    try:
        yield
    except Exception as error:  # broken bytes raise a dozen types; the user needs one
        message = f"Cannot read {path}: {first_line(error)}; {advice}."
        raise ValueError(message) from error


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its type unless it is a ValueError."""
    text = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}"


def extra(feature: str, package: str, extra: str) -> ImportError:
    """The error for a missing optional package, with the command that installs it."""
    return ImportError(
        f"{feature} needs the package {package!r}, which is not installed; "
        f"run: pip install 'jaxae[{extra}]'."
    )
