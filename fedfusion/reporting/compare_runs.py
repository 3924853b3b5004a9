"""Runs side by side; those that differ in their seed alone count as one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from fedfusion.composition import ELSEWHERE
from fedfusion.config import plain
from fedfusion.reporting import plots
from fedfusion.reporting.comparison import Comparison, header, scored
from fedfusion.reporting.figures import unique
from fedfusion.reporting.findings import UNITS, amount, apart, text
from fedfusion.reporting.interval import mean
from fedfusion.reporting.kept import UPLINK, measured
from fedfusion.reporting.report import load
from fedfusion.reporting.run_plots import STAGES, final
from fedfusion.reporting.sweep_plots import legend, looks, span
from fedfusion.reporting.sweep_tables import Grid
from fedfusion.strict_json import worded
from fedfusion.validation import flat

WALL_TIME = "wall time (s)"
ONE_SEED = (
    "One seed each: there are no intervals, and small differences may be chance (name the runs of more seeds too: "
    "those that differ in nothing else count as one)."
)

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone.

    Parameters
    ----------
    letter
        What it is called.
    runs
        Results by folder.
    """

    letter: str
    runs: Mapping[Path, Results]

    @property
    def metrics(self) -> list[Mapping[str, Any]]:
        """What each run measured."""
        return [results["metrics"] for results in self.runs.values()]

    @cached_property
    def config(self) -> dict[str, str]:
        """The configuration, flat, with what differs between the runs in one text."""
        found: dict[str, list[str]] = {}
        for results in self.runs.values():
            for key, value in flat(_settings(results)).items():
                found.setdefault(key, []).append(value if isinstance(value, str) else json.dumps(value))
        return {key: ", ".join(unique(values)) for key, values in found.items()}

    def by_seed(self, stage: str) -> dict[str, dict[str, float]]:
        """The figures of the runs, each by their seeds."""
        found: dict[str, dict[str, float]] = {}
        for results in self.runs.values():
            for name, value in scores(results, stage).items():
                if value is not None:
                    found.setdefault(name, {})[str(results["seed"])] = value
        return found


def compare(folders: Sequence[Path]) -> Comparison:
    """Compare runs with the first of them, paired by seed."""
    groups = grouped({folder: load(folder) for folder in folders})
    finals = {final(metrics) for group in groups for metrics in group.metrics}
    stage = "realigned" if "realigned" in finals else "fused_received"
    figures = [group.by_seed(stage) for group in groups]
    said = _of_other_tasks(groups)
    for name in (f"mean, {STAGES[stage].label}", f"worst task, {STAGES[stage].label}"):
        pairs = zip(groups[1:], figures[1:], strict=True)
        gaps = [f"{group.letter} is {apart(own[name], figures[0][name], groups[0].letter)}" for group, own in pairs]
        said.append(f"{_measure(groups).capitalize()}, {name}: {'; '.join(gaps)}.")
    said += [_as_fused(group) for group in groups if stage not in map(final, group.metrics)]
    if all(len(group.runs) == 1 for group in groups):
        said.append(ONE_SEED)
    members = [(group.letter, ", ".join(map(str, group.runs))) for group in groups]
    with plots.drawing():
        drawn = [_by_round(groups, stage), _by_task(groups, stage)]
    return Comparison("runs", " ".join(said), members, differences(groups), [_table(groups, stage)], drawn)


def grouped(runs: Mapping[Path, Results]) -> list[Group]:
    """Runs of the same configuration together; each alone, where no configuration has several of different seeds."""
    found: dict[str, dict[Path, Results]] = {}
    for folder, results in runs.items():
        own = {key: value for key, value in _settings(results).items() if key not in {"seed", *ELSEWHERE}}
        found.setdefault(json.dumps(own, sort_keys=True), {})[folder] = results
    apart = len(found) == 1 or any(len({r["seed"] for r in own.values()}) < len(own) for own in found.values())
    groups = [{folder: results} for folder, results in runs.items()] if apart else list(found.values())
    return [Group(letter, own) for letter, own in zip(ascii_uppercase, groups, strict=False)]


def _settings(results: Results) -> dict[str, Any]:
    """The configuration, in which what is equal is written alike."""
    return dict(worded(plain(results["config"])))


