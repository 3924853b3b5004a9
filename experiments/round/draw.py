"""The picture of a round: devices on the left, the jammed radio in the middle, the server on the right.

python experiments/round/draw.py
"""

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Arc, FancyArrowPatch, FancyBboxPatch, Polygon

INK, CARD, RULE = "#1a1a1a", "#fbfbf9", "#c8c8c4"
HONEST, BYZANTINE, RADIO, SERVER = "#0b63a0", "#a84300", "#8a5a00", "#00654b"
STAGES = (
    ("guard", "which uploads are believed"),
    ("couple", "personal adapters, and their relatives"),
    ("aggregate", "clients of a task: one vector"),
    ("fuse", "tasks: one multi-task vector"),
    ("realign", "repair, with a few samples"),
    ("evaluate", "beside a control without uploads"),
)


def box(ax: Axes, x: float, y: float, width: float, height: float, colour: str) -> None:
    style = "round,pad=0,rounding_size=0.8"
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor="white", edgecolor=colour))


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, **options: str) -> None:
    ax.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, shrinkA=0, shrinkB=0, color=colour, **options)
    )


def number(ax: Axes, x: float, y: float, stage: int, colour: str) -> None:
    ax.plot(x, y, "o", markersize=13, color=colour)
    ax.text(x, y, str(stage), color="white", fontsize=8, fontweight="bold", ha="center", va="center_baseline")


def devices(ax: Axes) -> None:
    """Four devices; the last is Byzantine."""
    ax.text(14, 53, "devices", ha="center", fontsize=11, fontweight="bold")
    number(ax, 4.5, 48, 1, HONEST)
    ax.text(7, 48, "train: a LoRA each", va="center_baseline")
    for task, y in zip("ABC", (39.5, 32, 24.5), strict=True):
        box(ax, 3, y, 22, 5.5, HONEST)
        ax.text(14, y + 2.75, f"task {task}: adapter", ha="center", va="center_baseline", color=HONEST)
    number(ax, 4.5, 19, 2, BYZANTINE)
    ax.text(7, 19, "attack: some send lies", va="center_baseline")
    box(ax, 3, 10.5, 22, 5.5, BYZANTINE)
    ax.text(14, 13.25, "Byzantine device", ha="center", va="center_baseline", color=BYZANTINE)


def radio(ax: Axes) -> None:
    """Uploads on their way to the server, and the jammer below."""
    ax.text(44.5, 53, "radio", ha="center", fontsize=11, fontweight="bold")
    number(ax, 34.5, 48, 3, RADIO)
    ax.text(37, 48, "channel: fading, jamming", va="center_baseline")
    for i, (y, colour) in enumerate(((42.25, HONEST), (34.75, HONEST), (27.25, HONEST), (13.25, BYZANTINE))):
        arrow(ax, (25.5, y), (64.5, 46.6 - 0.9 * i), colour)
    ax.add_patch(Polygon([(42.5, 5.5), (46.5, 5.5), (44.5, 11)], closed=True, facecolor="white", edgecolor=RADIO))
    for size in (5, 9, 13):
        ax.add_patch(Arc((44.5, 11.5), size, 1.05 * size, theta1=40, theta2=140, color=RADIO))
    ax.text(44.5, 3.2, "jammer", ha="center", va="center_baseline", color=RADIO)


def server(ax: Axes) -> None:
    """What becomes of what arrives, from top to bottom."""
    ax.text(82, 53, "server", ha="center", fontsize=11, fontweight="bold")
    for i, (stage, words) in enumerate(STAGES):
        y = 45.25 - 7.9 * i
        box(ax, 65, y - 2.7, 34, 5.4, SERVER)
        number(ax, 67.5, y, 4 + i, SERVER)
        ax.text(69.8, y + 1.2, stage, va="center_baseline", fontweight="bold", color=SERVER)
        ax.text(69.8, y - 1.3, words, va="center_baseline", fontsize=7.5)
        if i:
            arrow(ax, (82, y + 5.2), (82, y + 2.7), SERVER)


def main() -> None:
    style = {"font.family": "DejaVu Sans", "font.size": 8.5, "text.color": INK, "svg.fonttype": "path"}
    with matplotlib.rc_context(style | {"svg.hashsalt": "round"}):
        figure = Figure(figsize=(8.3, 4.9))
        ax = figure.add_axes((0, 0, 1, 1), xlim=(0, 101), ylim=(-4, 57))
        ax.set_axis_off()
        ax.add_patch(
            FancyBboxPatch((0.7, -3.2), 99.6, 59.5, boxstyle="round,pad=0,rounding_size=1.5", fc=CARD, ec=RULE)
        )
        devices(ax)
        radio(ax)
        server(ax)
        arrow(ax, (64.5, 0.2), (14, 9.5), INK, connectionstyle="angle,angleA=180,angleB=90,rad=8")
        words = "the next round starts from the personal adapters"
        ax.text(39.5, -1.4, words, ha="center", va="center_baseline", fontsize=7.5)
        target = Path(__file__).with_name("round.svg")
        figure.savefig(target, transparent=True, metadata={"Date": None, "Title": "A round of fedfusion"})


if __name__ == "__main__":
    main()
