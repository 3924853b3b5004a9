"""Rounds and results as a tracking library has them: numbers by name."""

from collections.abc import Mapping
from typing import Any

COUNTED = ("clients", "heard", "refused", "dropped", "clipped", "byzantine", "unheard")
LEFT_OUT = ("round", "uplink/clients", "uplink/layers", "discarded_by_module")  # the step, and too much to plot
FINAL = ("mean", "worst", "tasks", "attack", "rouge_l")


def of_round(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers in the record of a round, by path: `mean/realigned`; of clients named in it, how many they are."""
    found: dict[str, float] = {}
    for key, value in record.items():
        name = f"{prefix}{key}"
        if name in LEFT_OUT:
            continue
        if name in COUNTED:
            found[name] = float(len(value))
        elif isinstance(value, Mapping):
            found |= of_round(value, f"{name}/")
        elif isinstance(value, int | float):
            found[name] = float(value)
    return found


def of_results(results: Mapping[str, Any]) -> dict[str, float]:
    """The numbers in the results of a run, by path: `final/mean/base`."""
    metrics = {name: results["metrics"][name] for name in FINAL if name in results["metrics"]}
    spent = {name: results[name] for name in ("wall_time_s", "peak_memory_mb")}
    return of_round(metrics | spent, "final/")
