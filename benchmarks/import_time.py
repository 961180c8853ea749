"""How much `import jaxae` costs beyond `import jax, optax`, in one interleaved run.

    python benchmarks/import_time.py

Each import is a fresh interpreter; the two alternate, so that a noisy machine slows
both alike. Promise: the ratio of medians is at most 1.2.
"""

import os
import statistics
import subprocess
import sys
import time

REPEATS = 15
# With compiled bytecode, as an installed package has it.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def seconds(statement: str) -> float:
    """The wall time of an interpreter that runs one statement."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, env=ENVIRONMENT)
    return time.perf_counter() - start


def main() -> None:
    """Print the medians' ratio."""
    baseline, ours = [], []
    seconds("import jax, optax, jaxae")  # writes bytecode, fills the disk's cache
    for _ in range(REPEATS):
        baseline.append(seconds("import jax, optax"))
        ours.append(seconds("import jaxae"))
    ratio = statistics.median(ours) / statistics.median(baseline)
    print(f"import jaxae / import jax, optax: {ratio:.3f} (medians of {REPEATS})")


if __name__ == "__main__":
    main()
