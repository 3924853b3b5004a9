"""Tables for a terminal of any width."""

from collections.abc import Iterator, Sequence
from typing import Literal

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def show(
    console: Console,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    totals: int = 0,
    justify: Literal["left", "right"] = "right",
) -> None:
    """Print a table in as many parts as the console's width needs, its last rows, the `totals`, set apart."""
    for number, (part, cells) in enumerate(fitting(header, rows, console.width)):
        if number:
            console.print()
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for i, name in enumerate(part):
            table.add_column(escape(name).replace(" ", "\n"), justify=justify if i else "left", overflow="fold")
        for i, texts in enumerate(cells, 1):
            table.add_row(*map(escape, texts), end_section=i == len(rows) - totals)
        console.print(table, soft_wrap=False)


def fitting(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> Iterator[tuple[list[str], list[list[str]]]]:
    """The table in as many parts, each with the first column, as are needed for `width` characters."""
    widths = [
        max(len(word) for text in (header[i], *(row[i] for row in rows)) for word in text.split() or [""])
        for i in range(len(header))
    ]
    first = min(max((len(row[0]) for row in rows), default=0), width // 2)
    part, used = [0], first
    for i in range(1, len(header)):
        if len(part) > 1 and used + 2 + widths[i] > width:
            yield _columns(header, rows, part)
            part, used = [0], first
        part.append(i)
        used += 2 + widths[i]
    yield _columns(header, rows, part)


def _columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], chosen: Sequence[int]
) -> tuple[list[str], list[list[str]]]:
    return [header[i] for i in chosen], [[row[i] for i in chosen] for row in rows]
