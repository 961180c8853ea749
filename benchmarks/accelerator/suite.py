"""GPU: rates of one accelerator, a wide sparse autoencoder, and thousands of lanes.

Run by name, `python -m benchmarks accelerator`, on a machine with a CUDA build of JAX
(and of PyTorch in `.venv-bench`, for the loop). A rate is an amount of work over its
time: floating-point operations, bytes, or training steps of single models.

- *Roofline*: large products in bfloat16 and in float32 (TensorFloat-32 by default on
  NVIDIA), and a copy of an array, which reads and writes it.
- *Wide*: a TopK autoencoder with D = 2304 and H = 65,536, products in bfloat16, at k
  32, 64 and 128. The operations that count are those of the encoder's product, 2 B D H,
  and for a step those of codes, decoding and both gradients of the active latents too.
  The utilisation is the rate of a step over that of the large product in bfloat16.
- *Lanes*: 4,096 models of 64x32 as one sweep; the same models one after another, by
  `jaxae.train` and PyTorch, of which 16 are timed.
"""

from typing import Any

from benchmarks import page
from benchmarks.results import compared, versions_of
from benchmarks.sweeps.work import Work
from benchmarks.turns import Program, take_turns

DEVICE = "gpu"
ENVIRONMENT = {"JAX_PLATFORMS": "cuda,cpu", "BENCHMARK_DEVICE": "cuda"}
WIDE = {"input_dim": 2304, "latent_dim": 65_536, "batch_size": 1024, "num_steps": 20}
QUICK_WIDE = {"input_dim": 16, "latent_dim": 64, "batch_size": 8, "num_steps": 1}
LANES = Work(64, 32, 128, 4096, 5, 1024, 4)
FEW = LANES._replace(num_rates=4)
QUICK_LANES = Work(6, 3, 8, 32, 1, 2, 1)


def run(num_rounds: int, quick: bool) -> list[dict[str, Any]]:
    """All three parts; on a CPU and at small sizes if quick."""
    cases = [("Roofline", "product, bfloat16", roofline(64 if quick else 16_384))]
    for k in (4,) if quick else (32, 64, 128):
        sizes = (QUICK_WIDE if quick else WIDE) | {"k": k}
        cases.append((f"Wide, k = {k}", "encoder's product", wide(sizes)))
    lanes, few = (QUICK_LANES, QUICK_LANES) if quick else (LANES, FEW)
    cases.append(("Lanes", "jaxae.sweep", sweeps(lanes, few)))
    return [
        compare(title, reference, programs, {} if quick else ENVIRONMENT, num_rounds)
        for title, reference, programs in cases
    ]


def roofline(size: int) -> dict[str, Program]:
    """Large products and a copy."""
    function = "accelerator.with_jaxae:product"
    return {
        f"product, {dtype}": Program(function, {"size": size, "dtype": dtype})
        for dtype in ("bfloat16", "float32")
    } | {"copy": Program("accelerator.with_jaxae:copy", {"num_bytes": size**2 * 4})}


def wide(sizes: dict[str, int]) -> dict[str, Program]:
    """A wide sparse autoencoder: its product, encoding, and training steps."""
    return {
        "encoder's product": Program("accelerator.with_jaxae:encoder_product", sizes),
        "encoding": Program("accelerator.with_jaxae:encode", sizes),
        "training step": Program("accelerator.with_jaxae:train", sizes),
    }


def sweeps(lanes: Work, few: Work) -> dict[str, Program]:
    """Small models at once, and a few of them one after another."""
    one_by_one = few._asdict()
    return {
        "jaxae.sweep": Program("sweeps.with_jaxae:sweep", lanes._asdict()),
        "jaxae.train, one after another": Program("sweeps.with_jaxae:loop", one_by_one),
        "PyTorch, one after another": Program(
            "sweeps.with_torch:loop", one_by_one, is_peer=True
        ),
        "torch.func": Program(
            "sweeps.with_torch:ensembles", lanes._asdict(), is_peer=True
        ),
    }


def compare(
    title: str,
    reference: str,
    programs: dict[str, Program],
    environment: dict[str, str],
    num_rounds: int,
) -> dict[str, Any]:
    """The times and the amounts of work of one part."""
    programs = {n: p._replace(environment=environment) for n, p in programs.items()}
    times = take_turns(programs, num_rounds)
    contestants = compared(times, reference)
    for name, entry in contestants.items():
        entry["amount"] = amount(programs[name], entry["result"])
    return {
        "case": {"part": title},
        "contestants": contestants,
        "versions": versions_of(times),
    }


def amount(program: Program, result: Any) -> float:
    """Model steps of the programs of sweeps; the others return their amount."""
    if program.function.startswith("sweeps."):
        return Work(**program.options).num_steps
    return result


def markdown(result: dict[str, Any]) -> str:
    """A table of rates for each part; "of the peak" is relative to the product."""
    [roof, *_] = result["cases"]
    peak = page.rate(roof["contestants"]["product, bfloat16"])
    blocks = []
    for case in result["cases"]:
        rows = {
            name: (f"{page.rate(entry):.3g}", f"{page.rate(entry) / peak:.2f}")
            for name, entry in case["contestants"].items()
        }
        header = ("", "per second", "of the product in bfloat16")
        if case["case"]["part"] == "Lanes":
            rows = {name: cells[:1] for name, cells in rows.items()}
            header = header[:2]
        blocks += [f"**{case['case']['part']}**", page.markdown_table(header, rows)]
    return "\n\n".join(blocks)
