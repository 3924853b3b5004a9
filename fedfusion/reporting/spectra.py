"""How many directions the changes of tasks, and of the fused model, have."""

from collections.abc import Mapping, Sequence
from itertools import accumulate

from fedfusion.reporting import plots
from fedfusion.reporting.plots import INK, LOOKS, SINGLE, Plot


def by_direction(found: Mapping[str, Sequence[float]]) -> Plot:
    """Lines: the energy of the singular values of the changes, of each task and of the fused model.

    Parameters
    ----------
    found
        `metrics.spectra` of a run's results.
    """
    tasks = [name for name in found if name != "fused"]
    figure, (axes,) = plots.panels(SINGLE, 2.5)
    needed = {name: _enough(shares) for name, shares in found.items()}
    distinct = len(tasks) < len(LOOKS)  # else all tasks look alike
    looks = {task: LOOKS[1:][i] if distinct else LOOKS[7] for i, task in enumerate(tasks)} | {"fused": LOOKS[0]}
    names = {task: plots.named(task) if distinct else "each task" for task in tasks} | {"fused": "fused"}
    for name, look in looks.items():
        label = names[name] if distinct or name in ("fused", tasks[0]) else None
        width, at = 1.6 if name == "fused" else 0.8, [needed[name] - 1]
        heights = list(accumulate(found[name]))
        axes.plot(range(1, len(heights) + 1), heights, label=label, markevery=at, linewidth=width, **look)
    axes.axhline(0.9, color=INK, linewidth=0.6, linestyle=":")
    axes.set(xlabel="directions, the strongest first", ylabel="share of the energy", ylim=(0, 1.03))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside upper center", ncols=2, columnspacing=1.2)
    finding = f"Ninety per cent of the energy of the fused change is in {_directions(needed['fused'])}"
    if tasks:
        low, high = min(needed[task] for task in tasks), max(needed[task] for task in tasks)
        finding += f", of the change of one task in {low}" + (f" to {high}" if high > low else "")
    return Plot("spectra", "How many directions the changes have", f"{finding} (mean over the layers).", figure)


def _directions(number: int) -> str:
    return f"{number} direction{'s' if number != 1 else ''} of a layer"


def _enough(shares: Sequence[float]) -> int:
    """How many directions hold nine tenths of the energy."""
    return sum(total < 0.9 - 1e-9 for total in accumulate(shares)) + 1
