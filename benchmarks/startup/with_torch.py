"""The first step of the demo's model in PyTorch; the process ends with it."""

import os

import torch
import torch.nn.functional as F

from benchmarks.one_model.with_torch import Autoencoder
from benchmarks.one_model.work import Work


def main() -> None:
    """Train one batch."""
    work = Work(64, 16, batch_size=64, num_rows=1437)
    X = torch.from_numpy(work.data())
    model = Autoencoder(work)
    optimizer = torch.optim.Adam(model.parameters(), lr=work.learning_rate)
    x = X[torch.randperm(len(X))[: work.batch_size]]
    loss = F.binary_cross_entropy_with_logits(model(x), x, reduction="sum")
    loss.backward()
    optimizer.step()
    os._exit(0)


if __name__ == "__main__":
    main()
