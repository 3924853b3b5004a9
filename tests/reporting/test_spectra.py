import pytest

from fedfusion.reporting import plots, spectra


def drawn(found):
    with plots.drawing():
        return spectra.by_direction(found)


def test_spectra_say_how_many_directions_hold_nine_tenths():
    found = {"a": [0.95, 0.05], "b": [0.5, 0.3, 0.2], "fused": [0.4, 0.3, 0.2, 0.1]}
    plot = drawn(found)
    lines = {line.get_label(): line for line in plot.figure.axes[0].lines}
    assert list(lines["b"].get_ydata()) == pytest.approx([0.5, 0.8, 1.0])
    assert lines["fused"].get_markevery() == [2] and lines["b"].get_markevery() == [2]
    assert plot.finding == (
        "Ninety per cent of the energy of the fused change is in 3 directions of a layer, of the change of one task in "
        "1 to 3 (mean over the layers)."
    )
    alone = drawn({"fused": [1.0]})
    assert "in 1 directions" not in alone.finding and "one task" not in alone.finding


def test_many_tasks_share_one_entry_of_the_legend():
    found = {f"task {i}": [0.9, 0.1] for i in range(20)} | {"fused": [0.5, 0.5]}
    plot = drawn(found)
    assert [text.get_text() for text in plot.figure.legends[0].get_texts()] == ["each task", "fused"]


def test_a_task_is_in_the_legend_by_its_name_whatever_that_is():
    plot = drawn({r"_hid$\frac$": [0.9, 0.1], "fused": [0.5, 0.5]})
    assert [text.get_text().strip() for text in plot.figure.legends[0].get_texts()] == [r"_hid$\frac$", "fused"]
