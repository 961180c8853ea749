"""A run that starts a script as a new process and waits for its end."""

import json
import subprocess
import sys


def script(script: str, **options):
    """Run `script_SCRIPT.py` in this environment; its result is the line it prints."""
    command = [sys.executable, "-m", f"benchmarks.real_work.script_{script}"]

    def run():
        done = subprocess.run(
            [*command, json.dumps(options)], stdout=subprocess.PIPE, check=True
        )
        return json.loads(done.stdout)

    return run
