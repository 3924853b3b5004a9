"""Does the final model ever lose to its parts? R-MTLLMF and ours against unprotected fusion and the few-shot control.

    python -m experiments.rmtllmf.dominance --out experiments/rmtllmf/dominance.json

For each seed the sixteen clients of `digits8` train once. Their task vectors cross white noise of a given NMSE, or the
uplink of `channel=mimo` under each jammer, and are fused; then four models are measured on the test images:

- unprotected: task arithmetic with the quickstart's coefficient;
- control: the few shots on the base alone, without task vectors;
- R-MTLLMF: the few shots on the unprotected fusion (`realign=few_shot`);
- ours: `realign=distilled`, which scales the fusion back as far as the few samples ask for, and learns from the
  received single-task adapters as far as it can trust them.

Intervals are 95 % of Student's t over seeds. About forty minutes on two cores.
"""

import argparse
import json
import math
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from scipy import stats

from experiments.trained import Trained, mean
from experiments.wireless.jammers import COLOURS
from fedfusion.channels import Awgn, Ideal, Jammer, Mimo
from fedfusion.config import CONF
from fedfusion.reporting.plots import STYLE, save
from fedfusion.rng import generator
from fedfusion.server.uplink import decibel
from fedfusion.types import Channel, Realigner, Updates

NMSE_DB = [-10.0, 0.0, 10.0, 13.0, 15.0, 17.0, 20.0, 25.0]
JSR_DB = [10.0, 20.0, 30.0]
OBJECTIVES = ["barrage", "sum_rate", "strongest_user"]
MODELS = ["unprotected", "control", "R-MTLLMF", "ours"]
NOISE = "white noise"


def cells() -> list[tuple[str, float, Channel]]:
    """What is swept: a name, its level in dB, and the channel."""
    white = [(NOISE, level, Awgn(snr_db=-level)) for level in NMSE_DB]
    return white + [(o, jsr, Mimo(jammer=Jammer(objective=o, jsr_db=jsr))) for o in OBJECTIVES for jsr in JSR_DB]


def realigner(name: str) -> Realigner:
    """The option of `conf/realign`."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose("config", [f"realign={name}"]).realign, _convert_="all")


def measure(trained: Trained, received: Updates) -> dict[str, float]:
    """Mean test accuracy of the models that have received something."""
    core, task_vectors = trained.task_vectors(received)
    layout = trained.wide.layout
    present = [trained.suite.tasks.index(task) for task in dict.fromkeys(received.tasks)]
    single = {t: core.to_adapter(v, layout)[0] for t, v in zip(present, task_vectors, strict=True)}
    fusion = trained.experiment.fusion(task_vectors, core.layout, trained.evidence())
    adapters = {"unprotected": core.to_adapter(fusion, layout)[0]}
    for model, name in (("R-MTLLMF", "few_shot"), ("ours", "distilled")):
        adapters[model] = realigner(name)(adapters["unprotected"], trained.repair(single))
    return {model: mean(trained.accuracy(adapter, "test").values()) for model, adapter in adapters.items()}


def one_seed(seed: int, cache: Path | None) -> list[dict]:
    """All cells of one seed."""
    trained = Trained(["experiment=quickstart"], seed, cache)
    base = trained.evaluator.base
    few = realigner("few_shot")(base, trained.repair({}))
    control, untouched = (mean(trained.accuracy(adapter, "test").values()) for adapter in (few, base))
    nothing = {"unprotected": untouched, "R-MTLLMF": control, "ours": control}
    found = []
    for i, (name, level, channel) in enumerate([("ideal", None, Ideal()), *cells()]):
        received, report = channel(trained.sent, generator(seed, "channel", i))
        cell = {"seed": seed, "channel": name, "level_db": level, "erased": len(report.erased), "control": control}
        cell["nmse_db"] = decibel(mean(report.nmse)) if report.nmse else None
        found.append(cell | (measure(trained, received) if len(received) else nothing))
        print(json.dumps(found[-1]), flush=True)
    return found


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else float("nan")
    return mean(values), float(half)


def judge(found: list[dict]) -> list[dict]:
    """For each cell the models' means, and by how much R-MTLLMF and ours beat the better of the two parts, per seed."""
    rows = []
    for name, level in dict.fromkeys((cell["channel"], cell["level_db"]) for cell in found):
        mine = [cell for cell in found if (cell["channel"], cell["level_db"]) == (name, level)]
        row = {"channel": name, "level_db": level, "nmse_db": mean(c["nmse_db"] or -math.inf for c in mine)}
        row["nmse_db"] = row["nmse_db"] if math.isfinite(row["nmse_db"]) else None
        row |= {model: interval([cell[model] for cell in mine]) for model in MODELS}
        better = max(("unprotected", "control"), key=lambda model: row[model][0])
        row["margin"] = {m: interval([c[m] - c[better] for c in mine]) for m in ("R-MTLLMF", "ours")}
        rows.append(row)
    return rows


def plot(rows: list[dict]) -> plt.Figure:
    """Test accuracy against the NMSE, or the JSR of each jammer; bands are 95 % intervals over seeds."""
    names = [NOISE, *OBJECTIVES]
    with plt.style.context(STYLE):
        figure, panels = plt.subplots(1, len(names), figsize=(12, 3.4), sharey=True, layout="constrained")
        for axes, name in zip(panels, names, strict=True):
            mine = [row for row in rows if row["channel"] == name]
            levels = [row["level_db"] for row in mine]
            for model, colour, line in zip(MODELS, COLOURS, ("--", ":", "-.", "-"), strict=False):
                middle, half = (torch.tensor([row[model][i] for row in mine]) for i in (0, 1))
                axes.plot(levels, middle, line, color=colour, label=model)
                axes.fill_between(levels, middle - half, middle + half, color=colour, alpha=0.15, linewidth=0)
            axes.set(title=name.replace("_", " "), xlabel="NMSE in dB" if name == NOISE else "JSR in dB")
        panels[0].set(ylabel="mean test accuracy", ylim=(0, 1))
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments/rmtllmf/dominance.json"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--cache", type=Path, help="where trained uploads are kept")
    arguments = parser.parse_args()
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        by_seed = pool.map(partial(one_seed, cache=arguments.cache), range(arguments.seeds))
        found = [cell for seed in by_seed for cell in seed]
    rows = judge(found)
    arguments.out.write_text(json.dumps({"seeds": arguments.seeds, "rows": rows, "cells": found}, indent=1) + "\n")
    save(plot(rows), arguments.out.with_suffix(".png"))
    for row in rows:
        print(row["channel"], row["level_db"], *(f"{m} {row[m][0]:.3f}" for m in MODELS), row["margin"])


if __name__ == "__main__":
    main()
