import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fedfusion.reporting.tables import fitting, show

WORDS = st.text("abcdefgh_", min_size=1, max_size=12)


@st.composite
def grids(draw):
    columns, rows = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    cells = st.lists(WORDS, min_size=columns, max_size=columns)
    return draw(cells), draw(st.lists(cells, min_size=rows, max_size=rows))


@given(grids(), st.integers(30, 100))
def test_every_column_is_in_one_part_and_every_part_names_its_rows(grid, width):
    header, rows = grid
    parts = list(fitting(header, rows, width))
    assert [name for part, _ in parts for name in part[1:]] == header[1:]
    for i, row in enumerate(rows):
        assert [text for _, cells in parts for text in cells[i][1:]] == row[1:]
        assert all(cells[i][0] == row[0] for _, cells in parts)


@given(grids(), st.integers(40, 100))
def test_a_part_is_as_wide_as_it_may_be_and_no_wider(grid, width):
    header, rows = grid

    def room(part, cells):
        wide = [max(map(len, column)) for column in zip(part, *cells, strict=True)]
        return min(max(len(row[0]) for row in cells), width // 2) + sum(2 + own for own in wide[1:])

    parts = list(fitting(header, rows, width))
    assert all(room(*part) <= width for part in parts)
    for (part, cells), (after, others) in zip(parts, parts[1:], strict=False):
        wider = [own + [other[1]] for own, other in zip(cells, others, strict=True)]
        assert room([*part, after[1]], wider) > width, "the next column would have fitted"


@pytest.mark.parametrize("width, parts", [(30, 4), (40, 2), (80, 1)])
def test_a_table_is_printed_in_its_parts_with_the_totals_apart(width, parts):
    header = ["task", "base", "adapter [x]", "base loss", "adapter loss"]
    rows = [["[upright]-digit", "0.125", "0.250", "1.000", "2.000"], ["mean", "0.375", "0.500", "", ""]]
    out = io.StringIO()
    show(Console(file=out, width=width, soft_wrap=True), header, rows, totals=1)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert max(map(len, lines)) <= width and "…" not in out.getvalue()
    words = " ".join(lines).split()
    assert {"[x]", "base", "adapter", "loss", *rows[0], "0.375", "0.500"} < {*words}
    assert words.count("[upright]-digit") == words.count("mean") == parts
    for i, line in enumerate(lines):
        if line.startswith("[upright]-digit"):
            assert lines[i - 1][0] == "─" and lines[i + 1] == "" and lines[i + 2].startswith("mean")
    assert [lines[i + 1] for i, line in enumerate(lines[:-1]) if line.startswith("mean")] == [""] * (parts - 1)


def test_numbers_stand_on_the_right_and_words_on_the_left():
    printed = {}
    for side in ("left", "right"):
        out = io.StringIO()
        show(Console(file=out, width=40), ["run", "a long name"], [["x", "1"]], justify=side)
        printed[side] = out.getvalue().splitlines()[-1].rstrip()
    assert printed == {"left": "x    1", "right": "x       1"}
