from pathlib import Path

import grids
import pages
import pytest

from fedfusion.reporting import compare_sweeps
from fedfusion.reporting.figures import figures
from fedfusion.types import FedfusionError

A, B = Path("one"), Path("two")


def raised(facts, by):
    """The same sweep, whose worst tasks are better by what `by` says of a point."""
    for cell in facts["cells"]:
        cell["worst"]["fused_received"] += by(cell["point"])
    return facts | figures(facts)


@pytest.fixture
def two():
    better = raised(
        grids.budget(attacks=("ipm", "alie")),
        lambda p: 0.02 + 0.1 * (p["defence"] == "krum" and p["attack.fraction"] == "0.45"),
    )
    return {A: grids.budget(attacks=("ipm", "alie")), B: better | {"fixed": ["rounds=1", "fusion=tsv"]}}


def test_points_are_paired_by_seed(two):
    found = compare_sweeps.compare(two)
    title, header, rows = found.tables[0]
    assert title == "ipm: worst task, fused received"
    assert header == ["", "share of Byzantine clients", "A", "B", "B − A", "B − A: 95 % interval"]
    assert ["task_aware", "0.45", "0.860", "0.880", "0.020", "0.020 to 0.020"] in rows and len(rows) == 50
    assert found.differences == [["fusion", "–", "tsv"]] and found.members == [("A", "one"), ("B", "two")]


def test_the_answer_says_where_they_differ_most(two):
    assert compare_sweeps.compare(two).answer == (
        "B is better on the worst task than A at 100 of 100 points, by +0.022 on average; they differ most in krum "
        "under ipm at share of Byzantine clients 0.45: B is 0.120 above A (0.120 to 0.120)."
    )


def test_the_plots_lie_over_each_other(two):
    worst, mean = compare_sweeps.compare(two).plots
    panels = worst.figure.axes
    assert [axes.get_title() for axes in panels] == ["ipm", "alie"]
    own = {line.get_label(): line for line in panels[0].lines}
    assert len(own) == 10 and own["A: krum"].get_color() == own["B: krum"].get_color()
    assert (own["A: krum"].get_linestyle(), own["B: krum"].get_linestyle()) == ("-", "--")
    assert own["B: krum"].get_ydata()[-1] - own["A: krum"].get_ydata()[-1] == pytest.approx(0.12)
    assert worst.finding.startswith("Highest at share of Byzantine clients 0.45 — A: task_aware under alie 0.882; B: ")


def test_what_is_measured_is_named(two):
    for facts in two.values():
        for cell in facts["cells"]:
            cell["measure"] = "exact match"
    worst, mean = compare_sweeps.compare(two).plots
    assert worst.title.startswith("Exact match on the worst task by ") and mean.title.startswith("Mean exact match ")
    assert worst.figure.axes[0].get_ylabel() == "exact match, worst task"


def test_a_point_that_one_lacks_is_left_out_of_the_differences(two):
    for cell in two[B]["cells"]:
        if cell["point"]["defence"] == "krum":
            cell["error"] = "too hot"
    two[B] |= figures(two[B])
    found = compare_sweeps.compare(two)
    assert "at 80 of 80 points" in found.answer
    assert ["krum", "0.45", "0.365", "–", "–", "–"] in found.tables[0][2]


def test_other_seeds_have_nothing_in_common(two):
    for cell in two[B]["cells"]:
        cell["point"]["seed"] = {"0": "7", "1": "8"}[cell["point"]["seed"]]
    two[B] |= figures(two[B])
    assert compare_sweeps.compare(two).answer == "B has no point and seed in common with A."


def test_sweeps_of_different_grids_are_refused(two):
    other = grids.jammed()
    with pytest.raises(
        FedfusionError, match="one and three are sweeps over different axes: 'attack', 'attack.fraction'"
    ):
        compare_sweeps.compare({A: two[A], Path("three"): other})


def test_a_sweep_without_a_finished_run_is_refused(two):
    for cell in two[B]["cells"]:
        cell["error"] = "not run yet"
    two[B] |= figures(two[B])
    with pytest.raises(FedfusionError, match="^two has no finished run to compare"):
        compare_sweeps.compare(two)


def test_the_page(two, tmp_path):
    compare_sweeps.compare(two).write(tmp_path / "compare.html")
    root = pages.check((tmp_path / "compare.html").read_text())
    assert [e.text for e in root.all("h2")] == ["What is compared", "Figures", "Tables"]
    assert (tmp_path / "compare.html").stat().st_size < 3e6
