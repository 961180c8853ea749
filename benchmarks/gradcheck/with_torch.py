"""The check of PyTorch."""

import torch
import torch.nn.functional as F

from benchmarks.one_model.work import Work


def check(fast_mode: bool, **options):
    """`torch.autograd.gradcheck`, with its other defaults."""
    work = Work(**options)
    dtype = torch.float64
    X = torch.tensor(work.data(), dtype=dtype)
    [W] = (torch.tensor(W, dtype=dtype) for W in work.weights())
    b = torch.zeros(work.latent_dim, dtype=dtype)
    c = torch.zeros(work.input_dim, dtype=dtype)
    params = [leaf.requires_grad_() for leaf in (W, b, c)]

    def loss(W, b, c):
        eta = torch.sigmoid(F.linear(X, W, b)) @ W + c
        return F.binary_cross_entropy_with_logits(eta, X, reduction="sum") / len(X)

    expected = loss(*params).item()

    def run():
        accepted = torch.autograd.gradcheck(
            loss, params, fast_mode=fast_mode, raise_exception=False
        )
        return {"accepted": accepted, "loss": expected}

    return run
