"""How small an error in a gradient does gradcheck detect, and at what cost?

Claim: an error planted in the gradient of W is detected, and only W fails, if the error
is at least 3 times the resolution in the report, at every size up to 784x500 and for
every seed. If only the claimed gradient is wrong, this holds in float32 for errors from
1e-5 of the leaf's largest entry, in one of 392,000 entries, in a row or in all of them.
Right gradients pass.

Source: no published number; it is what `jaxae.gradcheck` promises. The model, Hugo
Larochelle, Neural networks: Autoencoder, Université de Sherbrooke, October 2012.

    python experiments/detection_power.py [--quick] [--out DIR]

The model is a tied sigmoid autoencoder with a Bernoulli output at its initial
parameters. The batch are digits if their size fits, otherwise uniform random numbers.
Errors of relative size eps are planted in dl/dW:

  one entry      + eps max |dl/dW|, at the median |dl/dW|
  largest entry  + eps max |dl/dW|, at the largest |dl/dW|
  one row        x (1 + eps), the row whose largest entry is the median over rows
  whole leaf     x (1 + eps)

Reported is the smallest eps = 2^k that is detected for 9 of 10 seeds (for all, if fewer
are run), in two situations:

  claim   The claimed gradient is wrong, and automatic differentiation is right. Once
          differences confirm autodiff, it gives the true value of every entry. Errors
          are relative to the leaf's largest entry; along directions, to its norm.
  rule    The function's own rule (`jax.custom_vjp`) is wrong, and so is autodiff. Only
          differences detect the error: of every entry if there are at most 64,
          otherwise of some, including the largest, and along random directions. Errors
          in other entries are relative to the leaf's Euclidean norm.

The same errors are given to `jax.test_util.check_grads` and
`chex.assert_numerical_grads`, for which the two situations are the same: they compare
the function with its rule. If they also reject the right gradient, an error does not
count as detected.

The cost of a check is not part of the verdict. Evaluations are counted, and times are
relative to one compiled `value_and_grad` of the same model in the same run.

Results (full run, on two busy cores):
* In 842 checks the largest error missed is 1.2 resolutions. Resolutions are 1.1e-6 to
  2.9e-6 in float32, 1.2e-11 to 6.2e-11 in float64. No other leaf fails, and no right
  gradient is rejected.
* Claim: an error is detected in one of 392,000 entries from 3.8e-6 of the largest, in a
  row from 7.6e-6, in the whole leaf from 1.9e-6. A row's eps is relative to its own
  entries: a row of small entries (5x3, one seed) needs 3e-5.
* Rule: the largest entry and the whole leaf as above, but one of 392,000 entries from
  4.9e-4, and a row from 6.1e-5, because the error must exceed the noise relative to the
  norm of the leaf. For the smallest errors detected, the entry reported as the worst is
  sometimes another (2 of 10 seeds at 64x32, 1 of 3 at 784x500); from 1.6 resolutions it
  never is.
* `check_grads` detects one entry from 1.0 (784x500) and 0.12 (5x3), the whole leaf from
  0.004 and 0.06; at 20x10 and 64x32 it rejects the right gradient for 8 and 10 of 10
  seeds. chex rejects none, and detects the whole leaf from 32 (784x500) and 2 (5x3).
* At 784x500 and 128 images a check takes 275 evaluations of the loss, 9 of the claim
  and 3 of autodiff. It takes 516 times as long as `value_and_grad` in float32 (3.2 s)
  and 102 times as long as in float64, which it evaluates in; on a less busy machine,
  423 (1.4 s) and 219. Compilation, once, is 59% of the first check (34%).
* The number of evaluations is proportional to the number of leaves, and to their size
  up to 64 entries (407 for a leaf of sines). For larger leaves it is constant (129 at
  65 entries, 111 at 100,000).
"""

import contextlib
import itertools
import math
import sys
import tempfile
import time
import warnings
from typing import NamedTuple

import _study
import gradient_bugs
import jax
import jax.numpy as jnp
import numpy as np
from _gradient_cases import Case, Function, Size
from jax.experimental.compilation_cache import compilation_cache
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import jaxae
from jaxae import gradcheck

