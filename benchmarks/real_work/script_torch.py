"""The script in PyTorch as its quickstart tutorial writes one.

A Dataset of single images as torchvision's FashionMNIST with ToTensor, a DataLoader, a
module, a loop that prints the loss of every 100th batch, and a loop over the test
batches after every epoch.
"""

import json
import sys

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.real_work import images


class Images(Dataset):
    """Images as tensors `[1, h, w]` in [0, 1], by way of PIL as torchvision."""

    def __init__(self, images):
        self.images = torch.from_numpy(images.copy())

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        """One image."""
        image = Image.fromarray(self.images[i].numpy())
        return torch.from_numpy(np.array(image)).unsqueeze(0).float().div(255)


class Autoencoder(nn.Module):
    """Tied weights, sigmoid latents; returns the decoder's pre-activations."""

    def __init__(self, input_dim=784, latent_dim=500):
        super().__init__()
        self.flatten = nn.Flatten()
        self.W = nn.Parameter(torch.empty(latent_dim, input_dim))
        self.b = nn.Parameter(torch.zeros(latent_dim))
        self.c = nn.Parameter(torch.zeros(input_dim))
        nn.init.xavier_uniform_(self.W, gain=4.0)

    def forward(self, x):
        """`[B, 1, h, w]` to `[B, D]`."""
        x = self.flatten(x)
        z = torch.sigmoid(nn.functional.linear(x, self.W, self.b))
        return nn.functional.linear(z, self.W.T, self.c)


def loss_fn(eta, x):
    """Cross-entropy, summed over inputs, a mean over the batch."""
    x = x.flatten(1)
    loss = nn.functional.binary_cross_entropy_with_logits(eta, x, reduction="sum")
    return loss / len(x)


def train(dataloader, model, optimizer):
    """One epoch."""
    model.train()
    for batch, x in enumerate(dataloader):
        loss = loss_fn(model(x), x)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if batch % 100 == 0:
            print(f"loss: {loss.item():>7f}", file=sys.stderr)


def test(dataloader, model):
    """The mean loss of the test images."""
    model.eval()
    test_loss = 0
    with torch.no_grad():
        for x in dataloader:
            test_loss += loss_fn(model(x), x).item() * len(x)
    return test_loss / len(dataloader.dataset)


def main(data, folder, target, learning_rate, batch_size, max_epochs):
    """Train until the test loss is reached, and print it."""
    training_data, test_data = map(Images, images.read(data, folder))
    # drop_last as in jaxae, for equal steps.
    train_dataloader = DataLoader(
        training_data, batch_size=batch_size, shuffle=True, drop_last=True
    )
    test_dataloader = DataLoader(test_data, batch_size=batch_size)
    torch.manual_seed(0)
    model = Autoencoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    losses = []
    while len(losses) < max_epochs and not (losses and losses[-1] <= target):
        train(train_dataloader, model, optimizer)
        losses.append(test(test_dataloader, model))
    versions = {module.__name__: module.__version__ for module in (torch, np)}
    print(json.dumps({"test losses": losses, "versions": versions}))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
