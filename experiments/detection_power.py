"""How small an error in a gradient does gradcheck catch, and at what cost?

Claim: an error planted in the gradient of W is caught, and W alone is blamed, once it
is 3 times the resolution that the report states, at every size up to 784x500 and in
every seed. Where the claimed gradient alone is wrong, that is so in float32 from 1e-5
of the leaf's largest entry on, be it in one of 392,000 entries, in a row or in all of
them. Right gradients pass.

Source: no published number; it is what `jaxae.gradcheck` promises of itself. The model,
Hugo Larochelle, Neural networks: Autoencoder, Université de Sherbrooke, October 2012.

    python experiments/detection_power.py [--quick] [--out DIR]

A tied sigmoid autoencoder with a Bernoulli output, at its start, on a batch (digits
where they fit, uniform numbers elsewhere). Planted in dl/dW are, of relative size eps,

  one entry      + eps max |dl/dW|, where |dl/dW| is the median
  largest entry  + eps max |dl/dW|, where |dl/dW| is the largest
  one row        x (1 + eps), the row whose largest entry is the median of them
  whole leaf     x (1 + eps)

and eps = 2^k is the smallest that is caught: for 9 of 10 seeds (all, if fewer are run)
it is that or less. In two situations:

  claim   The claimed gradient is wrong, automatic differentiation is right. Once the
          differences have confirmed it, it speaks for every entry. The unit of an
          error is the leaf's largest entry; along directions, its norm.
  rule    The function's own rule (`jax.custom_vjp`) is wrong, so automatic
          differentiation is too. Only differences tell: of every entry if there are at
          most 64, else of some, the largest among them, and along random directions.
          There the unit of an error elsewhere is the leaf's Euclidean norm.

The same errors are put to `jax.test_util.check_grads` and
`chex.assert_numerical_grads`, which cannot tell the two situations apart: to them the
function is what it is, and its rule is what is claimed. Where they reject the right
gradient as well, no error is caught.

What a check costs is no part of the verdict: evaluations are counted, and times are
ratios to one compiled `value_and_grad` of the same model in the same run.

Found (full run, on two busy cores):
* In 842 checks the largest error missed is 1.2 resolutions; these are 1.1e-6 to 2.9e-6
  in float32, 1.2e-11 to 6.2e-11 in float64. No other leaf is blamed, no right gradient
  rejected.
* Claim: of 392,000 entries one is caught from 3.8e-6 of the largest on, a row from
  7.6e-6, the whole leaf from 1.9e-6. A row's eps is relative to its own entries: where
  these are small (5x3, one seed), it has to be 3e-5.
* Rule: the largest entry and the whole leaf as above, but of 392,000 entries one from
  4.9e-4 on, a row from 6.1e-5: an error has to stand out of the norm of the leaf. Of
  what is only just caught, the entry named as the worst is at times another (2 of 10
  seeds at 64x32, 1 of 3 at 784x500); from 1.6 resolutions on it never is.
* `check_grads` catches one entry from 1.0 on (784x500) and 0.12 (5x3), the whole leaf
  from 0.004 and 0.06; at 20x10 and 64x32 it rejects the right gradient for 8 and 10 of
  10 seeds. chex rejects none, and catches the whole leaf from 32 on (784x500), 2 (5x3).
* At 784x500 and 128 images a check is 275 evaluations of the loss, 9 of the claim and 3
  of autodiff. It takes 516 times as long as `value_and_grad` in float32 (3.2 s) and 102
  times as long as in float64, which it evaluates in; less disturbed, 423 (1.4 s) and
  219. Compiling, once, is 59% of the first check (34%).
* The number of evaluations is proportional to that of leaves, and to their size up to
  64 entries (407 a leaf of sines); beyond it does not grow (129 at 65, 111 at 100,000).
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

ENOUGH = 3  # resolutions from which on everything is caught
SEEN_BY_CLAIM = 1e-5  # of the largest entry, in float32
SITUATIONS = ("claim", "rule")
PEERS = {"check_grads": gradient_bugs.by_check_grads, "chex": gradient_bugs.by_chex}
ALL_LOOKED_AT = 64  # entries of a leaf up to which each is differenced
LEAST, MOST = -44, 10  # exponents of 2 tried


class Settings(NamedTuple):
    """How much of it to do."""

    cases: tuple[tuple[Size, str, int], ...]  # size, dtype, number of seeds
    num_seeds: int  # the most of them
    num_timings: int
    stride: int  # in exponents, of larger errors looked at with the first seed
    leaf_sizes: tuple[int, ...]  # of the count of evaluations
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
    with compiled_once():
        scaling = count_evaluations(settings)
        for size, dtype, num_seeds in settings.cases:
            with jax.enable_x64(dtype == "float64"):
                model = make_model(size)
                seeds = range(num_seeds)
                problems = [draw_problem(model, X, seed, dtype) for seed in seeds]
                costs.append(measure_cost(model, problems[0], settings))
                rows += measure_power(model, problems, settings.stride)
            jax.clear_caches()  # what chex has replaced must not outlive it
    holds, missed = judge(rows), largest_missed(rows)
    show_power(rows)
    show_cost(costs, scaling)
    draw(rows, args.out / "detection_power.png")
    print(f"largest error missed, in units of the resolution: {missed:.2f}")
    print(f"claim: {holds}")
    found = {"holds": holds, "largest_missed_in_resolutions": missed}
    found |= {"power": rows, "cost": costs, "evaluations": scaling}
    passed = all(holds.values())
    return _study.finish(args, __doc__, settings, digits, passed, found)


@contextlib.contextmanager
def compiled_once():
    """Each check traces anew; what it compiles is kept, here and nowhere else."""
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
    """Functions of `(params, X, planted)`; what is planted is [H, D], in dl/dW."""

    size: Size
    ae: jaxae.Autoencoder
    loss: object
    wrong_grad: object
    wrong_rule: object  # the loss again, but with that gradient as its rule


class Problem(NamedTuple):
    """Where the gradient is taken."""

    params: object
    X: object  # [B, D]
    dW: np.ndarray  # [H, D], right
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


def size_where_seen(planted, dW, situation) -> float:
    """The error in the unit of what sees it."""
    entries, unit = np.abs(planted), np.max(np.abs(dW))
    along = np.linalg.norm(planted) / np.linalg.norm(dW)
    if dW.size <= ALL_LOOKED_AT:
        return np.max(entries) / unit
    if situation == "claim":
        return max(np.max(entries) / unit, along)
    return max(entries.flat[np.argmax(np.abs(dW))] / unit, along)


# ---- the smallest error that is caught -----------------------------------------------


class Look(NamedTuple):
    """One check."""

    eps: float
    seen: float  # the size of the error in the unit of what sees it
    resolution: float
    verdict: str
    caught: bool
    evaluations: int  # of the loss, of the claim and of autodiff
    blamed: tuple[str, ...]  # other leaves than W that are not ok
    is_named: bool | None  # the worst entry lies where the error does


def look(model, problem, situation, planted, eps) -> Look:
    fn, grad = model.loss, model.wrong_grad
    if situation == "rule":
        fn, grad = model.wrong_rule, None
    params, X, dW, key = problem
    error = jnp.asarray(eps * planted, X.dtype)
    report = gradcheck.check(fn, params, X, error, grad=grad, key=key)
    leaf = report.leaves["W"]
    blamed = {path for path, leaf in report.leaves.items() if not leaf.ok} - {"W"}
    return Look(
        eps,
        seen=float(size_where_seen(eps * planted, dW, situation)),
        resolution=leaf.resolution,
        verdict=leaf.verdict,
        caught=leaf.verdict in ("wrong", "surrogate") and not leaf.ok,
        evaluations=sum(report.cost.values()),
        blamed=tuple(sorted(blamed)),
        is_named=bool(planted[leaf.worst.index]) if leaf.worst else None,
    )


def walk(is_caught, start) -> int | None:
    """The exponent k of the smallest 2^k caught, in steps of 2 from where it may be."""
    k = min(max(start, LEAST), MOST)
    if is_caught(k):
        while k > LEAST and is_caught(k - 1):
            k -= 1
        return k
    while k < MOST:
        k += 1
        if is_caught(k):
            return k
    return None


def measure_power(model, problems, stride) -> list[dict]:
    """A row an error: the smallest caught by each judge, by seed."""
    name, dtype = str(model.size), str(problems[0].X.dtype)
    rights = {
        situation: [look(model, p, situation, 0 * p.dW, 0.0) for p in problems]
        for situation in SITUATIONS
    }
    rows = []
    for error, plant in ERRORS.items():
        planted = [plant(problem.dW) for problem in problems]
        row = {"model": name, "dtype": dtype, "error": error, "judges": {}}
        row["entries"] = problems[0].dW.size
        for situation in SITUATIONS:
            right = rights[situation]
            found = [
                search(model, situation, *each, 0 if i else stride)
                for i, each in enumerate(zip(problems, planted, right, strict=True))
            ]
            row["judges"][situation] = summed_up(found, right)
        for peer in PEERS:
            row["judges"][peer] = search_by_peer(model, peer, problems, planted)
        rows.append(row)
        numbers = {judge: found["eps"] for judge, found in row["judges"].items()}
        print(f"{name}, {dtype}, {error}: smallest eps caught {numbers}", flush=True)
    return rows


def search(model, situation, problem, planted, right, stride):
    """The smallest caught, if any, and all looks on the way."""
    looks = {}

    def is_caught(k):
        looks[k] = look(model, problem, situation, planted, 2.0**k)
        return looks[k].caught

    unit = size_where_seen(planted, problem.dW, situation)
    found = walk(is_caught, math.ceil(math.log2(right.resolution / unit)))
    larger = range(found + stride, 1, stride) if stride and found is not None else ()
    for k in larger:
        is_caught(k)  # what is larger is caught as well
    return looks.get(found), list(looks.values())


def summed_up(found, right) -> dict:
    smallest = [least for least, _ in found]
    eps = [least.eps if least else math.inf for least in smallest]
    looks = [look._asdict() for _, looks in found for look in looks]
    return {
        "eps": for_nine_of_ten(eps),
        "evaluations": int(np.median([look["evaluations"] for look in looks])),
        "by_seed": [least and least._asdict() for least in smallest],
        "named": sum(bool(least and least.is_named) for least in smallest),
        "right_passes": sum(map(passes, right)),
        "resolution": max(each.resolution for each in right),
        "looks": looks,
    }


def passes(look) -> bool:
    return look.verdict == "correct" and not look.blamed


def for_nine_of_ten(eps) -> float:
    return sorted(eps)[math.ceil(0.9 * len(eps)) - 1]


# ---- the same by the peers -----------------------------------------------------------


class Counted:
    """A function that knows how often it was called."""

    def __init__(self, function) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *args):
        """Call it once more."""
        self.calls += 1
        return self.function(*args)


def search_by_peer(model, peer, problems, planted) -> dict:
    found, num_passed, evaluations, start = [], 0, 0, -4
    for problem, error in zip(problems, planted, strict=True):

        def is_caught(k, problem=problem, error=error):
            return ask(model, peer, problem, 2.0**k * error)[0]

        is_rejected, evaluations = ask(model, peer, problem, 0 * error)
        num_passed += not is_rejected
        k = None if is_rejected else walk(is_caught, start)
        found.append(math.inf if k is None else 2.0**k)
        start = start if k is None else k
    return {
        "eps": for_nine_of_ten(found),
        "by_seed": [{"eps": eps} for eps in found],
        "right_passes": num_passed,
        "evaluations": evaluations,
    }


def ask(model, peer, problem, error) -> tuple[bool, int]:
    """Whether it raises an alarm, and the evaluations of loss and gradient."""
    loss, claim = Counted(model.loss), Counted(model.wrong_grad)
    function = Function(inputs=lambda: (), loss=loss)
    case = Case(peer, "bug", "", "", function, claim, wrong=("W",))
    args = problem.X, jnp.asarray(error, problem.X.dtype)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        said = PEERS[peer](case, loss, claim, problem.params, args)
    if said == gradient_bugs.CANNOT:
        raise RuntimeError(f"{peer} cannot run at {model.size}.")
    return said == gradient_bugs.RIGHT["bug"], loss.calls + claim.calls


# ---- cost ----------------------------------------------------------------------------


def measure_cost(model, problem, settings) -> dict:
    """Of a check of the right gradient, the first one with what it compiles apart."""
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
    """Seconds of one compiled `value_and_grad`: a median."""
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
    """Of a function by the number of its leaves and their size."""

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
    each = [
        (row, situation, row["judges"][situation])
        for row in rows
        for situation in SITUATIONS
    ]
    looks = [look for _, _, found in each for look in found["looks"]]
    enough = [look for look in looks if look["seen"] >= ENOUGH * look["resolution"]]
    seen = [
        least["seen"] if least else math.inf
        for row, situation, found in each
        if situation == "claim" and row["dtype"] == "float32"
        for least in found["by_seed"]
    ]
    return {
        f"caught from {ENOUGH} resolutions on": all(look["caught"] for look in enough),
        "no other leaf is blamed": not any(look["blamed"] for look in looks),
        f"wrong claims are caught from {SEEN_BY_CLAIM} on": max(seen) <= SEEN_BY_CLAIM,
        "right gradients pass": all(
            found["right_passes"] == len(found["by_seed"]) for _, _, found in each
        ),
    }


def largest_missed(rows) -> float:
    """By either situation, in units of the resolution, where seen."""
    looks = [
        look
        for row in rows
        for situation in SITUATIONS
        for look in row["judges"][situation]["looks"]
    ]
    missed = [look["seen"] / look["resolution"] for look in looks if not look["caught"]]
    return max(missed, default=0.0)


# ---- what is seen --------------------------------------------------------------------


def show_power(rows) -> None:
    """The smallest eps caught; in brackets in units of the resolution, where seen."""
    table = []
    for row in rows:
        line = {"smallest eps caught": f"{row['model']} {row['dtype']}"}
        line["error in"] = row["error"]
        for situation in SITUATIONS:
            found = row["judges"][situation]
            least = [least for least in found["by_seed"] if least]
            most = max((each["seen"] / each["resolution"] for each in least), default=0)
            line[situation] = f"{found['eps']:.1e} ({most:.1f})"
        found = row["judges"]["rule"]
        line["named"] = f"{found['named']}/{len(found['by_seed'])}"
        if row["error"] == "whole leaf":
            line["named"] = "-"  # any entry would do
        for peer in PEERS:
            line[peer] = of_peer(row["judges"][peer])
        table.append(line)
    _study.print_table(table, dict.fromkeys(table[0], ""))


def of_peer(found) -> str:
    if not math.isinf(found["eps"]):
        return f"{found['eps']:.1e}"
    count = len(found["by_seed"])
    rejected = count - found["right_passes"]
    return f"rejects right {rejected}/{count}" if rejected else "never"


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
PLACES = {"largest entry": "the largest entry", "whole leaf": "the whole leaf"}
NONE = {  # where those stand that catch no error
    "rejects the right gradient too": 1e8,
    f"catches none up to {2**MOST}": 1e6,
}


def draw(rows, path) -> None:
    """A panel a kind of error: what is caught against evaluations."""
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    panels = figure.subplots(1, len(ERRORS), sharex=True, sharey=True)
    models = list(dict.fromkeys((row["model"], row["dtype"]) for row in rows))
    for axes, error in zip(panels, ERRORS, strict=True):
        for height in NONE.values():
            axes.axhline(height, color="0.8", lw=1, zorder=0)
        for row in rows:
            if row["error"] == error:
                marker = MARKERS[models.index((row["model"], row["dtype"]))]
                draw_row(axes, row["judges"], marker)
        axes.set(title=f"error in {PLACES.get(error, error)}")
        axes.set(xscale="log", yscale="log", xlim=(2, 2000))
        axes.set_xlabel("evaluations, loss and gradients")
        axes.set_yticks(10.0 ** np.arange(-10, 5, 2))
        axes.grid(color="0.93")
        axes.set_axisbelow(True)
    note = {"color": "0.35", "va": "bottom", "fontsize": 8.5}
    for reason, height in NONE.items():
        panels[0].text(2.2, 1.5 * height, reason, **note)
    panels[0].set(ylabel="smallest relative error caught", ylim=(None, 1e9))
    figure.suptitle(
        "The smallest error caught in dl/dW of a tied autoencoder, by cost of a check"
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
    for judge, found in judges.items():
        eps, look = found["eps"], style(judge, marker)
        if math.isinf(eps):
            is_rejected = found["right_passes"] < len(found["by_seed"])
            eps = list(NONE.values())[0 if is_rejected else 1]
            look |= {"markerfacecolor": "none"}
        axes.plot(found["evaluations"], eps, **look)


def style(judge, marker) -> dict:
    """An open ring where the rule is wrong: it often lies around the claim's."""
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