NUM_RESOLUTIONS = 3  # from which every error must be detected
MAX_CLAIM_ERROR = 1e-5  # smallest error that must be detected, in float32
SITUATIONS = ("claim", "rule")
PEERS = {"check_grads": gradient_bugs.by_check_grads, "chex": gradient_bugs.by_chex}
EXHAUSTIVE_SIZE = 64  # up to this size gradcheck differences every entry of a leaf
MIN_EXPONENT, MAX_EXPONENT = -44, 10  # of eps = 2^k


class Settings(NamedTuple):
    """The extent of the study."""

    cases: tuple[tuple[Size, str, int], ...]  # size, dtype, number of seeds
    num_seeds: int  # the largest of them
    num_timings: int
    stride: int  # of the exponents of larger errors, tried for the first seed
    leaf_sizes: tuple[int, ...]  # for which evaluations are counted
    num_leaves: tuple[int, ...]


SMALL, MIDDLE = Size(5, 3, 4), Size(20, 10, 8)
DIGITS, LARGE = Size(64, 32, 32), Size(784, 500, 128)
FULL = Settings(
    cases=(
        (SMALL, "float32", 10),
        (MIDDLE, "float32", 10),
        (DIGITS, "float32", 10),
        (LARGE, "float32", 3),
        (MIDDLE, "float64", 5),
    ),
    num_seeds=10,
    num_timings=5,
    stride=5,
    leaf_sizes=(1, 8, 64, 65, 1000, 100_000),
    num_leaves=(1, 2, 4),
)
QUICK = Settings(
    cases=((SMALL, "float32", 1), (DIGITS, "float32", 1)),
    num_seeds=1,
    num_timings=2,
    stride=15,
    leaf_sizes=(8, 65),
    num_leaves=(2,),
)


def main(argv=None) -> int:
    args = _study.parse(argv, "detection_power", __doc__)
    settings = QUICK if args.quick else FULL
    digits = jaxae.data.digits()
    X = jaxae.data.scaled(digits.train, digits.scale)
    rows, costs = [], []
    with compilation_cached():
        scaling = count_evaluations(settings)
        for size, dtype, num_seeds in settings.cases:
            with jax.enable_x64(dtype == "float64"):
                model = make_model(size)
                seeds = range(num_seeds)
                problems = [draw_problem(model, X, seed, dtype) for seed in seeds]
                costs.append(measure_cost(model, problems[0], settings))
                rows += measure_power(model, problems, settings.stride)
            jax.clear_caches()  # traces hold chex's replacement of stop_gradient
    holds, missed = judge(rows), largest_missed(rows)
    show_power(rows)
    show_cost(costs, scaling)
    draw(rows, args.out / "detection_power.png")
    print(f"largest error missed, in units of the resolution: {missed:.2f}")
    print(f"claim: {holds}")
    results = {"holds": holds, "largest_missed_in_resolutions": missed}
    results |= {"power": rows, "cost": costs, "evaluations": scaling}
    passed = all(holds.values())
    return _study.finish(args, __doc__, settings, digits, passed, results)


@contextlib.contextmanager
def compilation_cached():
    """A compilation cache on disk for the study, because each check traces anew."""
    before = jax.config.jax_compilation_cache_dir
    with tempfile.TemporaryDirectory() as cache:
        gradient_bugs.keep_compiled(cache)
        try:
            yield
        finally:
            jax.config.update("jax_compilation_cache_dir", before)
            compilation_cache.reset_cache()


# ---- a model, and errors planted in its gradient -------------------------------------


class Model(NamedTuple):
    """Functions of `(params, X, planted)`; planted [H, D] is an error in dl/dW."""

    size: Size
    ae: jaxae.Autoencoder
    loss: object
    wrong_grad: object
    wrong_rule: object  # the loss with wrong_grad as its rule


class Problem(NamedTuple):
    """A point at which the gradient is checked."""

    params: object
    X: object  # [B, D]
    dW: np.ndarray  # [H, D], the right gradient
    key: object


def make_model(size) -> Model:
    ae = jaxae.Autoencoder(input_dim=size.D, latent_dim=size.H)

    @jax.jit
    def loss(params, X, planted):
        del planted
        return jnp.mean(jax.vmap(ae.loss, (None, 0))(params, X))

    @jax.jit
    def wrong_grad(params, X, planted):
        grads = jax.grad(loss)(params, X, planted)
        return grads._replace(W=grads.W + planted)

    def forward(*args):
        return loss(*args), args

    def backward(args, cotangent):
        grads = jax.tree.map(lambda leaf: cotangent * leaf, wrong_grad(*args))
        return grads, None, None

    wrong_rule = jax.custom_vjp(loss)
    wrong_rule.defvjp(forward, backward)
    return Model(size, ae, loss, wrong_grad, wrong_rule)


