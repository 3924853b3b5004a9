"""Heat maps of any two swept keys."""

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize, to_rgb

from fedfusion.reporting import page, plots
from fedfusion.reporting.figures import SHARE, Cells, number
from fedfusion.reporting.findings import hardest, label, measure, stages, text
from fedfusion.reporting.interval import mean
from fedfusion.reporting.run_plots import STAGES

MOST = 6  # heat maps of one sweep
DARK = 0.18  # relative luminance at which black and white text have the same contrast
COLOURS = "viridis"


def pictures(facts: Mapping[str, Any]) -> list[plots.Plot]:
    """A heat map of the worst task for each two swept keys.

    Of two keys it shows all there is. Of more, the budget is at its hardest, and what is neither row nor column is
    averaged, as seeds are.
    """
    keys = [key for key in facts["axes"] if key != "seed"]
    done = [cell for cell in facts["cells"] if cell["error"] is None]
    budget, where = facts["budget"], ""
    if len(keys) > 2 and budget != SHARE:
        keys = [key for key in keys if key != budget]
        done = [cell for cell in done if float(cell["point"][budget]) == hardest(facts)]
        where = f", at {label(budget)} {hardest(facts):g}"
    found = []
    with plots.drawing():
        for pair in list(combinations(keys, 2))[:MOST]:
            rows, columns = sorted(pair, key=lambda key: -len(facts["axes"][key]))
            over = f", mean over {' and '.join(rest)}" if (rest := [key for key in keys if key not in pair]) else ""
            found.append(_heat_map(facts, done, rows, columns, where + over))
    return found


def _heat_map(facts: Mapping[str, Any], done: Cells, rows: str, columns: str, at: str) -> plots.Plot:
    stage, down, across = stages(facts)[-1], ordered(facts["axes"][rows]), ordered(facts["axes"][columns])
    scores = {(row, column): _score(done, {rows: row, columns: column}, stage) for row in down for column in across}
    left = 0.4 + 0.065 * max(map(len, down))
    width = plots.SINGLE if left + 0.45 * len(across) <= plots.SINGLE else plots.DOUBLE
    slanted = 0.065 * max(map(len, across)) > (width - left) / len(across)
    figure, (axes,) = plots.panels(width, 0.6 + 0.24 * max(4, len(down)) + 0.5 * slanted)
    table = np.array([[scores[row, column] for column in across] for row in down], dtype=float)
    norm, colours = Normalize(np.nanmin(table), np.nanmax(table)), colormaps[COLOURS]
    axes.pcolormesh(np.ma.masked_invalid(table), norm=norm, cmap=colours, edgecolors="face", linewidth=0.1)
    for (i, row), (j, column) in product(enumerate(down), enumerate(across)):
        score = scores[row, column]
        colour = plots.INK if score is None else ink(*to_rgb(colours(float(norm(score)))))
        axes.text(j + 0.5, i + 0.5, text(score), ha="center", va="center", color=colour, fontsize=7)
    axes.set_xticks(np.arange(len(across)) + 0.5, across)
    axes.set_yticks(np.arange(len(down)) + 0.5, down)
    if slanted:
        axes.tick_params(axis="x", rotation=30)
        for tick in axes.get_xticklabels():
            tick.set_horizontalalignment("right")
    axes.set(xlabel=label(columns), ylabel=label(rows))
    axes.invert_yaxis()
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    known = {pair: score for pair, score in scores.items() if score is not None}
    best, least = (end(known, key=known.__getitem__) for end in (max, min))
    said = f"Highest {text(known[best])} ({', '.join(best)}), lowest {text(known[least])} ({', '.join(least)})"
    scored, axis = measure(facts["cells"]).capitalize(), f"{label(rows)} and {label(columns)}"
    title = f"{scored} on the worst task, {STAGES[stage].label}, by {axis}"
    name = f"heat-{page.anchor(rows)}-{page.anchor(columns)}"
    return plots.Plot(name, title, f"{said}{at}; mean over seeds.", figure)


def _score(done: Cells, at: Mapping[str, str], stage: str) -> float | None:
    return mean(cell["worst"][stage] for cell in done if at.items() <= cell["point"].items())


def ordered(values: Sequence[str]) -> list[str]:
    """Numbers by size, words as they were given."""
    return sorted(values, key=float) if all(number(value) is not None for value in values) else list(values)


def ink(red: float, green: float, blue: float) -> str:
    """Black or white, whichever is read better on a colour."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return "#000000" if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > DARK else "#ffffff"
