"""Measure jaxae beside other libraries.

    make bench                                      all suites
    python -m benchmarks one_model --rounds 3       one suite
    python -m benchmarks accelerator                on a machine with a GPU
    python -m benchmarks --quick                    small sizes: does everything run?

Each suite writes benchmarks/results/SUITE_DEVICE.json, or nothing with --quick. The
peers run in .venv-bench (make bench-env); without it they are left out.
"""

import argparse
import importlib
import sys

from benchmarks import results

SUITES = (
    "one_model",
    "sweeps",
    "sparse",
    "gradcheck",
    "startup",
    "growth",
    "real_work",
)
ACCELERATOR = "accelerator"  # runs only if it is named


def main(argv=None) -> int:
    """Run the suites that were named, all by default."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "suites", nargs="*", metavar="SUITE", help=", ".join((*SUITES, ACCELERATOR))
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, one round")
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    args = parser.parse_args(argv)
    if unknown := set(args.suites) - {*SUITES, ACCELERATOR}:
        parser.error(f"there is no suite {unknown.pop()!r}")
    for name in args.suites or SUITES:
        suite = importlib.import_module(f"benchmarks.{name}.suite")
        print(f"{name}: {suite.__doc__.splitlines()[0]}", flush=True)
        command = f"python -m benchmarks {name} --rounds {args.rounds}"
        device = getattr(suite, "DEVICE", "cpu")
        cases = []
        for case in suite.run(1 if args.quick else args.rounds, args.quick):
            cases.append(case)
            if not args.quick:  # after every case, since a later one may fail
                path = results.write(name, command, cases, device)
                print(f"{path}: {len(cases)} cases", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