def draw_problem(model, digits, seed, dtype) -> Problem:
    rng, size = np.random.default_rng(seed), model.size
    if size.D == digits.shape[1]:
        X = rng.choice(digits, size.B, replace=False)
    else:
        X = rng.uniform(size=(size.B, size.D))
    key = jax.random.key(seed)
    params = model.ae.init(key, dtype=jnp.dtype(dtype))
    X = jnp.asarray(X, dtype)
    grads = model.wrong_grad(params, X, jnp.zeros_like(params.W))
    return Problem(params, X, np.asarray(grads.W), key)


def one_entry(dW):
    return _at(dW, np.argsort(np.abs(dW), axis=None)[dW.size // 2])


def largest_entry(dW):
    return _at(dW, np.argmax(np.abs(dW)))


def one_row(dW):
    largest = np.abs(dW).max(axis=1)
    row = np.argsort(largest)[len(dW) // 2]
    return np.where(np.arange(len(dW))[:, None] == row, dW, 0)


def whole_leaf(dW):
    return dW


def _at(dW, k):
    planted = np.zeros_like(dW)
    planted.flat[k] = np.max(np.abs(dW))
    return planted


ERRORS = {
    "one entry": one_entry,
    "largest entry": largest_entry,
    "one row": one_row,
    "whole leaf": whole_leaf,
}


def visible_error(planted, dW, situation) -> float:
    """The relative error along the entries or directions that gradcheck measures."""
    entries, unit = np.abs(planted), np.max(np.abs(dW))
    along_directions = np.linalg.norm(planted) / np.linalg.norm(dW)
    if dW.size <= EXHAUSTIVE_SIZE:
        return np.max(entries) / unit
    if situation == "claim":
        return max(np.max(entries) / unit, along_directions)
    return max(entries.flat[np.argmax(np.abs(dW))] / unit, along_directions)


# ---- the smallest error that is detected ---------------------------------------------


class Trial(NamedTuple):
    """A check of a gradient with a planted error."""

    eps: float
    visible_error: float
    resolution: float
    verdict: str
    is_detected: bool
    evaluations: int  # of the loss, of the claim and of autodiff
    other_failures: tuple[str, ...]  # leaves other than W that are not ok
    is_located: bool | None  # whether the worst entry has a planted error


def run_trial(model, problem, situation, planted, eps) -> Trial:
    fn, grad = model.loss, model.wrong_grad
    if situation == "rule":
        fn, grad = model.wrong_rule, None
    params, X, dW, key = problem
    error = jnp.asarray(eps * planted, X.dtype)
    report = gradcheck.check(fn, params, X, error, grad=grad, key=key)
    leaf = report.leaves["W"]
    failures = {path for path, leaf in report.leaves.items() if not leaf.ok} - {"W"}
    return Trial(
        eps,
        visible_error=float(visible_error(eps * planted, dW, situation)),
        resolution=leaf.resolution,
        verdict=leaf.verdict,
        is_detected=leaf.verdict in ("wrong", "surrogate") and not leaf.ok,
        evaluations=sum(report.cost.values()),
        other_failures=tuple(sorted(failures)),
        is_located=bool(planted[leaf.worst.index]) if leaf.worst else None,
    )


def smallest_exponent(is_detected, start) -> int | None:
    """The exponent k of the smallest 2^k detected, by a linear search from `start`."""
    k = min(max(start, MIN_EXPONENT), MAX_EXPONENT)
    if is_detected(k):
        while k > MIN_EXPONENT and is_detected(k - 1):
            k -= 1
        return k
    while k < MAX_EXPONENT:
        k += 1
        if is_detected(k):
            return k
    return None


def measure_power(model, problems, stride) -> list[dict]:
    """A row for each planted error: the smallest that each judge detects, by seed."""
    name, dtype = str(model.size), str(problems[0].X.dtype)
    rights = {
        situation: [run_trial(model, p, situation, 0 * p.dW, 0.0) for p in problems]
        for situation in SITUATIONS
    }
    rows = []
    for error, plant in ERRORS.items():
        planted = [plant(problem.dW) for problem in problems]
        row = {"model": name, "dtype": dtype, "error": error, "judges": {}}
        row["entries"] = problems[0].dW.size
        for situation in SITUATIONS:
            right = rights[situation]
            searches = [
                search(model, situation, *each, 0 if i else stride)
                for i, each in enumerate(zip(problems, planted, right, strict=True))
            ]
            row["judges"][situation] = summarise(searches, right)
        for peer in PEERS:
            row["judges"][peer] = search_by_peer(model, peer, problems, planted)
        rows.append(row)
        numbers = {judge: summary["eps"] for judge, summary in row["judges"].items()}
        print(f"{name}, {dtype}, {error}: smallest eps detected {numbers}", flush=True)
    return rows


def search(model, situation, problem, planted, right, stride):
    """The trial of the smallest error detected, or None; and all trials."""
    trials = {}

    def is_detected(k):
        trials[k] = run_trial(model, problem, situation, planted, 2.0**k)
        return trials[k].is_detected

    unit = visible_error(planted, problem.dW, situation)
    start = math.ceil(math.log2(right.resolution / unit))
    smallest = smallest_exponent(is_detected, start)
    if stride and smallest is not None:
        for k in range(smallest + stride, 1, stride):  # larger errors
            is_detected(k)
    return trials.get(smallest), list(trials.values())


def summarise(searches, right) -> dict:
    smallest = [trial for trial, _ in searches]
    eps = [trial.eps if trial else math.inf for trial in smallest]
    trials = [trial._asdict() for _, trials in searches for trial in trials]
    return {
        "eps": ninth_decile(eps),
        "evaluations": int(np.median([trial["evaluations"] for trial in trials])),
        "by_seed": [trial and trial._asdict() for trial in smallest],
        "num_located": sum(bool(trial and trial.is_located) for trial in smallest),
        "right_passes": sum(map(passes, right)),
        "resolution": max(trial.resolution for trial in right),
        "trials": trials,
    }


def passes(trial) -> bool:
    return trial.verdict == "correct" and not trial.other_failures


def ninth_decile(eps) -> float:
    return sorted(eps)[math.ceil(0.9 * len(eps)) - 1]


# ---- the other checkers --------------------------------------------------------------


class CallCounter:
    """A function that counts its calls in `calls`."""

    def __init__(self, function) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *args):
        """Call the function."""
        self.calls += 1
        return self.function(*args)


def search_by_peer(model, peer, problems, planted) -> dict:
    smallest, num_passed, evaluations, start = [], 0, 0, -4
    for problem, error in zip(problems, planted, strict=True):

        def is_detected(k, problem=problem, error=error):
            return run_peer(model, peer, problem, 2.0**k * error)[0]

        is_rejected, evaluations = run_peer(model, peer, problem, 0 * error)
        num_passed += not is_rejected
        k = None if is_rejected else smallest_exponent(is_detected, start)
        smallest.append(math.inf if k is None else 2.0**k)
        start = start if k is None else k
    return {
        "eps": ninth_decile(smallest),
        "by_seed": [{"eps": eps} for eps in smallest],
        "right_passes": num_passed,
        "evaluations": evaluations,
    }


def run_peer(model, peer, problem, error) -> tuple[bool, int]:
    """Whether the peer rejects the gradient, and its evaluations of loss and claim."""
    loss, claim = CallCounter(model.loss), CallCounter(model.wrong_grad)
    function = Function(inputs=lambda: (), loss=loss)
    case = Case(peer, "bug", "", "", function, claim, wrong=("W",))
    args = problem.X, jnp.asarray(error, problem.X.dtype)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        outcome = PEERS[peer](case, loss, claim, problem.params, args)
    if outcome == gradient_bugs.CANNOT:
        raise RuntimeError(f"{peer} cannot run at {model.size}.")
    return outcome == gradient_bugs.RIGHT["bug"], loss.calls + claim.calls


# ---- cost ----------------------------------------------------------------------------


def measure_cost(model, problem, settings) -> dict:
    """The cost of a check of the right gradient; the first check includes compiling."""
    params, X, dW, key = problem
    zero = jnp.zeros_like(params.W)

    def check():
        return gradcheck.check(
            model.loss, params, X, zero, grad=model.wrong_grad, key=key
        )

    first, report = timed(check)
    later = np.median([timed(check)[0] for _ in range(settings.num_timings)])
    with jax.enable_x64(True):
        in_double = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (params, X))
        double = time_of_gradient(model, *in_double, settings)
    own = time_of_gradient(model, params, X, settings)
    return {
        "model": str(model.size),
        "dtype": str(X.dtype),
        "batch": model.size.B,
        "entries": dW.size,
        "evaluations": report.cost,
        "first_seconds": first,
        "later_seconds": later,
        "value_and_grad_seconds": {"own": own, "float64": double},
        "per_value_and_grad": later / own,
        "per_value_and_grad_float64": later / double,
        "compiling_share": 1 - later / first,
    }


def time_of_gradient(model, params, X, settings) -> float:
    """The median time of one compiled `value_and_grad`, in seconds."""
    run = jax.jit(jax.value_and_grad(model.loss))
    zero = jnp.zeros_like(params.W)
    jax.block_until_ready(run(params, X, zero))
    count = range(10 * settings.num_timings)
    times = [timed(lambda: jax.block_until_ready(run(params, X, zero))) for _ in count]
    return float(np.median([seconds for seconds, _ in times]))


def timed(function):
    start = time.perf_counter()
    out = function()
    return time.perf_counter() - start, out


def count_evaluations(settings) -> list[dict]:
    """The evaluations of a check, by number and size of leaves."""

    def fn(leaves):
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in leaves)

    rows = []
    for leaf_size, count in itertools.product(settings.leaf_sizes, settings.num_leaves):
        rng = np.random.default_rng(0)
        leaves = [np.float32(rng.normal(size=leaf_size)) for _ in range(count)]
        cost = gradcheck.check(fn, leaves).cost
        rows.append({"leaves": count, "entries of each": leaf_size, **cost})
    return rows


