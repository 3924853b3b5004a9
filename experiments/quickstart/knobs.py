"""What the knobs of the README do: the quickstart with one thing changed at a time, seed 0.

    python experiments/quickstart/knobs.py --out experiments/quickstart/knobs.json

Each row is a whole `fedfusion run experiment=quickstart ...`; about ten minutes on two cores.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

KNOBS = [
    "channel=ideal",
    "channel.jsr_db=10",
    "channel.jsr_db=20",
    "channel.jsr_db=22",
    "channel.jsr_db=24",
    "channel.jsr_db=26",
    "channel=ideal attack=sign_flipping attack.f=4",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    rows = {}
    for knob in KNOBS:
        with tempfile.TemporaryDirectory() as folder:
            run_dir = Path(folder) / "run"
            command = [
                sys.executable,
                "-m",
                "fedfusion",
                "run",
                "experiment=quickstart",
                *knob.split(),
                f"run_dir={run_dir}",
            ]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            metrics = json.loads((run_dir / "results.json").read_text())["metrics"]
        rows[knob] = {"mean": metrics["mean"], "worst": metrics["worst"]}
        print(knob, {name: round(value, 3) for name, value in metrics["mean"].items()}, flush=True)
    out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
