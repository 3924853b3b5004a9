"""What every picture has in common: size, colours, and how it becomes files and a part of a page."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from html import escape
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedfusion.reporting.page import writing

DPI = 200  # of layout and PNG alike: letters are wider at some than at others
SINGLE, DOUBLE = 3.45, 7.1  # width in inches of one column, and of both, of a paper
INK, RULE = "#1a1a1a", "#d0d0d0"  # in a page they follow its colours, dark or light
# of Okabe and Ito, safe for colour-blind eyes; INK stands for their black
LOOKS: tuple[dict[str, Any], ...] = tuple(
    {"color": colour, "marker": marker, "linestyle": line}
    for colour, marker, line in (
        (INK, "o", "-"),
        ("#D55E00", "s", "--"),
        ("#0072B2", "D", "-."),
        ("#009E73", "^", ":"),
        ("#E69F00", "v", (0, (5, 1, 1, 1))),
        ("#CC79A7", "P", (0, (3, 1, 1, 1, 1, 1))),
        ("#56B4E9", "X", (0, (7, 2))),
        ("#999999", "*", (0, (1, 1))),
    )
)
STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,  # TrueType: text stays text
    "svg.fonttype": "path",  # shapes: the same on every machine
}


@dataclass(frozen=True)
class Plot:
    """A figure, and what it says in words.

    Parameters
    ----------
    name
        Of its files, and of its ids in a page.
    title
        A few words above the caption.
    finding
        What it shows, in numbers: the caption, and what is read out to those who do not see it.
    figure
        As drawn inside :func:`drawing`; its layout is settled here, so that it is the same in all files.
    """

    name: str
    title: str
    finding: str
    figure: Figure

    def __post_init__(self) -> None:
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")

    @property
    def wide(self) -> bool:
        """Whether it needs both columns."""
        return bool(self.figure.get_figwidth() > (SINGLE + DOUBLE) / 2)

    @cached_property
    def svg(self) -> str:
        """The figure as a part of a page, see :func:`svg`."""
        return svg(self)


@contextmanager
def drawing() -> Iterator[None]:
    """Within it, figures look as they should."""
    with matplotlib.rc_context(STYLE | {"text.parse_math": False}):  # a dollar in a name is a dollar
        yield


def panels(width: float, height: float, rows: int = 1, columns: int = 1, **share: Any) -> tuple[Figure, list[Axes]]:
    """A figure of `width` x `height` inches, and its axes row by row."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **share).flat)
    for one in axes:
        one.locator_params(nbins=6)  # else how many ticks there are depends on the layout, and that on them
    return figure, axes


def named(name: str) -> str:
    """A name as the label of what is drawn: legends leave out labels that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and line of each name."""
    return dict(zip(names, cycle(LOOKS), strict=False))


def save(figure: Figure, path: Path) -> None:
    """Write a figure to `path`.png and `path`.pdf (text as text), the same bytes every time."""
    with writing(path), matplotlib.rc_context(STYLE):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(f"{path}.png", dpi=DPI, metadata={"Software": None})
        figure.savefig(f"{path}.pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})


def svg(plot: Plot) -> str:
    """A plot as an `<svg>` element: its ids begin with its name, ink follows the page, no byte is random."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": plot.name}):
        plot.figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :].strip()
    drawn = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{plot.name}-", drawn)
    drawn = re.sub(r"<style.*?</style>|<!--.*?-->", "", drawn, flags=re.DOTALL)  # a style would be the whole page's
    drawn = drawn.replace(INK, "currentColor").replace(RULE, "var(--line)")
    view = re.search(r'viewBox="[^"]*"', drawn)
    assert view is not None
    labels = f"{plot.name}-title {plot.name}-desc"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {view[0]} role="img" '
        f'aria-labelledby="{labels}">\n<title id="{plot.name}-title">{escape(plot.title)}</title>\n'
        f'<desc id="{plot.name}-desc">{escape(plot.finding)}</desc>'
    )
    return head + drawn[drawn.index(">") + 1 :]
