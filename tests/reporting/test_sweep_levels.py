import grids
import pytest

from fedfusion.reporting import sweep_levels, sweep_plots
from fedfusion.reporting.figures import figures


def worst(facts):
    return next(plot for plot in sweep_plots.pictures(facts) if plot.name == "worst")


def lines(axes, label):
    """The line of this label, and those that follow it without one."""
    labels = [line.get_label() for line in axes.lines]
    after = labels.index(label) + 1
    more = [i for i in range(after, len(labels)) if all(name.startswith("_") for name in labels[after : i + 1])]
    return [axes.lines[i] for i in (after - 1, *more)]


@pytest.mark.parametrize("name, height", [("worst", 0.31), ("mean", 0.41)])
def test_the_base_is_dotted_across_and_named(name, height):
    facts = grids.with_base(grids.budget(seeds=("0", "1", "2")))
    plot = next(plot for plot in sweep_plots.pictures(facts) if plot.name == name)
    (panel,) = plot.figure.axes
    (base,), (free,) = lines(panel, "base"), lines(panel, "no attack")
    assert list(base.get_ydata()) == pytest.approx([height, height]) and list(base.get_xdata()) == [0, 1]
    assert base.get_marker() == "" and base._dash_pattern[1] != free._dash_pattern[1]
    assert [text.get_text() for text in plot.figure.legends[0].get_texts()][-2:] == ["no attack", "base"]
    assert (
        f"The base: {height:.3f}." in plot.finding and "dotted: the base, the model without an adapter" in plot.finding
    )


def test_what_older_sweeps_do_not_know_is_neither_drawn_nor_said():
    plot = worst(grids.budget())
    assert "base" not in plot.finding and "base" not in [line.get_label() for line in plot.figure.axes[0].lines]


def test_the_axis_holds_the_base():
    (panel,) = worst(grids.with_base(grids.jammed(), worst=0.05)).figure.axes
    assert panel.get_ylim()[0] == 0.0
    (panel,) = worst(grids.jammed()).figure.axes
    assert panel.get_ylim()[0] == 0.4


def test_a_seed_that_failed_at_one_point_makes_no_second_base():
    facts = grids.with_base(grids.budget(seeds=("0", "1", "2")))
    facts["cells"][0]["error"] = "ValueError: too hot"
    (base,) = lines(worst(facts | figures(facts)).figure.axes[0], "base")
    assert list(base.get_ydata()) == pytest.approx([0.31, 0.31])


def test_what_changes_the_base_has_a_base_of_its_own():
    facts = grids.sweep({"rounds": ["1", "2"], "model": ["a", "b"]}, lambda p: 0.5)
    for cell in facts["cells"]:
        cell["worst"]["base"] = cell["mean"]["base"] = {"a": 0.2, "b": 0.3}[cell["point"]["model"]]
    own = lines(worst(facts | figures(facts)).figure.axes[0], "base")
    assert [line.get_ydata()[0] for line in own] == [0.2, 0.3] and own[0].get_color() != own[1].get_color()
    assert "The base: 0.200 to 0.300." in worst(facts | figures(facts)).finding
    facts = grids.sweep({"model.layers": ["1", "2"]}, lambda p: 0.5)
    for cell in facts["cells"]:
        cell["worst"]["base"] = cell["mean"]["base"] = 0.1 * int(cell["point"]["model.layers"])
    (base,) = lines(worst(facts | figures(facts)).figure.axes[0], "base")
    assert list(base.get_xdata()) == [1.0, 2.0] and list(base.get_ydata()) == [0.1, 0.2]


def test_a_level_without_an_attack_is_said_only_where_there_is_one():
    facts = grids.sweep({"attack.fraction": ["0.2", "0.4"], "defence": ["krum", "clip"]}, lambda p: 0.5)
    plot = worst(facts)
    assert "no attack" not in [line.get_label() for line in plot.figure.axes[0].lines]
    assert "dashed" not in plot.finding and "without an attack" not in plot.finding
    assert "dashed without markers: the undefended run without an attack." in worst(grids.budget()).finding


def test_at_another_power_the_level_is_that_of_the_same_and_nobody_is_undefended():
    facts = grids.sweep({"attack": ["none", "ipm"], "channel.jsr_db": ["0", "10"]}, lambda p: 0.5)
    for cell in facts["cells"]:
        cell["byzantine"] = [0] if cell["attack"] == "ipm" else []
    said = worst(facts | figures(facts)).finding
    assert "dashed without markers: the same setting without an attack at the same channel.jsr_db." in said
    assert "The same setting without an attack at the same channel.jsr_db: 0.500." in said and "ndefended" not in said


def test_no_level_is_beyond_what_is_drawn():
    facts = grids.with_base(grids.budget(attacks=("ipm", "alie")))
    found = sorted(set(sweep_levels.heights(facts["points"], ["fused_received"])))
    assert found == pytest.approx([0.305, 0.405, 0.905, 0.9525])


def test_what_nobody_attacks_is_not_compared_with_itself():
    facts = grids.sweep({"rounds": ["1", "2"]}, lambda p: 0.5)
    assert sweep_levels.heights(facts["points"], ["fused_received"]) == []


def test_the_base_of_what_is_realigned_is_realigned_too():
    facts = grids.with_base(grids.budget(), worst=0.3)
    for cell in facts["cells"]:
        for name in ("mean", "worst", "over_single_task", "success"):
            cell[name]["realigned"] = cell[name]["fused_received"] and cell[name]["fused_received"] + 0.01
        cell["worst"]["control"] = cell["mean"]["control"] = 0.35
    plot = worst(facts | figures(facts))
    heights = [lines(panel, "base")[0].get_ydata()[0] for panel in plot.figure.axes]
    assert heights == pytest.approx([0.305, 0.35])
    assert "The base, realigned: 0.350." in plot.finding
    assert "the model without an adapter, realigned where the others are." in plot.finding
