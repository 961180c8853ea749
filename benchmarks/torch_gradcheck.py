"""The outcomes of torch's `gradcheck` for `experiments/_gradient_cases`.

    make bench-env && PYTHONPATH=. .venv-bench/bin/python benchmarks/torch_gradcheck.py

Function and claim are the same JAX functions, in float64, wrapped into a
`torch.autograd.Function` whose backward pass is the claim times the cotangent, with one
input per leaf. `gradcheck(f, leaves)` is called with its defaults at the sizes where
its 2 N evaluations are affordable, and with `fast_mode=True` at every size; there its
search for a message in slow mode, after a failure, is skipped. A case is rejected if it
raises; the leaf that it names is not compared. Cases in half precision cannot be run,
because gradcheck requires float64. Its outcomes in float32 are counted separately, for
the right gradients at the smallest size.

Writes benchmarks/results/torch_gradcheck.json, which `experiments/gradient_bugs.py`
reports with its own judges.
"""

import datetime
import json
import platform
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.autograd.gradcheck import GradcheckError

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "experiments"))
from _gradient_cases import CASES, Size  # noqa: E402

RESULT = HERE / "results" / "torch_gradcheck.json"
SIZES = (Size(5, 3, 4), Size(20, 10, 8), Size(64, 32, 32), Size(784, 500, 64))
NUM_SEEDS = dict(zip(SIZES, (10, 3, 3, 1), strict=True))
NUM_SLOW = 2  # sizes at which 2 N evaluations are affordable
OUTCOMES = {  # by whether gradcheck raised
    "bug": {True: "caught", False: "missed"},
    "right": {True: "false alarm", False: "passed"},
}


class Claimed(torch.autograd.Function):
    """A scalar function of leaves, with the claim as its derivative."""

    @staticmethod
    def forward(ctx, value, grad, *leaves):
        """`value` and `grad` take and return NumPy arrays."""
        ctx.grad, ctx.leaves = grad, leaves
        out = value([leaf.detach().numpy() for leaf in leaves])
        return torch.tensor(out, dtype=leaves[0].dtype)

    @staticmethod
    def backward(ctx, cotangent):
        """The claim times the cotangent."""
        claims = ctx.grad([leaf.detach().numpy() for leaf in ctx.leaves])
        return None, None, *(cotangent * torch.from_numpy(claim) for claim in claims)


def judge(case, fn, grad, inputs, dtype, **options) -> str:
    """The outcome of one gradcheck."""
    params, *args = jax.tree.map(lambda leaf: cast(leaf, dtype), inputs)
    leaves, structure = jax.tree.flatten(params)

    def value(leaves):
        return float(fn(jax.tree.unflatten(structure, leaves), *args))

    def claims(leaves):
        grads = jax.tree.leaves(grad(jax.tree.unflatten(structure, leaves), *args))
        return [np.array(leaf, dtype) for leaf in grads]

    leaves = [torch.tensor(leaf, requires_grad=True) for leaf in leaves]
    try:
        torch.autograd.gradcheck(
            lambda *leaves: Claimed.apply(value, claims, *leaves), leaves, **options
        )
    except GradcheckError:
        return OUTCOMES[case.kind][True]
    except Exception:
        return "cannot run"
    return OUTCOMES[case.kind][False]


def cast(leaf, dtype) -> np.ndarray:
    """A floating-point leaf in `dtype`; any other leaf unchanged."""
    leaf = np.asarray(leaf)
    return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def is_narrow(inputs) -> bool:
    """Whether a leaf has half precision."""
    return any(np.asarray(leaf).dtype.itemsize < 4 for leaf in jax.tree.leaves(inputs))


def judge_case(case, size) -> dict[str, Counter]:
    """The number of seeds by mode and outcome."""
    fn, grad = jax.jit(case.function.loss), case.grad
    outcomes: dict[str, Counter] = {}
    for seed in range(NUM_SEEDS[size]):
        inputs = case.function.inputs(np.random.default_rng(seed), size)
        modes = {"torch, fast": {"fast_mode": True}}
        if size in SIZES[:NUM_SLOW]:
            modes = {"torch": {}} | modes
        for mode, options in modes.items():
            result = "cannot run"
            if not is_narrow(inputs):
                result = judge(case, fn, grad, inputs, np.float64, **options)
            outcomes.setdefault(mode, Counter())[result] += 1
    return outcomes


def in_float32() -> Counter:
    """Outcomes for the right gradients in float32, at the smallest size."""
    counts: Counter = Counter()
    for case in CASES.values():
        inputs = case.function.inputs(np.random.default_rng(0), SIZES[0])
        if case.kind == "right" and not is_narrow(inputs):
            fn, grad = jax.jit(case.function.loss), case.grad
            counts[judge(case, fn, grad, inputs, np.float32)] += 1
    return counts


def main() -> None:
    """Run all cases, and write the results."""
    warnings.simplefilter("ignore")  # torch warns of every float32 input
    jax.config.update("jax_enable_x64", True)
    # After fast mode has failed, slow mode composes the message: hours at 784x500.
    module = sys.modules["torch.autograd.gradcheck"]
    module._run_slow_mode_and_get_error = lambda *args, **kwargs: ""
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        outcomes: dict[str, dict] = {}
        for name, case in CASES.items():
            outcomes[name] = {}
            for size in SIZES:
                for mode, counts in judge_case(case, size).items():
                    outcomes[name].setdefault(mode, {})[str(size)] = dict(counts)
            print(name, outcomes[name], flush=True)
        float32 = in_float32()
    result = {
        "what": "torch.autograd.gradcheck on experiments/_gradient_cases, in float64",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "jax": jax.__version__,
            "numpy": np.__version__,
        },
        "date": datetime.date.today().isoformat(),
        "device": "CPU",
        "num_seeds": {str(size): count for size, count in NUM_SEEDS.items()},
        "right gradients in float32, 5x3": dict(float32),
        "outcomes": outcomes,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{dict(float32)} of the right gradients in float32\n{RESULT}")


if __name__ == "__main__":
    main()
