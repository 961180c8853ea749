"""Judges a gradient against the function itself, one parameter leaf at a time.

Differences of the function in float64 decide, because they know nothing of derivative
rules. Automatic differentiation in float64 only says where to look, and speaks for
every entry of a leaf once differences have confirmed it there.

A leaf passes when `error <= resolution`. Both are relative to the largest true entry of
*that* leaf (along a random direction over a large leaf: to its Euclidean norm), never
to other leaves or to the value of the function:

    error      = max_i |claim_i - true_i| / max_i |true_i|
    resolution = 8 u + sqrt(N) u32 + roundoff + differences

* `8 u`, u the unit roundoff of the coarsest dtype among the params and the claim: k
  roundings in sequence cost about sqrt(k) u (Higham and Mary, "A new approach to
  probabilistic rounding error analysis", 2019), so this covers 64 of them.
* `sqrt(N) u32`, by the same rule: a sum of N terms, accumulated in float32 even where
  the terms are narrower (in u if that is less). N is the longest sum that the arrays
  allow: all axes but the shortest of the largest among params, args and constants.
  For 784x500 weights it is 1.7e-6.
* `roundoff`: what cancellation costs is in no constant, so it is measured: twice the
  largest change of the claim when every parameter moves at random by its last bit. A
  correct claim owes its error to rounding of that size; a bug is the same on both
  sides of the last bit, so it does not widen its own tolerance.
* `differences`: what the difference quotients resolve, from the disagreement of two
  extrapolations and the measured noise of the function.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_ROUNDINGS = 8.0  # sqrt(64), see above
_SINGLE = 2.0**-24  # unit roundoff of float32
_COARSEST = 0.1  # a resolution worse than this decides nothing
_SMALL = 64  # up to this size every entry of a leaf is differenced
_TOP = 4  # beyond: this many entries from each place of interest,
_SAMPLE = 6  # this many at random,
_DIRECTIONS = 6  # and this many random sign vectors over the whole leaf
_WIGGLES = 4  # evaluations of the claim one last bit away
_TRIES = 12  # step sizes, each a factor 8 from the one before
_NOT_DETERMINISTIC = "fn is not deterministic: evaluated again, it differs"
_UNTRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.TracerArrayConversionError,
)


class Worst(NamedTuple):
    """The entry that deviates most."""

    index: tuple[int, ...]  # type: ignore[assignment]  # hides tuple.index
    claimed: float
    true: float


@dataclass(frozen=True)
class Leaf:
    """What was found about one leaf of the params."""

    shape: tuple[int, ...]
    dtype: str  # of the parameter, in the caller's precision
    verdict: str  # "correct", "wrong", "kink", "surrogate" or "undecided"
    ok: bool
    error: float  # relative to the leaf; absolute where the true gradient is zero
    resolution: float  # the smallest error that could have been seen
    slope: float | None  # of the Taylor remainder: 2 when right, None in the noise
    worst: Worst | None
    hint: str


@dataclass(frozen=True, repr=False)
class Report:
    """The verdict on every leaf, by its path; `print` shows it as a table."""

    leaves: dict[str, Leaf]
    ignored: tuple[str, ...] = ()  # paths of integer, bool, None and other leaves
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every leaf is."""
        return all(leaf.ok for leaf in self.leaves.values())

    def assert_ok(self) -> None:
        """Raise an AssertionError that shows the table unless `ok`."""
        if not self.ok:
            raise AssertionError(str(self))

    def to_json(self) -> str:
        """The report as JSON text; numbers that are not finite become strings."""
        report = {"ok": self.ok} | dataclasses.asdict(self)
        return json.dumps(_jsonable(report), allow_nan=False)

    def __str__(self) -> str:
        """A table, one row a leaf."""
        bad = [path or "params" for path, leaf in self.leaves.items() if not leaf.ok]
        title = "leaf shape dtype verdict error resolution slope worst hint".split()
        rows = [title, *(_row(path, leaf) for path, leaf in self.leaves.items())]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines.insert(0, f"gradcheck: {'not ok: ' + ', '.join(bad) if bad else 'ok'}")
        if self.ignored:
            lines.append(f"ignored, not real numbers: {', '.join(self.ignored)}")
        return "\n".join([*lines, *self.notes])

    __repr__ = __str__