# ---- the verdict ---------------------------------------------------------------------


def judge(rows) -> dict[str, bool]:
    """Whether each part of the claim holds."""
    summaries = [
        (row, situation, row["judges"][situation])
        for row in rows
        for situation in SITUATIONS
    ]
    trials = [trial for _, _, summary in summaries for trial in summary["trials"]]
    large = [t for t in trials if in_resolutions(t) >= NUM_RESOLUTIONS]
    smallest = [
        trial["visible_error"] if trial else math.inf
        for row, situation, summary in summaries
        if situation == "claim" and row["dtype"] == "float32"
        for trial in summary["by_seed"]
    ]
    return {
        f"detected from {NUM_RESOLUTIONS} resolutions": all(
            trial["is_detected"] for trial in large
        ),
        "no other leaf fails": not any(trial["other_failures"] for trial in trials),
        f"wrong claims are detected from {MAX_CLAIM_ERROR}": (
            max(smallest) <= MAX_CLAIM_ERROR
        ),
        "right gradients pass": all(
            summary["right_passes"] == len(summary["by_seed"])
            for _, _, summary in summaries
        ),
    }


def in_resolutions(trial) -> float:
    """The visible error in units of the resolution."""
    return trial["visible_error"] / trial["resolution"]


def largest_missed(rows) -> float:
    """The largest visible error that is not detected, in units of the resolution."""
    trials = [
        trial
        for row in rows
        for situation in SITUATIONS
        for trial in row["judges"][situation]["trials"]
    ]
    missed = [in_resolutions(trial) for trial in trials if not trial["is_detected"]]
    return max(missed, default=0.0)


