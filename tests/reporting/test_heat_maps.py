import grids
import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb

from fedfusion.reporting import heat_maps
from fedfusion.reporting.figures import figures


def texts(plot):
    """Text of each cell by its place, row from above."""
    (axes,) = plot.figure.axes
    return {(round(t.get_position()[1] - 0.5), round(t.get_position()[0] - 0.5)): t.get_text() for t in axes.texts}


def test_of_three_keys_the_budget_is_at_its_hardest():
    (plot,) = heat_maps.pictures(grids.budget(attacks=("ipm", "alie")))
    (axes,) = plot.figure.axes
    assert plot.name == "heat-defence-attack"
    assert [t.get_text() for t in axes.get_yticklabels()] == list(grids.SLOPES)
    assert [t.get_text() for t in axes.get_xticklabels()] == ["ipm", "alie"]
    assert texts(plot)[0, 0] == "0.185" and texts(plot)[4, 1] == "0.882" and len(texts(plot)) == 10
    assert plot.finding == (
        "Highest 0.882 (task_aware, alie), lowest 0.185 (mean, ipm), at share of Byzantine clients 0.45; "
        "mean over seeds."
    )
    assert axes.yaxis_inverted()


def test_of_two_keys_it_shows_all_and_numbers_are_in_order():
    facts = grids.jammed()
    facts["axes"]["channel.jammer.jsr_db"] = ["20", "-10", "10", "0"]
    (plot,) = heat_maps.pictures(facts)
    (axes,) = plot.figure.axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["-10", "0", "10", "20"]
    assert texts(plot)[3, 2] == "0.637"  # 0.7 - 0.2 + 0.12, and seeds add 0, 0.01 and 0.04
    assert "Highest 0.937 (-10, tsv), lowest 0.517 (20, linear); mean over seeds." == plot.finding


def test_of_more_keys_each_two_have_one_and_the_others_are_averaged():
    axes = {"attack": ["a", "b"], "attack.f": ["0", "2"], "defence": ["mean", "clip"], "fusion": ["x", "y"]}
    score = {"a": 0.1, "b": 0.2, "mean": 0.0, "clip": 0.3, "x": 0.0, "y": 0.4, "0": 9.0, "2": 0.0}
    facts = grids.sweep(axes, lambda p: sum(score[value] for value in p.values()))
    found = {plot.name: plot for plot in heat_maps.pictures(facts)}
    assert set(found) == {"heat-attack-defence", "heat-attack-fusion", "heat-defence-fusion"}
    assert texts(found["heat-attack-defence"])[1, 1] == "0.700"  # 0.2 + 0.3 + the mean of 0 and 0.4
    assert found["heat-attack-defence"].finding.endswith(
        ", at number of Byzantine clients 2, mean over fusion; mean over seeds."
    )


def test_what_is_missing_is_no_number():
    facts = grids.budget(attacks=("ipm", "alie"))
    for cell in facts["cells"]:
        if cell["point"]["defence"] == "krum" and cell["attack"] == "alie":
            cell["error"] = "too hot"
    (plot,) = heat_maps.pictures(facts | figures(facts))
    assert texts(plot)[2, 1] == "–" and texts(plot)[2, 0] == "0.365"


def test_one_key_makes_no_map():
    assert heat_maps.pictures(grids.sweep({"attack.f": ["0", "1"], "seed": ["0", "1"]}, lambda p: 0.5)) == []


def test_many_columns_take_the_whole_width_and_long_names_are_slanted():
    axes = {"defence": [f"a_rather_long_name_{i}" for i in range(9)], "fusion": [f"also_long_{i}" for i in range(9)]}
    (plot,) = heat_maps.pictures(grids.sweep(axes, lambda p: 0.5))
    assert plot.wide and plot.figure.axes[0].get_xticklabels()[0].get_rotation() == 30


@pytest.mark.parametrize("colours", [heat_maps.COLOURS])
def test_text_is_readable_on_every_colour(colours):
    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    for share in np.linspace(0, 1, 300):
        ground = colormaps[colours](share)
        low, high = sorted([luminance(ground[:3]), luminance(heat_maps.ink(*to_rgb(ground)))])
        assert (high + 0.05) / (low + 0.05) >= 4.5
