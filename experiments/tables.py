"""Rewrite the tables of README.md from the committed result files.

python experiments/tables.py
"""

import io
import json
import re
from pathlib import Path

from rich.console import Console

from fedfusion.reporting import report

ROOT = Path(__file__).parent.parent


def quickstart(results: dict) -> str:
    console = Console(width=80, highlight=False, file=io.StringIO(), record=True)
    report.show(results, console)
    printed = "\n".join(line.rstrip() for line in console.export_text().rstrip().splitlines())
    seconds, gigabytes = results["wall_time_s"], results["peak_memory_mb"] / 1000
    took = f"Measured on two cores, once installed: {seconds:.0f} s, {gigabytes:.2f} GB."
    return f"```\n{printed}\n```\n\n{took}"


def overhead(results: dict) -> str:
    rows = ["| clients | inline | ray | Flower's own simulation engine |", "|---|---:|---:|---:|"]
    for clients, row in results["ms_per_message"].items():
        rows.append(f"| {clients.split()[0]} | " + " | ".join(f"{ms:.2f} ms" for ms in row.values()) + " |")
    return "\n".join(rows)


def knobs(results: dict) -> str:
    stages = {"fused_received": "fused received", "realigned": "realigned", "control": "control"}
    rows = ["| changed | " + " | ".join(stages.values()) + " |", "|---|" + "---:|" * len(stages)]
    for knob, row in results.items():
        rows.append(f"| `{knob}` | " + " | ".join(f"{row['mean'][stage]:.3f}" for stage in stages) + " |")
    return "\n".join(rows)


def coefficient(results: dict) -> str:
    test, seeds = results["test"], len(results["seeds"])
    return (
        f"Over an ideal uplink, mean of {seeds} seeds (`python experiments/digits8/coefficient.py --out "
        "experiments/digits8/coefficient.json`):\n\n"
        "| base | single task | fused, coefficient "
        f"{results['chosen']} |\n|---:|---:|---:|\n"
        f"| {test['base']:.3f} | {test['single_task']:.3f} | {test['fused']:.3f} |"
    )


TABLES = {
    "experiments/quickstart/results.json": quickstart,
    "experiments/quickstart/knobs.json": knobs,
    "experiments/benchmarks/overhead.json": overhead,
    "experiments/digits8/coefficient.json": coefficient,
}


def filled(readme: str) -> str:
    """The README with every table between its two markers made anew."""
    for source, table in TABLES.items():
        made = table(json.loads((ROOT / source).read_text()))
        marker = f"<!-- table: {source} -->\n"
        end = f"<!-- end of {source} -->"
        pattern = re.compile(re.escape(marker) + r".*?" + re.escape(end), re.S)
        readme = pattern.sub(lambda _, text=f"{marker}\n{made}\n\n{end}": text, readme)
    return readme


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(filled(path.read_text()))
