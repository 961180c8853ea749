"""The demo or `jaxae train`, ended by the first call of the compiled steps.

python -m benchmarks.startup.first_step demo|train
"""

import os
import runpy
import sys

from benchmarks.turns import ROOT


def main() -> None:
    """Run a program, with a trainer that ends the process."""
    end_at_first_step()
    if sys.argv[1] == "demo":
        runpy.run_path(str(ROOT / "examples" / "demo.py"), run_name="__main__")
    else:
        from jaxae import cli

        cli.main("train --data digits --latent-dim 16 --out run".split())


def end_at_first_step() -> None:
    """Make the first call of the compiled steps the last."""
    import jax

    from jaxae.training import trainer

    run_steps = trainer._run_steps

    def run_steps_and_end(*arguments, **keywords):
        jax.block_until_ready(run_steps(*arguments, **keywords))
        os._exit(0)

    trainer._run_steps = run_steps_and_end


if __name__ == "__main__":
    main()
