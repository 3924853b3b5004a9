"""Sweeps over the same axes side by side."""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from fedfusion.reporting import plots
from fedfusion.reporting.comparison import Comparison, header, scored
from fedfusion.reporting.figures import unique
from fedfusion.reporting.findings import apart, hardest, label, measure, stages, text
from fedfusion.reporting.run_plots import STAGES
from fedfusion.reporting.sweep import fixed
from fedfusion.reporting.sweep_plots import band_ends, columns_for, frame, legend, looks, span
from fedfusion.reporting.sweep_tables import Grid
from fedfusion.types import FedfusionError

STYLES = ("-", "--", ":", "-.")

Sweeps = Mapping[str, Mapping[str, Any]]


def compare(facts: Mapping[Path, Mapping[str, Any]]) -> Comparison:
    """Compare sweeps with the first of them, point by point and paired by seed.

    Raises
    ------
    FedfusionError
        If their axes differ, or one has no finished run.
    """
    sweeps = dict(zip(ascii_uppercase, facts.values(), strict=False))
    (folder, first), *others = facts.items()
    for other, own in others:
        if own["axes"] != first["axes"]:
            odd = [key for key in {**first["axes"], **own["axes"]} if first["axes"].get(key) != own["axes"].get(key)]
            raise FedfusionError(
                f"{folder} and {other} are sweeps over different axes: {', '.join(map(repr, odd))} "
                f"({_axes(first, odd)} against {_axes(own, odd)}; compare sweeps of the same grid)"
            )
    if empty := [str(folder) for folder, own in facts.items() if not own["points"]]:
        raise FedfusionError(f"{', '.join(empty)} has no finished run to compare (continue it with fedfusion sweep)")
    members = list(zip(ascii_uppercase, map(str, facts), strict=False))
    stage = min((stages(own) for own in sweeps.values()), key=len)[-1]
    with plots.drawing():
        drawn = [_by_budget(sweeps, name, stage) for name in ("worst", "mean")]
    return Comparison("sweeps", _answer(sweeps, stage), members, differences(sweeps), tables(sweeps, stage), drawn)


def differences(sweeps: Sweeps) -> list[list[str]]:
    """Keys that not all of them fix to the same value."""
    given = [dict(text.partition("=")[::2] for text in fixed(facts)) for facts in sweeps.values()]
    rows = [[key, *(own.get(key, "–") for own in given)] for key in unique(key for own in given for key in own)]
    return [row for row in rows if len(set(row[1:])) > 1]


def tables(sweeps: Sweeps, stage: str) -> list[Grid]:
    """The worst task of each point in each sweep, one table per attack."""
    by_seed = {letter: _scores(facts, "worst", stage) for letter, facts in sweeps.items()}
    points = list(dict.fromkeys(point for own in by_seed.values() for point in own))
    several = any(len(scores) > 1 for own in by_seed.values() for scores in own.values())
    (first, *_), found = sweeps.values(), []
    for attack in unique(attack for attack, *_ in points):
        rows = [
            [
                line or "all",
                f"{budget:g}",
                *scored([own.get((attack, line, budget)) for own in by_seed.values()], several),
            ]
            for of, line, budget in points
            if of == attack
        ]
        columns = ["", label(first["budget"]), *header(list(sweeps), several)]
        found.append((f"{attack}: worst task, {STAGES[stage].label}", columns, rows))
    return found


def _scores(facts: Mapping[str, Any], name: str, stage: str) -> dict[tuple[str, str, float], dict[str, float]]:
    return {(p["attack"], p["line"], p["budget"]): p["by_seed"][name].get(stage, {}) for p in facts["points"]}


def _answer(sweeps: Sweeps, stage: str) -> str:
    """How far each is from the first, at the point where that is most, and at how many points it can be told."""
    letters, said = list(sweeps), []
    first = _scores(sweeps[letters[0]], "worst", stage)
    for letter in letters[1:]:
        own = _scores(sweeps[letter], "worst", stage)
        gaps = {
            point: sum(own[point][seed] - first[point][seed] for seed in seeds) / len(seeds)
            for point in first
            if point in own and (seeds := [seed for seed in first[point] if seed in own[point]])
        }
        if not gaps:
            said.append(f"{letter} has no point and seed in common with {letters[0]}")
            continue
        attack, line, budget = most = max(gaps, key=lambda point: abs(gaps[point]))
        up, average = sum(gap > 0 for gap in gaps.values()), sum(gaps.values()) / len(gaps)
        said.append(
            f"{letter} is better on the worst task than {letters[0]} at {up} of {len(gaps)} points, by {average:+.3f} "
            f"on average; they differ most in {line or 'the setting'} under {attack} at "
            f"{label(sweeps[letter]['budget'])} {budget:g}: {letter} is {apart(own[most], first[most], letters[0])}"
        )
    return f"{'. '.join(said)}."


def _by_budget(sweeps: Sweeps, name: str, stage: str) -> plots.Plot:
    """A panel per attack, a colour per line and a line style per sweep."""
    first = next(iter(sweeps.values()))
    attacks, lines = (unique(line[key] for line in first["lines"]) for key in ("attack", "line"))
    columns = columns_for(len(attacks))
    rows, count = ceil(len(attacks) / columns), len(lines) * len(sweeps)
    width, height = plots.SINGLE if columns == 1 else plots.DOUBLE, 0.6 + 1.9 * rows + 0.15 * ceil(count / 3)
    figure, panels = plots.panels(width, height, rows, columns, sharex=True, sharey=True)
    for axes, attack in zip(panels, attacks, strict=False):
        for i, (letter, facts) in enumerate(sweeps.items()):
            for line, look in looks(lines).items():
                own = [p for p in facts["points"] if (p["attack"], p["line"]) == (attack, line)]
                style = look | {"linestyle": STYLES[i % len(STYLES)]} | ({"markerfacecolor": "none"} if i else {})
                scores = [point[name][stage] for point in own]
                axes.plot([p["budget"] for p in own], scores, label=f"{letter}: {line or 'all'}", **style)
        axes.set_title(attack if attack != "none" else "")
    panels[0].set_ylim(*span(band_ends([point for facts in sweeps.values() for point in facts["points"]], [stage])))
    scored = measure([cell for facts in sweeps.values() for cell in facts["cells"]])
    frame(panels, len(attacks), columns, label(first["budget"]), f"{scored}, {name}{' task' * (name == 'worst')}")
    legend(figure, panels[0])
    said = []
    for letter, facts in sweeps.items():
        last = [point for point in facts["points"] if point["budget"] == hardest(facts)]
        best = max(last, key=lambda point: point[name][stage])
        said.append(f"{letter}: {best['line'] or 'all'} under {best['attack']} {text(best[name][stage])}")
    what = f"{scored.capitalize()} on the worst task" if name == "worst" else f"Mean {scored} over tasks"
    found = f"Highest at {label(first['budget'])} {hardest(first):g} — {'; '.join(said)}."
    found += " Colours are lines, line styles sweeps."
    return plots.Plot(f"compare-{name}", f"{what} by {label(first['budget'])}", found, figure)


def _axes(facts: Mapping[str, Any], keys: Sequence[str]) -> str:
    return "; ".join(f"{key}: {', '.join(facts['axes'][key])}" if key in facts["axes"] else f"no {key}" for key in keys)
