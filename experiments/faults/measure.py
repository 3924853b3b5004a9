"""What is lost when something breaks, and how long it takes to recover: from the slow tests that break it.

    python -m experiments.faults.measure

runs `pytest -m slow tests/faults`, with real processes and `kill -9`, and writes what the tests say of themselves.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent.parent


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-m", "slow", "tests/faults", f"--junitxml={report}", *sys.argv[1:]]
        code = subprocess.run(command, cwd=ROOT).returncode
        cases = ElementTree.parse(report).getroot().iter("testcase")
        rows = [row for case in cases if (row := told(case))]
    out = Path(__file__).with_name("faults.json")
    out.write_text(json.dumps(rows, indent=1) + "\n")
    raise SystemExit(code)


def told(case: ElementTree.Element) -> dict[str, str]:
    """What a test that passed says of its fault; nothing where it says nothing."""
    said = {str(p.get("name")): str(p.get("value")) for p in case.iter("property")}
    if "fault" not in said or any(case.find(kind) is not None for kind in ("failure", "error", "skipped")):
        return {}
    return said | {
        "test": f"{str(case.get('classname')).rpartition('.')[2]}::{str(case.get('name')).partition('[')[0]}"
    }


if __name__ == "__main__":
    main()
