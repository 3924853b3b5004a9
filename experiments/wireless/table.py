"""Eight users, eight antennas, SNR 10 dB: what each jammer does to the sum rate and to the error of a parameter.

    python -m experiments.wireless.table --out experiments/wireless/table.json

The reference figures were computed by independent code from 400 draws of the channel; here they are made by the
channel that runs use. Each figure comes with the standard error of its Monte Carlo mean, and with its distance from
the reference in units of the two standard errors together.
"""

import argparse
import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from fedfusion.channels import Jammer, Mimo, Receiver
from fedfusion.reporting.plots import STYLE, save
from fedfusion.rng import generator

DRAWS, REFERENCE_DRAWS = 4000, 400
JSR_DB = (-math.inf, -10.0, -5.0, 0.0, 5.0, 10.0, 15.0, 20.0)
# measure: (receiver, jammer, {jsr_db: reference}); rates in bit per channel use, errors in dB
ROWS = {
    "sum capacity, barrage": (
        "aware", "barrage",
        {-math.inf: 41.5, -10: 34.5, -5: 27.5, 0: 19.1, 5: 11.4, 10: 5.7, 15: 2.4, 20: 0.9},
    ),
    "sum capacity, worst": (
        "aware", "sum_rate",
        {-10: 34.2, -5: 27.0, 0: 18.4, 5: 10.5, 10: 4.9, 15: 1.9, 20: 0.6},
    ),
    "aware error, barrage": (
        "aware", "barrage",
        {-math.inf: -9.9, -10: -8.4, 0: -5.1, 10: -1.8, 20: -0.3},
    ),
    "aware error, worst": (
        "aware", "mse",
        {-10: -7.5, 0: -4.7, 10: -1.7, 20: -0.2},
    ),
    "aware error, worst for the capacity": (
        "aware", "sum_rate",
        {-10: -8.9, 0: -5.4, 10: -1.7, 20: -0.3},
    ),
    "aware error, worst for the strongest user": (
        "aware", "strongest_user",
        {-10: -8.8, 0: -7.8, 10: -6.9, 20: -6.6},
    ),
    "unaware error, barrage": (
        "unaware", "barrage",
        {-math.inf: -9.9, -10: -8.1, -5: -5.7, 0: -2.0, 5: 2.5, 10: 7.3, 20: 17.2},
    ),
    "unaware error, worst": (
        "unaware", "fixed_filter",
        {-10: -5.1, -5: -1.2, 0: 3.3, 5: 8.2, 10: 13.1, 20: 23.1},
    ),
    "zero forcing, barrage": (
        "zf", "barrage",
        {-math.inf: -7.4, -10: -4.4, 0: 3.0, 10: 12.7, 20: 22.6},
    ),
    "zero forcing, worst": (
        "zf", "fixed_filter",
        {-10: 1.5, 0: 11.0, 10: 20.9, 20: 30.9},
    ),
}  # fmt: skip
RECEIVERS = {
    "aware": Receiver(shrink=True),
    "unaware": Receiver(knowledge="unaware", shrink=True),
    "zf": Receiver(filter="zf", knowledge="unaware", shrink=False),
}


def draw(receiver: str, objective: str, jsr_db: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum rate in bit per channel use and mean squared error over users, both by draw of the channel."""
    channel = Mimo(snr_db=10.0, receiver=RECEIVERS[receiver], jammer=Jammer(objective=objective, jsr_db=jsr_db))
    powers = channel.powers(range(8))
    rng = generator(seed, "table")
    link, _ = channel.link(powers, float(powers.mean()), channel.streams(powers, DRAWS, rng), 1, rng)
    signal = link.streams @ link.streams.mH
    rate = torch.linalg.slogdet(link.covariance + signal)[1] - torch.linalg.slogdet(link.covariance)[1]
    return rate / math.log(2), link.filtered.nmse.mean(1)


def measure(name: str, seed: int) -> list[dict[str, float | None]]:
    """One row: figure, standard error and reference for every JSR."""
    receiver, objective, reference = ROWS[name]
    cells = []
    for jsr_db in JSR_DB:
        if jsr_db not in reference and (math.isinf(jsr_db) or not name.startswith("sum")):
            continue
        rates, errors = draw(receiver, objective, jsr_db, seed)
        values = rates if name.startswith("sum") else errors
        if receiver == "zf":  # the mean is infinite: the median, its error by the binomial spread of its rank
            ranked, half = values.sort()[0], DRAWS // 2
            spread = round(DRAWS**0.5 / 2)
            mean, low, high = ranked[half], ranked[half - spread], ranked[half + spread]
        else:
            mean, error = values.mean(), values.std() / DRAWS**0.5
            low, high = mean - error, mean + error
        if not name.startswith("sum"):
            mean, low, high = (10 * value.log10() for value in (mean, low, high))
        error = float(high - low) / 2
        known = reference.get(jsr_db)
        cell = {"jsr_db": None if math.isinf(jsr_db) else jsr_db, "value": float(mean), "standard_error": error}
        if known is not None:  # the reference has its own error, and is rounded to 0.1
            both = math.hypot(error, error * (DRAWS / REFERENCE_DRAWS) ** 0.5, 0.1 / 12**0.5)
            cell |= {"reference": known, "deviation": (float(mean) - known) / both}
        cells.append(cell)
    return cells


def plot(rows: dict[str, list[dict[str, float | None]]]) -> plt.Figure:
    """Sum rate on the left, error on the right; crosses are the reference."""
    with plt.style.context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
        for name, cells in rows.items():
            axes = left if name.startswith("sum") else right
            jammed = [cell for cell in cells if cell["jsr_db"] is not None]
            (line,) = axes.plot([c["jsr_db"] for c in jammed], [c["value"] for c in jammed], label=name)
            known = [c for c in jammed if "reference" in c]
            axes.plot([c["jsr_db"] for c in known], [c["reference"] for c in known], "x", color=line.get_color())
        left.set(xlabel="JSR in dB", ylabel="sum capacity in bit per channel use", ylim=0, title="crosses: reference")
        right.set(xlabel="JSR in dB", ylabel="NMSE in dB (zero forcing: median)", title="crosses: reference")
        right.axhline(0, color="#999999", linewidth=0.8)
        left.legend()
        right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments/wireless/table.json"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = {name: measure(name, arguments.seed) for name in ROWS}
    deviations = [cell["deviation"] for cells in rows.values() for cell in cells if "deviation" in cell]
    summary = {"largest_deviation": max(map(abs, deviations)), "compared": len(deviations)}
    results = {"draws": DRAWS, "seed": arguments.seed, **summary, "rows": rows}
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    save(plot(rows), arguments.out.with_suffix(".png"))
    for name, cells in rows.items():
        figures = "  ".join(
            f"{'none' if c['jsr_db'] is None else format(c['jsr_db'], '+.0f')}: {c['value']:.1f}"
            + (f" ({c['reference']:.1f})" if "reference" in c else "")
            for c in cells
        )
        print(f"{name:26} {figures}")
    print(f"largest deviation {summary['largest_deviation']:.1f} standard errors in {len(deviations)} figures")


if __name__ == "__main__":
    main()
