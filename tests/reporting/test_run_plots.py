import copy
import re

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from fedfusion.reporting import plots, run_plots

CLIENTS = {"bits": 100e6, "energy_j": 0.5, "latency_s": 0.1}


def record(server_round, realigned, **uplink):
    means = {"single_task": 0.9, "personal": 0.8, "fused_received": 0.5, "realigned": realigned}
    parts = {"mean": {}, "product_nmse_db": None, "fused": {"nmse_db": None}, "duration_s": None, "clients": {}}
    return {"round": server_round, "mean": means, "nmse_db": None, "uplink": parts | uplink}


def metrics(*records, **more):
    """Two tasks, of which the realigned model has 0.7 in the mean."""
    stages = {"base": 0.1, "single_task": 0.9, "personal": 0.8, "fused_clean": 0.6, "fused_received": 0.5}
    tasks = {
        name: {stage: {"accuracy": score + add} for stage, score in (stages | {"realigned": 0.7}).items()}
        for name, add in (("easy-one", 0.05), ("hard-one", -0.05))
    }
    mean = stages | {"realigned": 0.7}
    rounds = list(records) or [record(1, 0.65), record(2, 0.7)]
    return {"measure": "accuracy", "tasks": tasks, "mean": mean, "rounds": rounds} | more


def line(plot, label, panel=0):
    return next(line for line in plot.figure.axes[panel].lines if line.get_label() == label)


def labels(plot):
    return [text.get_text() for text in plot.figure.legends[0].get_texts()]


def named(plots):
    return {plot.name: plot for plot in plots}


def test_only_what_there_is_to_see_is_drawn():
    assert list(named(run_plots.drawn(metrics(record(1, 0.7))))) == ["by_task"]
    assert list(named(run_plots.drawn(metrics()))) == ["by_task", "by_round"]
    found = metrics(
        spectra={"fused": [0.9, 0.1]}, relation={"of": "clients", "tasks": ["a", "a"], "weights": [[0, 1]] * 2}
    )
    assert list(named(run_plots.drawn(found))) == ["by_task", "by_round", "spectra", "relation"]


def test_what_is_of_the_last_round_says_so_where_another_is_kept():
    found = {
        "spectra": {"fused": [0.9, 0.1]},
        "relation": {"of": "clients", "tasks": ["a", "a"], "weights": [[0, 1]] * 2},
    }
    drawn = named(run_plots.drawn(metrics(kept_round=1, **found)))
    for name in ("spectra", "relation"):
        assert drawn[name].finding.endswith(". It is of round 2, the last; the adapter that is kept is of round 1.")
    same = named(run_plots.drawn(metrics(kept_round=2, **found)))
    assert not any("adapter that is kept" in plot.finding for plot in same.values())


def test_a_dot_for_every_stage_on_every_task_and_in_the_mean():
    plot = run_plots.by_task(metrics())
    assert list(line(plot, "realigned").get_xdata()) == pytest.approx([0.75, 0.65, 0.7])
    assert len(line(plot, "base").get_xdata()) == 3
    heights = [line(plot, label).get_ydata() for label in ("base", "single task", "realigned")]
    assert len({tuple(ys) for ys in heights}) == 3, "equal scores do not hide each other"
    assert all(abs(y - row) < 0.4 for ys in heights for row, y in enumerate(ys))
    axes = plot.figure.axes[0]
    markers = sorted(line(plot, label).get_ydata()[0] for label in labels(plot))
    apart = [axes.transData.transform((0, y))[1] for y in markers]
    points = [abs(a - b) * 72 / plot.figure.dpi for a, b in zip(apart, apart[1:], strict=False)]
    assert min(points) > plots.STYLE["lines.markersize"], "seven stages do not become one blob"
    assert [text.get_text() for text in plot.figure.axes[0].get_yticklabels()] == ["easy-one", "hard-one", "mean"]
    assert plot.finding == (
        "The realigned model reaches 0.700 in the mean, least on hard-one (0.650) and most on easy-one (0.750); each "
        "device's own adapter reaches 0.900."
    )


def test_a_task_of_which_nobody_was_heard_has_fewer_dots():
    silent = metrics()
    del silent["tasks"]["hard-one"]["single_task"], silent["tasks"]["hard-one"]["realigned"]
    plot = run_plots.by_task(silent)
    assert len(line(plot, "single task").get_xdata()) == 2 and "least on easy-one" in plot.finding


def test_a_stage_that_did_nothing_is_left_out():
    same = metrics()
    for scores in same["tasks"].values():
        scores["realigned"] = scores["fused_received"]
    assert "realigned" not in run_plots.stages(same) and run_plots.final(same) == "fused_received"
    assert "fused_clean" in run_plots.stages(same) and run_plots.final(metrics()) == "realigned"


def test_lines_by_round_say_where_they_go_and_what_no_round_changes_lies_across():
    plot = run_plots.by_round(metrics(record(1, 0.65), record(2, 0.75), record(3, 0.7)))
    assert list(line(plot, "realigned").get_ydata()) == [0.65, 0.75, 0.7]
    assert list(line(plot, "base").get_ydata()) == [0.1, 0.1]
    assert plot.finding == (
        "From round 1 to round 3 the realigned model goes from 0.650 to 0.700; its best is 0.750 in round 2."
    )
    low, high = plot.figure.axes[0].get_ylim()
    assert low < 0.1 and 0.9 < high <= 1.01


