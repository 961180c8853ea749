"""Checks of arguments, and the error that they raise.

They read shapes, dtypes, types and names only, so they cost nothing under `jit`.
`data.check_array` and `Observation.validate` check the values of data.
"""

import ast
import contextlib
import difflib
import functools
import inspect
import math
import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

T = TypeVar("T")
_IN_BRACES = re.compile(r"\{([A-Za-z_][\w.]*(?:\['\w+'\])?)\}")


class ArgumentError(ValueError):
    """An invalid argument, in one sentence: "NAME PROBLEM, got FOUND; ADVICE."

    In `problem` and `advice` a name in braces, such as `{monitor}`, is another
    argument. `str(error)` leaves the braces out; `render` replaces the names.

    Attributes:
      argument: the name, such as "latent_dim" or "hparams['l1']".
      problem: what is wrong, such as "must be positive".
      found: the value as text; empty where `problem` has it.
      advice: what to do; empty where `problem` says it.
    """

    def __init__(self, argument: str, problem: str, found: str = "", advice: str = ""):
        super().__init__(argument, problem, found, advice)  # pickle needs all of them
        self.argument, self.problem = argument, problem
        self.found, self.advice = found, advice

    def __str__(self) -> str:
        return self.render({})

    def render(self, names: Mapping[str, str]) -> str:
        """Return the message with arguments renamed by `names`."""

        def rename(text: str) -> str:
            return _IN_BRACES.sub(lambda match: names.get(match[1], match[1]), text)

        argument = names.get(self.argument, self.argument)
        found = f", got {self.found}" if self.found else ""
        advice = f"; {rename(self.advice)}" if self.advice else ""
        return f"{argument} {rename(self.problem)}{found}{advice}."


class DataError(ArgumentError):
    """An invalid value of data, at an index of the array that was checked.

    Args:
      argument: the name of the data.
      requirement: such as "must be finite".
      value: the first invalid value, as text.
      index: where it is: row and column, or the column of a single example.
      num_others: how many further values are invalid.
      place: the rows that were checked, in words; empty for all.
    """

    def __init__(
        self,
        argument: str,
        requirement: str,
        value: str,
        index: tuple[int, ...],
        num_others: int = 0,
        place: str = "",
    ):
        at = f"entry {index}"
        if len(index) <= 2:
            axes = ("row", "column")[2 - len(index) :]
            at = ", ".join(f"{axis} {i}" for axis, i in zip(axes, index, strict=True))
        others = f" and {num_others} more" if num_others else ""
        problem = f"{requirement}, found {value} at {at}{others}{place}"
        super().__init__(argument, problem)
        self._parts, self._place = (requirement, value, index, num_others), place

    def __reduce__(self):
        return type(self), (self.argument, *self._parts, self._place)

    def in_rows(self, argument: str, first_row: int, place: str) -> "DataError":
        """Return a copy with the row shifted by `first_row`, for a block of rows."""
        requirement, value, (row, *column), num_others = self._parts
        index = (first_row + row, *column)
        return DataError(argument, requirement, value, index, num_others, place)


def argument_list(names: Iterable[str]) -> str:
    """The names of arguments for the text of an `ArgumentError`, which renders them."""
    return ", ".join(f"{{{name}}}" for name in names)


def lookup(kind: str, catalogue: Mapping[str, T], name: Any) -> T:
    """`catalogue[name]`, or an ArgumentError that lists the known names."""
    if not isinstance(name, str) or name not in catalogue:
        raise ArgumentError(
            kind,
            f"must be one of {', '.join(sorted(catalogue))}",
            f"{describe(name)}{closest(name, catalogue)}",
        )
    return catalogue[name]


def get_part(kind: str, known: Mapping[str, Any], name: str) -> Any:
    """The part that `find_part` returns, or an ArgumentError that says what is known.

    Raises:
      ValueError: also for a number out of range.
    """
    if not isinstance(name, str):
        return lookup(kind, known, name)
    if (part := find_part(known, name)) is not None:
        return part
    entry = known.get(function := name.partition("(")[0])
    if not callable(entry):
        return lookup(kind, known, name)
    parameters = inspect.signature(entry).parameters.values()
    number = "32" if any(p.default is p.empty for p in parameters) else ""
    problem = f"must be written as a function of numbers, such as {function}({number})"
    raise ArgumentError(kind, problem, repr(name))


