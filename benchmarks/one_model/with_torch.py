"""The model in PyTorch, as its tutorials write a training loop."""

import torch
import torch.nn.functional as F

from benchmarks.one_model.work import Work

OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}


class Autoencoder(torch.nn.Module):
    """The autoencoder; W* is W if tied."""

    def __init__(self, work: Work):
        super().__init__()
        weights = [torch.nn.Parameter(torch.tensor(W)) for W in work.weights()]
        self.W, self.W_dec = weights[0], weights[-1]
        self.b = torch.nn.Parameter(torch.zeros(work.latent_dim))
        self.c = torch.nn.Parameter(torch.zeros(work.input_dim))

    def forward(self, x):
        """The decoder's pre-activations."""
        return torch.sigmoid(F.linear(x, self.W, self.b)) @ self.W_dec + self.c


def train(compiled: bool = False, fused: bool = False, **options):
    """A loop of steps; `fused` is PyTorch's fused optimizer."""
    work = Work(**options)
    dtype = getattr(torch, work.dtype)
    X = torch.from_numpy(work.data()).to(dtype)

    def loss_of(eta, x):
        if work.tied:
            loss = F.binary_cross_entropy_with_logits(eta, x, reduction="sum")
        else:
            loss = 0.5 * F.mse_loss(eta, x, reduction="sum")
        return loss / len(x)

    def loss_and_model():
        model = Autoencoder(work).to(dtype)
        loss = lambda x: loss_of(model(x), x)  # noqa: E731
        return (torch.compile(loss) if compiled else loss), model

    def run() -> float:
        torch.manual_seed(0)
        loss_fn, model = loss_and_model()
        optimizer = OPTIMIZERS[work.optimizer](
            model.parameters(), lr=work.learning_rate, fused=fused
        )
        total = torch.zeros(())
        for _ in range(work.num_epochs):
            for rows in torch.randperm(len(X)).split(work.batch_size):
                optimizer.zero_grad()
                loss = loss_fn(X[rows])
                loss.backward()
                optimizer.step()
                total += loss.detach()
        return float(total) / work.num_steps

    return run
