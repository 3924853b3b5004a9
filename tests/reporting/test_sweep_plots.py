import grids
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from matplotlib.colors import to_hex

from fedfusion.reporting import plots, sweep_plots
from fedfusion.reporting.figures import figures


def drawn(facts):
    return {plot.name: plot for plot in sweep_plots.pictures(facts)}


def lines(axes):
    return {line.get_label(): line for line in axes.lines}


def band(axes):
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    return heights.min(), heights.max()


def test_a_panel_per_attack_a_line_per_defence_a_band_over_seeds():
    plot = drawn(grids.budget(seeds=("0", "1", "2"), attacks=("ipm", "alie")))["worst"]
    panels = plot.figure.axes
    assert [panel.get_title() for panel in panels] == ["ipm", "alie"]
    own = lines(panels[0])
    assert list(own) == [*grids.SLOPES, "no attack"]
    assert list(own["mean"].get_xdata()) == pytest.approx([0.05 * i for i in range(10)])
    assert list(own["mean"].get_ydata()) == pytest.approx([0.91 - 0.08 * i for i in range(10)])
    assert band(panels[0]) == pytest.approx((0.19 - 0.01 * 4.302653 / 3**0.5, 0.91 + 0.01 * 4.302653 / 3**0.5))
    assert panels[0].get_ylim() == panels[1].get_ylim() and panels[0].get_ylabel() == "accuracy, worst task"
    assert all(panel.get_xlabel() == "share of Byzantine clients" for panel in panels)


def test_two_seeds_have_a_band_from_the_least_to_the_greatest():
    facts = grids.budget(seeds=("0", "1"))
    plot = drawn(facts)["worst"]
    assert band(plot.figure.axes[0]) == pytest.approx((0.18, 0.91))
    assert "bands: least to greatest over seeds" in plot.finding


def test_a_point_with_too_few_seeds_for_an_interval_makes_all_bands_ranges():
    facts = grids.budget(seeds=("0", "1", "2"))
    facts["cells"] = facts["cells"][:-1]  # the last seed of the last point
    assert sweep_plots.band((facts | figures(facts))["points"]) == "range"


def test_a_band_ends_where_scores_end():
    facts = grids.sweep(
        {"attack.fraction": ["0", "0.4"], "seed": ["0", "1", "2"]}, lambda p: (0.02, 0.5, 0.98)[int(p["seed"])]
    )
    (panel,) = drawn(facts)["worst"].figure.axes
    assert band(panel) == (0.0, 1.0) and panel.get_ylim() == (0.0, 1.0)


def test_a_line_whose_name_a_legend_would_leave_out_is_in_it():
    facts = grids.sweep({"attack.fraction": ["0", "0.4"], "defence": ["mean", "_own$"]}, lambda p: 0.5)
    for plot in sweep_plots.pictures(facts):
        assert [text.get_text().strip() for text in plot.figure.legends[0].get_texts()][:2] == ["mean", "_own$"]


@pytest.mark.parametrize("name, height", [("worst", 0.905), ("mean", 0.9525)])
def test_the_level_without_an_attack_is_dashed_across_and_inside_the_axis(name, height):
    (panel,) = drawn(grids.budget())[name].figure.axes
    reference = lines(panel)["no attack"]
    assert list(reference.get_ydata()) == pytest.approx([height, height]) and list(reference.get_xdata()) == [0, 1]
    assert reference.is_dashed() and panel.get_ylim()[0] < height < panel.get_ylim()[1]


def test_where_the_level_depends_on_the_budget_it_is_no_straight_line():
    axes = {"attack": ["none", "ipm"], "channel.jsr_db": ["0", "10"]}
    cells = grids.cells(axes, lambda p: 0.8 - 0.02 * float(p["channel.jsr_db"]) - 0.1 * (p["attack"] == "ipm"))
    for cell in cells:
        cell["byzantine"] = [0] if cell["attack"] == "ipm" else []
    facts = {"axes": axes, "cells": cells}
    (panel,) = drawn(facts | figures(facts))["worst"].figure.axes
    assert list(lines(panel)["no attack"].get_ydata()) == pytest.approx([0.8, 0.6])
    assert list(lines(panel)["all"].get_ydata()) == pytest.approx([0.7, 0.5])


def test_the_finding_is_said_in_numbers():
    found = drawn(grids.budget(attacks=("ipm", "alie")))["worst"]
    assert found.finding.startswith(
        "Best and last at share of Byzantine clients 0.45 — ipm: task_aware 0.860, mean 0.185; alie: task_aware 0.882, "
        "mean 0.545. The undefended run without an attack: 0.905."
    )
    assert "bands: least to greatest over seeds" in found.finding and "begins at" not in found.finding
    assert "bands: 95 % intervals of the mean" in drawn(grids.jammed())["worst"].finding
    assert "begins at 0.4." in drawn(grids.jammed())["worst"].finding


@pytest.mark.parametrize("number, columns, rows", [(1, 1, 1), (2, 2, 1), (3, 3, 1), (4, 2, 2), (5, 3, 2), (7, 3, 3)])
def test_panels_fill_their_rows(number, columns, rows):
    plot = drawn(grids.budget(seeds=("0",), attacks=[f"a{i}" for i in range(number)]))["worst"]
    seen = [axes for axes in plot.figure.axes if axes.get_visible()]
    assert (
        len(seen) == number and sweep_plots.columns_for(number) == columns and len(plot.figure.axes) == columns * rows
    )
    below = [axes for axes in seen if axes.get_xlabel()]
    assert len(below) == columns, "each column says once what its axis is"
    assert plot.figure.get_figwidth() == (plots.SINGLE if number == 1 else plots.DOUBLE)


