"""One table of what was measured beside what was aimed at, or beside what others reach."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Claim:
    """A row.

    Parameters
    ----------
    text
        What was measured.
    file
        Where, below experiments/.
    command
        What makes that file.
    figures
        From what is in the file: the figure, and the goal or the rival beside it.
    """

    text: str
    file: str
    command: str
    figures: Callable[[Any], tuple[str, str]]

    def row(self) -> str:
        """The row of the table, for a README at the root."""
        figure, beside = self.figures(json.loads((HERE / self.file).read_text()))
        name = Path(self.file).name
        return f"| {self.text} | {figure} | {beside} | [{name}](experiments/{self.file}): {self.command} |"


def claims() -> str:
    """All rows, and their header."""
    header = ["| what | measured | goal, or beside it | from |", "|---|---|---|---|"]
    return "\n".join([*header, *(claim.row() for claim in CLAIMS)])


def quickstart(results: Any) -> tuple[str, str]:
    seconds, gigabytes = results["wall_time_s"], results["peak_memory_mb"] / 1000
    return f"{seconds:.0f} s, {gigabytes:.2f} GB, two cores", "goal: 120 s"


def training(results: Any) -> tuple[str, str]:
    times = results["small batches"]["times_faster_than"]
    shown = [
        " and ".join(f"{times[f'cohort {p}'][other]:.1f}" for p in ("fp32", "bf16")) for other in ("swap", "reload")
    ]
    return (
        f"{shown[0]} times as fast (float32, bfloat16); {shown[1]} times",
        "one base, peft's adapters swapped, goal: 2.3 and 4.5; the base loaded for every client, goal: 5 and 8",
    )


def overhead(results: Any) -> tuple[str, str]:
    row = results["ms_per_message"]["1000 clients"]
    theirs = f"Flower's own simulation engine: {row['flower_engine_ms']:.2f} ms; goal: 1 ms"
    return f"inline {row['inline_ms']:.2f} ms, ray {row['ray_ms']:.2f} ms", theirs


def memory(results: Any) -> tuple[str, str]:
    exchange, run = results["exchange, 1000 clients, 1 to a message"], results["run, 1000 clients"]
    missed = "" if run["peak_mb"] <= run["limit_mb"] else ", missed by the run"
    return f"{exchange['peak_mb']:,} MB; a whole run {run['peak_mb']:,} MB", f"goal: {run['limit_mb']} MB{missed}"


def aggregators(results: Any) -> tuple[str, str]:
    times = {
        (rule, other): [
            case["rules"][rule][other]["times"]
            for case in results["cases"]
            if isinstance(case["rules"].get(rule, {}).get(other), dict)
        ]
        for rule in ("median", "multi_krum")
        for other in ("byzfl", "flower")
    }

    def spread(rule: str) -> str:
        return " and ".join(f"{min(times[rule, o]):.1f} to {max(times[rule, o]):.1f}" for o in ("byzfl", "flower"))

    missed = ", missed by Multi-Krum" if min(times["multi_krum", "byzfl"] + times["multi_krum", "flower"]) < 4 else ""
    return (
        f"median {spread('median')}, Multi-Krum {spread('multi_krum')} times as fast",
        f"byzfl {results['machine']['byzfl']} and Flower {results['machine']['flwr']}; goal: 4{missed}",
    )


def fusion_speed(results: Any) -> tuple[str, str]:
    cost = {name: row["cpu_s"] for name, row in results["dense"]["rules"].items()}
    times = [cost[f"{name}, peft"] / cost[name] for name in ("task arithmetic", "ties, by tensor", "dare")]
    floor = results["dense"]["rules"]["task arithmetic"]["times_floor"]
    return (
        f"{min(times):.1f} to {max(times):.1f} times as fast; task arithmetic {floor:.1f} times the time of one read",
        "peft; goal for task arithmetic: 1.3, " + ("missed" if floor > 1.3 else "reached"),
    )


def rules(results: Any) -> tuple[str, str]:
    found = {name: row["test"] for name, row in results["mean"]["rules"].items()}
    best = max(found, key=lambda name: found[name])
    without = max((name for name in found if "client statistics" not in name), key=lambda name: found[name])
    figure = f"{best} {found[best]:.3f}; without data, {without} {found[without]:.3f}"
    return figure, f"task arithmetic {found['task arithmetic']:.3f}"


def realigned(results: Any) -> tuple[str, str]:
    share = max(results["mean"]["realigned"].values()) / results["mean"]["single_task"]
    return f"{share:.1%}", "goal: 96 %, " + ("missed" if share < 0.96 else "reached")


def dominance(results: Any) -> tuple[str, str]:
    def where(row: Any) -> str:
        level = "" if row["level_db"] is None else f" at {row['level_db']:+.0f} dB"
        return f"{row['margin']['ours'][0]:+.3f} ({row['channel'].replace('_', ' ')}{level})"

    rows = sorted(results["rows"], key=lambda row: row["margin"]["ours"][0])
    below = sum(row["margin"]["ours"][0] < 0 for row in rows)
    beside = (
        f"the better of unprotected fusion and control; goal: never below, missed by {below} of {len(rows)} channels"
    )
    return f"{where(rows[0])} to {where(rows[-1])}", beside


def capacity(results: Any) -> tuple[str, str]:
    figure = f"largest deviation {results['largest_deviation']:.1f} standard errors"
    return figure, f"{results['compared']} figures of an independent reference of 400 draws"


def attacked(results: Any) -> tuple[str, str]:
    worst = {
        row["defence"]: min(value for value in row["worst_under"].values() if value is not None)
        for row in results["table"]
        if row["clients_per_task"] == 1
    }
    clean = next(row["worst"] for row in results["table"] if row["clients_per_task"] == 1)
    ours = worst.pop("task-aware")
    other = max(worst, key=lambda name: worst[name])
    return f"{ours:.3f}", f"without attack {clean:.3f}; best of {len(worst)} others {worst[other]:.3f} ({other})"


def breakdown(facts: Any) -> tuple[str, str]:
    largest = max(float(value) for value in facts["axes"][facts["budget"]])

    def said(line: str) -> str:
        (found,) = (row for row in facts["lines"] if row["line"] == line)
        at = found["breakdown"]["fused_received"]
        if at == 0:
            return "0, since the rule itself costs too much"
        return f"none up to {largest:.1%}" if at is None else f"{at:.1%}"

    return said("task_aware"), f"mean: {said('mean')}; geometric median within tasks: {said('task_geometric_median')}"


def backdoor(facts: Any) -> tuple[str, str]:
    found = {
        line: [p["success"]["fused_received"] for p in facts["points"] if p["line"] == line]
        for line in ("mean", "task_aware")
    }
    ours, none = (f"{min(found[line]):.0%} to {max(found[line]):.0%}" for line in ("task_aware", "mean"))
    return f"{ours} of the triggers still work", f"without defence {none}"


def mira(results: Any) -> tuple[str, str]:
    def mean(name: str) -> float:
        seeds = results[name]["seeds"].values()
        return sum(seed["personal"] for seed in seeds) / len(seeds)

    ours, alone = mean("MIRA, related tasks, 0.3"), mean("local")
    return f"{ours:.3f}", f"no exchange at all: {alone:.3f}" + (", which is better" if alone > ours else "")


def disentangled(results: Any) -> tuple[str, str]:
    levels = results["settings"]["nmse_db"]
    risen = {
        name: [
            level
            for level, pair in zip(levels, results[name]["levels"], strict=True)
            if pair["increment"] > 0 and pair["p_t_holm"] < 0.05
        ]
        for name in ("xi_L2", "xi_01")
    }
    figure = f"`xi_L2` at {len(risen['xi_L2'])}, `xi_01` at {len(risen['xi_01'])}, of {len(levels)} levels"
    return figure, "p < 0.05 after Holm's correction"


def comfort(results: Any) -> tuple[str, str]:
    minutes, verbs = results["sweep_s"] / 60, results["verbs_s"].values()
    figures = (
        f"{minutes:.1f} min on {results['jobs']} cores, {results['trainings']} trainings; {results['again_s']:.0f} s"
    )
    report = f"its report {results['report_s']:.0f} s, {results['report_mb']:.1f} MB"
    waits = " / ".join(f"{verb['seconds']:.1f}" for verb in verbs)
    goals = " / ".join(f"{verb['goal']:g}" for verb in verbs)
    return f"{figures}; {report}; {waits} s", f"goal: 6 min; 10 s; 10 s, 3 MB; {goals} s"


def faults(rows: Any) -> tuple[str, str]:
    whole = sum(row["lost"].startswith("nothing") and "after" not in row["lost"] for row in rows)
    return f"{whole} of {len(rows)} faults lose nothing", "real processes, `kill -9`"


CLAIMS = (
    Claim("the demo", "quickstart/results.json", "`make demo`", quickstart),
    Claim("training 64 small devices", "benchmarks/cohort.json", "`python -m experiments.benchmarks.cohort`", training),
    Claim(
        "a message beyond training, 1,000 clients",
        "benchmarks/overhead.json",
        "`python experiments/benchmarks/overhead.py`",
        overhead,
    ),
    Claim(
        "the server's memory, 1,000 clients of 0.3 MB",
        "benchmarks/scale.json",
        "`python experiments/benchmarks/scale.py`",
        memory,
    ),
    Claim(
        "robust rules, CPU time",
        "benchmarks/aggregators.json",
        "`python -m experiments.benchmarks.aggregators`",
        aggregators,
    ),
    Claim(
        "fusion rules, CPU time", "benchmarks/fusion.json", "`python -m experiments.benchmarks.fusion`", fusion_speed
    ),
    Claim(
        "mean accuracy of the best fusion, eight text tasks",
        "text8/fusion.json",
        "`python -m experiments.text8.fusion`",
        rules,
    ),
    Claim(
        "realigned with eight shots, over single task",
        "text8/fusion.json",
        "`python -m experiments.text8.fusion`",
        realigned,
    ),
    Claim(
        "accuracy that fusion and realignment add under noise and jamming",
        "rmtllmf/dominance.json",
        "`python -m experiments.rmtllmf.dominance`",
        dominance,
    ),
    Claim(
        "capacities and errors of the jammed uplink",
        "wireless/table.json",
        "`python -m experiments.wireless.table`",
        capacity,
    ),
    Claim(
        "worst task under the worst of nine attacks, `guard=task_aware`",
        "resilience/text8.json",
        "`python -m experiments.resilience.text8`",
        attacked,
    ),
    Claim(
        "share of Byzantine clients (IPM) that breaks the worst task, `defence=task_aware`",
        "resilience/attack_budget.json",
        "`fedfusion sweep sweep=attack_budget seed=0,1,2,3,4`",
        breakdown,
    ),
    Claim(
        "backdoors, `defence=task_aware`",
        "resilience/backdoor.json",
        "`fedfusion sweep`, [in full](experiments/README.md#what-no-gate-sees)",
        backdoor,
    ),
    Claim(
        "exact match of MIRA's personal adapters, sixteen programs",
        "mira/compare.json",
        "`python experiments/mira/compare.py`",
        mira,
    ),
    Claim(
        "noise makes tasks disturb each other",
        "disentanglement/results.json",
        "`python -m experiments.disentanglement.run`",
        disentangled,
    ),
    Claim(
        "a sweep of 100 cells; the same again; `--help`, `ls`, `validate`",
        "benchmarks/sweep.json",
        "`python -m experiments.benchmarks.sweep`",
        comfort,
    ),
    Claim(
        "processes, disks and links that break", "faults/faults.json", "`python -m experiments.faults.measure`", faults
    ),
)
