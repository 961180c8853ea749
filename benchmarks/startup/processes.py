"""A Python process of its own, from its start to its end."""

import os
import subprocess
import sys
import tempfile


def start(arguments: list[str]):
    """A run that starts a Python in a new folder, and waits for its end."""
    # With compiled bytecode, as for an installed package.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                [sys.executable, *arguments],
                check=True,
                cwd=folder,
                env=environment,
                stdout=subprocess.DEVNULL,
            )

    return run
