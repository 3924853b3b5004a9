from hypothesis import given
from hypothesis import strategies as st

from fedfusion.reporting.tables import fitting

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