def check(
    fn: Callable[..., Any],
    params: Any,
    *args: Any,
    grad: Callable[..., Any] | None = None,
    key: Any = None,
    has_aux: bool = False,
    surrogate: Collection[str] = (),
) -> Report:
    """Judge, leaf by leaf, whether `grad` is the gradient of `fn` at `params`.

        grad(params, *args)  =?  d fn(params, *args) / d params

    Args:
      fn: `(params, *args) -> []`, a real scalar, or `(scalar, aux)` with `has_aux`.
        It is evaluated on float64 copies of the params and of the arrays in `args`,
        on the CPU; what it closes over keeps its own precision.
      params: any pytree of real floating-point arrays or floats. Leaves of any other
        kind are ignored and listed. As everywhere in JAX, a float64 NumPy array counts
        as float32 unless the caller has enabled x64.
      args: passed on; a random key that `fn` needs is one of them.
      grad: `(params, *args) ->` gradient, a pytree like `params`, evaluated as it is,
        in the caller's precision. None stands for `jax.grad(fn)`: custom rules judged.
      key: `jax.random.key` that seeds the sampled entries and directions.
      has_aux: whether `fn` returns `(scalar, aux)`. `grad` never returns aux.
      surrogate: paths of leaves meant to follow autodiff rather than the function
        (straight-through estimators, `stop_gradient`).

    Returns:
      A `Report`, whose leaves are keyed by `jax.tree_util.keystr(path, simple=True,
      separator="/")`. Verdicts: "correct"; "wrong"; "kink", there is no derivative, ok
      if the claim lies between the one-sided ones; "surrogate", claim and autodiff
      agree with each other but not with the function, ok if declared; "undecided",
      not finite, too noisy or not deterministic, never ok.

    Raises:
      ValueError: `fn` gives no real scalar, `params` has no floating-point leaf or a
        complex one, `grad` has another structure or shape, `surrogate` names no leaf.

    Example:
      >>> report = check(lambda p: jnp.sum(p**2), params, grad=lambda p: 2 * p)
      >>> report.assert_ok()
    """
    space = _read_params(params, surrogate)
    args = jax.tree.map(_canonical, args)
    seed = 0 if key is None else np.asarray(jax.random.key_data(key)).ravel()
    rng = np.random.default_rng(seed)

    def loss(floats: Sequence[Any], args: Any) -> jax.Array:
        return _scalar(fn(space.fill(floats), *args), has_aux)

    here = _jit(loss, space.floats, args)
    autodiff: Any = grad or _jit(jax.grad(loss), space.floats, args)

    def claim_at(floats: Sequence[Any]) -> list[np.ndarray]:
        if grad is None:
            return list(map(_narrow, autodiff(floats)))
        return space.read(grad(space.fill(floats), *args))

    wiggled = [[_wiggle(leaf, rng) for leaf in space.floats] for _ in range(_WIGGLES)]
    values = [float(here(floats)) for floats in (space.floats, *wiggled)]
    claims = [claim_at(floats) for floats in (space.floats, *wiggled)]
    terms = _longest_sum(loss, space.floats, args)
    with _float64(), np.errstate(all="ignore"):  # what is not finite is looked for
        function = _in_float64(loss, space, args, values)
        leaves, notes = _judge_all(function, space, claims, terms, surrogate, rng)
    return Report(leaves, space.ignored, notes)


# --- The params as a list of floating-point leaves --------------------------------


@dataclass(frozen=True)
class _Space:
    structure: Any
    leaves: list[Any]
    is_float: list[bool]
    ignored: tuple[str, ...]
    paths: list[str]  # of the floating-point leaves, as are
    floats: list[Any]  # the leaves as given,
    dtypes: list[Any]  # what they are in the caller's precision,
    points: list[np.ndarray]  # and their values there, in float64

    def fill(self, floats: Sequence[Any]) -> Any:
        """The params with `floats` as floating-point leaves."""
        rest = iter(floats)
        pairs = zip(self.leaves, self.is_float, strict=True)
        leaves = [next(rest) if is_float else leaf for leaf, is_float in pairs]
        return jax.tree.unflatten(self.structure, leaves)

    def read(self, grads: Any) -> list[np.ndarray]:
        """The floating-point leaves of a claim, checked against the params."""
        leaves, structure = jax.tree.flatten(grads, is_leaf=_is_none)
        if structure != self.structure:
            raise ValueError(
                "grad must return a pytree of the same structure as params, "
                f"{self.structure}, got {structure}."
            )
        claims = _pick(leaves, self.is_float)
        for path, claim, leaf in zip(self.paths, claims, self.floats, strict=True):
            if np.shape(claim) != np.shape(leaf) or _float_dtype(claim) is None:
                raise ValueError(
                    f"grad must return real numbers of shape {np.shape(leaf)} for leaf "
                    f"{path!r}, got {claim!r:.60} of shape {np.shape(claim)}."
                )
        return list(map(_narrow, claims))


