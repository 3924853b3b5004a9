"""The pictures of a run: each of them only where there is something to see."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.ticker import MaxNLocator

from fedfusion.reporting import graph, plots
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
        found = [by_task(metrics), by_round(metrics), by_error(metrics), spectra(metrics)]
        found.append(graph.relation(metrics["relation"]) if metrics.get("relation") else None)
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
    figure, (axes,) = plots.panels(SINGLE, 0.9 + 0.24 * len(rows))
    for y, (_, scores) in enumerate(rows):
        found = [scores[stage] for stage in shown if scores.get(stage) is not None]
        axes.plot([min(found), max(found)], [y, y], color=RULE, linewidth=2, zorder=1)
    for i, (stage, (label, look)) in enumerate(shown.items()):
        aside = 0.08 * (i - (len(shown) - 1) / 2)  # equal scores stay visible
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
    """Lines: the mean by what the uplink has taken so far, a plot for each cost that the channel knows."""
    records, last = metrics["rounds"], final(metrics)
    shown = [stage for stage in ("personal", "fused_received", "realigned") if stage in stages(metrics)]
    drawn = []
    for name, (label, unit, of) in COSTS.items():
        taken = [of(record) for record in records]
        if None in taken or not any(taken):
            continue
        sofar = _running(taken)
        figure, (axes,) = plots.panels(SINGLE, 2.3)
        for stage in shown:
            heights = [record["mean"].get(stage) for record in records]
            axes.plot(sofar, heights, label=STAGES[stage].label, **STAGES[stage].look)
        axes.set(xlabel=f"{label} ({unit})", ylabel=f"mean test {metrics['measure']}", xlim=(0, sofar[-1] * 1.05))
        axes.set_ylim(_limits(record["mean"].get(stage) for record in records for stage in shown))
        axes.ticklabel_format(axis="x", scilimits=(-2, 4), useMathText=True)
        figure.legend(loc="outside upper center", ncols=len(shown), columnspacing=1.2)
        finding = f"The {STAGES[last].label} model has {records[-1]['mean'][last]:.3f} after {sofar[-1]:.3g} {unit}"
        if len(records) > 1:
            finding += f", and {records[0]['mean'][last]:.3f} after the {sofar[0]:.3g} {unit} of the first round"
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
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set(xlabel="round", ylabel="NMSE (dB)")
    axes.margins(y=0.12)
    figure.legend(loc="outside upper center", ncols=2)
    last = {name: next(v for v in reversed(values) if v is not None) for name, values in found.items()}
    finding = "Error relative to the power of the change, in the last round: " + ", ".join(
        f"{name} {value:.1f} dB" for name, value in last.items()
    )
    return Plot("by_error", "Error of what arrives", f"{finding}; at 0 dB error and change are equally strong.", figure)


def spectra(metrics: Metrics) -> Plot | None:
    """Lines: the energy of the singular values of the changes, of each task and of the fused model."""
    found: Mapping[str, Sequence[float]] = metrics.get("spectra") or {}
    if not found:
        return None
    tasks = [name for name in found if name != "fused"]
    figure, (axes,) = plots.panels(SINGLE, 2.5)
    needed = {name: _enough(shares) for name, shares in found.items()}
    distinct = len(tasks) < len(LOOKS)  # else all tasks look alike
    looks = {task: LOOKS[1:][i] if distinct else LOOKS[7] for i, task in enumerate(tasks)} | {"fused": LOOKS[0]}
    names = {task: task if distinct else "each task" for task in tasks} | {"fused": "fused"}
    for name, look in looks.items():
        label = names[name] if distinct or name in ("fused", tasks[0]) else None
        width, at = 1.6 if name == "fused" else 0.8, [needed[name] - 1]
        axes.plot(
            range(1, len(found[name]) + 1), _running(found[name]), label=label, markevery=at, linewidth=width, **look
        )
    axes.axhline(0.9, color=INK, linewidth=0.6, linestyle=":")
    axes.set(xlabel="directions, the strongest first", ylabel="share of the energy", ylim=(0, 1.03))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside upper center", ncols=2, columnspacing=1.2)
    finding = f"Ninety per cent of the energy of the fused change is in {_directions(needed['fused'])}"
    if tasks:
        low, high = min(needed[task] for task in tasks), max(needed[task] for task in tasks)
        finding += f", of the change of one task in {low}" + (f" to {high}" if high > low else "")
    return Plot("spectra", "How many directions the changes have", f"{finding} (mean over the layers).", figure)


def _directions(number: int) -> str:
    return f"{number} direction{'s' if number != 1 else ''} of a layer"


def _enough(shares: Sequence[float]) -> int:
    """How many directions hold nine tenths of the energy."""
    return sum(total < 0.9 - 1e-9 for total in _running(shares)) + 1


def _running(values: Iterable[float | None]) -> list[float]:
    total, sums = 0.0, []
    for value in values:
        total += value or 0.0
        sums.append(total)
    return sums


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