def test_a_stage_that_changes_something_has_panels_of_its_own():
    facts = grids.budget()
    for cell in facts["cells"]:
        for name in ("mean", "worst", "over_single_task", "success"):
            cell[name]["realigned"] = cell[name]["fused_received"] and cell[name]["fused_received"] + 0.01
    facts |= figures(facts)
    panels = drawn(facts)["worst"].figure.axes
    assert [panel.get_title() for panel in panels] == ["ipm, fused received", "ipm, realigned"]
    assert lines(panels[1])["mean"].get_ydata()[0] == pytest.approx(0.915)
    assert [panel.get_xlabel() for panel in panels] == ["", "share of Byzantine clients"]


def test_beyond_eight_lines_none_looks_like_another():
    looks = sweep_plots.looks([str(i) for i in range(30)])
    assert len({(look["color"], look["marker"]) for look in looks.values()}) == 30


HEIGHTS = st.lists(st.floats(0, 1), min_size=1, max_size=9)


@given(HEIGHTS)
def test_an_axis_of_accuracy_holds_everything_and_makes_nothing_of_little(heights):
    low, high = sweep_plots.span([*heights, None])
    assert 0 <= low <= min(heights) and max(heights) <= high <= 1
    assert high - low >= 0.3 - 1e-9 or low == 0


COSTS = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1)), min_size=1, max_size=12)


@given(COSTS)
def test_the_front_is_what_no_point_beats(points):
    found = sweep_plots.front(points)

    def beaten(point):
        return any(o[0] <= point[0] and o[1] >= point[1] and o != point for o in points)

    assert set(found) == {point for point in points if not beaten(point)}
    assert found == sorted(found) and sorted(score for _, score in found) == [score for _, score in found]


@given(COSTS)
def test_what_is_beaten_does_not_change_the_front(points):
    front = sweep_plots.front(points)
    assume(len(front) < len(points))
    worse = [(cost + 1, score) for cost, score in front]
    assert sweep_plots.front([*points, *worse]) == front


def test_nmse_by_the_power_of_the_jammer():
    plot = drawn(grids.jammed())["nmse"]
    (panel,) = plot.figure.axes
    (line,) = panel.lines  # the fusion does not change what is received
    assert list(line.get_xdata()) == [-10, 0, 10, 20] and list(line.get_ydata()) == [-22, -12, -2, 8]
    assert plot.finding == "-22.0 dB at -10 dB, 8.0 dB at 20 dB. Lower is better."


def test_little_noise_is_not_drawn_as_much():
    facts = grids.sweep(
        {"channel.jsr_db": ["0", "10"]}, lambda p: 0.5, nmse_db=lambda p: float(p["channel.jsr_db"]) / 1000
    )
    low, high = drawn(facts)["nmse"].figure.axes[0].get_ylim()
    assert high - low == pytest.approx(3.0) and low < 0 and high > 0.01


def test_one_line_without_an_attack_needs_no_legend_and_no_reference():
    facts = grids.sweep({"rounds": ["1", "2"]}, lambda p: 0.25 * int(p["rounds"]))
    for cell in facts["cells"]:
        cell["attack"] = "none"
    found = drawn(facts | figures(facts))["worst"]
    (panel,) = found.figure.axes
    assert not found.figure.legends and len(panel.lines) == 1 and panel.get_title() == ""
    assert found.finding == "At rounds 2 — 0.500. Lines: means over seeds."


def test_what_changes_the_nmse_has_lines_of_its_own():
    axes = {"channel.snr_db": ["20", "0"], "payload": ["factors", "product"], "fusion": ["a", "b"]}
    facts = grids.sweep(
        axes, lambda p: 0.5, nmse_db=lambda p: -float(p["channel.snr_db"]) + 3 * (p["payload"] == "product")
    )
    assert sweep_plots.nmse_levels(facts, "channel.snr_db") == {
        "payload=factors": {0.0: 0.0, 20.0: -20.0},
        "payload=product": {0.0: 3.0, 20.0: -17.0},
    }


def test_there_is_no_plot_of_what_is_not_known_or_does_not_vary():
    assert set(drawn(grids.budget())) == {"worst", "mean"}
    facts = grids.sweep({"channel.jsr_db": ["0", "10"]}, lambda p: 0.5)
    assert "nmse" not in drawn(facts)
    assert set(drawn(grids.jammed())) == {"worst", "mean", "nmse", "by-mbit", "by-energy-j"}  # not by air time


def test_accuracy_by_cost_and_its_front():
    plot = drawn(grids.jammed())["by-mbit"]
    (panel,) = plot.figure.axes
    own = lines(panel)
    assert list(own["fusion=tsv"].get_xdata()) == [3] * 4
    assert list(own["front"].get_xdata()) == [1, 2, 3]
    best = [(1 + 0.8 + gain + 0.05 / 3) / 2 for gain in grids.FUSIONS.values()]
    assert list(own["front"].get_ydata()) == pytest.approx(best)
    assert "The cheapest point has an accuracy of 0.908 for 1 Mbit, the best 0.968 for 3 Mbit" in plot.finding
    assert "0.968 for 0.5 J, and none is better" in drawn(grids.jammed())["by-energy-j"].finding


def test_costs_of_several_decades_are_on_a_logarithmic_axis():
    facts = grids.sweep({"rounds": ["1", "100"]}, lambda p: 0.5, energy_j=lambda p: float(p["rounds"]))
    assert drawn(facts)["by-energy-j"].figure.axes[0].get_xscale() == "log"


def test_every_line_has_a_colour_of_okabe_and_ito():
    (panel,) = drawn(grids.budget())["worst"].figure.axes
    known = {to_hex(look["color"]) for look in plots.LOOKS}
    assert {to_hex(line.get_color()) for line in panel.lines} <= known
