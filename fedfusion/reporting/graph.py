"""Clients, or tasks, and how strongly each pulls the others."""

from collections.abc import Mapping, Sequence
from itertools import combinations, groupby
from math import cos, pi, sin
from typing import Any

from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba

from fedfusion.reporting import plots
from fedfusion.reporting.plots import INK, LOOKS, SINGLE, Plot

MOST = 200  # lines that can be told apart
NUMBERED = 32  # with more nodes, their numbers would be too small
COLOURS = {look["color"]: "#000000" for look in LOOKS[1:]} | {"#0072B2": "#ffffff", "#F0E442": "#000000"}  # and of text


def relation(found: Mapping[str, Any]) -> Plot:
    """A circle of nodes, those of a task beside each other; a line is as thick as its weight.

    Parameters
    ----------
    found
        `metrics.relation` of a run's results, see :func:`fedfusion.server.structure.relation`.
    """
    tasks, weights = found["tasks"], found["weights"]
    names = list(dict.fromkeys(tasks))
    order = sorted(range(len(tasks)), key=lambda node: names.index(tasks[node]))
    angle = {node: pi / 2 - 2 * pi * place / len(order) for place, node in enumerate(order)}
    figure, (axes,) = plots.panels(SINGLE, 0.82 * SINGLE)
    between = {pair: (weights[pair[0]][pair[1]] + weights[pair[1]][pair[0]]) / 2 for pair in combinations(order, 2)}
    top = max(between.values(), default=0.0)
    strongest = sorted(between, key=between.__getitem__, reverse=True)[:MOST]
    edges = {pair: between[pair] / top for pair in strongest if between[pair] > 0}
    axes.add_collection(
        LineCollection(
            [[(cos(angle[node]), sin(angle[node])) for node in pair] for pair in edges],
            linewidths=[1.8 * share for share in edges.values()],
            colors=[to_rgba(INK, 0.1 + 0.6 * share) for share in edges.values()],
            zorder=1,
        )
    )
    palette = list(COLOURS)
    for node in order:
        x, y, colour = cos(angle[node]), sin(angle[node]), palette[names.index(tasks[node]) % len(palette)]
        axes.plot(x, y, "o", color=colour, markersize=10 if len(tasks) <= NUMBERED else 5, zorder=2)
        if found["of"] == "clients" and len(tasks) <= NUMBERED:
            axes.text(x, y, str(node), ha="center", va="center_baseline", fontsize=6.5, color=COLOURS[colour], zorder=3)
    for task, group in groupby(order, key=lambda node: tasks[node]):
        angles = [angle[node] for node in group]
        middle = sum(angles) / len(angles)
        x, y = 1.13 * cos(middle), 1.13 * sin(middle)
        side = "center" if abs(x) < 0.25 else "left" if x > 0 else "right"
        axes.text(x, y, task.replace("-", "\n"), ha=side, va="center" if abs(y) < 0.9 else "bottom" if y > 0 else "top")
    axes.set(xlim=(-1.7, 1.7), ylim=(-1.35, 1.35), aspect="equal")
    axes.set_axis_off()
    return Plot("relation", f"Which {found['of']} pull each other", _finding(found["of"], tasks, between), figure)


def _finding(of: str, tasks: Sequence[str], between: Mapping[tuple[int, int], float]) -> str:
    """Mean weights within and between tasks, and how many pairs have any."""
    related = sum(weight > 0 for weight in between.values())
    said = f"{related} of {len(between)} pairs of {of} are related"
    groups = {
        "of the same task": [weight for (one, other), weight in between.items() if tasks[one] == tasks[other]],
        "of different tasks": [weight for (one, other), weight in between.items() if tasks[one] != tasks[other]],
    }
    means = [f"{sum(own) / len(own):.2f} between {of} {which}" for which, own in groups.items() if own]
    if of == "tasks":
        means = [f"{sum(between.values()) / len(between):.2f}"] if between else []
    said += f"; the mean weight is {' and '.join(means)}" if means else ""
    return f"{said}; {MOST} of the strongest are drawn." if related > MOST else f"{said}."
