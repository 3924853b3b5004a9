"""Accuracy by budget, uplink error by power, and accuracy by cost: the lines and scatters of a sweep."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from math import ceil, floor
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedfusion.reporting import page, plots, sweep_levels
from fedfusion.reporting.figures import number, unique
from fedfusion.reporting.findings import UNITS, amount, hardest, label, measure, stages, text
from fedfusion.reporting.interval import mean, of_scores
from fedfusion.reporting.kept import COSTS
from fedfusion.reporting.run_plots import STAGES

PER_ROW = 3  # panels
LEAST_SPAN = 0.3  # of an axis of accuracy: less would make much of little
LEAST_SPAN_DB = 3.0  # and of one of an NMSE
ENOUGH = 3  # seeds for a band of 95 % intervals: the t of two is 12.7, and their interval all of the axis

Points = Sequence[Mapping[str, Any]]


def pictures(facts: Mapping[str, Any]) -> list[plots.Plot]:
    """The lines and scatters for which there is data."""
    with plots.drawing():
        found = [by_budget(facts, "worst"), by_budget(facts, "mean")]
        if axis := power(facts):
            found.append(nmse(facts, axis))
        found += [cost(facts, name) for name in COSTS if _varies([point[name] for point in facts["points"]])]
    return found


def by_budget(facts: Mapping[str, Any], name: str) -> plots.Plot:
    """`worst` or `mean` task by budget: a panel per attack and stage, a line per defence, a band over seeds."""
    attacks, lines = (unique(line[key] for line in facts["lines"]) for key in ("attack", "line"))
    columns, shown = columns_for(len(attacks)), stages(facts)
    per_stage = ceil(len(attacks) / columns)
    width = plots.SINGLE if columns == 1 else plots.DOUBLE
    height = 0.6 + 1.9 * per_stage * len(shown) + 0.15 * ceil(len(lines) / 4)
    figure, panels = plots.panels(width, height, per_stage * len(shown), columns, sharex=True, sharey=True)
    for i, stage in enumerate(shown):
        own_panels = panels[i * per_stage * columns : (i + 1) * per_stage * columns]
        for axes, attack in zip(own_panels, attacks, strict=False):
            points = [point for point in facts["points"] if point["attack"] == attack]
            _lines(axes, points, lines, name, stage, band(facts["points"]))
            axes.set_title(", ".join([attack] * (attack != "none") + [STAGES[stage].label] * (len(shown) > 1)))
    budgets = sorted({point["budget"] for point in facts["points"]})
    if len(budgets) <= 6:
        panels[0].set_xticks(budgets, [f"{x:g}" for x in budgets])
    low, high = span([*band_ends(facts["points"], shown), *sweep_levels.heights(facts["points"], shown)])
    panels[0].set_ylim(low, high)
    scored = measure(facts["cells"])
    frame(panels, len(attacks), columns, label(facts["budget"]), f"{scored}, {name}{' task' * (name == 'worst')}")
    legend(figure, panels[0])
    what = f"{scored.capitalize()} on the worst task" if name == "worst" else f"Mean {scored} over tasks"
    return plots.Plot(
        name, f"{what} by {label(facts['budget'])}", f"{_ends(facts, name)} {_reading(facts, name, low)}", figure
    )


def nmse(facts: Mapping[str, Any], axis: str) -> plots.Plot:
    """The NMSE of the uplink by the power of jammer or signal, a line for whatever else changes it."""
    levels = nmse_levels(facts, axis)
    figure, (axes,) = plots.panels(plots.SINGLE, 2.6)
    for (line, level), look in zip(levels.items(), looks(list(levels)).values(), strict=True):
        axes.plot(list(level), list(level.values()), label=plots.named(line) or "all", **look)
    known = [value for level in levels.values() for value in level.values()]
    spare = max(0.2, (LEAST_SPAN_DB - (max(known) - min(known))) / 2)
    axes.set(xlabel=axis, ylabel=UNITS["nmse_db"], ylim=(min(known) - spare, max(known) + spare))
    legend(figure, axes)
    said = []
    for line, level in levels.items():
        (first, start), (last, end) = list(level.items())[0], list(level.items())[-1]
        said.append(f"{f'{line}: ' if line else ''}{start:.1f} dB at {first:g} dB, {end:.1f} dB at {last:g} dB")
    return plots.Plot("nmse", f"NMSE of the uplink by {axis}", f"{'; '.join(said)}. Lower is better.", figure)


def cost(facts: Mapping[str, Any], name: str) -> plots.Plot:
    """The mean score by a cost of the uplink, and the front that no point beats in both."""
    lines, stage = unique(point["line"] for point in facts["points"]), stages(facts)[-1]
    points = [point for point in facts["points"] if point[name] is not None]
    best = front([(point[name], point["mean"][stage]) for point in points])
    figure, (axes,) = plots.panels(plots.SINGLE, 2.8)
    axes.plot(*zip(*best, strict=True), drawstyle="steps-post", **sweep_levels.DASHED, label="front")
    for line, look in looks(lines).items():
        own = [(point[name], point["mean"][stage]) for point in points if point["line"] == line]
        if own:
            axes.plot(*zip(*own, strict=True), label=plots.named(line) or "all", **look | {"linestyle": ""})
    costs = [point[name] for point in points]
    if min(costs) > 0 and max(costs) > 20 * min(costs):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    else:
        axes.ticklabel_format(axis="x", scilimits=(-2, 4))
    scored = measure(facts["cells"])
    axes.set(xlabel=UNITS[name], ylabel=f"mean {scored} over tasks")
    legend(figure, axes)
    (least, cheap), (most, top) = best[0], best[-1]
    unit = COSTS[name].unit
    more = f"the best {text(top)} for {amount(most)} {unit}" if len(best) > 1 else "and none is better"
    said = f"The cheapest point has an {scored} of {text(cheap)} for {amount(least)} {unit}, {more}. "
    said += "All rounds together; dashed: the front, left of and above which there is no point."
    return plots.Plot(f"by-{page.anchor(name)}", f"Mean {scored} by {COSTS[name].label}", said, figure)


def band(points: Points) -> str:
    """What bands are of: the `interval` of the mean where every point has seeds enough for one, or else the `range`."""
    return "interval" if all(point["runs"] >= ENOUGH for point in points) else "range"


def _ends_of(kind: str, point: Mapping[str, Any], name: str, stage: str) -> list[float]:
    """Of the band at a point."""
    return of_scores(point[kind][name][stage])


def _lines(axes: Axes, points: Points, lines: Sequence[str], name: str, stage: str, kind: str) -> None:
    """A line per defence over its band, and the levels to compare them with."""
    for line, look in looks(lines).items():
        own = [point for point in points if point["line"] == line]
        budgets = [point["budget"] for point in own]
        axes.plot(budgets, [point[name][stage] for point in own], label=plots.named(line) or "all", **look)
        low, high = ([_ends_of(kind, point, name, stage)[end] for point in own] for end in (0, 1))
        axes.fill_between(budgets, low, high, color=look["color"], alpha=0.15, linewidth=0)
    sweep_levels.draw(axes, points, looks(lines), name, stage)


def columns_for(attacks: int) -> int:
    """Of panels beside each other, as few rows and as full as they can be."""
    rows = ceil(attacks / PER_ROW)
    return ceil(attacks / rows)


def frame(panels: Sequence[Axes], used: int, columns: int, x: str, y: str) -> None:
    """Name the axes at the edge of a block of panels whose rows hold `used` of them, and hide those that are not used.

    There may be several such blocks, one below the other.
    """
    block = ceil(used / columns) * columns
    for i, axes in enumerate(panels):
        axes.set_visible(i % block < used)
        if i % block + columns >= used and i + block >= len(panels):
            axes.set_xlabel(x)
            axes.tick_params(labelbottom=True)
        if i % columns == 0:
            axes.set_ylabel(y)


def looks(lines: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and line style of each line; beyond eight, a colour comes back with another marker."""
    kinds, n = plots.LOOKS, len(plots.LOOKS)
    return {line: kinds[i % n] | {"marker": kinds[(i + i // n) % n]["marker"]} for i, line in enumerate(lines)}


def legend(figure: Figure, axes: Axes) -> None:
    """A legend under everything, if there is a choice, in as many columns as its longest text leaves room for."""
    handles, names = axes.get_legend_handles_labels()
    if len(names) == 1:
        return
    columns = max(1, int((figure.get_figwidth() - 0.3) / (0.06 * max(map(len, names)) + 0.6)))
    rows = ceil(len(names) / columns)
    figure.legend(handles, names, loc="outside lower center", ncols=ceil(len(names) / rows))


def band_ends(points: Points, shown: Sequence[str]) -> list[float]:
    """Of the bands of any measure, so that all have the same axis."""
    kind, found = band(points), list[float]()
    for point, name, stage in product(points, ("worst", "mean"), shown):
        found += _ends_of(kind, point, name, stage)
    return found


def span(heights: Iterable[float | None]) -> tuple[float, float]:
    """Limits around `heights`, in tenths, and never so close that little looks like much."""
    known = [height for height in heights if height is not None]
    low, high = floor(10 * min(known)) / 10, min(1.0, (floor(10 * max(known)) + 1) / 10)
    low = min(low, round(high - LEAST_SPAN, 1))
    return (low if low >= LEAST_SPAN else 0.0), high


def nmse_levels(facts: Mapping[str, Any], axis: str) -> dict[str, dict[float, float]]:
    """NMSE by the value of `axis`, for each combination of the swept keys that change it by more than 0.1 dB."""
    cells = [cell for cell in facts["cells"] if cell["error"] is None and cell.get("nmse_db") is not None]

    def over(of: Mapping[str, str], x: str) -> float | None:
        return mean(c["nmse_db"] for c in cells if c["point"][axis] == x and of.items() <= c["point"].items())

    def matters(key: str) -> bool:
        at = [[over({key: value}, x) for value in facts["axes"][key]] for x in facts["axes"][axis]]
        known = [[level for level in levels if level is not None] for levels in at]
        return any(max(levels) - min(levels) > 0.1 for levels in known if levels)

    keys = [key for key in facts["axes"] if key not in ("seed", axis) and matters(key)]
    xs = sorted(facts["axes"][axis], key=float)
    found = {}
    for of in dict.fromkeys(tuple((key, cell["point"][key]) for key in keys) for cell in cells):
        levels = {float(x): level for x in xs if (level := over(dict(of), x)) is not None}
        found[", ".join(f"{key}={value}" for key, value in of)] = levels
    return found


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, score), those that none is both cheaper than and better than, cheapest first."""
    found: list[tuple[float, float]] = []
    for price, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not found or score > found[-1][1]:
            found.append((price, score))
    return found


def power(facts: Mapping[str, Any]) -> str | None:
    """The swept power of jammer or signal, where the uplink has an NMSE."""
    if all(cell.get("nmse_db") is None for cell in facts["cells"]):
        return None
    of = [key for key in facts["axes"] if key.endswith(("jsr_db", "snr_db"))]
    return next((key for key in of if all(number(value) is not None for value in facts["axes"][key])), None)


def _varies(values: Sequence[float | None]) -> bool:
    known = [value for value in values if value is not None]
    return bool(known) and max(known) - min(known) > 0.01 * max(map(abs, known))


def _ends(facts: Mapping[str, Any], name: str) -> str:
    """Best and worst line at the hardest budget, by attack, and what there is without an attack."""
    stage, budget, parts = stages(facts)[-1], hardest(facts), []
    here = [point for point in facts["points"] if point["budget"] == budget]
    for attack in unique(point["attack"] for point in here):
        scores = sorted(((p[name][stage], p["line"]) for p in here if p["attack"] == attack), reverse=True)
        (best, first), (least, last) = scores[0], scores[-1]
        of = f"{first} {text(best)}, {last} {text(least)}" if len(scores) > 1 else f"{first} {text(best)}".strip()
        parts.append(of if attack == "none" else f"{attack}: {of}")
    ends = "Best and last at" if len({point["line"] for point in here}) > 1 else "At"
    numbers = sweep_levels.in_numbers(facts, here, name, stage)
    return f"{ends} {label(facts['budget'])} {budget:g} — {'; '.join(parts)}.{numbers}"


def _reading(facts: Mapping[str, Any], name: str, low: float) -> str:
    said = ["Lines: means over seeds"]
    if any(point["runs"] > 1 for point in facts["points"]):
        of = {"interval": "95 % intervals of the mean", "range": "least to greatest over seeds"}
        said.append(f"bands: {of[band(facts['points'])]}")
    said += sweep_levels.reading(facts, name, stages(facts))
    return f"{'; '.join(said)}." + (f" The axis begins at {low:g}." if low else "")
