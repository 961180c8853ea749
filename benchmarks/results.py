"""Results of the suites as JSON files: what was measured, where, when, with what."""

import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

from benchmarks.turns import ROOT, Times, ratio

RESULTS = ROOT / "benchmarks" / "results"


def machine() -> dict[str, Any]:
    """The processor, its cores and memory, and the operating system."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
    }


def processor() -> str:
    """The name of the processor as Linux gives it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1] for line in lines if line.startswith("model name")]
    return names[0].strip() if names else platform.machine()


def compared(times: dict[str, Times], reference: str) -> dict[str, Any]:
    """The times of all contestants, and their ratios to the reference, as JSON."""
    return {
        name: {
            "seconds": [round(s, 5) for s in entry.seconds],
            f"over {reference}": [
                round(value, 3) for value in ratio(entry, times[reference])
            ],
            "prepared_in": round(entry.prepared_in, 2),
            "peak_mib": round(entry.peak_mib),
            "result": entry.results[-1],
        }
        | ({"setting": entry.setting} if entry.setting else {})
        for name, entry in times.items()
    }


def versions_of(times: dict[str, Times]) -> dict[str, dict[str, str]]:
    """The versions of the libraries of each contestant."""
    return {name: entry.versions for name, entry in times.items()}


def path_of(suite: str, device: str) -> Path:
    """The file of a suite's results on a kind of device."""
    return RESULTS / f"{suite}_{device}.json"


def write(
    suite: str, command: str, cases: list[dict[str, Any]], device: str = "cpu"
) -> Path:
    """Write benchmarks/results/SUITE_DEVICE.json; return its path."""
    result = {
        "suite": suite,
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "cases": cases,
    }
    RESULTS.mkdir(exist_ok=True)
    path = path_of(suite, device)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(path)
    return path


def read(suite: str, device: str = "cpu") -> dict[str, Any] | None:
    """The results of a suite; None if it was not run."""
    path = path_of(suite, device)
    return json.loads(path.read_text()) if path.exists() else None
