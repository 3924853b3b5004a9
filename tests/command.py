"""The command line as a subprocess, on a run small enough for a test."""

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
SMALL = [
    "suite.tasks=[upright-digit,flipped-size]",
    "suite.clients_per_task=2",
    "client.steps=2",
    "realign.steps=2",
    "rounds=2",
]


def fedfusion(*arguments: str, cwd: Path | None = None, check: bool = False) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(TESTS), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "fedfusion", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=400)
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def results(run_dir: Path) -> dict:
    return json.loads((run_dir / "results.json").read_text())
