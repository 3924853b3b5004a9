"""What is lost when something breaks, and how long it takes to recover: from the slow tests that break it.

    python -m experiments.faults.measure [tests/faults/test_ray.py ...]

runs `pytest -m slow` on tests/faults or the tests given, with real processes and `kill -9`, and writes what those that
passed say of themselves; rows of other tests stay as they are.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent.parent
OUT = Path(__file__).with_name("faults.json")


def main() -> None:
    tests = sys.argv[1:] or ["tests/faults"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-m", "slow", *tests, f"--junitxml={report}"]
        code = subprocess.run(command, cwd=ROOT).returncode
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    ran = {test(case) for case in cases}
    before = json.loads(OUT.read_text()) if OUT.is_file() else []
    rows = [row for row in before if row["test"] not in ran]
    rows += [row for case in cases if (row := told(case))]
    OUT.write_text(json.dumps(sorted(rows, key=lambda row: row["test"]), indent=1) + "\n")
    raise SystemExit(code)


def told(case: ElementTree.Element) -> dict[str, str]:
    """What a test that passed says of its fault; nothing where it says nothing."""
    said = {str(p.get("name")): str(p.get("value")) for p in case.iter("property")}
    if "fault" not in said or any(case.find(kind) is not None for kind in ("failure", "error", "skipped")):
        return {}
    return said | {"test": test(case)}


def test(case: ElementTree.Element) -> str:
    """The file and the name of a test."""
    return f"{str(case.get('classname')).rpartition('.')[2]}::{str(case.get('name')).partition('[')[0]}"


if __name__ == "__main__":
    main()