def _read_params(params: Any, surrogate: Collection[str]) -> _Space:
    flat, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_none)
    names = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in flat]
    leaves = [_canonical(leaf) for _, leaf in flat]
    is_float = [_float_dtype(leaf) is not None for leaf in leaves]
    paths, floats = _pick(names, is_float), _pick(leaves, is_float)
    for name, leaf in zip(names, leaves, strict=True):
        if np.iscomplexobj(leaf):
            raise ValueError(
                f"params must be real, but leaf {name!r} is complex: pass its real and "
                "imaginary parts as two leaves."
            )
    if not paths:
        raise ValueError(
            f"params must hold at least one floating-point leaf, got {params!r:.80}."
        )
    if len(set(paths)) < len(paths):
        raise ValueError(f"params must have leaves of distinct paths, got {paths}.")
    if isinstance(surrogate, str) or not set(surrogate) <= set(paths):
        raise ValueError(
            f"surrogate must be a collection of paths among {paths}, got {surrogate!r}."
        )
    ignored = tuple(_pick(names, [not is_ok for is_ok in is_float]))
    points = [_narrow(leaf) for leaf in floats]
    dtypes = [point.dtype for point in points]
    points = [point.astype(np.float64) for point in points]
    return _Space(structure, leaves, is_float, ignored, paths, floats, dtypes, points)


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _pick(items: Sequence[Any], wanted: Sequence[bool]) -> list[Any]:
    return [item for item, is_wanted in zip(items, wanted, strict=True) if is_wanted]