def find_part(known: Mapping[str, Any], name: str) -> Any:
    """The part of that name, such as "relu" or "topk(32)"; None for an unknown one.

    Args:
      known: parts by name, and functions of numbers that return one.
      name: the name of a part, or a call of a function with literal numbers.

    Raises:
      ValueError: for a number out of range.
    """
    function, is_call, _ = name.partition("(")
    entry = known.get(function)
    if not callable(entry):
        return None if is_call else entry
    arguments = _call_arguments(name)
    if arguments is None:
        return None
    try:
        return entry(*arguments[0], **arguments[1])
    except TypeError:  # another number of arguments
        return None


def _call_arguments(name: str) -> tuple[list[Any], dict[str, Any]] | None:
    """The literal arguments of a call such as "topk(32)"; None for anything else."""
    try:
        call = ast.parse(name, mode="eval").body
        assert isinstance(call, ast.Call)
        keywords = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
        return [ast.literal_eval(argument) for argument in call.args], keywords
    except (AssertionError, SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def closest(name: Any, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" where a known name is similar, else nothing."""
    similar = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {similar[0]!r}?)" if similar else ""


def part(name: str, value: Any, get: Callable, kind: type[T], example: str) -> T:
    """Return a component of type `kind`: `value`, or for a string the one it names."""
    if isinstance(value, str):
        return get(value)
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AO" else "a"
        raise ArgumentError(
            name,
            f"must be {article} {kind.__name__} such as jaxae.{example}, or the name "
            "of one",
            describe(value),
        )
    return value


def instance(name: str, value: Any, kind: type, path: str, advice: str = "") -> None:
    """Check the type of an argument; `path` is its public name, "jaxae.Objective"."""
    if not isinstance(value, kind):
        raise ArgumentError(name, f"must be a {path}", describe(value), advice)


def check_names(what: str, value: Any) -> None:
    """Check that this is a tuple of names; a string would count as its letters."""
    if not (isinstance(value, tuple) and all(isinstance(n, str) for n in value)):
        advice = f"write ({value!r},)" if isinstance(value, str) else ""
        raise ArgumentError(what, "must be a tuple of names", describe(value), advice)


def positive_int(name: str, value: Any) -> int:
    """`value` as a Python int of at least 1; a bool is not a number here."""
    return integer(name, value, at_least=1)


def integer(name: str, value: Any, at_least: int) -> int:
    """`value` as a Python int of at least that; a bool is not a number here."""
    try:
        number = operator.index(value)
    except TypeError:
        number = at_least - 1
    if number < at_least or isinstance(value, bool):
        problem = f"must be an integer of at least {at_least}"
        raise ArgumentError(name, problem, describe(value))
    return number


def prng_key(key: Any) -> None:
    """Check that this is one JAX random key."""
    dtype = getattr(key, "dtype", None)
    typed = key
    if dtype == jnp.uint32:
        # A raw key is one of JAX's default generator, which decides its shape.
        with contextlib.suppress(TypeError):
            typed = jax.random.wrap_key_data(key)
            dtype = typed.dtype
    is_typed = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    if not (is_typed and jnp.shape(typed) == ()):
        advice = "make one with jax.random.key(0)"
        raise ArgumentError("key", "must be one JAX random key", describe(key), advice)


def describe(value: Any) -> str:
    """Describe a value in a few words: dtype and shape of an array, else its repr."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    try:
        text = " ".join(repr(value).split())  # the repr of a table has many lines
    except ValueError:  # the repr of an integer of more than 4300 digits
        text = f"a very long {type(value).__name__}"
    return text if len(text) <= 60 else f"{type(value).__name__} {text[:50]}..."


def one_example(
    name: str, value: Any, size: int, method: str, in_axes: str = "(None, 0)"
) -> jax.Array:
    """`value` as a floating array of shape [size]; the error for a batch says vmap."""
    array = floating(name, value)
    if array.shape == (size,):
        return array
    is_batch = array.ndim > 1 and array.shape[-1] == size
    takes = "takes one example of" if is_batch else "of this model takes"
    raise ArgumentError(
        name,
        f"has shape {list(array.shape)} but {method} {takes} shape [{size}]",
        advice=f"vmap it: jax.vmap({method}, in_axes={in_axes})" if is_batch else "",
    )


def floating(name: str, value: Any) -> jax.Array:
    """`value` as a JAX array of a real floating dtype."""
    value = as_array(name, value)
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError):
        raise ArgumentError(
            name, "must be an array of floats", describe(value)
        ) from None
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ArgumentError(
            name,
            f"has dtype {array.dtype} but a real floating dtype is needed",
            advice=f"convert it first, e.g. {name}.astype(jnp.float32)",
        )
    return array


def as_array(name: str, value: Any) -> Any:
    """A table or tensor of another library as a NumPy array; any other value as it is.

    In a list, each row is converted. Text, paths, masked arrays, sparse matrices, and
    tables or tensors that do not hold numbers are rejected. No library is imported: a
    table has `to_numpy` (pandas, polars) or `__dataframe__` (pyarrow), a tensor has
    `detach` (torch).
    """
    if isinstance(value, list):
        return [_as_array(name, row) for row in value]
    return _as_array(name, value)


def _as_array(name: str, value: Any) -> Any:
    refuse_masked(name, value)
    if isinstance(value, str | os.PathLike):
        raise ArgumentError(
            name,
            "must hold numbers",
            describe(value),
            "read a file with jaxae.data.load(path).train",
        )
    for to_dense in ("toarray", "todense"):  # of a sparse matrix
        if hasattr(type(value), to_dense):
            raise ArgumentError(
                name,
                "must be dense",
                f"a sparse {type(value).__name__}",
                f"give X.{to_dense}(), or jaxae.data.View(X), which makes rows of "
                "scipy's matrices dense as they are read",
            )
    if is_table(value):
        return _of_table(name, value)
    return _of_tensor(name, value) if is_tensor(value) else value


def refuse_masked(name: str, value: Any) -> None:
    """Reject a NumPy masked array, because a conversion would drop the mask."""
    if isinstance(value, np.ma.MaskedArray):
        raise ArgumentError(
            name,
            "must not be a masked array, because jaxae has no observation for missing "
            "values yet",
            advice="fill them, X.filled(value), or drop their rows, "
            "np.ma.compress_rows(X)",
        )


def is_table(value: Any) -> bool:
    """Whether this is a data frame: an array with a dtype for each column."""
    # xarray's arrays have to_numpy too, but one dtype, and can be read by blocks.
    kind = type(value)  # an attribute of the frame itself may be one of its columns
    is_frame = hasattr(kind, "to_numpy") or hasattr(kind, "__dataframe__")
    return is_frame and not hasattr(kind, "dtype")


def is_tensor(value: Any) -> bool:
    """Whether this is a torch tensor."""
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
                raise ArgumentError(
                    name,
                    f"must hold numbers, but column {column!r} is {dtype}",
                    advice="drop it, or convert it, frame.astype('float32')",
                )
    return values


def _is_numeric(dtype: Any) -> bool:
    """Whether a column of polars, or of pandas without a mask, holds numbers."""
    if hasattr(dtype, "is_numeric"):
        return dtype.is_numeric()
    return isinstance(dtype, np.dtype) and dtype.kind in "iuf"


def _of_tensor(name: str, tensor: Any) -> Any:
    try:
        tensor = tensor.detach().cpu()
        # NumPy has no bfloat16; float32 holds each of its numbers exactly.
        return (tensor.float() if "bfloat16" in str(tensor.dtype) else tensor).numpy()
    except Exception as error:  # code of another library may raise anything
        raise ArgumentError(
            name,
            f"must be a tensor that NumPy can hold, but raised {first_line(error)}",
            advice="convert it first",
        ) from error


def floating_dtype(dtype: Any) -> Any:
    """`dtype` as a real floating dtype that JAX can hold now."""
    try:
        known = jnp.dtype(dtype)
    except TypeError:
        known = None
    if known is None or not jnp.issubdtype(known, jnp.floating):
        raise ArgumentError(
            "dtype", "must be a real floating dtype such as 'float32'", describe(dtype)
        )
    if known == jnp.float64 and not jax.config.read("jax_enable_x64"):
        raise ArgumentError(
            "dtype",
            "is float64 but JAX would round it to float32 here",
            advice="work inside `with jax.enable_x64(True):`",
        )
    return known


def folder(name: str, value: Any) -> Path:
    """`value` as the path of a folder; text must not be empty."""
    if isinstance(value, str) and value:
        return Path(value)
    if isinstance(value, os.PathLike) and isinstance(os.fspath(value), str):
        return Path(value)
    raise ArgumentError(
        name, "must be a folder's path, such as 'runs/a'", describe(value)
    )


# ---- hyperparameters -----------------------------------------------------------------


def hparams(values: Any) -> None:
    """Check that this is a dict from name to number; numbers may be traced."""
    if not isinstance(values, Mapping):
        raise ArgumentError("hparams", "must be a dict of numbers", describe(values))
    for name, value in values.items():
        if not isinstance(name, str):
            raise ArgumentError(
                "hparams",
                "must have strings as keys, such as 'learning_rate'",
                describe(name),
            )
        argument = f"hparams[{name!r}]"
        refuse_masked(argument, value)
        if not is_real(value) or np.shape(value) != ():
            raise ArgumentError(argument, "must be a finite number", describe(value))


def is_real(value: Any) -> bool:
    """Whether this is a real number or an array of them; text and bools are not."""
    if isinstance(value, int | float):
        return not isinstance(value, bool)
    if not isinstance(value, jax.Array | np.ndarray | np.generic):
        return False
    kinds = jnp.floating, jnp.integer
    return any(jnp.issubdtype(value.dtype, kind) for kind in kinds)


def untraced(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters that are not traced, as NumPy scalars.

    Under jit, a comparison of JAX arrays would be traced.
    """
    values = {n: v for n, v in hparams.items() if not isinstance(v, jax.core.Tracer)}
    return {name: np.asarray(value)[()] for name, value in values.items()}


class Range(NamedTuple):
    """The values that a hyperparameter may have.

    Attributes:
      contains: `(number) -> bool`.
      words: what the number must be, in the words of an error.
      reason: why, in the words of an error; may be empty.
    """

    contains: Callable[[Any], Any]
    words: str
    reason: str = ""

    def check(self, name: str, hparams: Mapping[str, Any]) -> None:
        """Raise if the number of that name is out of range; it may be absent."""
        if name in hparams and not self.contains(hparams[name]):
            raise ArgumentError(
                f"hparams[{name!r}]",
                f"must be {self.words}",
                str(hparams[name]),
                self.reason,
            )


AT_LEAST_0 = Range(lambda x: x >= 0, "at least 0")
POSITIVE = Range(lambda x: x > 0, "positive")


def boolean(name: str, value: Any, advice: str = "") -> bool:
    """Return True or False, also from NumPy's."""
    if not isinstance(value, bool | np.bool_):
        raise ArgumentError(name, "must be True or False", repr(value), advice)
    return bool(value)


def number(name: str, value: Any, values: Range) -> float:
    """Return a finite number of the range as a float."""
    is_number = isinstance(value, int | float | np.number) and not isinstance(
        value, bool
    )
    if not is_number or not math.isfinite(value) or not values.contains(value):
        raise ArgumentError(name, f"must be finite and {values.words}", repr(value))
    return float(value)


# ---- return values of a component's functions ----------------------------------------
# Checked at each call: the error names the user's component; one from inside JAX would
# not.


def returned(what: str, value: Any, shape: tuple[int, ...]) -> jax.Array:
    """Check that the function `what` returned a float array of this shape."""
    array = _as_floats(value)
    if array is None or array.shape != shape:
        problem = f"must return an array of floats of shape {list(shape)}"
        raise ArgumentError(what, problem, describe(value))
    return array


def returned_like(what: str, value: Any, like: Any) -> Any:
    """Check that the function `what` returned a pytree like `like`, and return it.

    A tuple is accepted for a NamedTuple, and a dtype may be wider than that of `like`.
    """
    if isinstance(like, tuple) and isinstance(value, tuple) and len(value) == len(like):
        value = like._make(value) if hasattr(like, "_make") else tuple(value)
    leaves, structure = jax.tree.flatten(value, is_leaf=_is_none)
    expected: Any = jax.tree.structure(like)
    if structure != expected:
        raise ArgumentError(what, f"must return {outline(like)}", outline(value))
    arrays = [_as_floats(leaf) for leaf in leaves]
    for (path, model), array, leaf in zip(named(like), arrays, leaves, strict=True):
        if array is None or array.shape != model.shape or _is_narrower(array, model):
            problem = f"must return {describe(model)}{f' as {path}' if path else ''}"
            raise ArgumentError(what, problem, describe(leaf))
    return jax.tree.unflatten(structure, arrays)


def returned_by_theta(
    what: str, function: Callable | None, arguments: tuple, theta: tuple
) -> tuple:
    """Call the function `what`, and check that it returns a tuple like `theta`."""
    if not theta:
        return ()
    if function is None:
        raise ArgumentError(
            what,
            "is missing, the derivative with respect to its parameters",
            advice="give it, or train with gradient='autodiff' and diagnostics=False",
        )
    return returned_like(what, function(*arguments, *theta), theta)


def returned_state(what: str, value: Any, before: Any) -> Any:
    """Check that the structure, shapes and dtypes of a state are those of `before`."""

    def types(tree):
        return [(jnp.shape(a), jnp.result_type(a)) for a in jax.tree.leaves(tree)]

    structures: Any = jax.tree.structure(value), jax.tree.structure(before)
    if structures[0] != structures[1] or types(value) != types(before):
        raise ArgumentError(
            what,
            f"must return {outline(before)}",
            outline(value),
            "a state keeps its structure, shapes and dtypes",
        )
    return value


def _is_narrower(array: Any, leaf: Any) -> bool:
    return array.dtype != jnp.promote_types(array.dtype, leaf.dtype)


def named(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a pytree with their paths, such as "activation/slope"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_none)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return [(name(path), leaf) for path, leaf in leaves]


def finite(name: str, tree: Any, advice: str) -> None:
    """Check that all numbers of a pytree are finite; the error names the leaf."""
    for path, leaf in named(tree):
        if not np.isfinite(leaf).all():
            raise ArgumentError(
                f"{name}.{path}", "must be finite", "NaN or infinity", advice
            )


def _is_none(leaf: Any) -> bool:
    return leaf is None  # to JAX, None is a pytree without leaves


def outline(tree: Any) -> str:
    """Describe a pytree in a few words: its type and its leaves."""
    leaves = named(tree)
    if leaves and not leaves[0][0]:
        return describe(tree)
    fields = ", ".join(f"{name}: {describe(leaf)}" for name, leaf in leaves)
    return f"{type(tree).__name__}({fields})"


def _as_floats(value: Any) -> jax.Array | None:
    """Return a number or an array of floats as an array; None for other values."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return jnp.asarray(float(value))
    if not isinstance(value, jax.Array | np.ndarray | np.generic):
        return None
    return jnp.asarray(value) if jnp.issubdtype(value.dtype, jnp.floating) else None


@contextlib.contextmanager
def reading(path: Path, advice: str) -> Iterator[None]:
    """Raise any error inside as one sentence: the file, the cause, and the advice."""
    try:
        yield
    except (ArgumentError, ImportError):  # they say what to do
        raise
    except Exception as error:  # broken bytes raise a dozen types; the user needs one
        message = f"Cannot read {path}: {first_line(error)}; {advice}."
        raise ValueError(message) from error


def first_line(error: BaseException) -> str:
    """Return the message of an error in one line, with its type if not a ValueError."""
    text = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    is_plain = type(error) is ValueError or isinstance(error, ArgumentError)
    return text if is_plain else f"{type(error).__name__}: {text}"


def extra(feature: str, package: str, extra: str) -> ImportError:
    """Return the error for a missing optional package, which says how to install it."""
    return ImportError(
        f"{feature} needs the package {package!r}, which is not installed; "
        f"run: pip install 'jaxae[{extra}]'."
    )
