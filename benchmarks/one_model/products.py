"""The floor: the five matrix products of a step, and a large product.

With X `[B, D]`, W `[H, D]`, H and dA `[B, H]`, and E `[B, D]`, a step needs X W^T, H W,
E W^T, dA^T X and H^T E. Its other operations are left out.
"""

import numpy as np

from benchmarks.one_model.work import Work

LARGE = 2048  # rows and columns of the large product


def five_products(library: str, **options):
    """As many times the five products as a run of the others has steps."""
    work = Work(**options)
    B, D, H = work.batch_size, work.input_dim, work.latent_dim
    shapes = {"X": (B, D), "E": (B, D), "Z": (B, H), "dA": (B, H), "W": (H, D)}

    def products(X, E, Z, dA, W):
        return X @ W.T, Z @ W, E @ W.T, dA.T @ X, Z.T @ E

    return repeated(library, products, shapes.values(), work.num_steps)


def large_product(library: str, **options):
    """One large product, about as many operations as a run of the others."""
    work = Work(**options)
    num_repeats = max(1, round(work.num_steps * work.num_flops / (2 * LARGE**3)))
    shapes = [(LARGE, LARGE)] * 2
    return repeated(library, lambda A, B: A @ B, shapes, num_repeats)


def repeated(library: str, function, shapes, num_repeats: int):
    """A run that calls the function on random operands; its result is the count."""
    rng = np.random.default_rng(0)
    operands = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    wait = lambda results: results  # noqa: E731
    if library == "torch":
        import torch

        operands = [torch.from_numpy(operand) for operand in operands]
    elif library == "jax":
        import jax

        operands = [jax.device_put(operand) for operand in operands]
        function, wait = jax.jit(function), jax.block_until_ready

    def run() -> int:
        for _ in range(num_repeats):
            wait(function(*operands))
        return num_repeats

    return run
