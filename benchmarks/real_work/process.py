"""A run that starts a script as a new process and waits for its end."""

import json
import subprocess
import sys


def script(script: str, **options):
    """Run `script_SCRIPT.py` in this environment; its result is the line it prints.

    A first process, on generated images, brings the files of the libraries into memory.
    """
    command = [sys.executable, "-m", f"benchmarks.real_work.script_{script}"]

    def run(**changes):
        arguments = json.dumps(options | changes)
        done = subprocess.run([*command, arguments], stdout=subprocess.PIPE, check=True)
        return json.loads(done.stdout)

    run(data="synthetic", max_epochs=1)
    return run
