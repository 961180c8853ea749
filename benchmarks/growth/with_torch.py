"""Training in PyTorch with its fused Adam: one model, or several one after another."""

from benchmarks.one_model import with_torch


def train(num_lanes: int = 1, **options):
    """A loop of steps for each model; the result is the loss of the last one."""
    train_one = with_torch.train(fused=True, **options)

    def run() -> float:
        return [train_one() for _ in range(num_lanes)][-1]

    return run
