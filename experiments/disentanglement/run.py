"""Does noise on the uploads make tasks disturb each other? The weight disentanglement error against NMSE.

    python -m experiments.disentanglement.run --out experiments/disentanglement/results.json

For each seed the sixteen clients of `digits8` train once, for as many steps as three rounds of the quickstart. White
noise as of `channel=awgn` crosses their uploads at each NMSE in mirrored pairs, `+n` and `-n`; every level and pair has
a draw of its own. The received products are summed with the quickstart's coefficient, exactly and not cut to a rank,
and compared with the clean single-task models, on the first 64 test images of each task.

The unit of all tests is the mean of a pair. To first order in the noise the two errors move in opposite directions by
the same amount, which is far more than the rise where the noise is small: single draws may show anything, and pairs do
not have that term. Tests are one-sided, with Holm's correction over the levels: the mean is above the clean error. The
trend over levels within a seed is tested by Jonckheere and Terpstra, as levels are independent groups, and over the
seeds by Page, whose unit is a seed.

To first order in the power of the noise `xi_L2` rises by `NMSE * sum_k s_k^2 sum_t E_x ||J_tk(x)||_F^2`, `J_tk` the
Jacobian of the logits in the upload of client k and `s_k` that upload's root mean square. The sum is measured by
backpropagating random signs, without any noise. A pair's rise is the sum of two parts, which are told apart exactly:
half the difference of its two logits, squared, is what that sum predicts (`odd`); the rest is what the curvature adds,
of the model and of the product of two noisy factors. About twenty minutes on one core; written after each seed, and
continued where it stopped.
"""

import argparse
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from experiments.disentanglement.inference import analyse
from experiments.trained import Trained
from fedfusion.channels import Awgn
from fedfusion.fusion import TaskArithmetic
from fedfusion.lora.model import LoraModel
from fedfusion.lora.product import distances
from fedfusion.reporting.plots import STYLE, save
from fedfusion.rng import generator
from fedfusion.server.disentanglement import disentanglement, logits
from fedfusion.server.uplink import decibel

NMSE_DB = [-20, -15, -10, -5, 0, 5, 10, 15, 20]
NMSE = 10 ** (np.array(NMSE_DB) / 10)
METRICS = {"xi_01": r"$\xi_{01}$", "xi_L2": r"$\xi_{L2}$"}
COLOURS = {"measured": "#0072B2", "odd": "#D55E00", "seed": "#56B4E9"}  # Okabe and Ito
Logits = dict[str, Tensor]


