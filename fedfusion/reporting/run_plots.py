"""The pictures of a run: each of them only where there is something to see."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from math import isclose
from typing import Any, NamedTuple

from matplotlib.ticker import MaxNLocator

from fedfusion.reporting import graph, plots, spectra
from fedfusion.reporting.plots import INK, LOOKS, RULE, SINGLE, Plot

Metrics = Mapping[str, Any]


class Stage(NamedTuple):
    """How a stage is called, and how it looks."""

    label: str
    look: Mapping[str, Any]


# the columns of the table, in its order
STAGES = {
    "base": Stage("base", LOOKS[7]),
    "single_task": Stage("single task", LOOKS[0]),
    "personal": Stage("personal", LOOKS[4]),
    "fused_clean": Stage("fused clean", LOOKS[6]),
    "fused_received": Stage("fused received", LOOKS[1]),
    "served": Stage("task known", LOOKS[2]),
    "realigned": Stage("realigned", LOOKS[3]),
    "control": Stage("control", LOOKS[5]),
}
SAME = {"personal": "single_task", "fused_clean": "fused_received", "realigned": "fused_received"}
ERRORS = {  # where a record has each NMSE in dB
    "uploads": lambda record: record["nmse_db"],
    "their products": lambda record: record["uplink"]["product_nmse_db"],
    "fused products": lambda record: record["uplink"].get("fused", {}).get("nmse_db"),
    "privacy noise": lambda record: record["uplink"]["mean"].get("privacy_nmse_db"),
}


class Cost(NamedTuple):
    """What a round takes of the uplink, from the round's record."""

    label: str
    unit: str
    of: Callable[[Mapping[str, Any]], float | None]


COSTS = {
    "by_bits": Cost("information sent", "Mbit", lambda record: _megabits(record)),
    "by_energy": Cost("transmit energy", "J", lambda record: _sum(record, "energy_j")),
    "by_air_time": Cost("air time", "s", lambda record: record["uplink"].get("duration_s")),
}


def drawn(metrics: Metrics) -> list[Plot]:
    """All there is to see."""
    with plots.drawing():
        found = [by_task(metrics), by_round(metrics), by_error(metrics)]
        if metrics.get("spectra"):
            found.append(_of_the_last(spectra.by_direction(metrics["spectra"]), metrics))
        if metrics.get("relation"):
            found.append(_of_the_last(graph.relation(metrics["relation"]), metrics))
        return [*(plot for plot in found if plot is not None), *by_cost(metrics)]


def stages(metrics: Metrics) -> dict[str, Stage]:
    """The stages of a run; one that did nothing, and so has the scores of another on every task, is left out."""
    scores = {stage: [task.get(stage) for task in metrics["tasks"].values()] for stage in STAGES}
    return {
        stage: look
        for stage, look in STAGES.items()
        if any(scores[stage]) and scores[stage] != scores.get(SAME.get(stage, ""))
    }


def final(metrics: Metrics) -> str:
    """The stage of the one model: realigned, or fused where realignment did nothing."""
    return "realigned" if "realigned" in stages(metrics) else "fused_received"


def by_task(metrics: Metrics) -> Plot:
    """Dots: every stage on every task, and the mean."""
    tasks = {task: {n: s["accuracy"] for n, s in scores.items()} for task, scores in metrics["tasks"].items()}
    rows, shown = [*tasks.items(), ("mean", metrics["mean"])], stages(metrics)
    row_height = max(0.24, 0.09 * len(shown))
    figure, (axes,) = plots.panels(SINGLE, 0.9 + row_height * len(rows))
    for y, (_, scores) in enumerate(rows):
        found = [scores[stage] for stage in shown if scores.get(stage) is not None]
        axes.plot([min(found), max(found)], [y, y], color=RULE, linewidth=2, zorder=1)
    for i, (stage, (label, look)) in enumerate(shown.items()):
        aside = 0.8 * ((i + 0.5) / len(shown) - 0.5)  # equal scores stay visible
        dots = [(scores[stage], y + aside) for y, (_, scores) in enumerate(rows) if scores.get(stage) is not None]
        axes.plot(*zip(*dots, strict=True), label=label, zorder=2, **{**look, "linestyle": "none"})
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.axhline(len(rows) - 1.5, color=INK, linewidth=0.6)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel=f"test {metrics['measure']}", xlim=_limits(x for _, scores in rows for x in scores.values()))
    figure.legend(loc="outside upper center", ncols=3, columnspacing=1.2, handlelength=1.2)
    last = final(metrics)
    own = {task: scores[last] for task, scores in tasks.items() if scores.get(last) is not None}
    worst, best = min(own, key=own.__getitem__), max(own, key=own.__getitem__)
    finding = (
        f"The {'realigned' if last == 'realigned' else 'fused'} model reaches {metrics['mean'][last]:.3f} in the mean, "
        f"least on {worst} ({own[worst]:.3f}) and most on {best} ({own[best]:.3f})"
    )
    single = metrics["mean"].get("single_task")
    finding += f"; each device's own adapter reaches {single:.3f}" if single is not None else ""
    return Plot("by_task", f"Test {metrics['measure']} by task", finding + ".", figure)


