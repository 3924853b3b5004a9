"""The pictures of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

# label and colour of each column of the table, in its order; colours of Okabe and Ito, safe for colour-blind eyes
STAGES = {
    "base": ("base", "#999999"),
    "single_task": ("single task", "#000000"),
    "personal": ("personal", "#E69F00"),
    "fused_clean": ("fused clean", "#56B4E9"),
    "fused_received": ("fused received", "#D55E00"),
    "served": ("task known", "#0072B2"),
    "realigned": ("realigned", "#009E73"),
    "control": ("control", "#CC79A7"),
}
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "svg.fonttype": "none",
}


SAME = {"personal": "single_task", "fused_clean": "fused_received", "realigned": "fused_received"}


def stages(metrics: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The stages of a run; one that did nothing, and so has the scores of another on every task, is left out."""
    scores = {stage: [task.get(stage) for task in metrics["tasks"].values()] for stage in STAGES}
    return {
        stage: look
        for stage, look in STAGES.items()
        if any(scores[stage]) and scores[stage] != scores.get(SAME.get(stage, ""))
    }


def by_task(metrics: Mapping[str, Any]) -> Figure:
    """Bars: accuracy of every stage on every task, and the mean."""
    tasks = {task: {n: s["accuracy"] for n, s in scores.items()} for task, scores in metrics["tasks"].items()}
    groups = [*tasks.items(), ("mean", metrics["mean"])]
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(10, 3.6), layout="constrained")
        shown = stages(metrics)
        width = 0.8 / len(shown)
        for i, (stage, (label, colour)) in enumerate(shown.items()):
            heights = [scores.get(stage, 0.0) for _, scores in groups]
            places = [x + (i - (len(shown) - 1) / 2) * width for x in range(len(groups))]
            axes.bar(places, heights, width, label=label, color=colour)
        axes.set_xticks(range(len(groups)), [name.replace("-", "\n") for name, _ in groups])
        axes.set(ylabel=f"test {metrics['measure']}", ylim=(0, 1))
        axes.tick_params(axis="x", length=0)
        axes.axvline(len(groups) - 1.5, color="#bbbbbb", linewidth=0.8)
        figure.legend(loc="outside upper center", ncols=len(shown))
    return figure


def by_round(metrics: Mapping[str, Any]) -> Figure:
    """Lines: mean accuracy of every stage by round; what no round changes is dashed."""
    rounds = [record["round"] for record in metrics["rounds"]]
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
        for stage, (label, colour) in stages(metrics).items():
            if stage in metrics["rounds"][-1]["mean"]:
                values = [record["mean"].get(stage) for record in metrics["rounds"]]
                axes.plot(rounds, values, marker="o", label=label, color=colour)
            else:
                axes.axhline(metrics["mean"][stage], label=label, color=colour, linestyle="--")
        axes.set_xticks(rounds)
        axes.set(xlabel="round", ylabel=f"mean test {metrics['measure']} over tasks")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG and forget it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