def differences(groups: Sequence[Group]) -> list[list[str]]:
    """The keys in which they differ, and the value in each."""
    keys = unique(key for group in groups for key in group.config)
    rows = [[key, *(group.config.get(key, "–") for group in groups)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def scores(results: Results, stage: str) -> dict[str, float | None]:
    """All that is compared of one run; its tasks after `stage`."""
    metrics, kept = results["metrics"], measured(results)
    found = {f"mean, {label}": metrics["mean"].get(of) for of, (label, _) in STAGES.items()}
    found |= {f"worst task, {STAGES[of].label}": value for of, value in kept["worst"].items()}
    for task, by_stage in metrics["tasks"].items():
        found[f"{task}, {STAGES[stage].label}"] = by_stage.get(stage, {}).get("accuracy")
    found |= {UNITS[name]: kept[name] for name in UPLINK}
    found |= {"honest uploads accepted": kept["accepted_honest"], "Byzantine refused": kept["refused_byzantine"]}
    return found | {WALL_TIME: results["wall_time_s"]}


def _of_other_tasks(groups: Sequence[Group]) -> list[str]:
    """That they are not scored on the same tasks, where it is so."""
    tasks = {group.letter: {task for metrics in group.metrics for task in metrics["tasks"]} for group in groups}
    common = set.intersection(*tasks.values())
    others = [f"{letter} has {', '.join(sorted(own - common))}" for letter, own in tasks.items() if own - common]
    if not others:
        return []
    return [
        f"These are not scores on the same tasks ({'; '.join(others)}; {len(common) or 'none'} in common): what "
        "follows does not tell which is better."
    ]


def _as_fused(group: Group) -> str:
    return f"What is called realigned of {group.letter} is as fused: it was not realigned, or that changed no score."


def _measure(groups: Sequence[Group]) -> str:
    return " or ".join(unique(run["metrics"]["measure"] for group in groups for run in group.runs.values()))


def _table(groups: Sequence[Group], stage: str) -> Grid:
    several, figures = any(len(group.runs) > 1 for group in groups), [group.by_seed(stage) for group in groups]
    costs = {*UNITS.values(), WALL_TIME}
    rows = [
        [name, *scored([own.get(name) for own in figures], several, amount if name in costs else text)]
        for name in unique(name for own in figures for name in own)
    ]
    return "Scores and costs", ["", *header([group.letter for group in groups], several)], rows


def _by_round(groups: Sequence[Group], stage: str) -> plots.Plot:
    """Mean and worst task after each round, with a band over seeds."""
    figure, panels = plots.panels(plots.DOUBLE, 2.8, 1, 2, sharey=True)
    for axes, name in zip(panels, ("mean", "worst"), strict=True):
        for group, look in zip(groups, looks([group.letter for group in groups]).values(), strict=True):
            curves = [[r[name].get(stage) for r in run["metrics"]["rounds"]] for run in group.runs.values()]
            columns = np.array(list(zip(*curves, strict=False)), dtype=float)
            rounds = range(1, len(columns) + 1)
            axes.plot(rounds, columns.mean(1), label=group.letter, **look)
            axes.fill_between(rounds, columns.min(1), columns.max(1), color=look["color"], alpha=0.15, linewidth=0)
        axes.set(xlabel="round", title="mean over tasks" if name == "mean" else "worst task")
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    records = [record for group in groups for run in group.runs.values() for record in run["metrics"]["rounds"]]
    panels[0].set_ylim(*span([record[name].get(stage) for record in records for name in ("mean", "worst")]))
    panels[0].set_ylabel(f"{_measure(groups)}, {STAGES[stage].label}")
    legend(figure, panels[0])
    said = []
    for group in groups:
        first, last = (mean(r["metrics"]["rounds"][i]["mean"].get(stage) for r in group.runs.values()) for i in (0, -1))
        said.append(f"{group.letter} {text(first)} after the first round and {text(last)} after the last")
    several = any(len(group.runs) > 1 for group in groups)
    band = " Lines: means over seeds; bands: least to greatest." if several else ""
    title = f"{_measure(groups).capitalize()} by round"
    return plots.Plot("compare-rounds", title, f"Mean over tasks: {'; '.join(said)}.{band}", figure)


def _by_task(groups: Sequence[Group], stage: str) -> plots.Plot:
    """A dot for each on every task."""
    found = {group.letter: group.by_seed(stage) for group in groups}
    tasks = unique(task for group in groups for r in group.runs.values() for task in r["metrics"]["tasks"])
    figure, (axes,) = plots.panels(plots.SINGLE, 0.9 + 0.22 * len(tasks))
    said, drawn = [], list[float]()
    for letter, look in looks(list(found)).items():
        known = {t: mean(found[letter].get(f"{t}, {STAGES[stage].label}", {}).values()) for t in tasks}
        dots = {task: score for task, score in known.items() if score is not None}
        axes.plot(list(dots.values()), [tasks.index(task) for task in dots], label=letter, **look | {"linestyle": ""})
        drawn += dots.values()
        best, least = (end(dots, key=dots.__getitem__) for end in (max, min))
        said.append(f"{letter} is best on {best} ({dots[best]:.3f}) and least on {least} ({dots[least]:.3f})")
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set_ylim(len(tasks) - 0.4, -0.6)
    axes.set(xlabel=f"{_measure(groups)}, {STAGES[stage].label}", xlim=span(drawn))
    legend(figure, axes)
    return plots.Plot("compare-tasks", f"{_measure(groups).capitalize()} by task", f"{'; '.join(said)}.", figure)
