"""Levels to compare the lines of a sweep with: what there is without an attack, and what the base has."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from matplotlib.axes import Axes

from fedfusion.reporting import plots
from fedfusion.reporting.findings import text, without_attack
from fedfusion.reporting.interval import mean

DASHED: dict[str, Any] = {"color": plots.INK, "linestyle": (0, (4, 3)), "linewidth": 0.8, "marker": ""}
DOTTED = DASHED | {"linestyle": (0, (1, 1.5))}
STYLES = {"no attack": DASHED, "base": DOTTED}

Points = Sequence[Mapping[str, Any]]
Level = tuple[tuple[float, float], ...]  # budgets and heights


def levels(points: Points, name: str, stage: str) -> dict[str, dict[str, Level]]:
    """By their kind and line; empty where there is none. They are the same under every attack."""
    base = _one_base(points, name, stage)
    found: dict[str, dict[str, Level]] = {"no attack": {}, "base": {}}
    for line in dict.fromkeys(point["line"] for point in points):
        own = [point for point in points if point["line"] == line]
        attacked = any(point["attacked"] for point in own)
        found["no attack"][line] = _known({p["budget"]: p["no_attack"][name][stage] for p in own if attacked})
        by_budget = {p["budget"]: mean(p["base"][name][stage].values()) for p in own}
        found["base"][line] = _known(by_budget if base is None else {p["budget"]: base for p in points})
    return found


def draw(axes: Axes, points: Points, looks: Mapping[str, Mapping[str, Any]], name: str, stage: str) -> None:
    """A line for each level that is known: one where they are equal, and else each in the colour of its line."""
    for kind, by_line in levels(points, name, stage).items():
        known = {level: looks[line] for line, level in by_line.items() if level}
        for i, (level, look) in enumerate(known.items()):
            style = STYLES[kind] | ({"color": look["color"]} if len(known) > 1 else {})
            said = None if i else kind
            if len({height for _, height in level}) == 1:
                axes.axhline(level[0][1], label=said, **style)
            else:
                axes.plot(*zip(*level, strict=True), label=said, **style)


def heights(points: Points, stages: Sequence[str]) -> list[float]:
    """Of all levels of any measure."""
    found = [levels(points, name, stage) for name, stage in product(("worst", "mean"), stages)]
    return [y for by_kind in found for by_line in by_kind.values() for level in by_line.values() for _, y in level]


def reading(facts: Mapping[str, Any], name: str, stages: Sequence[str]) -> list[str]:
    """What the lines of the levels are, of those that are drawn."""
    found = [levels(facts["points"], name, stage) for stage in stages]
    base = "the base, the model without an adapter" + ", realigned where the others are" * ("realigned" in stages)
    drawn = {kind for by_kind in found for kind, by_line in by_kind.items() if any(by_line.values())}
    words = {
        "no attack": f"dashed without markers: {without_attack(facts)}",
        "base": f"dotted: {base}",
    }
    return [said for kind, said in words.items() if kind in drawn]


def in_numbers(facts: Mapping[str, Any], points: Points, name: str, stage: str) -> str:
    """The levels at some points, in sentences."""
    clean = [point["no_attack"][name][stage] for point in points if point["attacked"]]
    base = [mean(point["base"][name][stage].values()) for point in points]
    who = without_attack(facts)
    words = {f"{who[0].upper()}{who[1:]}": clean, f"The base{', realigned' * (stage == 'realigned')}": base}
    known = {what: sorted(x for x in heights if x is not None) for what, heights in words.items()}
    ends = {what: dict.fromkeys([text(heights[0]), text(heights[-1])]) for what, heights in known.items() if heights}
    return "".join(f" {what}: {' to '.join(said)}." for what, said in ends.items())


def _one_base(points: Points, name: str, stage: str) -> float | None:
    """The base's mean over seeds, where what is swept changes it for none of them."""
    by_seed: dict[str, set[float]] = {}
    for point in points:
        for seed, score in point["base"][name][stage].items():
            by_seed.setdefault(seed, set()).add(score)
    return mean(min(own) for own in by_seed.values()) if all(len(own) == 1 for own in by_seed.values()) else None


def _known(by_budget: Mapping[float, float | None]) -> Level:
    return tuple((x, height) for x, height in by_budget.items() if height is not None)
