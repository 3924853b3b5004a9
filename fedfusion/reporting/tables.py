"""Tables for a terminal of any width."""

from collections.abc import Iterator, Sequence


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