def test_small_differences_are_not_made_large_and_no_limit_is_beyond_what_a_score_can_be():
    low, high = run_plots._limits([0.701, 0.702])
    assert high - low >= 0.0999 and low < 0.701 < 0.702 < high
    assert run_plots._limits([0.0, None, 1.0]) == (-0.01, 1.01)


def test_costs_add_up_over_the_rounds_and_over_the_clients():
    radio = {"mean": {"bler": 0.1}, "clients": {"0": CLIENTS, "1": CLIENTS}, "duration_s": 0.2}
    slower = radio | {"duration_s": 0.3}
    drawn = named(run_plots.by_cost(metrics(record(1, 0.65, **radio), record(2, 0.7, **slower))))
    assert list(drawn) == ["by_bits", "by_energy", "by_air_time"]
    assert list(line(drawn["by_bits"], "realigned").get_xdata()) == pytest.approx([200, 400])
    assert list(line(drawn["by_energy"], "realigned").get_xdata()) == [1.0, 2.0]
    assert list(line(drawn["by_air_time"], "personal").get_xdata()) == [0.2, 0.5]
    assert drawn["by_energy"].finding == (
        "The realigned model has 0.700 after 2 J, and 0.650 after the 1 J of the first round."
    )
    assert drawn["by_air_time"].figure.axes[0].get_xlim()[0] == 0


def test_costs_in_proportion_to_the_air_time_are_named_and_not_drawn_again():
    radio = {"mean": {"bler": 0.1}, "clients": {"0": CLIENTS}, "duration_s": 0.2}
    (plot,) = run_plots.by_cost(metrics(record(1, 0.65, **radio), record(2, 0.7, **radio)))
    assert plot.name == "by_air_time" and plot.finding.endswith(
        "; by information sent (200 Mbit in all) or transmit energy (1 J in all) the lines are the same."
    )
    offset = plot.figure.axes[0].xaxis.get_major_formatter()
    assert "$" not in "".join(offset.format_ticks([0.0, 0.001]))


def test_side_information_alone_is_no_information_sent_and_an_ideal_uplink_costs_nothing():
    radio = {"mean": {"sinr_db": 3.0}, "clients": {"0": CLIENTS}, "duration_s": 0.2}
    assert list(named(run_plots.by_cost(metrics(record(1, 0.7, **radio))))) == ["by_air_time"]
    assert not run_plots.by_cost(metrics())


def test_errors_by_round_with_gaps_where_nothing_arrived():
    noisy = {"mean": {"privacy_nmse_db": -3.0}, "product_nmse_db": 1.0, "fused": {"nmse_db": -4.0}}
    records = [record(1, 0.65, **noisy) | {"nmse_db": 2.0}, record(2, 0.7, **noisy) | {"nmse_db": None}]
    plot = run_plots.by_error(metrics(*records))
    first, second = line(plot, "uploads").get_ydata()
    assert first == 2.0 and second != second
    assert plot.finding.startswith(
        "Error relative to the power of the change, in the last round: uploads 2.0 dB in round 1, the last "
        "that has one, their products 1.0 dB, fused products -4.0 dB, privacy noise -3.0 dB"
    )
    assert run_plots.by_error(metrics()) is None


def test_one_round_is_one_tick():
    (axes,) = run_plots.by_error(metrics(record(1, 0.7) | {"nmse_db": 2.0})).figure.axes
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_every_picture_fits_one_column_says_a_number_and_cuts_nothing_off():
    radio = {"mean": {"bler": 0.1}, "clients": {"0": CLIENTS}, "duration_s": 0.2, "product_nmse_db": 1.0}
    records = [record(i + 1, 0.6 + i / 100, **radio) for i in range(10)]
    spectra = {f"task {i}": [0.9, 0.1] for i in range(5)} | {"fused": [0.5, 0.5]}
    relation = {"of": "clients", "tasks": [f"a-long-name-{i // 2}" for i in range(16)], "weights": [[1] * 16] * 16}
    many = copy.deepcopy(metrics(*records, spectra=spectra, relation=relation))
    for i in range(30):
        many["tasks"][f"another-task-{i}"] = many["tasks"]["easy-one"]
    drawn = run_plots.drawn(many)
    assert len(drawn) == 6
    for plot in drawn:
        assert plot.figure.get_figwidth() == plots.SINGLE and not plot.wide and re.search(r"\d", plot.finding)
        with plots.drawing():
            renderer = FigureCanvasAgg(plot.figure).get_renderer()
            plot.figure.draw(renderer)
        boxes = [text.get_window_extent(renderer) for axes in plot.figure.axes for text in axes.texts]
        boxes += [axes.get_tightbbox(renderer) for axes in plot.figure.axes]
        boxes += [legend.get_window_extent(renderer) for legend in plot.figure.legends]
        width, height = plot.figure.bbox.size
        assert all(box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1 for box in boxes), (
            plot
        )
