"""The numbers of a sweep: means, ranges and intervals over seeds."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

from fedfusion.reporting.interval import interval, mean, paired
from fedfusion.reporting.kept import MEASURES, STAGES, UNTAUGHT, UPLINK

UNDEFENDED = "mean"  # the defence that is none
MARGIN = 0.03  # a defence is broken where its worst task is further below the undefended run without attack
SHARE = "byzantine_share"  # the budget of a sweep without numbers

Cells = Sequence[Mapping[str, Any]]
Setting = frozenset[tuple[str, str]]


def figures(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The figures over seeds of a sweep's `axes` and `cells`.

    The budget is the first swept key, other than the seed, whose values are all numbers; where there is none it is the
    share of Byzantine clients. Every other swept key but the attack makes a line.

    Returns
    -------
    dict
        `budget`, its key; `points`, one for each attack, line and budget; `lines`, one for each attack and line.
    """
    axes, done = facts["axes"], [cell for cell in facts["cells"] if cell["error"] is None]
    numeric = [key for key, values in axes.items() if key != "seed" and all(number(v) is not None for v in values)]
    budget = numeric[0] if numeric else SHARE
    keys = [key for key in axes if key not in ("attack", "seed", budget)]
    clean: dict[Setting, list[Mapping[str, Any]]] = {}
    for cell in done:
        if not cell["byzantine"]:
            clean.setdefault(_setting(cell), []).append(cell)
    attacks = unique(cell["attack"] for cell in facts["cells"])
    points, lines = [], []
    for attack in [name for name in attacks if name != "none"] or attacks:
        for line in unique(_line(cell, keys) for cell in facts["cells"]):
            shown = (attack, "none") if budget == SHARE else (attack,)  # no attack is one of share 0
            own = [cell for cell in done if cell["attack"] in shown and _line(cell, keys) == line]
            budgets = sorted({_budget(cell, budget) for cell in own})
            found = []
            for x in budgets:
                here = [cell for cell in done if cell["attack"] in shown and _budget(cell, budget) == x]
                mine = [cell for cell in own if _budget(cell, budget) == x]
                found.append({**_point(mine, here, clean), "budget": x})
            points += [{"attack": attack, "line": line, **point} for point in found]
            lost = [c for c in facts["cells"] if c["error"] and c["attack"] == attack and _line(c, keys) == line]
            of = _line(own[0] | {"point": own[0]["point"] | {"defence": UNDEFENDED}}, keys) if own else None
            lines.append(
                {
                    "attack": attack,
                    "line": line,
                    "undefended": of if "defence" in keys else None,
                    "failed": len(lost),
                    **_over_budgets(found, budget),
                }
            )
    return {"budget": budget, "points": points, "lines": lines}


def milder_first(budget: str, values: Iterable[float]) -> list[float]:
    """Values of a budget in the order in which they are harder: upwards, but an SNR downwards."""
    return sorted(values, reverse=budget.endswith("snr_db"))


def by_seed(cells: Cells, name: str, stage: str) -> dict[str, float]:
    """A measure of cells that differ in their seed only."""
    return {c["point"].get("seed", ""): c[name][stage] for c in cells if c[name].get(stage) is not None}