# ---- tables and plots ----------------------------------------------------------------


def show_power(rows) -> None:
    """The smallest eps detected; in brackets the visible error in resolutions."""
    table = []
    for row in rows:
        line = {"smallest eps detected": f"{row['model']} {row['dtype']}"}
        line["error in"] = row["error"]
        for situation in SITUATIONS:
            summary = row["judges"][situation]
            detected = [trial for trial in summary["by_seed"] if trial]
            largest = max(map(in_resolutions, detected), default=0)
            line[situation] = f"{summary['eps']:.1e} ({largest:.1f})"
        summary = row["judges"]["rule"]
        line["located"] = f"{summary['num_located']}/{len(summary['by_seed'])}"
        if row["error"] == "whole leaf":
            line["located"] = "-"  # every entry has the error
        for peer in PEERS:
            line[peer] = format_peer(row["judges"][peer])
        table.append(line)
    _study.print_table(table, dict.fromkeys(table[0], ""))


def format_peer(summary) -> str:
    if not math.isinf(summary["eps"]):
        return f"{summary['eps']:.1e}"
    count = len(summary["by_seed"])
    num_rejected = count - summary["right_passes"]
    return f"rejects right {num_rejected}/{count}" if num_rejected else "never"


def show_cost(costs, scaling) -> None:
    table = []
    for cost in costs:
        line = {"cost": f"{cost['model']} {cost['dtype']}", **cost["evaluations"]}
        line["seconds"] = f"{cost['later_seconds']:.2f}"
        line["first"] = f"{cost['first_seconds']:.2f}"
        line["x value_and_grad"] = f"{cost['per_value_and_grad']:.0f}"
        line["x in float64"] = f"{cost['per_value_and_grad_float64']:.0f}"
        table.append(line)
    _study.print_table(table, dict.fromkeys(table[0], ""))
    _study.print_table(scaling, dict.fromkeys(scaling[0], ""))


