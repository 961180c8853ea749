"""The script in PyTorch, tuned: batches by indexing, fused Adam, no loss on the way."""

import json
import sys

import numpy as np
import torch

from benchmarks.real_work import images
from benchmarks.real_work.script_torch import Autoencoder, loss_fn


def main(data, folder, target, learning_rate, batch_size, max_epochs):
    """Train until the test loss is reached, and print it."""
    X, X_test = (
        torch.from_numpy(pixels.reshape(len(pixels), -1) / np.float32(255))
        for pixels in images.read(data, folder)
    )
    torch.manual_seed(0)
    model = Autoencoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    num_rows = len(X) - len(X) % batch_size
    losses = []
    while len(losses) < max_epochs and not (losses and losses[-1] <= target):
        for rows in torch.randperm(len(X))[:num_rows].split(batch_size):
            x = X[rows]
            optimizer.zero_grad()
            loss_fn(model(x), x).backward()
            optimizer.step()
        with torch.inference_mode():
            total = sum(loss_fn(model(x), x) * len(x) for x in X_test.split(1000))
        losses.append(float(total) / len(X_test))
    versions = {module.__name__: module.__version__ for module in (torch, np)}
    print(json.dumps({"test losses": losses, "versions": versions}))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