class Fused:
    """The fused model of one seed as a function of what was received, beside the clean single-task models."""

    def __init__(self, trained: Trained, rows: int) -> None:
        fusion = trained.experiment.fusion
        assert isinstance(fusion, TaskArithmetic) and isinstance(fusion.coefficient, float)
        self.trained, self.sent, self.coefficient = trained, trained.sent, fusion.coefficient
        self.tasks = list(dict.fromkeys(self.sent.tasks))
        self.data = {task: trained.suite.test(task).take(torch.arange(rows)) for task in self.tasks}
        self.core, vectors = trained.task_vectors(self.sent, "dense")  # all products have these coordinates
        self.model = LoraModel(trained.experiment.model, trained.seed, rank=self.core.rank)
        with torch.no_grad():
            single = zip(self.tasks, self.coefficient * vectors, strict=True)
            self.single: Logits = {task: self.logits(self.adapter(vector), task) for task, vector in single}
            self.clean = self(self.sent.vectors)
            self.base = {task: self.logits(self.model.initial, task) for task in self.tasks}

    def adapter(self, coordinates: Tensor) -> Tensor:
        return self.core.embed(coordinates, self.model.layout)

    def fuse(self, uploads: Tensor) -> Tensor:
        """The fused adapter of `uploads [n, d]`, differentiable in them."""
        _, vectors = self.trained.task_vectors(self.sent.with_vectors(uploads), "dense")
        return self.adapter(self.coefficient * vectors.sum(0))

    def logits(self, adapter: Tensor, task: str) -> Tensor:
        return logits(self.model, adapter, self.data[task], self.trained.evaluator.heads[task])

    def __call__(self, uploads: Tensor) -> Logits:
        """Logits of the fused model on every task."""
        adapter = self.fuse(uploads)
        return {task: self.logits(adapter, task) for task in self.tasks}

    def accuracy(self, found: Logits) -> float:
        return float(np.mean([(found[t].argmax(-1) == self.data[t].labels).float().mean() for t in self.tasks]))

    def slope(self, probes: int) -> list[float]:
        """Draws of `sum_k s_k^2 sum_t E_x ||J_tk(x)||_F^2`, the first-order rise of `xi_L2` per unit of NMSE.

        With independent signs `u_x` on all logits, the mean of `||sum_x J(x)^T u_x||^2` is `sum_x ||J(x)||_F^2`.
        """
        power, draws = self.sent.vectors.double().square().mean(1), []
        for probe in range(probes):
            rng = generator(self.trained.seed, "disentanglement", "signs", probe)
            uploads = self.sent.vectors.clone().requires_grad_()
            adapter = self.fuse(uploads)
            leaf = adapter.detach().requires_grad_()
            for task in self.tasks:  # one after another, for memory
                found = self.logits(leaf, task)
                signs = torch.randint(0, 2, found.shape, generator=rng) * 2.0 - 1
                (found * signs).sum().div(len(found) ** 0.5).backward()
            adapter.backward(leaf.grad)
            draws.append(float(power @ uploads.grad.double().square().sum(1)))
        return draws

    @torch.no_grad()
    def pair(self, nmse_db: int, draw: int) -> dict[str, list[float] | float]:
        """Both errors under `+n` and under `-n`, and the odd part of the pair."""
        rng = generator(self.trained.seed, "disentanglement", nmse_db, draw)
        received, _ = Awgn(snr_db=-nmse_db)(self.sent, rng)
        twins = [self(received.vectors), self(2 * self.sent.vectors - received.vectors)]
        errors = [disentanglement(self.single, twin) for twin in twins]
        half = disentanglement(*({task: twin[task] / 2 for task in self.tasks} for twin in twins))
        layout, start = self.trained.model.layout, self.sent.start
        adapters = start + self.sent.vectors
        error = distances(layout, start + received.vectors, adapters) / distances(layout, adapters, start)
        return {
            **{name: [one[name] for one in errors] for name in METRICS},
            "odd": half["xi_L2"],
            "accuracy": float(np.mean([self.accuracy(twin) for twin in twins])),
            "product_nmse": float(error.mean()),
        }


def measure(seed: int, rows: int, pairs: int, probes: int) -> dict:
    """All draws of one seed: of each level, a row for each pair."""
    fused = Fused(Trained(["experiment=quickstart"], seed), rows)
    accuracies = {"base": fused.base, "single": fused.single, "fused": fused.clean}
    clean = disentanglement(fused.single, fused.clean) | {n: fused.accuracy(one) for n, one in accuracies.items()}
    slope = fused.slope(probes)
    print(f"seed {seed} clean {clean} slope {np.mean(slope):.4g} +- {stderr(slope):.2g}", flush=True)
    levels = []
    for nmse_db in NMSE_DB:
        drawn = [fused.pair(nmse_db, draw) for draw in range(pairs)]
        levels.append({name: [pair[name] for pair in drawn] for name in drawn[0]})
        levels[-1] |= {name: float(np.mean(levels[-1][name])) for name in ("accuracy", "product_nmse")}
        print(seed, nmse_db, *(f"{name} {np.mean(level):.5g}" for name, level in levels[-1].items()), flush=True)
    return {"seed": seed, "clean": clean, "slope": slope, "levels": levels}


def stderr(values: list[float] | np.ndarray) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(np.size(values)))


def over(seeds: list[dict], name: str) -> np.ndarray:
    """A figure of every level, `[seeds, L, ...]`."""
    return np.array([[level[name] for level in seed["levels"]] for seed in seeds])


