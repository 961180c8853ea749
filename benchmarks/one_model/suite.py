"""One model: the training loop of each library, and the products that it needs.

A run trains one autoencoder with sigmoid latents for a few hundred steps, from the same
initial parameters. Tied weights have a Bernoulli cross-entropy, untied weights half the
squared error. Timed is the whole call, from data in memory to the mean loss of each
epoch, after a first call that compiled. Divide by the steps for the time of a step.

- `jaxae`: `jaxae.train`, with gradients by hand and by autodiff. Every call checks its
  arguments again, and every step checks that parameters and loss are finite.
- `PyTorch`: a loop of steps in eager mode with its default Adam, with its fused Adam,
  and with `torch.compile` of the loss.
- `Keras`: `Model.fit` of a compiled model, on two back ends.
- `scikit-learn`: `MLPRegressor.fit(X, X)`, which draws its own initial parameters.
- `five products`: the matrix products of the steps alone, in three libraries: no
  activation, loss or optimizer. `large product`: as many operations in products of
  2048 x 2048 matrices.

The suite checks that the mean losses agree to one percent, except for scikit-learn; the
orders of rows differ. In bfloat16, parameters, moments and data are rounded; Keras is
left out, because it rounds the mean of the losses. Large products in bfloat16 are
faster than in float32 in PyTorch on this machine, and slower in XLA.

Not measured: several models at once (the suite of sweeps), sparse activations.
"""

from collections.abc import Iterator
from typing import Any

from benchmarks.one_model.work import Work
from benchmarks.results import compared
from benchmarks.turns import Program, take_turns

REFERENCE = "jaxae, gradient by hand"
LOSS_TOLERANCE = 0.01  # of the mean over all steps, relative; the orders of rows differ
LIBRARIES = ("jax", "torch", "numpy")

WORKS = (
    Work(784, 500),
    Work(784, 500, optimizer="sgd"),
    Work(784, 500, tied=False),
    Work(768, 3072, tied=False, num_rows=2560, num_epochs=2),
    Work(768, 3072, tied=False, num_rows=2560, num_epochs=2, dtype="bfloat16"),
)
QUICK = (Work(20, 10, batch_size=16, num_rows=64, num_epochs=2),)


def programs(work: Work) -> dict[str, Program]:
    """Every contestant of one work."""
    options = work._asdict()

    def with_jaxae(gradient):
        return Program("one_model.with_jaxae:train", {"gradient": gradient} | options)

    def with_torch(**more):
        return Program("one_model.with_torch:train", options | more, is_peer=True)

    def with_keras(name):
        environment = {"KERAS_BACKEND": {"JAX": "jax", "PyTorch": "torch"}[name]}
        return Program("one_model.with_keras:train", options, True, environment)

    entries = {
        REFERENCE: with_jaxae("manual"),
        "jaxae, autodiff": with_jaxae("autodiff"),
        "PyTorch": with_torch(),
        "PyTorch, fused optimizer": with_torch(fused=True),
        "PyTorch, torch.compile": with_torch(compiled=True),
    }
    if work.dtype != "float32":  # in which Keras rounds the mean of the losses too
        return entries
    entries |= {f"Keras on {name}": with_keras(name) for name in ("JAX", "PyTorch")}
    if not work.tied:
        entries["scikit-learn"] = Program(
            "one_model.with_sklearn:train", options, is_peer=True
        )
    for kind in ("five_products", "large_product"):
        for library in LIBRARIES:
            entries[f"{kind.replace('_', ' ')}, {library}"] = Program(
                f"one_model.products:{kind}",
                {"library": library} | options,
                is_peer=library == "torch",
            )
    return entries


def run(num_rounds: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Compare all contestants in every work."""
    for work in QUICK if quick else WORKS:
        yield compare(work, num_rounds)


def compare(work: Work, num_rounds: int) -> dict[str, Any]:
    """The times of one work, the rates that follow, and a check of the losses."""
    times = take_turns(programs(work), num_rounds)
    contestants = compared(times, REFERENCE)
    for name, entry in contestants.items():
        if "product" not in name and name != "scikit-learn":
            check_loss(name, entry["result"], contestants[REFERENCE]["result"])
    return {
        "case": work._asdict(),
        "steps": work.num_steps,
        "flops of the products": work.num_steps * work.num_flops,
        "contestants": contestants,
        "versions": {name: entry.versions for name, entry in times.items()},
    }


def check_loss(name: str, loss: float, reference: float) -> None:
    """Check that a contestant did the same work."""
    if not abs(loss / reference - 1) < LOSS_TOLERANCE:
        raise AssertionError(f"{name} has a mean loss of {loss}, jaxae of {reference}.")
