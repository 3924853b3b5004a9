"""Sweeps whose answer is known, made without a run."""

import itertools

from fedfusion.reporting.figures import figures

SLOPES = {"mean": 1.6, "median": 0.8, "krum": 1.2, "fltrust": 0.3, "task_aware": 0.1}
BUDGETS = [f"{0.05 * i:g}" for i in range(10)]
FUSIONS = {"linear": 0.0, "ties": 0.05, "tsv": 0.12}


def cells(axes, score, **figures_of):
    """A cell of 20 clients for every combination; its mean is half way from its worst task to one."""
    found = []
    for i, values in enumerate(itertools.product(*axes.values())):
        point = dict(zip(axes, values, strict=True))
        f = round(20 * float(point.get("attack.fraction", 0)))
        worst = score(point)
        found.append(
            {
                "attack": point.get("attack", "ipm"),
                "point": point,
                "run": f"{i:012x}",
                "repeats": False,
                "overrides": [f"{key}={value}" for key, value in point.items()] + ["rounds=1"],
                "error": None,
                "num_clients": 20,
                "byzantine": list(range(f)),
                "mean": {"fused_received": (1 + worst) / 2},
                "worst": {"fused_received": worst},
                "over_single_task": {"fused_received": 0.9},
                "success": {"fused_received": None},
                "accepted_honest": 1.0,
                "refused_byzantine": None if f == 0 else 0.5 * (point.get("defence") != "mean"),
                "wall_time_s": 2.0,
                **{name: of(point) for name, of in figures_of.items()},
            }
        )
    return found


def with_base(facts, worst=0.3, mean=0.4):
    """The same where the base has these scores, each 0.01 more with every seed."""
    for cell in facts["cells"]:
        for name, score in (("worst", worst), ("mean", mean)):
            cell[name]["base"] = round(score + 0.01 * int(cell["point"].get("seed", 0)), 6)
    return facts | figures(facts)


def sweep(axes, score, **figures_of):
    """The facts of such a sweep."""
    facts = {
        "schema_version": 1,
        "command": "fedfusion sweep " + " ".join(f"{key}={','.join(values)}" for key, values in axes.items()),
        "question": "",
        "axes": axes,
        "cells": cells(axes, score, **figures_of),
        "trainings": 2,
        "wall_time_s": 321.0,
        "fixed": ["rounds=1"],
        "versions": {"fedfusion": "0.1.0", "ray": None},
        "machine": {"python": "3.11.9", "threads": 2},
        "warnings": [],
    }
    return facts | figures(facts)


def budget(seeds=("0", "1"), attacks=("ipm",)):
    """Ten budgets and five defences: `task_aware` loses a tenth of the budget, the undefended mean 1.6 of it.

    At the highest budget, 0.45, and 0.9 without an attack: 0.855 and 0.18, so that 0.675 are gained; seeds differ by
    0.01 for all alike.
    """
    axes = {"attack": list(attacks), "attack.fraction": BUDGETS, "defence": list(SLOPES), "seed": list(seeds)}
    axes = {key: values for key, values in axes.items() if len(values) > 1}

    def score(point):
        slope = SLOPES[point["defence"]] * (1 if point.get("attack", "ipm") == "ipm" else 0.5)
        return round(0.9 - slope * float(point["attack.fraction"]) + 0.01 * int(point.get("seed", 0)), 6)

    return sweep(axes, score)


def jammed(seeds=("0", "1", "2")):
    """Fusions under a jammer: accuracy and NMSE are lines of the power; more power of one's own costs energy."""
    axes = {"fusion": list(FUSIONS), "channel.jammer.jsr_db": ["-10", "0", "10", "20"], "seed": list(seeds)}

    def jsr(point):
        return float(point["channel.jammer.jsr_db"])

    return sweep(
        axes,
        lambda p: round(0.7 - 0.01 * jsr(p) + FUSIONS[p["fusion"]] + 0.01 * (int(p["seed"]) ** 2), 6),
        nmse_db=lambda p: jsr(p) - 12.0,
        energy_j=lambda p: 0.5 + 0.05 * (jsr(p) + 10),
        duration_s=lambda p: 1.5,
        mbit=lambda p: 1.0 + list(FUSIONS).index(p["fusion"]),
    )