def _point(cells: Cells, here: Cells, clean: Mapping[Setting, Cells]) -> dict[str, Any]:
    """Figures over the seeds of one attack, line and budget, and how far they are from those of others.

    `here` are all cells of the same attack and budget, `clean` those without any Byzantine client.
    """
    stages = [stage for stage in STAGES if stage in cells[0]["mean"]]
    undefended, free = clean.get(_setting(cells[0], UNDEFENDED), []), clean.get(_setting(cells[0]), [])
    same = _without_seed(cells[0], UNDEFENDED)
    open_to_it = [cell for cell in here if "defence" in cell["point"] and _without_seed(cell) == same]
    over_seeds = {name: {stage: _each(cells, name, stage) for stage in stages} for name in MEASURES}

    def each(of: Callable[[Sequence[float]], Any], names: Iterable[str] = MEASURES) -> dict[str, Any]:
        return {name: {stage: of(values) for stage, values in over_seeds[name].items()} for name in names}

    return {
        "runs": len(cells),
        "attacked": any(cell["byzantine"] for cell in cells),
        **each(mean),
        "range": each(lambda values: [min(values), max(values)], ("mean", "worst")),
        "interval": each(interval),
        "no_attack": {name: {s: mean(_each(undefended, name, s)) for s in stages} for name in ("mean", "worst")},
        "by_seed": {name: {stage: by_seed(cells, name, stage) for stage in stages} for name in ("mean", "worst")},
        "base": {name: {s: by_seed(cells, name, UNTAUGHT[s]) for s in stages} for name in ("mean", "worst")},
        "gain": {stage: _gain(cells, open_to_it, stage) for stage in stages},
        "lost": {stage: _difference(undefended, cells, "worst", stage) for stage in stages},
        "no_attack_cost": {stage: _difference(undefended, free, "mean", stage) for stage in stages},
        **{name: mean(cell[name] for cell in cells) for name in ("accepted_honest", "refused_byzantine")},
        **{name: mean(cell.get(name) for cell in cells) for name in UPLINK},
    }


def _over_budgets(points: Cells, budget: str) -> dict[str, Any]:
    """Breakdown point and cost of a line; what an attack did is the mean over the budgets at which there was one."""
    stages = [stage for stage in STAGES if points and stage in points[0]["mean"]]
    under = [point for point in points if point["attacked"]]
    broken = {s: [p["budget"] for p in points if p["lost"][s] is not None and p["lost"][s] > MARGIN] for s in stages}
    return {
        "comparable": any(point["lost"][stage] is not None for point in points for stage in stages),
        "breakdown": {stage: next(iter(milder_first(budget, broken[stage])), None) for stage in stages},
        "no_attack_cost": {stage: mean(_each(points, "no_attack_cost", stage)) for stage in stages},
        "success": {stage: mean(_each(under, "success", stage)) for stage in stages},
        "accepted_honest": mean(point["accepted_honest"] for point in under),
        "refused_byzantine": mean(point["refused_byzantine"] for point in under),
    }


def _gain(cells: Cells, undefended: Cells, stage: str) -> dict[str, Any] | None:
    """What the worst task gains over the undefended run under the same attack, paired by seed."""
    differences, sure = paired(by_seed(cells, "worst", stage), by_seed(undefended, "worst", stage))
    return {"mean": mean(differences), "interval": sure, "seeds": len(differences)} if differences else None


def _setting(cell: Mapping[str, Any], defence: str | None = None) -> Setting:
    """What is swept beside attack and seed, with another defence if one is named."""
    return frozenset((k, v) for k, v in _without_seed(cell, defence) if k != "attack" and not k.startswith("attack."))


def _without_seed(cell: Mapping[str, Any], defence: str | None = None) -> Setting:
    own = {key: value for key, value in cell["point"].items() if key != "seed"}
    if defence is not None and "defence" in own:
        own["defence"] = defence
    return frozenset(own.items())


def _budget(cell: Mapping[str, Any], budget: str) -> float:
    return len(cell["byzantine"]) / cell["num_clients"] if budget == SHARE else float(cell["point"][budget])


def _line(cell: Mapping[str, Any], keys: Iterable[str]) -> str:
    """What a cell belongs to in table and plot: the defence by its name, other keys with their values."""
    return ", ".join(cell["point"][key] if key == "defence" else f"{key}={cell['point'][key]}" for key in keys)


def _difference(ours: Cells, theirs: Cells, name: str, stage: str) -> float | None:
    if not (ours and theirs):
        return None
    return round(sum(_each(ours, name, stage)) / len(ours) - sum(_each(theirs, name, stage)) / len(theirs), 9)


def _each(cells: Cells, name: str, stage: str) -> list[float]:
    return [cell[name][stage] for cell in cells if cell[name].get(stage) is not None]


def number(text: str) -> float | None:
    """A finite number, or None."""
    try:
        return float(text) if isfinite(float(text)) else None
    except ValueError:
        return None


def unique(names: Iterable[str]) -> list[str]:
    """Each name once, in the order of its first appearance."""
    return list(dict.fromkeys(names))
