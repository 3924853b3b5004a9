import pytest

from fedfusion.reporting import graph, plots

PAIRED = {
    "of": "clients",
    "tasks": ["a", "b", "a", "b"],
    "weights": [[0, 0, 1, 0.5], [0, 0, 0, 1], [1, 0, 0, 0], [0.5, 1, 0, 0]],
}


def drawn(found):
    with plots.drawing():
        return graph.relation(found)


def test_nodes_of_a_task_are_neighbours_in_one_colour_and_weights_are_widths():
    plot = drawn(PAIRED)
    (axes,) = plot.figure.axes
    numbers = [text.get_text() for text in axes.texts if text.get_text().isdigit()]
    assert numbers == ["0", "2", "1", "3"] and [text.get_text() for text in axes.texts][-2:] == ["a", "b"]
    colours = [line.get_color() for line in axes.lines]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    (edges,) = axes.collections
    widths = sorted(edges.get_linewidths())
    assert len(widths) == 3 and widths[1] == widths[2]
    assert widths[0] / widths[1] == pytest.approx(0.5)


def test_it_says_how_strongly_clients_of_the_same_and_of_other_tasks_pull():
    assert drawn(PAIRED).finding == (
        "3 of 6 pairs of clients are related; the mean weight is 1.00 between clients of the same task and 0.12 "
        "between clients of different tasks."
    )


def test_a_weight_that_is_not_mutual_counts_half():
    one_way = {"of": "clients", "tasks": ["a", "a"], "weights": [[0, 1], [0, 0]]}
    assert "the mean weight is 0.50 between clients of the same task" in drawn(one_way).finding


@pytest.mark.parametrize("n", [1, 40])
def test_nobody_related_and_too_many_to_number(n):
    plot = drawn({"of": "clients", "tasks": ["a"] * n, "weights": [[0] * n] * n})
    assert plot.finding.startswith(f"0 of {n * (n - 1) // 2} pairs of clients are related")
    assert len([text for text in plot.figure.axes[0].texts if text.get_text().isdigit()]) == (1 if n == 1 else 0)


def test_of_many_clients_their_tasks_are_the_nodes():
    plot = drawn({"of": "tasks", "tasks": ["a", "b"], "weights": [[0.9, 0.2], [0.4, 0.8]]})
    assert plot.title == "Which tasks pull each other"
    assert plot.finding == "1 of 1 pairs of tasks are related; the mean weight is 0.30."


def test_of_very_many_lines_only_the_strongest_are_drawn():
    weights = [[0.0 if i == j else 1.0 if i + j == 39 else 0.5 for j in range(40)] for i in range(40)]
    plot = drawn({"of": "clients", "tasks": ["a"] * 40, "weights": weights})
    (edges,) = plot.figure.axes[0].collections
    widths = list(edges.get_linewidths())
    assert len(widths) == graph.MOST and sum(width > 1 for width in widths) == 20
    assert plot.finding.startswith("780 of 780 pairs") and plot.finding.endswith("200 of the strongest are drawn.")
