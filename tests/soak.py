"""Kill a training run many times, and compare it with an uninterrupted run.

    python tests/soak.py --kills 100 --out runs/soak [--model sparse]

Each round starts `jaxae train --resume` and ends it by SIGKILL: at a random moment
after its first save, or, every second time, inside one of its saves. After some kills
the run is let finish, its folder compared to the bit with that of a run that was never
killed, and the next run begins.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

COMMAND = (
    *("train", "--epochs", "120", "--latent-dim", "16", "--learning-rate", "0.01"),
    *("--checkpoint-steps", "40"),
)
MODELS = {
    "lecture": ("--corruption", "masking", "--corruption-rate", "0.2"),
    "sparse": (  # a state of each kind: threshold, dead counts, schedule
        *("--untied", "--observation", "gaussian", "--activation", "batch_topk(4)"),
        *("--aux-k", "4", "--dead-after", "3", "--prefixes", "4,16"),
        *("--k", "2", "--k-start", "4", "--k-steps", "200"),
    ),
}
KILLS_A_RUN = 5
LONGEST_WAIT = 1.0  # seconds from the first save to a random kill
MAX_SAVES = 5  # before the one inside which a kill comes
SAVE_SECONDS = 0.03  # about as long as a save takes
TIME_LIMIT = 300.0  # seconds for what should take ten
SAME = (
    *("params.safetensors", "scaling.safetensors", "config.json", "results.json"),
    *("metrics.jsonl", "filters.png", "reconstructions.png", "curves.png"),
    *("latents.png", "best/params.safetensors", "best/config.json"),
    *("best/scaling.safetensors", "results.sha256"),
)


class Tally(NamedTuple):
    """What the kills interrupted, and whether the runs were restored."""

    kills: int = 0
    inside_a_save: int = 0
    before_a_save: int = 0  # nothing had been saved yet
    after_the_end: int = 0  # the run was over before the kill: not counted as one
    runs: int = 0
    different: tuple[str, ...] = ()


def soak(folder: Path, num_kills: int, seed: int, model="lecture", say=print):
    """Kill runs until there were so many kills; stop at the first difference."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    complete = folder / "whole"
    shutil.rmtree(complete, ignore_errors=True)
    command = (*COMMAND, *MODELS[model])
    finish(complete, command)
    tally = Tally()
    while tally.kills < num_kills and not tally.different:
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        for _ in range(KILLS_A_RUN):
            tally = kill(run, command, rng, tally)
            if tally.kills == num_kills:
                break
        finish(run, command)
        different = differences(complete, run)
        tally = tally._replace(runs=tally.runs + 1, different=tuple(different))
        say(tally)
    return tally


def start(run: Path, command, compiles: bool = False) -> subprocess.Popen:
    call = [sys.executable, "-m", "jaxae.cli", *command, "--out", str(run)]
    env = {"JAX_PLATFORMS": "cpu", **os.environ}
    if compiles:  # itself, whatever another has compiled
        env.pop("JAX_COMPILATION_CACHE_DIR", None)
    return subprocess.Popen(
        [*call, "--resume"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )


def finish(run: Path, command) -> None:
    """Let the run finish.

    Raises:
      RuntimeError: with what the command said, if it failed.
    """
    process = start(run, command, compiles=True)
    out, err = process.communicate(timeout=TIME_LIMIT)
    if process.returncode != 0 or without_notes(err):
        raise RuntimeError(f"exit status {process.returncode}: {out}{err}")


def kill(run: Path, command, rng: random.Random, tally: Tally) -> Tally:
    """Start the run, and kill it some time after its first save began, or in one."""
    left_over = unfinished(run)
    process = start(run, command)
    until(lambda: set(unfinished(run)) - set(left_over), process)
    if rng.random() < 0.5:
        for _ in range(rng.randrange(MAX_SAVES)):
            earlier = steps(run)
            until(lambda earlier=earlier: steps(run) != earlier, process)
        until(lambda: unfinished(run), process)
        time.sleep(rng.uniform(0, SAVE_SECONDS))
    else:
        time.sleep(rng.uniform(0, LONGEST_WAIT))
    is_over = process.poll() is not None
    process.kill()
    out, err = process.communicate(timeout=TIME_LIMIT)
    # A refusal, or the traceback of a start that a kill before it broke.
    if without_notes(err):
        raise RuntimeError(f"{out}{err}")
    if is_over:
        return tally._replace(after_the_end=tally.after_the_end + 1)
    return tally._replace(
        kills=tally.kills + 1,
        inside_a_save=tally.inside_a_save + bool(unfinished(run)),
        before_a_save=tally.before_a_save + (not steps(run)),
    )


def without_notes(err: str) -> list[str]:
    lines = err.splitlines()
    return [line for line in lines if line and not line.startswith("jaxae: note:")]


def until(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + TIME_LIMIT
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)


def names(run: Path) -> list[str]:
    checkpoints = run / "checkpoints"
    return os.listdir(checkpoints) if checkpoints.is_dir() else []


def steps(run: Path) -> list[str]:
    """The checkpoints that were saved."""
    return sorted(name for name in names(run) if name.isdigit())


def unfinished(run: Path) -> list[str]:
    """The checkpoints that are being saved."""
    return [name for name in names(run) if not name.isdigit()]


def differences(complete: Path, run: Path) -> list[str]:
    """The files of a run that differ from the complete one, or do not belong."""
    result = [n for n in SAME if (complete / n).read_bytes() != (run / n).read_bytes()]
    if state_digest(complete) != state_digest(run):
        result.append("the optimizer's state")
    if steps(complete)[-1] != steps(run)[-1]:
        result.append("the last step")
    return result + sorted(set(paths(run)) - set(paths(complete)))


def paths(run: Path) -> list[str]:
    """The files of a run folder without its checkpoints, whose names are random."""
    states = run / "checkpoints"
    result = (path for path in run.rglob("*") if states not in path.parents)
    return [str(path.relative_to(run)) for path in result]


def state_digest(run: Path) -> str:
    """The digest of the last checkpoint, which restoring verifies."""
    about = run / "checkpoints" / max(steps(run), key=int) / "about" / "metadata"
    return json.loads(about.read_text())["arrays_sha256"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", choices=MODELS, default="lecture")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    arguments = parser.parse_args()
    result = soak(arguments.out, arguments.kills, arguments.seed, arguments.model)
    report = json.dumps(result._asdict(), indent=2)
    (arguments.out / "report.json").write_text(report + "\n")
    print(report)
    sys.exit(bool(result.different))
