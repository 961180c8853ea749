"""The speed of a sweep against training the same lanes one by one, also with torch.

    make bench-env && .venv-bench/bin/python benchmarks/sweep_against_torch.py

Every lane is a tied sigmoid autoencoder with Bernoulli cross-entropy, trained by Adam
on batches in a new order each epoch, with the mean loss of each epoch logged. Measured
are model-steps per second of the full call, from data to logged losses:

sweep: `jaxae.sweep`.
train: `jaxae.train`, one lane after another.
torch: `torch.optim.Adam`, one lane after another.
torch.func: `vmap` of the gradient over stacked parameters, Adam on the stacks, and one
    order of batches shared by all lanes.

Each contestant is first compiled and tuned: the sweep uses the plan of a long run,
torch the fastest of its Adams and numbers of threads, and torch.func the fastest of its
ensemble sizes and numbers of threads. Then the contestants alternate for a few rounds,
and medians of the ratios within a round are reported, because the speed of a machine
drifts. All start from the same parameters. The orders of their rows differ, so the
means over lanes of the last epoch's loss must agree to one percent.

Writes benchmarks/results/sweep_<device>.json, and a table beside it.
"""

import argparse
import datetime
import functools
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import jaxae
from jaxae.training import init_state

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    sys.exit("torch is not installed here; make bench-env makes a .venv-bench with it.")

