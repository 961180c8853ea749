"""The lanes in PyTorch: in a loop, in a pool of processes, and with `torch.func`."""

import itertools
import multiprocessing
import os

import torch
import torch.nn.functional as F

from benchmarks.sweeps.work import Work, fastest, num_cores

ADAMS = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "for loop": {"foreach": False},
}
TRIAL_STEPS = 4  # steps of a trial of a setting
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
DEVICE = os.environ.get("BENCHMARK_DEVICE", "cpu")


def loss_of(W, b, c, x):
    """The mean over rows of the cross-entropy summed over columns."""
    eta = F.linear(torch.sigmoid(F.linear(x, W, b)), W.T, c)
    return F.binary_cross_entropy_with_logits(eta, x, reduction="sum") / len(x)


def thread_counts() -> list[int]:
    """All cores, and one, on which small models may be faster."""
    return sorted({num_cores(), 1})


# ---- one model after another ---------------------------------------------------------


class Loop:
    """Trains one lane; `adam` is a name in ADAMS."""

    def __init__(self, work: Work):
        self.work, self.X = work, torch.tensor(work.data(), device=DEVICE)
        self.initial = [torch.tensor(leaf, device=DEVICE) for leaf in work.params()]

    def train(self, rate: float, seed: int, adam: str, num_steps=None) -> float:
        """The mean loss of the last epoch; num_steps shortens it to a trial."""
        torch.manual_seed(seed)
        params = [leaf.clone().requires_grad_() for leaf in self.initial]
        optimizer = torch.optim.Adam(params, lr=rate, **ADAMS[adam])
        means = []
        for _ in range(1 if num_steps else self.work.num_epochs):
            total = torch.zeros((), device=DEVICE)
            order = torch.randperm(len(self.X), device=DEVICE)
            batches = order.split(self.work.batch_size)[:num_steps]
            for rows in batches:
                optimizer.zero_grad()
                loss = loss_of(*params, self.X[rows])
                loss.backward()
                optimizer.step()
                total += loss.detach()
            means.append(total / len(batches))
        return torch.stack(means).tolist()[-1]

    def fastest_setting(self, threads: list[int]) -> tuple[str, int]:
        """The fastest Adam and number of threads."""

        def trial(adam, num_threads):
            torch.set_num_threads(num_threads)
            self.train(*self.work.lanes[0], adam, TRIAL_STEPS)

        adam, num_threads = fastest(list(itertools.product(ADAMS, threads)), trial)
        torch.set_num_threads(num_threads)
        return adam, num_threads


def loop(**options):
    """One model after another, with the fastest Adam and number of threads."""
    work = Work(**options)
    lanes = Loop(work)
    adam, threads = lanes.fastest_setting(thread_counts())

    def run() -> float:
        return sum(lanes.train(*lane, adam) for lane in work.lanes) / len(work.lanes)

    run.setting = f"{adam} Adam, {threads} threads"
    return run


def pool(**options):
    """A process a core, each with the loop on one thread; started before the rounds."""
    work = Work(**options)
    context = multiprocessing.get_context("spawn")
    processes = context.Pool(num_cores(), _start_worker, (options,))
    adams = set(processes.map(_setting, range(num_cores()), chunksize=1))

    def run() -> float:
        losses = processes.map(_train, work.lanes, chunksize=1)
        return sum(losses) / len(losses)

    run.setting = f"{', '.join(sorted(adams))} Adam, {num_cores()} processes"
    return run


def _start_worker(options) -> None:
    global _lanes, _adam
    _lanes = Loop(Work(**options))
    _adam, _ = _lanes.fastest_setting([1])


def _setting(_) -> str:
    return _adam


def _train(lane) -> float:
    return _lanes.train(*lane, _adam)


# ---- ensembles -----------------------------------------------------------------------


def ensembles(**options):
    """`vmap` of the gradient over stacked parameters, and Adam on the stacks.

    All lanes share the order of the rows. The number of lanes at once and of threads
    are the fastest.
    """
    work = Work(**options)
    X = torch.tensor(work.data(), device=DEVICE)
    gradient = torch.func.vmap(
        torch.func.grad_and_value(loss_of, argnums=(0, 1, 2)), in_dims=(0, 0, 0, None)
    )

    def train(rates, num_steps=None):
        """The mean loss of the last epoch of each lane."""
        torch.manual_seed(0)
        params = [torch.tensor(leaf, device=DEVICE) for leaf in work.params()]
        params = [leaf.repeat(len(rates), *[1] * leaf.dim()) for leaf in params]
        first, second = (list(map(torch.zeros_like, params)) for _ in range(2))
        count, means = itertools.count(1), []
        for _ in range(1 if num_steps else work.num_epochs):
            total = torch.zeros(len(rates), device=DEVICE)
            order = torch.randperm(len(X), device=DEVICE)
            batches = order.split(work.batch_size)[:num_steps]
            for rows in batches:
                grads, loss = gradient(*params, X[rows])
                adam(params, list(grads), first, second, rates, next(count))
                total += loss
            means.append(total / len(batches))
        return torch.stack(means)[-1]

    rates = torch.tensor([rate for rate, _ in work.lanes], device=DEVICE)

    def trial(size, threads):
        torch.set_num_threads(threads)
        for chunk in rates[: max(sizes)].split(size):
            train(chunk, TRIAL_STEPS)

    sizes = _sizes(len(rates))
    settings = list(itertools.product(sizes, thread_counts()))
    size, threads = fastest(settings, trial)
    torch.set_num_threads(threads)

    def run() -> float:
        return torch.cat([train(chunk) for chunk in rates.split(size)]).mean().item()

    run.setting = f"{size} at once, {threads} threads"
    return run


def _sizes(num_lanes: int) -> list[int]:
    """Numbers of lanes at once, down to a quarter; to a sixteenth of thousands."""
    divisors = (1, 4, 16) if num_lanes > 1000 else (1, 2, 4)
    return sorted({max(1, num_lanes // divisor) for divisor in divisors})


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
