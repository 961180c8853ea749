"""The process of one contestant: prepares its program, then runs it when asked.

    python -m benchmarks.contestant MODULE:FUNCTION OPTIONS

`FUNCTION(**OPTIONS)` prepares the work and returns a function without arguments, which
does the work once and returns its result: a JSON value, or a function that computes it
after the time was taken. OPTIONS is JSON. The process answers each line of its
standard input with one line of JSON:

    "describe"    what the program says of itself, and the versions of its libraries
    "run"         the result, and the seconds that the run took
"""

import importlib
import importlib.metadata
import json
import os
import resource
import sys
import time

LIBRARIES = (
    "jax jaxlib optax torch numpy scikit-learn keras eai-sparsify dictionary-learning "
    "sae-lens overcomplete"
).split()


def main() -> None:
    """Answer requests until the standard input ends."""
    # Libraries print, so the answers have a stream of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(value) -> None:
        print(json.dumps(value), file=answers)

    start = time.perf_counter()
    module, name = sys.argv[1].split(":")
    run = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))
    answer({"setting": getattr(run, "setting", ""), "prepared_in": elapsed(start)})
    for request in map(str.strip, sys.stdin):
        if request == "describe":
            answer({"python": sys.version.split()[0]} | installed_versions())
        else:
            start = time.perf_counter()
            result = run()
            seconds = elapsed(start)
            result = result() if callable(result) else result
            answer({"seconds": seconds, "result": result, "peak_mib": peak_mib()})


def elapsed(start: float) -> float:
    """Seconds since `start`."""
    return time.perf_counter() - start


def peak_mib() -> float:
    """The largest resident memory of this process, or of one that it waited for.

    It is the maximum so far, as the operating system counts it.
    """
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(who).ru_maxrss for who in whose) / 1024


def installed_versions() -> dict[str, str]:
    """The versions of the libraries that this process has imported."""
    imported = {name.partition(".")[0] for name in sys.modules}
    packages = importlib.metadata.packages_distributions()
    names = {name for module in imported for name in packages.get(module, ())}
    return {
        name: importlib.metadata.version(name) for name in LIBRARIES if name in names
    }


if __name__ == "__main__":
    main()