RESULTS = Path(__file__).parent / "results"
SEQUENCE, ENSEMBLE = "torch", "torch.func"
TOLERANCE = 0.01  # of the losses, relative to the sweep's
TRIAL_STEPS = 4  # steps of a trial of a setting
NUM_TRIALS = 6  # of each setting; the first is a warm-up
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class Case(NamedTuple):
    """One size, and the lanes trained at it.

    Attributes:
      input_dim, latent_dim: of the model.
      batch_size, num_rows, num_epochs: of training.
      num_rates, num_seeds: lanes are all pairs of a learning rate and a seed.
    """

    input_dim: int
    latent_dim: int
    batch_size: int
    num_rows: int
    num_epochs: int
    num_rates: int
    num_seeds: int

    def __str__(self) -> str:
        return f"{self.input_dim}x{self.latent_dim}"

    @property
    def num_lanes(self) -> int:
        """The number of pairs of a learning rate and a seed."""
        return self.num_rates * self.num_seeds

    @property
    def num_steps(self) -> int:
        """The total number of steps of single models."""
        return self.num_lanes * self.num_epochs * (self.num_rows // self.batch_size)

    @property
    def space(self) -> dict[str, list]:
        """The space of the sweep."""
        rates = np.geomspace(1e-3, 1e-2, self.num_rates)
        return {"learning_rate": rates.tolist(), "seed": list(range(self.num_seeds))}

    @property
    def lanes(self) -> list[tuple[float, int]]:
        """(learning rate, seed) of each lane."""
        return list(itertools.product(*self.space.values()))

    def with_one_seed(self) -> "Case":
        """As many lanes with one seed, so that all see the same batches."""
        return self._replace(num_rates=self.num_lanes, num_seeds=1)

    def data(self) -> np.ndarray:
        """`[N, D]`, uniform in [0, 1]."""
        shape = self.num_rows, self.input_dim
        return np.random.default_rng(0).random(shape, dtype=np.float32)


CASES = (
    Case(20, 5, 1024, 16384, 5, 25, 4),
    Case(64, 32, 128, 4096, 5, 25, 4),
    Case(784, 64, 128, 2048, 5, 8, 4),
    Case(784, 500, 128, 2048, 3, 4, 2),
)


class Contestant(NamedTuple):
    """One way to train all lanes of a case.

    Attributes:
      run: `() -> losses [L]` of the last epoch.
      setting: the fastest setting.
      seconds: of compilation, warm-up and tuning.
    """

    run: Callable[[], np.ndarray]
    setting: str
    seconds: float


# ---- jaxae ---------------------------------------------------------------------------


def objective_of(case: Case) -> jaxae.Objective:
    """The model of a case and its loss."""
    ae = jaxae.Autoencoder(
        input_dim=case.input_dim,
        latent_dim=case.latent_dim,
        activation=jaxae.activations.sigmoid,
        observation=jaxae.observations.bernoulli,
        tied=True,
    )
    return jaxae.Objective(ae)


def config_of(case: Case, num_epochs: int | None = None) -> jaxae.TrainConfig:
    """The default configuration without diagnostics: torch logs the loss only."""
    return jaxae.TrainConfig(
        num_epochs=num_epochs or case.num_epochs,
        batch_size=case.batch_size,
        diagnostics=False,
    )


def sweep(case: Case, device: str) -> Contestant:
    """One call of `jaxae.sweep`, with the plan of a long sweep."""
    del device
    arguments = objective_of(case), case.data(), case.space
    key = jax.random.key(0)
    start = time.perf_counter()
    long_config = config_of(case, num_epochs=100_000)
    plan = jaxae.sweeps.plan(
        jaxae.sweeps.prepare(*arguments, key=key, config=long_config)
    )
    at_once = plan.groups[0].lanes_at_once

    def run():
        results = jaxae.sweep(
            *arguments, key=key, config=config_of(case), lanes_at_once=at_once
        )
        return results.metrics["train/loss"][:, -1]

    run()
    return Contestant(run, f"{at_once} at once", time.perf_counter() - start)


def train(case: Case, device: str) -> Contestant:
    """`jaxae.train` of each lane."""
    del device
    X, objective, config = case.data(), objective_of(case), config_of(case)
    key = jax.random.key(0)

    def lane(rate, seed):
        run = jaxae.train(
            objective,
            X,
            hparams={"learning_rate": rate},
            key=jax.random.fold_in(key, seed),
            config=config,
        )
        return run.metrics["train/loss"][-1]

    start = time.perf_counter()
    lane(*case.lanes[0])
    seconds = time.perf_counter() - start
    return Contestant(
        lambda: np.array([lane(*pair) for pair in case.lanes]), "", seconds
    )


# ---- torch ---------------------------------------------------------------------------


@functools.cache
def initial_params(case: Case, seed: int, device: str) -> list["torch.Tensor"]:
    """W, b_enc and b_dec, the initial parameters of jaxae's lanes of that seed."""
    state = init_state(
        objective_of(case),
        {"learning_rate": 0.0},
        jax.random.fold_in(jax.random.key(0), seed),
        config=config_of(case),
    )
    return [torch.tensor(np.asarray(leaf), device=device) for leaf in state.params[:3]]


def loss_of(W, b, c, x) -> "torch.Tensor":
    """The mean over rows of the cross-entropy summed over columns."""
    z = torch.sigmoid(F.linear(x, W, b))
    eta = F.linear(z, W.T, c)
    return F.binary_cross_entropy_with_logits(eta, x, reduction="sum") / len(x)


def in_sequence(case: Case, device: str) -> Contestant:
    """One model after another, with the fastest of torch's Adams."""
    X = torch.from_numpy(case.data()).to(device)

    def lane(rate, seed, options, num_epochs=case.num_epochs, num_steps=None):
        torch.manual_seed(seed)
        initial = initial_params(case, seed, device)
        params = [leaf.clone().requires_grad_() for leaf in initial]
        optimizer = torch.optim.Adam(params, lr=rate, **options)
        means = []
        for _ in range(num_epochs):
            order = torch.randperm(len(X), device=device)
            total = torch.zeros((), device=device)
            batches = order.split(case.batch_size)[:num_steps]
            for rows in batches:
                optimizer.zero_grad()
                loss = loss_of(*params, X[rows])
                loss.backward()
                optimizer.step()
                total += loss.detach()
            means.append(total / len(batches))
        return torch.stack(means).tolist()

    adams = {name: {name: True} for name in ("fused", "foreach")}
    adams["for loop"] = {"foreach": False}
    settings = [(name, threads) for name in adams for threads in thread_counts(device)]

    def trial(name, threads):
        torch.set_num_threads(threads)
        lane(*case.lanes[0], adams[name], 1, TRIAL_STEPS)

    (name, threads), seconds = fastest(settings, trial)

    def run():
        torch.set_num_threads(threads)
        return np.array([lane(*pair, adams[name])[-1] for pair in case.lanes])

    return Contestant(run, f"{name} Adam, {threads} threads", seconds)


def vmapped(case: Case, device: str) -> Contestant:
    """Ensembles of lanes with `torch.func`."""
    X = torch.from_numpy(case.data()).to(device)
    gradient = torch.func.vmap(
        torch.func.grad_and_value(loss_of, argnums=(0, 1, 2)), in_dims=(0, 0, 0, None)
    )

    def ensemble(lanes, num_epochs=case.num_epochs, num_steps=None):
        torch.manual_seed(0)
        rates = torch.tensor([rate for rate, _ in lanes], device=device)
        initial = [initial_params(case, seed, device) for _, seed in lanes]
        params = [torch.stack(leaves) for leaves in zip(*initial, strict=True)]
        first, second = (list(map(torch.zeros_like, params)) for _ in range(2))
        count, means = 0, []
        for _ in range(num_epochs):
            order = torch.randperm(len(X), device=device)
            total = torch.zeros(len(lanes), device=device)
            batches = order.split(case.batch_size)[:num_steps]
            for rows in batches:
                grads, loss = gradient(*params, X[rows])
                count += 1
                adam(params, list(grads), first, second, rates, count)
                total += loss
            means.append(total / len(batches))
        return torch.stack(means).tolist()

    sizes = sorted({case.num_lanes, max(1, case.num_lanes // 4)}, reverse=True)
    settings = [(size, threads) for size in sizes for threads in thread_counts(device)]

    def chunks(size):
        starts = range(0, case.num_lanes, size)
        return [case.lanes[start : start + size] for start in starts]

    def trial(size, threads):
        torch.set_num_threads(threads)
        for chunk in chunks(size):
            ensemble(chunk, 1, TRIAL_STEPS)

    (size, threads), seconds = fastest(settings, trial)

    def run():
        torch.set_num_threads(threads)
        return np.concatenate([ensemble(chunk)[-1] for chunk in chunks(size)])

    return Contestant(run, f"{size} at once, {threads} threads", seconds)


@torch.no_grad()
def adam(params, grads, first, second, rates, count: int) -> None:
    """A step in place on stacks `[L, ...]`, each lane with its own learning rate.

    `first` and `second` are the moments of the gradients.
    """
    torch._foreach_lerp_(first, grads, 1 - BETA1)
    torch._foreach_mul_(second, BETA2)
    torch._foreach_addcmul_(second, grads, grads, 1 - BETA2)
    scales = torch._foreach_sqrt(second)
    torch._foreach_div_(scales, (1 - BETA2**count) ** 0.5)
    torch._foreach_add_(scales, EPSILON)
    steps = torch._foreach_div(first, scales)
    rates = rates / (1 - BETA1**count)
    for param, step in zip(params, steps, strict=True):
        param.addcmul_(rates.view(-1, *[1] * (param.dim() - 1)), step, value=-1)


def thread_counts(device: str) -> list[int]:
    """All cores, and one, on which small models may be faster."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    cores = cores or os.cpu_count() or 1
    return [1] if device == "cuda" else sorted({cores, 1}, reverse=True)


def fastest(settings: list[tuple], trial: Callable):
    """The setting with the least median time, and the seconds of all trials.

    The median, because torch on several threads is sometimes many times slower if
    another process uses a core.
    """
    start = time.perf_counter()
    times: dict[tuple, list[float]] = {setting: [] for setting in settings}
    for _ in range(NUM_TRIALS):
        for setting in settings:
            times[setting].append(seconds(trial, *setting))
    medians = {setting: statistics.median(t[1:]) for setting, t in times.items()}
    return min(medians, key=medians.__getitem__), time.perf_counter() - start


# ---- the comparison ------------------------------------------------------------------


CONTESTANTS = {
    "sweep": sweep,
    "train": train,
    SEQUENCE: in_sequence,
    ENSEMBLE: vmapped,
}


def seconds(function: Callable, *arguments) -> float:
    """The time of a call, which returns its results on the host."""
    start = time.perf_counter()
    function(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(case: Case, device: str, num_rounds: int) -> dict:
    """The times of all contestants, which alternate for a number of rounds."""
    contestants = {name: make(case, device) for name, make in CONTESTANTS.items()}
    losses = {name: entry.run().mean() for name, entry in contestants.items()}
    check(case, losses)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for i in range(num_rounds):
        # In a rotating order, because one may affect the time of the next.
        for name in names[i % len(names) :] + names[: i % len(names)]:
            times[name].append(seconds(contestants[name].run))
    return {
        "case": case._asdict(),
        "model-steps a second": {
            name: round(case.num_steps / statistics.median(t))
            for name, t in times.items()
        },
        "sweep is faster than": {
            name: round(
                statistics.median(
                    b / a for a, b in zip(times["sweep"], t, strict=True)
                ),
                2,
            )
            for name, t in times.items()
            if name != "sweep"
        },
        "setting": {name: entry.setting for name, entry in contestants.items()},
        "seconds before": {
            name: round(entry.seconds, 1) for name, entry in contestants.items()
        },
        "seconds": {name: [round(s, 3) for s in t] for name, t in times.items()},
        "last loss, mean over lanes": {
            n: round(float(v), 3) for n, v in losses.items()
        },
    }


def check(case: Case, losses: dict[str, float]) -> None:
    """Check that all contestants reach the same loss."""
    for name, loss in losses.items():
        error = abs(loss / losses["sweep"] - 1)
        assert error < TOLERANCE, f"{case}: {name} ends at {loss}, not as {losses}"


def table(result: dict) -> str:
    """The results as a Markdown table."""
    lines = [
        f"Model-steps per second of the full run, on {result['device']} "
        f"({result['cores']} cores), {result['date']}. In brackets, the sweep's "
        f"speed-up: medians of {result['rounds']} rounds.",
        "",
        "| size, batch, lanes | sweep | train | torch | torch.func |",
        "|---|---|---|---|---|",
    ]
    for name, measured in result["cases"].items():
        case = measured["case"]
        num_lanes = case["num_rates"] * case["num_seeds"]
        cells = [f"{name}, {case['batch_size']}, {num_lanes}"]
        for contestant, speed in measured["model-steps a second"].items():
            ratio = measured["sweep is faster than"].get(contestant)
            cells.append(f"{speed}" + ("" if ratio is None else f" ({ratio:.1f}x)"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def device_name(device: str) -> str:
    """The name of the device model."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return models[0] if models else platform.processor() or platform.machine()


def main() -> None:
    """Compare the contestants at every size, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one-seed", action="store_true", help="lanes share a seed")
    parser.add_argument("--sizes", nargs="*", help="such as 20x5; by default all")
    args = parser.parse_args()
    if args.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    elif jax.default_backend() != "gpu" or not torch.cuda.is_available():
        sys.exit("--device cuda needs a GPU that both jax and torch can use.")
    cases = [case for case in CASES if not args.sizes or str(case) in args.sizes]
    if args.one_seed:
        cases = [case.with_one_seed() for case in cases]
    device = device_name(args.device)
    result = {
        "what": "model-steps a second of a sweep, and of the same lanes otherwise",
        "versions": {
            "python": platform.python_version(),
            "jaxae": jaxae.__version__,
            "jax": jax.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "date": datetime.date.today().isoformat(),
        "device": device,
        "cores": thread_counts("cpu")[0],
        "rounds": args.rounds,
        "cases": {},
    }
    for case in cases:
        measured = compare(case, args.device, args.rounds)
        result["cases"][str(case)] = measured
        print(case, json.dumps(measured, indent=1), flush=True)
    print(table(result))
    if args.sizes:
        return  # only results of all sizes are written
    name = "cpu" if args.device == "cpu" else device.replace(" ", "_")
    path = RESULTS / f"sweep_{name}{'_one_seed' if args.one_seed else ''}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(result))
    print(path)


if __name__ == "__main__":
    main()
