"""How long the command line lets a person wait: a sweep of 100 cells, the same again, its report, and the small verbs.

    python -m experiments.benchmarks.sweep --out experiments/benchmarks/sweep.json

The sweep is `sweep=attack_budget`: ten budgets, five defences, two seeds, both local trainings included. Seconds are of
the wall; of the verbs, the least of five starts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VERBS = {"--help": 1.0, "ls": 1.5, "validate": 3.0}  # seconds that a person should wait at most
STARTS = 5


def seconds(*arguments: str) -> float:
    """How long `fedfusion` takes."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "fedfusion", *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    verbs = {verb: min(seconds(verb) for _ in range(STARTS)) for verb in VERBS}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "sweep"
        command = ("sweep", "sweep=attack_budget", "--out", str(folder))
        first, again = seconds(*command), seconds(*command)
        facts = json.loads((folder / "sweep.json").read_text())
        assert not any(cell["error"] for cell in facts["cells"])
        report = seconds("report", str(folder))
        megabytes = (folder / "report.html").stat().st_size / 1e6
    found = {
        "cells": len(facts["cells"]),
        "trainings": facts["trainings"],
        "jobs": len(os.sched_getaffinity(0)),
        "sweep_s": round(first, 1),
        "again_s": round(again, 2),
        "report_s": round(report, 2),
        "report_mb": round(megabytes, 2),
        "verbs_s": {verb: {"seconds": round(verbs[verb], 2), "goal": goal} for verb, goal in VERBS.items()},
    }
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
