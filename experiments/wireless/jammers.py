"""The error of a task vector against JSR, for every jammer and receiver: theory as lines, symbols as crosses.

    python -m experiments.wireless.jammers --out experiments/wireless/jammers.json

Eight clients of 50,000 parameters on eight antennas at 10 dB SNR (four where streams are forced to zero: of as many as
antennas, that error has no mean). The jammer of pilots needs some: 16 of each 168 symbols, in its own runs only; the
stronger it is, the smaller are an unaware receiver's estimates, down to nothing. About a minute on one core.
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from experiments.benchmarks.uplink import uploads
from fedfusion.channels import Jammer, Mimo, Receiver
from fedfusion.reporting.plots import STYLE, save
from fedfusion.rng import generator
from fedfusion.server.uplink import decibel

JSR_DB = [-20.0, -15.0, -10.0, -5.0, 0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0]
OBJECTIVES = ["barrage", "sum_rate", "strongest_user", "mse", "fixed_filter", "pilot"]
COLOURS = ["#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7"]  # Okabe and Ito
RECEIVERS = {
    "MMSE, genie, shrunk": Receiver(shrink=True),
    "MMSE, genie": Receiver(),
    "MMSE, sample covariance": Receiver(knowledge="sample"),
    "MMSE, unaware": Receiver(knowledge="unaware"),
    "ZF, unaware, 4 clients": Receiver(filter="zf", knowledge="unaware"),
    "SIC, genie": Receiver(filter="sic"),
}


def cell(receiver: Receiver, objective: str, jsr_db: float) -> dict[str, float | None]:
    """Predicted and measured NMSE in dB: mean over clients, and their median."""
    jammer = Jammer(objective=objective, jsr_db=jsr_db)
    channel = Mimo(level="analog", jammer=jammer, receiver=receiver, pilots=16 if objective == "pilot" else 0)
    clients = 4 if receiver.filter == "zf" else 8  # of as many as antennas, the error has no mean
    _, report = channel(uploads(clients, 50_000), generator(0, "jammers"))
    predicted, measured = (torch.tensor(report.per_client[name]) for name in ("expected_nmse", "nmse"))
    return {
        "theory_db": decibel(float(predicted.mean())),
        "simulation_db": decibel(float(measured.mean())),
        "median_db": decibel(float(measured.median())),
        "gap": report.jamming["gap"],
    }


def plot(cells: dict[str, dict[str, list[dict]]]) -> plt.Figure:
    with plt.style.context(STYLE):
        figure, panels = plt.subplots(2, 3, figsize=(10, 6), sharex=True, sharey=True, layout="constrained")
        for axes, (name, by_objective) in zip(panels.flat, cells.items(), strict=True):
            for (objective, row), colour in zip(by_objective.items(), COLOURS, strict=True):
                axes.plot(JSR_DB, [one["theory_db"] for one in row], color=colour, label=objective.replace("_", " "))
                axes.plot(JSR_DB, [one["simulation_db"] for one in row], "x", color=colour, markersize=4)
            axes.axhline(0, color="#999999", linewidth=0.8)
            axes.set(title=name)
        for axes in panels[1]:
            axes.set(xlabel="JSR in dB")
        for axes in panels[:, 0]:
            axes.set(ylabel="NMSE in dB")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.suptitle("8 antennas, 8 clients, SNR 10 dB; lines: theory, crosses: symbols", fontsize=9)
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments/wireless/jammers.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cells = {
        name: {objective: [cell(receiver, objective, jsr_db) for jsr_db in JSR_DB] for objective in OBJECTIVES}
        for name, receiver in RECEIVERS.items()
    }
    every = [one for by_objective in cells.values() for row in by_objective.values() for one in row]
    apart = max(abs(one["theory_db"] - one["simulation_db"]) for one in every)
    summary = {"largest_difference_db": apart, "largest_gap": max(one["gap"] for one in every)}
    arguments.out.write_text(json.dumps({"jsr_db": JSR_DB, **summary, "cells": cells}, indent=1) + "\n")
    save(plot(cells), arguments.out.with_suffix(".png"))
    print(summary)


if __name__ == "__main__":
    main()