def by_round(metrics: Metrics) -> Plot | None:
    """Lines: the mean of every stage by round; what no round changes is a line across."""
    records = metrics["rounds"]
    if len(records) < 2:
        return None
    rounds, shown = [record["round"] for record in records], stages(metrics)
    figure, (axes,) = plots.panels(SINGLE, 2.5)
    for stage, (label, look) in shown.items():
        if stage in records[-1]["mean"]:
            heights = [record["mean"].get(stage) for record in records]
            axes.plot(rounds, heights, label=label, **look)
        else:
            axes.axhline(metrics["mean"][stage], label=label, **{**look, "marker": ""}, linewidth=0.8)
    heights = [value for record in [metrics, *records] for stage, value in record["mean"].items() if stage in shown]
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set(xlabel="round", ylabel=f"mean test {metrics['measure']}", ylim=_limits(heights))
    figure.legend(loc="outside upper center", ncols=3, columnspacing=1.2)
    last = final(metrics)
    course = [record["mean"][last] for record in records]
    best = max(range(len(course)), key=course.__getitem__)
    finding = (
        f"From round {rounds[0]} to round {rounds[-1]} the {STAGES[last].label} model goes from {course[0]:.3f} to "
        f"{course[-1]:.3f}; its best is {course[best]:.3f} in round {rounds[best]}."
    )
    return Plot("by_round", f"Mean {metrics['measure']} by round", finding, figure)


def by_cost(metrics: Metrics) -> list[Plot]:
    """Lines: the mean by what the uplink has taken so far, a plot for each cost that the channel knows.

    A cost that is so much per second of air time would draw the same lines, and is only named.
    """
    records, last = metrics["rounds"], final(metrics)
    costs = {name: list(accumulate(taken)) for name in COSTS if any(taken := _taken(records, name))}
    alike = [name for name in costs if name != "by_air_time" and _proportional(costs[name], costs.get("by_air_time"))]
    shown = [stage for stage in ("personal", "fused_received", "realigned") if stage in stages(metrics)]
    drawn = []
    for name, sofar in costs.items():
        if name in alike:
            continue
        label, unit, _ = COSTS[name]
        figure, (axes,) = plots.panels(SINGLE, 2.3)
        for stage in shown:
            heights = [record["mean"].get(stage) for record in records]
            axes.plot(sofar, heights, label=STAGES[stage].label, **STAGES[stage].look)
        axes.set(xlabel=f"{label} ({unit})", ylabel=f"mean test {metrics['measure']}", xlim=(0, sofar[-1] * 1.05))
        axes.set_ylim(_limits(record["mean"].get(stage) for record in records for stage in shown))
        axes.ticklabel_format(axis="x", scilimits=(-2, 4))
        figure.legend(loc="outside upper center", ncols=len(shown), columnspacing=1.2)
        finding = f"The {STAGES[last].label} model has {records[-1]['mean'][last]:.3f} after {sofar[-1]:.3g} {unit}"
        if len(records) > 1:
            finding += f", and {records[0]['mean'][last]:.3f} after the {sofar[0]:.3g} {unit} of the first round"
        if name == "by_air_time" and alike:
            others = [f"{COSTS[n].label} ({costs[n][-1]:.3g} {COSTS[n].unit} in all)" for n in alike]
            finding += f"; by {' or '.join(others)} the lines are the same"
        drawn.append(Plot(name, f"Mean {metrics['measure']} by {label}", f"{finding}.", figure))
    return drawn


def by_error(metrics: Metrics) -> Plot | None:
    """Lines: NMSE of what arrives by round."""
    records = metrics["rounds"]
    found = {name: [of(record) for record in records] for name, of in ERRORS.items()}
    found = {name: values for name, values in found.items() if any(value is not None for value in values)}
    if not found:
        return None
    figure, (axes,) = plots.panels(SINGLE, 2.3)
    rounds = [record["round"] for record in records]
    for (name, values), look in zip(found.items(), LOOKS, strict=False):
        axes.plot(rounds, [float("nan") if value is None else value for value in values], label=name, **look)
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.set(xlabel="round", ylabel="NMSE (dB)")
    axes.margins(y=0.12)
    figure.legend(loc="outside upper center", ncols=2)
    said = []
    for name, values in found.items():
        last = max(i for i, value in enumerate(values) if value is not None)
        when = f" in round {rounds[last]}, the last that has one" if last < len(rounds) - 1 else ""
        said.append(f"{name} {values[last]:.1f} dB{when}")
    finding = f"Error relative to the power of the change, in the last round: {', '.join(said)}"
    return Plot("by_error", "Error of what arrives", f"{finding}; at 0 dB error and change are equally strong.", figure)


def _of_the_last(plot: Plot, metrics: Metrics) -> Plot:
    """What is known of the last round alone, said where the adapter is that of another one."""
    last, kept = len(metrics["rounds"]), metrics.get("kept_round", len(metrics["rounds"]))
    said = f" It is of round {last}, the last; the adapter that is kept is of round {kept}." if kept < last else ""
    return replace(plot, finding=plot.finding + said)


def _taken(records: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """What each round took; nothing where not all of them are known."""
    taken = [COSTS[name].of(record) for record in records]
    return [] if None in taken else [cost or 0.0 for cost in taken]


def _proportional(ours: Sequence[float], theirs: Sequence[float] | None) -> bool:
    return theirs is not None and all(
        isclose(one * theirs[-1], other * ours[-1], rel_tol=1e-6) for one, other in zip(ours, theirs, strict=True)
    )


def _limits(values: Iterable[float | None]) -> tuple[float, float]:
    """Limits of an axis of scores: a little around them, at least a tenth, and nothing that no score can be."""
    known = [value for value in values if value is not None]
    low, high = min(known), max(known)
    pad = max(0.05 * (high - low), (0.1 - (high - low)) / 2, 0.01)
    return max(low - pad, -0.01), min(high + pad, 1.01)


def _sum(record: Mapping[str, Any], figure: str) -> float | None:
    values = [client.get(figure) for client in record["uplink"].get("clients", {}).values()]
    return sum(values) if values and None not in values else None


def _megabits(record: Mapping[str, Any]) -> float | None:
    """What uploads are, where they are sent as bits; else only side information is."""
    bits = _sum(record, "bits")
    return bits / 1e6 if bits is not None and "bler" in record["uplink"]["mean"] else None
