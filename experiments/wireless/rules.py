"""Choose what the receiver does with bad uploads, on held-out training images.

    python -m experiments.wireless.rules --out experiments/wireless/rules.json

For each seed the sixteen clients of `digits8` train once, for as many steps as three rounds of the quickstart. Their
task vectors then cross the uplink of `channel=mimo` once for every JSR, receiver and rule, and are fused with the
quickstart's coefficient. The rule with the best mean validation accuracy over receivers, JSRs and seeds is chosen; the
test accuracies are in the file, and the choice does not look at them. About fifteen minutes on one core.
"""

import argparse
import itertools
import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from experiments.trained import Trained, mean
from experiments.wireless.jammers import COLOURS
from fedfusion.channels import Jammer, Mimo, Receiver
from fedfusion.reporting.plots import STYLE, save
from fedfusion.rng import generator
from fedfusion.server.uplink import decibel
from fedfusion.types import Updates

JSR_DB = [-math.inf, 0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0]
KNOWLEDGE = ["genie", "sample", "unaware"]
RULES = {
    "raw": {"shrink": False, "erase_above_db": None},
    "shrunk": {"shrink": True, "erase_above_db": None},
    "raw, erased above 0 dB": {"shrink": False, "erase_above_db": 0.0},
    "raw, erased above 10 dB": {"shrink": False, "erase_above_db": 10.0},
    "raw, erased above 20 dB": {"shrink": False, "erase_above_db": 20.0},
}


def accuracy(trained: Trained, received: Updates) -> dict[str, float]:
    """Mean accuracy over tasks of the fused model on validation and test images."""
    adapter = trained.evaluator.base
    if len(received):
        core, task_vectors = trained.task_vectors(received)
        fused = trained.experiment.fusion(task_vectors, core.layout, trained.evidence())
        adapter, _ = core.to_adapter(fused, trained.wide.layout)
    return {part: mean(trained.accuracy(adapter, part).values()) for part in ("validation", "test")}


def channel(knowledge: str, jsr_db: float, rule: dict) -> Mimo:
    """The worst jammer for each receiver: for the unaware one, the worst for its filter."""
    objective = "fixed_filter" if knowledge == "unaware" else "mse"
    jammer = Jammer(objective="none" if math.isinf(jsr_db) else objective, jsr_db=max(jsr_db, -100.0))
    return Mimo(jammer=jammer, receiver=Receiver(knowledge=knowledge, **rule))


def plot(cells: list[dict], ideal: float) -> plt.Figure:
    """Test accuracy against JSR, a panel for each receiver; bars are the standard deviation over seeds."""
    with plt.style.context(STYLE):
        figure, panels = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True, layout="constrained")
        for axes, knowledge in zip(panels, KNOWLEDGE, strict=True):
            for rule, colour in zip(RULES, COLOURS, strict=False):
                values = {}
                for cell in cells:
                    if (cell["knowledge"], cell["rule"]) == (knowledge, rule):
                        values.setdefault(cell["jsr_db"], []).append(cell["test"])
                jammed = [jsr for jsr in values if jsr is not None]
                means = [mean(values[jsr]) for jsr in jammed]
                spread = [float(torch.tensor(values[jsr]).std(correction=0)) for jsr in jammed]
                axes.errorbar(jammed, means, spread, marker="o", markersize=3, capsize=2, label=rule, color=colour)
            axes.axhline(ideal, color="#999999", linestyle="--", linewidth=0.8)
            axes.set(title=f"MMSE, {knowledge}", xlabel="JSR in dB")
        panels[0].set(ylabel="mean test accuracy, fused", ylim=(0, 1))
        figure.suptitle(
            "digits8, SNR 10 dB, worst jammer for each receiver; dashed: no noise; bars: standard deviation over seeds",
            fontsize=9,
        )
        panels[0].legend(loc="lower left", fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments/wireless/rules.json"))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    cells, ideal = [], []
    for seed in range(arguments.seeds):
        trained = Trained(["experiment=quickstart"], seed)
        ideal.append(accuracy(trained, trained.sent))
        print(f"seed {seed} ideal {ideal[-1]}", flush=True)
        for knowledge, jsr_db in itertools.product(KNOWLEDGE, JSR_DB):
            known: dict[tuple, dict] = {}  # rules that erase nobody differ in nothing
            for rule, settings in RULES.items():
                received, report = channel(knowledge, jsr_db, settings)(trained.sent, generator(seed, "channel", 1))
                cell = {"seed": seed, "knowledge": knowledge, "jsr_db": None if math.isinf(jsr_db) else jsr_db}
                cell |= {"rule": rule, "nmse_db": decibel(mean(list(report.nmse))), "erased": len(report.erased)}
                same = (settings["shrink"], received.clients)
                if same not in known:
                    known[same] = accuracy(trained, received)
                cells.append(cell | known[same])
            print(*cells[-len(RULES) :], sep="\n", flush=True)
    scores = {rule: mean([cell["validation"] for cell in cells if cell["rule"] == rule]) for rule in RULES}
    test = {rule: mean([cell["test"] for cell in cells if cell["rule"] == rule]) for rule in RULES}
    chosen = max(scores, key=lambda rule: scores[rule])
    results = {"seeds": arguments.seeds, "chosen": chosen, "validation": scores, "test": test, "ideal": ideal}
    arguments.out.write_text(json.dumps({**results, "cells": cells}, indent=1) + "\n")
    save(plot(cells, mean([one["test"] for one in ideal])), arguments.out.with_suffix(".png"))
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