def conclude(seeds: list[dict]) -> dict:
    """What the draws of all seeds say: tests, how often a single draw is below the clean error, and the prediction."""
    results, increments = {}, {}
    for name in METRICS:
        clean = np.array([seed["clean"][name] for seed in seeds])
        above = over(seeds, name) - clean[:, None, None, None]  # [seeds, L, pairs, 2]
        above = above.round(9)  # equal shares may have sums that are not
        increments[name] = above.mean(3)
        results[name] = {"clean": clean.mean()} | analyse(increments[name])
        for i, row in enumerate(results[name]["levels"]):
            row |= {"draws_below_clean": (above[:, i] < 0).mean(), "draws_equal_clean": (above[:, i] == 0).mean()}
    first_order = np.array([np.mean(seed["slope"]) for seed in seeds])[:, None] * NMSE  # [seeds, L]
    parts = {"measured": increments["xi_L2"], "odd": over(seeds, "odd")}
    results["prediction"] = []
    for i in range(len(NMSE)):
        row = {"first_order": first_order[:, i].mean()} | {part: rise[:, i].mean() for part, rise in parts.items()}
        for part, rise in parts.items():
            ratio = rise[:, i] / first_order[:, i, None]
            row |= {f"{part}_ratio": ratio.mean(), f"{part}_ratio_stderr": stderr(ratio)}
        row |= {"product_nmse_db": decibel(over(seeds, "product_nmse")[:, i].mean())}
        results["prediction"].append(row | {"accuracy": over(seeds, "accuracy")[:, i].mean()})
    return results


def plot(results: dict, seeds: list[dict]) -> plt.Figure:
    """Both errors with their intervals, and the rise of `xi_L2` beside its prediction."""
    with plt.style.context(STYLE):
        figure, panels = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
        for axes, (name, symbol) in zip(panels, METRICS.items(), strict=False):
            rows, clean = results[name]["levels"], results[name]["clean"]
            for i, means in enumerate(over(seeds, name).mean((2, 3))):
                label = None if i else "each training seed"
                axes.plot(NMSE_DB, means, color=COLOURS["seed"], linewidth=0.8, label=label)
            low, mean, high = (np.array([row[key] for row in rows]) for key in ("low", "increment", "high"))
            style = {"marker": "o", "markersize": 3, "capsize": 2, "color": COLOURS["measured"]}
            axes.errorbar(NMSE_DB, clean + mean, [mean - low, high - mean], label="mean, 95 % interval", **style)
            axes.axhline(clean, color="#000000", linestyle="--", linewidth=0.8, label="no noise")
            axes.set(xlabel="NMSE of the uploads in dB", ylabel=symbol, ylim=(0, None))
        panels[0].legend(loc="upper left", fontsize=8)
        axes, rows = panels[2], results["prediction"]
        for part, label in {"measured": "measured", "odd": "measured, odd part"}.items():
            axes.plot(NMSE_DB, [row[part] for row in rows], "o-", markersize=3, color=COLOURS[part], label=label)
        axes.plot(NMSE_DB, [row["first_order"] for row in rows], "k:", label="first order, from the Jacobian")
        axes.set(xlabel="NMSE of the uploads in dB", ylabel=f"rise of {METRICS['xi_L2']}", yscale="log")
        axes.legend(loc="upper left", fontsize=8)
        title = f"digits8, {len(seeds)} seeds, eight tasks fused, white noise on the uploads in mirrored pairs"
        figure.suptitle(title, fontsize=9)
    return figure


def written(results: object) -> str:
    """JSON with lists of numbers on one line."""
    text = json.dumps(results, indent=1, default=float)
    return re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments/disentanglement/results.json"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=64, help="test images of each task")
    parser.add_argument("--pairs", type=int, default=16, help="mirrored pairs of draws per level and seed")
    parser.add_argument("--probes", type=int, default=32, help="draws of signs for the Jacobian")
    arguments = parser.parse_args()
    given = {name: getattr(arguments, name) for name in ("rows", "pairs", "probes")}
    settings = given | {"nmse_db": NMSE_DB}
    before = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"settings": None}
    known = {one["seed"]: one for one in before["seeds"]} if before["settings"] == settings else {}
    seeds: list[dict] = []
    for seed in range(arguments.seeds):
        seeds.append(known.get(seed) or measure(seed, **given))
        results = {"settings": settings, **conclude(seeds)}
        arguments.out.write_text(written({**results, "seeds": seeds}))
    save(plot(results, seeds), arguments.out.with_suffix(".png"))
    for name in (*METRICS, "prediction"):
        print(name, *(results[name] if name == "prediction" else results[name]["levels"]), sep="\n")


if __name__ == "__main__":
    main()
