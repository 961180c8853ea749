"""The time of `import jaxae` relative to `import jax, optax`.

    python benchmarks/import_time.py

Each import runs in a new interpreter. The two alternate, so that noise of the machine
affects both. Promise: the ratio of medians is at most 1.2.
"""

import os
import statistics
import subprocess
import sys
import time

REPEATS = 15
# With compiled bytecode, as for an installed package.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def seconds(statement: str) -> float:
    """The wall-clock time of an interpreter that runs one statement."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, env=ENVIRONMENT)
    return time.perf_counter() - start


def main() -> None:
    """Print the ratio of the medians."""
    baseline, jaxae = [], []
    seconds("import jax, optax, jaxae")  # writes bytecode, fills the disk cache
    for _ in range(REPEATS):
        baseline.append(seconds("import jax, optax"))
        jaxae.append(seconds("import jaxae"))
    ratio = statistics.median(jaxae) / statistics.median(baseline)
    print(f"import jaxae / import jax, optax: {ratio:.3f} (medians of {REPEATS})")


if __name__ == "__main__":
    main()
