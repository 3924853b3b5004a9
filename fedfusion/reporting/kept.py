"""What a sweep keeps of each run."""

from collections.abc import Iterable, Mapping
from math import log10
from typing import Any

from fedfusion.reporting.interval import mean
from fedfusion.reporting.run_plots import COSTS as OF_A_ROUND

STAGES = ("fused_received", "realigned")
UNTAUGHT = {"fused_received": "base", "realigned": "control"}  # what each is where no upload is believed
MEASURES = ("mean", "worst", "over_single_task", "success")
COSTS = {
    key: OF_A_ROUND[f"by_{of}"] for key, of in (("mbit", "bits"), ("energy_j", "energy"), ("duration_s", "air_time"))
}
UPLINK = ("nmse_db", *COSTS)  # of a run, where the channel has them


def measured(results: Mapping[str, Any]) -> dict[str, Any]:
    """What a sweep keeps of a run's results.

    `nmse_db` is the mean of the NMSE over rounds; `mbit` and `energy_j` are sums over clients and rounds, `duration_s`
    the air time of all rounds. Each is None where the channel has no such figure. In `rounds_not_learnt` of its
    `rounds` too few uploads were believed, and the last model was kept.
    """
    metrics, attack = results["metrics"], results["metrics"]["attack"]
    stages = [stage for stage in STAGES if stage in metrics["mean"]]
    rounds = metrics.get("rounds", [])
    return {
        "num_clients": metrics["num_clients"],
        "measure": metrics["measure"],
        "byzantine": list(attack["byzantine"]),
        **{
            name: {stage: metrics[name][stage] for stage in (*UNTAUGHT.values(), *stages) if stage in metrics[name]}
            for name in ("mean", "worst")
        },
        "over_single_task": {
            stage: mean(
                task[stage]["accuracy"] / task["single_task"]["accuracy"]
                for task in metrics["tasks"].values()
                if stage in task and task.get("single_task", {}).get("accuracy")
            )
            for stage in stages
        },
        "success": {stage: mean(rates.get(stage) for rates in attack["success"].values()) for stage in stages},
        "accepted_honest": attack["accepted_honest"],
        "refused_byzantine": attack["refused_byzantine"],
        "rounds": len(rounds),
        "rounds_not_learnt": sum(not record.get("learnt", True) for record in rounds),
        "nmse_db": _mean_db([record["nmse_db"] for record in rounds]),
        **{name: _total(map(cost.of, rounds)) for name, cost in COSTS.items()},
        "wall_time_s": results["wall_time_s"],
    }


def row(cell: Mapping[str, Any]) -> dict[str, Any]:
    """A cell as one row of a table of all cells."""
    names = {"run": cell["run"], "repeats": cell["repeats"], "attack": cell["attack"], **cell["point"]}
    if cell["error"] is not None:
        return names | {"error": reason(cell)}
    names |= {"num_byzantine": len(cell["byzantine"]), "num_clients": cell["num_clients"]}
    numbers = {f"{name}_{stage}": value for name in MEASURES for stage, value in cell[name].items()}
    others = ("accepted_honest", "refused_byzantine", "rounds_not_learnt", *UPLINK, "wall_time_s")
    return names | numbers | {name: cell.get(name) for name in others}


def in_short(cell: Mapping[str, Any]) -> str:
    """What became of a cell, in a few words."""
    if cell["error"] is not None:
        return f"failed: {reason(cell)}"
    return f"mean {cell['mean'][STAGES[0]]:.3f}  worst {cell['worst'][STAGES[0]]:.3f}"


def reason(cell: Mapping[str, Any]) -> str:
    """Why a cell failed: the last line of what was said."""
    return str(cell["error"]).splitlines()[-1]


def _mean_db(values: Iterable[float | None]) -> float | None:
    """The mean of power ratios that are given in dB, in dB."""
    ratio = mean(10 ** (value / 10) for value in values if value is not None)
    return None if ratio is None else 10 * log10(ratio)


def _total(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