def _float_dtype(leaf: Any) -> Any:
    """What JAX, as the caller has set it up, makes of a real leaf; None for others."""
    dtype = np.float64 if type(leaf) is float else getattr(leaf, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        return None
    return jax.dtypes.canonicalize_dtype(dtype)


def _narrow(leaf: Any) -> np.ndarray:
    return np.asarray(leaf).astype(_float_dtype(leaf))


def _canonical(leaf: Any) -> Any:
    """NumPy's float64 as JAX would read it: claim and function see the same point."""
    dtype = _float_dtype(leaf)
    is_other = dtype is not None and dtype != getattr(leaf, "dtype", dtype)
    return _narrow(leaf) if is_other else leaf


def _wiggle(leaf: Any, rng: np.random.Generator) -> Any:
    """The same kind of leaf, every entry moved by its last bit; zeros stay."""
    point = _narrow(leaf)
    signs = rng.choice([-1.0, 1.0], size=point.shape)
    factor = 1 + 2 * _unit_roundoff(point.dtype) * signs
    moved = np.asarray(point.astype(np.float64) * factor).astype(point.dtype)
    if isinstance(leaf, jax.Array):
        return jax.device_put(moved, leaf.sharding)
    return float(moved) if type(leaf) is float else moved


def _unit_roundoff(*dtypes: Any) -> float:
    return max(float(jnp.finfo(dtype).eps) for dtype in dtypes) / 2


# --- The function in float64 ------------------------------------------------------


class _Function(NamedTuple):
    value: Callable[[Sequence[Any]], Any]
    gradient: Callable[[], Callable[[Sequence[Any]], Any]]  # compiles when called
    points: list[np.ndarray]  # one a leaf
    f0: float
    trouble: str  # why nothing can be decided, if so

    def line(self, i: int, vector: np.ndarray) -> Callable[[float], float]:
        """t -> f with leaf i moved by t times the vector."""
        before, point, after = self.points[:i], self.points[i], self.points[i + 1 :]
        vector = vector.reshape(point.shape)
        return lambda t: float(self.value([*before, point + t * vector, *after]))


@contextlib.contextmanager
def _float64() -> Iterator[None]:
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        yield


def _in_float64(
    loss: Callable[..., Any], space: _Space, args: Any, values: list[float]
) -> _Function:
    """The function in float64, if it is the same function there.

    It is not if it draws random numbers in the precision of its arguments. Then the
    arrays in `args` keep their own; if that does not help either, nothing is decided.
    """
    unit = _unit_roundoff(*space.dtypes)
    blur = _ROUNDINGS * unit * abs(values[0]) + np.max(np.abs(np.diff(values)))
    try:
        function = _compile(loss, space.points, jax.tree.map(_widen, args))
    except Exception as error:
        error.add_note("gradcheck evaluates fn on float64 copies of params and args.")
        raise
    if function.trouble or not abs(function.f0 - values[0]) > 100 * blur:
        return function
    again = _compile(loss, space.points, jax.tree.map(_widen, args))
    if again.f0 != function.f0:  # randomness of Python's shows in another trace
        return function._replace(trouble=_NOT_DETERMINISTIC)
    with contextlib.suppress(TypeError, ValueError):
        second = _compile(loss, space.points, jax.tree.map(_on_cpu, args))
        if not abs(second.f0 - values[0]) > 100 * blur:
            return second
    trouble = (
        f"fn is {values[0]:.6g} in the caller's precision but {function.f0:.6g} in "
        "float64; if it draws random numbers, fix their dtype"
    )
    return function._replace(trouble=trouble)


def _compile(
    loss: Callable[..., Any], points: list[np.ndarray], args: Any
) -> _Function:
    value = _jit(loss, points, args)
    first, second = float(value(points)), float(value(points))
    trouble = "" if math.isfinite(first) else f"fn is {first} here"
    if math.isfinite(first) and first != second:
        trouble = _NOT_DETERMINISTIC
    gradient = lambda: _jit(jax.grad(loss), points, args)  # noqa: E731
    return _Function(value, gradient, points, first, trouble)


def _jit(function: Callable[..., Any], floats: Sequence[Any], args: Any) -> Any:
    """`floats -> function(floats, args)`, compiled unless Python branches on values.

    Arrays in `args` are traced; numbers and other objects stay as they are, since they
    may choose shapes or branches.
    """
    leaves, structure = jax.tree.flatten(args)
    is_array = [isinstance(leaf, np.ndarray | jax.Array) for leaf in leaves]

    def traced(floats: list[Any], arrays: list[Any]) -> Any:
        rest = iter(arrays)
        pairs = zip(leaves, is_array, strict=True)
        filled = [next(rest) if is_ok else leaf for leaf, is_ok in pairs]
        return function(floats, jax.tree.unflatten(structure, filled))

    arrays = _pick(leaves, is_array)
    try:
        jax.eval_shape(traced, list(floats), arrays)
    except _UNTRACEABLE:
        return lambda floats: function(list(map(jnp.asarray, floats)), args)
    compiled = jax.jit(traced)
    return lambda floats: compiled(list(floats), arrays)


def _longest_sum(loss: Callable[..., Any], floats: list[Any], args: Any) -> int:
    try:  # args and what fn closes over are the constants of the traced function
        arrays = jax.make_jaxpr(lambda floats: loss(floats, args))(floats).consts
    except _UNTRACEABLE:
        arrays = jax.tree.leaves(args)
    shapes = [np.shape(x) for x in (*floats, *arrays)]
    return max(math.prod(s) // max(1, min(s) if len(s) > 1 else 1) for s in shapes)


def _widen(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray | jax.Array) and _float_dtype(leaf) is not None:
        return np.asarray(leaf).astype(np.float64)
    return _on_cpu(leaf)


def _on_cpu(leaf: Any) -> Any:
    is_array = isinstance(leaf, jax.Array)
    return jax.device_put(leaf, jax.devices("cpu")[0]) if is_array else leaf


def _scalar(out: Any, has_aux: bool) -> jax.Array:
    is_pair = isinstance(out, tuple) and len(out) == 2
    value = out[0] if has_aux and is_pair else out
    is_real = type(value) is float or _float_dtype(value) is not None
    if has_aux != is_pair or not is_real or np.shape(value) != ():
        what = "(real scalar, aux)" if has_aux else "a real scalar"
        raise ValueError(
            f"fn must return {what} when has_aux={has_aux}, got "
            f"{jax.tree.map(jnp.shape, out)!r:.60} in a {type(out).__name__}."
        )
    return jnp.asarray(value)


# --- Differences along a line -----------------------------------------------------


class _Slopes(NamedTuple):
    slope: Any  # the mean of the two one-sided slopes
    jump: Any  # right minus left, 0 unless it stands out
    resolution: Any


def _differentiate(
    line: Callable[[float], float], f0: float, step: float, noise: float, goal: Any
) -> tuple[_Slopes, float]:
    """Slope of `line` at 0, and the step that served best.

    The step shrinks while truncation is the larger error and grows while rounding is,
    until together they meet `goal(slope)` or change places. A jump counts as truncation
    until the step is so small that single precision cannot tell it from a kink at 0.
    """
    best, best_step, least = _Slopes(math.nan, 0.0, math.inf), step, math.inf
    trend = 0.0
    for _ in range(_TRIES):
        found, rounding = _extrapolate(line, f0, step, noise)
        doubt = found.resolution + (abs(found.jump) if step > 1e-6 else 0.0)
        if doubt < least:
            best, best_step, least = found, step, doubt
        factor = 8.0 if doubt < 2 * rounding else 1 / 8
        turned = trend not in (0.0, factor)
        if least <= goal(best.slope) or turned or factor * step > 100:
            break
        step, trend = step * factor, factor
    return best, best_step


def _extrapolate(
    line: Callable[[float], float], f0: float, step: float, noise: float
) -> tuple[_Slopes, float]:
    """Richardson's extrapolation from h, h/2, h/4, and its rounding error.

    D(h) = (f(h) - f(-h)) / 2h gives R = (4 D(h/2) - D(h)) / 3 twice; their disagreement
    bounds the truncation of the finer. 12 noise / h is three standard deviations of its
    rounding. S(h) = (f(h) - 2 f(0) + f(-h)) / h gives the jump J = 2 S(h/2) - S(h).
    """
    h = step * np.array([1.0, 0.5, 0.25])
    ahead, behind = (np.array([line(t) for t in side * h]) for side in (1, -1))
    central, second = (ahead - behind) / (2 * h), (ahead - 2 * f0 + behind) / h
    coarse, fine = (4 * central[1:] - central[:-1]) / 3
    first, last = 2 * second[1:] - second[:-1]
    truncation, rounding = abs(fine - coarse), 12 * noise / step
    stands_out = abs(last) > 4 * (abs(last - first) + 2 * rounding)
    jump = last if stands_out else 0.0
    return _Slopes(fine, jump, truncation + rounding), rounding


def _noise(function: _Function, rng: np.random.Generator) -> float:
    """Standard deviation of the function's rounding, from its fourth differences.

    More and Wild, "Estimating computational noise", 2011: differences of order k along
    steps too small for the function leave only noise, with variance (2k)! / (k!)^2. The
    steps grow while most values are equal: a function may round to float32 inside.
    """
    points = function.points
    sizes = [np.where(p, np.abs(p), _rms(p) or 1.0) for p in points]
    moves = [rng.choice([-1.0, 1.0], size.shape) * size for size in sizes]

    def value(t: float) -> float:
        moved = [p + t * move for p, move in zip(points, moves, strict=True)]
        return float(function.value(moved))

    for step in (1e-7, 1e-6, 1e-5, 1e-4):
        values = [value(k * step) for k in range(9)]
        if len(set(values)) > 4:
            break
    deviation = math.sqrt(np.mean(np.diff(values, 4) ** 2) / 70)
    floor = float(np.finfo(np.float64).eps) * abs(function.f0)
    return max(deviation, floor) if math.isfinite(deviation) else floor


def _taylor(line: Callable[[float], float], f0: float, slope: float, floor: Any) -> Any:
    """Order of |f(h) - f(0) - h slope| in h at the smallest steps above the floor."""
    h = 0.25 * 0.25 ** np.arange(8)
    rest = np.abs([line(t) - f0 - t * slope for t in h])
    usable = int(np.argmin(np.append(rest > floor(h), False)))
    if usable < 2:
        return None
    return math.log(rest[usable - 2] / rest[usable - 1], 4)


# --- Evidence on one leaf ---------------------------------------------------------


class _Evidence(NamedTuple):
    """All that is known of one leaf, flattened."""

    claim: np.ndarray  # [n]
    wobble: np.ndarray  # [n] change of the claim within the params' last bit
    auto: Any  # [n] autodiff in float64, or None
    auto_wobble: float
    where: np.ndarray  # [m] the entries differenced one by one
    entries: _Slopes  # [m]
    signs: np.ndarray  # [d, n] directions over the whole leaf
    directions: _Slopes  # [d], none for a small leaf
    tolerance: float  # 8 u + sqrt(N) u32


def _gather(
    function: _Function,
    noise: float,
    i: int,
    claims: list[np.ndarray],
    autos: list[np.ndarray],
    tolerance: float,
    rng: np.random.Generator,
) -> tuple[_Evidence, float | None]:
    """The evidence on leaf i, and the slope of its Taylor remainder."""
    point = function.points[i].ravel()
    claims = [x.astype(np.float64).ravel() for x in claims]
    claim, wobble = claims[0], _wobble(claims)
    auto, auto_wobble = None, 0.0
    if autos and np.all(np.isfinite(autos[0])):
        autos = [x.ravel() for x in autos]
        auto, auto_wobble = autos[0], _largest(_wobble(autos))
    where = _where_to_look(claim, wobble, auto, rng)
    is_large = point.size > _SMALL
    signs = rng.choice([-1.0, 1.0], (_DIRECTIONS if is_large else 1, point.size))
    whole = _rms(point) or 1.0  # the length that is natural to a step
    sizes = np.maximum(np.abs(point), whole)[where]

    def slopes(vectors: Any, sizes: Any) -> _Slopes:
        rtol = max(tolerance / 2, 1e-10)
        return _slopes(function, noise, i, vectors, sizes, rtol)

    entries = slopes(_one_hot(where, point.size), sizes)
    directions = slopes(signs, [whole] * len(signs)) if is_large else slopes([], [])
    blur = tolerance * np.linalg.norm(claim) + 2 * np.linalg.norm(wobble)
    remainder = _taylor(
        function.line(i, whole * signs[0]),
        function.f0,
        whole * float(signs[0] @ claim),
        lambda h: 10 * (noise + h * whole * blur),
    )
    seen = (where, entries, signs, directions)
    return _Evidence(claim, wobble, auto, auto_wobble, *seen, tolerance), remainder


def _slopes(
    function: _Function, noise: float, i: int, vectors: Any, sizes: Any, rtol: float
) -> _Slopes:
    """Differences along vectors of leaf i, each in steps of its natural length.

    The best step of one is the next one's first, and what is negligible beside the
    largest slope so far needs no better resolution.
    """
    found, step, largest = [], 0.1, 0.0
    for vector, size in zip(vectors, sizes, strict=True):
        line, floor = function.line(i, size * vector), largest * size
        goal = lambda slope, floor=floor: rtol * max(abs(slope), floor)  # noqa: E731
        slopes, step = _differentiate(line, function.f0, step, noise, goal)
        found.append([x / size for x in slopes])
        largest = float(np.fmax(largest, abs(found[-1][0])))
    return _Slopes(*np.array(found).reshape(-1, 3).T)


def _where_to_look(
    claim: np.ndarray, wobble: np.ndarray, auto: Any, rng: np.random.Generator
) -> np.ndarray:
    if claim.size <= _SMALL:
        return np.arange(claim.size)
    autos = [] if auto is None else [np.abs(auto), np.abs(claim - auto)]
    measures = [np.abs(claim), *autos, wobble]
    tops = [np.argpartition(-np.nan_to_num(x), _TOP)[:_TOP] for x in measures]
    sample = rng.choice(claim.size, _SAMPLE, replace=False)
    return np.array(list(dict.fromkeys(np.concatenate([*tops, sample]).tolist())))


def _one_hot(where: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for index in where:
        vector = np.zeros(size)
        vector[index] = 1.0
        yield vector


def _wobble(near: list[np.ndarray]) -> np.ndarray:
    """Largest change from the first, entry by entry."""
    changes = [np.nan_to_num(np.abs(x - near[0]), posinf=0.0) for x in near]
    return np.max(changes, axis=0)


def _largest(x: np.ndarray) -> float:
    return float(np.max(np.abs(x), initial=0.0))


def _rms(x: np.ndarray) -> float:
    return math.sqrt(np.mean(x**2)) if x.size else 0.0


# --- The verdict ------------------------------------------------------------------


class _Finding(NamedTuple):
    verdict: str
    error: float = math.nan
    resolution: float = math.inf
    worst: tuple[int, float, float] | None = None
    hint: str = ""


def _judge(e: _Evidence, shape: tuple[int, ...]) -> _Finding:
    if not e.claim.size:
        return _Finding("correct", 0.0, 0.0, hint="empty")
    bad = np.flatnonzero(~np.isfinite(e.claim))
    if bad.size:
        first = tuple(map(int, np.unravel_index(bad[0], shape)))
        hint = f"{bad.size} claimed entries are not finite, the first at {first}"
        return _Finding("undecided", hint=hint)
    pairs = zip(e.entries, e.directions, strict=True)
    slopes, jumps, resolutions = (np.append(*pair) for pair in pairs)
    if not np.all(np.isfinite(resolutions)):
        return _Finding("undecided", hint="fn is not finite around the params")
    if np.all(np.abs(slopes) <= resolutions) and not np.any(jumps):
        return _judge_zero(e)
    return _judge_nonzero(e, shape)


def _judge_zero(e: _Evidence) -> _Finding:
    """Where no difference stands out of the noise, errors can only be absolute.

    A claim that is zero to within its own rounding is right. One that insists on a
    value too small for differences can be neither confirmed nor refuted.
    """
    floor, rounding = _largest(e.entries.resolution), _largest(e.wobble)
    error, resolution = _largest(e.claim), floor + 2 * rounding
    if error > resolution:
        k = int(np.argmax(np.abs(e.claim)))
        verdict = "surrogate" if _follows_autodiff(e) else "wrong"
        hint = "the true gradient is zero: error is absolute"
        worst = (k, float(e.claim[k]), 0.0)
        return _Finding(verdict, error, resolution, worst, hint)
    autodiff_insists = e.auto is not None and _largest(e.auto) > 5 * e.auto_wobble
    if error > 5 * rounding or autodiff_insists:
        hint = f"too small for differences, which see {floor:.1e} and more"
        return _Finding("undecided", error, resolution, hint=hint)
    return _Finding("correct", error, resolution, hint="zero: error is absolute")


def _judge_nonzero(e: _Evidence, shape: tuple[int, ...]) -> _Finding:
    is_large = bool(e.directions.slope.size)
    norm = _rms(e.directions.slope) if is_large else 0.0
    # A mean over all entries is a lower bound, should the entries looked at be zero.
    scale = max(_largest(e.entries.slope), norm / math.sqrt(e.claim.size))
    is_kink = np.abs(e.entries.jump) > e.tolerance * scale
    bends = np.abs(e.directions.jump) > e.tolerance * norm
    has_kink = bool(np.any(is_kink) or np.any(bends))
    adds_up = is_large and not has_kink  # at a kink, slopes along directions do not
    if confirmed := _confirmed(e, scale, norm if adds_up else 0.0):
        scale, norm = max(scale, _largest(e.auto)), float(np.linalg.norm(e.auto))
    known, true = _truth(e, confirmed)
    claim, wobble = e.claim[known], e.wobble.copy()
    wobble[e.where[is_kink]] = 0.0

    deviation = np.abs(claim - true)
    blur = 2 * _largest(wobble) + _largest(e.entries.resolution)
    measures = [(_largest(deviation) / scale, e.tolerance + blur / scale)]
    if adds_up:
        outside = _largest(_outside(e.signs @ e.claim, e.directions))
        blur = 2 * float(np.linalg.norm(wobble)) + _largest(e.directions.resolution)
        measures.append((outside / norm, e.tolerance + blur / norm))
    error, resolution = max(measures, key=lambda pair: pair[0] / pair[1])

    k = int(np.argmax(deviation))
    worst = (int(known[k]), float(claim[k]), float(true[k]))
    hint = _explain(claim, true, 2 * resolution, shape)
    if resolution > _COARSEST and error <= 3 * resolution:
        verdict, hint = "undecided", f"resolution worse than {_COARSEST}: too noisy"
    elif error > resolution and known[k] in e.where[is_kink]:
        verdict, hint = "kink", "not between the one-sided slopes"
    elif error > resolution:
        follows = not confirmed and _follows_autodiff(e)
        verdict = "surrogate" if follows else "wrong"
    elif has_kink and is_large and not confirmed:
        verdict, hint = "undecided", "kinks, and no autodiff that tells every entry"
    elif has_kink:
        verdict, hint = "kink", f"at {np.sum(is_kink)} of the entries looked at"
    else:
        verdict, hint = "correct", ""
    return _Finding(verdict, error, resolution, worst, hint)


def _truth(e: _Evidence, confirmed: bool) -> tuple[np.ndarray, np.ndarray]:
    """The entries of which the truth is known, and the truth.

    It is autodiff where that is confirmed, the differences where not, and at a kink the
    number between the one-sided slopes that is nearest to the claim.
    """
    known, true = e.where, e.entries.slope.copy()
    jumps = np.flatnonzero(e.entries.jump)
    half = np.abs(e.entries.jump[jumps]) / 2
    nearest = np.clip(e.claim[e.where[jumps]], true[jumps] - half, true[jumps] + half)
    if confirmed:
        known, true, jumps = np.arange(e.claim.size), e.auto.copy(), e.where[jumps]
    true[jumps] = nearest
    return known, true


def _outside(claimed: Any, found: _Slopes) -> np.ndarray:
    """How far a claim lies outside of the one-sided slopes."""
    return np.maximum(np.abs(claimed - found.slope) - np.abs(found.jump) / 2, 0.0)


def _confirmed(e: _Evidence, scale: float, norm: float) -> bool:
    """Whether autodiff passes all differences, to single precision or the claim's.

    `norm` 0 leaves the directions out.
    """
    if e.auto is None:
        return False
    tolerance = max(min(e.tolerance, _ROUNDINGS * _SINGLE), 1e-12)
    outside = _outside(e.auto[e.where], e.entries)
    agrees = np.all(outside <= tolerance * scale + e.entries.resolution)
    if norm:
        outside = _outside(e.signs @ e.auto, e.directions)
        agrees &= np.all(outside <= tolerance * norm + e.directions.resolution)
    return bool(agrees)


def _follows_autodiff(e: _Evidence) -> bool:
    if e.auto is None:
        return False
    allowed = e.tolerance * _largest(e.auto) + 2 * _largest(e.wobble)
    return _largest(e.claim - e.auto) <= allowed


def _explain(
    claim: np.ndarray, true: np.ndarray, tolerance: float, shape: tuple[int, ...]
) -> str:
    """A single cause, where one explains the whole deviation."""

    def explains(other: np.ndarray) -> bool:
        return _largest(claim - other) <= tolerance * _largest(other)

    if not np.any(claim):
        return "zero"
    if explains(-true):
        return "sign"
    factor = float(claim @ true / (true @ true)) if np.any(true) else 0.0
    if claim.size > 1 and abs(factor - 1) > tolerance and explains(factor * true):
        return f"off by a factor {factor:.4g}"
    is_square = len(shape) == 2 and shape[0] == shape[1] and claim.size == shape[0] ** 2
    if is_square and explains(true.reshape(shape).T.ravel()):
        return "transposed"
    count = np.sum(np.abs(claim - true) > tolerance * _largest(true))
    looked_at = "" if claim.size == math.prod(shape) else " looked at"
    return f"in {count} of {claim.size} entries{looked_at}"


def _judge_all(
    function: _Function,
    space: _Space,
    claims: list[list[np.ndarray]],
    terms: int,
    surrogate: Collection[str],
    rng: np.random.Generator,
) -> tuple[dict[str, Leaf], tuple[str, ...]]:
    autos: list[list[np.ndarray]] = []
    notes: tuple[str, ...] = ()
    noise = 0.0
    if not function.trouble:
        noise = _noise(function, rng)
        autos, notes = _autodiff(function, rng)
    leaves = {}
    for i, (path, dtype) in enumerate(zip(space.paths, space.dtypes, strict=True)):
        finding, slope = _Finding("undecided", hint=function.trouble), None
        mine, auto = [c[i] for c in claims], [a[i] for a in autos]
        if not function.trouble:
            unit = _unit_roundoff(*space.dtypes, mine[0].dtype)
            tolerance = _ROUNDINGS * unit + math.sqrt(terms) * min(unit, _SINGLE)
            e, slope = _gather(function, noise, i, mine, auto, tolerance, rng)
            finding = _judge(e, mine[0].shape)
        leaves[path] = _leaf(finding, slope, mine[0].shape, dtype, path in surrogate)
    return leaves, notes


def _autodiff(
    function: _Function, rng: np.random.Generator
) -> tuple[list[list[np.ndarray]], tuple[str, ...]]:
    """Float64 gradients here and one last bit away, if `fn` has a derivative rule."""
    near = [[_wiggle(p, rng) for p in function.points] for _ in range(2)]
    try:
        gradient = function.gradient()
        return [
            list(map(np.asarray, gradient(p))) for p in (function.points, *near)
        ], ()
    except Exception as error:  # a rule may fail in its own way; differences decide
        reason = str(error).partition("\n")[0]
        return [], (f"no float64 autodiff to compare with: {reason:.120}",)


def _leaf(
    finding: _Finding, slope: Any, shape: tuple[int, ...], dtype: Any, declared: bool
) -> Leaf:
    verdict, error, resolution, found, hint = finding
    is_between = verdict == "kink" and error <= resolution
    is_declared = verdict == "surrogate" and declared
    ok = verdict == "correct" or is_between or is_declared
    worst = None
    if found:
        k, claimed, true = found
        worst = Worst(tuple(map(int, np.unravel_index(k, shape))), claimed, true)
    return Leaf(shape, str(dtype), verdict, ok, error, resolution, slope, worst, hint)


# --- Printing ---------------------------------------------------------------------


def _row(path: str, leaf: Leaf) -> list[str]:
    worst = "-"
    if leaf.worst and not leaf.ok:
        index = ",".join(map(str, leaf.worst.index))
        worst = f"[{index}] {leaf.worst.claimed:.4g}, true {leaf.worst.true:.4g}"
    return [
        path or "params",
        "x".join(map(str, leaf.shape)) or "scalar",
        leaf.dtype,
        leaf.verdict if leaf.ok else leaf.verdict.upper(),
        f"{leaf.error:.1e}",
        f"{leaf.resolution:.1e}",
        "-" if leaf.slope is None else f"{leaf.slope:.1f}",
        worst,
        leaf.hint,
    ]


def _jsonable(x: Any) -> Any:
    """NamedTuples as objects, and every number that JSON lacks as a string."""
    if isinstance(x, Worst):
        return _jsonable(x._asdict())
    if isinstance(x, dict):
        return {key: _jsonable(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_jsonable(value) for value in x]
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x