COLOURS = {
    "claim": "#2f7f6f",
    "rule": "#335c67",
    "check_grads": "#d1495b",
    "chex": "#e09f3e",
}
LABELS = {
    "claim": "gradcheck, the claim is wrong",
    "rule": "gradcheck, the function's own rule is wrong",
    "check_grads": "jax.test_util.check_grads",
    "chex": "chex.assert_numerical_grads",
}
MARKERS = "os^Dv"
ERROR_NAMES = {"largest entry": "the largest entry", "whole leaf": "the whole leaf"}
UNDETECTED_HEIGHTS = {  # in the plot, of checkers that detect no error
    "rejects the right gradient too": 1e8,
    f"detects none up to {2**MAX_EXPONENT}": 1e6,
}


def draw(rows, path) -> None:
    """A panel for each kind of error: the smallest error against evaluations."""
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    panels = figure.subplots(1, len(ERRORS), sharex=True, sharey=True)
    models = list(dict.fromkeys((row["model"], row["dtype"]) for row in rows))
    for axes, error in zip(panels, ERRORS, strict=True):
        for height in UNDETECTED_HEIGHTS.values():
            axes.axhline(height, color="0.8", lw=1, zorder=0)
        for row in rows:
            if row["error"] == error:
                marker = MARKERS[models.index((row["model"], row["dtype"]))]
                draw_row(axes, row["judges"], marker)
        axes.set(title=f"error in {ERROR_NAMES.get(error, error)}")
        axes.set(xscale="log", yscale="log", xlim=(2, 2000))
        axes.set_xlabel("evaluations, loss and gradients")
        axes.set_yticks(10.0 ** np.arange(-10, 5, 2))
        axes.grid(color="0.93")
        axes.set_axisbelow(True)
    note = {"color": "0.35", "va": "bottom", "fontsize": 8.5}
    for reason, height in UNDETECTED_HEIGHTS.items():
        panels[0].text(2.2, 1.5 * height, reason, **note)
    panels[0].set(ylabel="smallest relative error detected", ylim=(None, 1e9))
    figure.suptitle(
        "The smallest error detected in dl/dW of a tied autoencoder, by cost of a check"
    )
    judges = [
        Line2D([], [], **style(judge, "o"), ls="", label=label)
        for judge, label in LABELS.items()
    ]
    sizes = [
        Line2D([], [], color="0.4", marker=marker, ls="", label=" ".join(model))
        for model, marker in zip(models, MARKERS, strict=False)
    ]
    figure.legend(handles=judges, loc="outside lower left", ncols=2, frameon=False)
    figure.legend(handles=sizes, loc="outside lower right", ncols=3, frameon=False)
    _study.save(figure, path)


def draw_row(axes, judges, marker) -> None:
    for judge, summary in judges.items():
        eps, options = summary["eps"], style(judge, marker)
        if math.isinf(eps):
            is_rejected = summary["right_passes"] < len(summary["by_seed"])
            eps = list(UNDETECTED_HEIGHTS.values())[0 if is_rejected else 1]
            options |= {"markerfacecolor": "none"}
        axes.plot(summary["evaluations"], eps, **options)


def style(judge, marker) -> dict:
    """An open ring for "rule", whose points often coincide with those of "claim"."""
    colour, is_ring = COLOURS[judge], judge == "rule"
    face, size = ("none", 10) if is_ring else (colour, 6)
    return {
        "color": colour,
        "marker": marker,
        "markerfacecolor": face,
        "markersize": size,
    }


if __name__ == "__main__":
    sys.exit(main())
