import json

import pages
import pytest
from scipy import stats

from fedfusion.reporting import compare_runs

TASKS = ("a-task", "b-task")


def write(folder, seed, *accuracies, fusion="ties", realigned=None, **config):
    """A run of two rounds; `accuracies` are those of the tasks at the end, in the first round each had 0.1 less."""
    folder.mkdir(parents=True)

    def summed(scores):
        stages = {"fused_received": scores, "realigned": [s + (realigned or 0.0) for s in scores]}
        return {
            "tasks": {t: {n: {"accuracy": s[i], "loss": 1.0} for n, s in stages.items()} for i, t in enumerate(TASKS)},
            "mean": {name: sum(s) / len(s) for name, s in stages.items()},
            "worst": {name: min(s) for name, s in stages.items()},
        }

    rounds = [summed([a - 0.1 for a in accuracies]), summed(accuracies)]
    for record in rounds:
        record |= {"nmse_db": None, "uplink": {"clients": {}, "mean": {}, "duration_s": None}}
    attack = {"byzantine": [], "accepted_honest": 1.0, "refused_byzantine": None, "success": {}}
    metrics = {"measure": "accuracy", "num_clients": 4, "attack": attack, "rounds": rounds, **summed(accuracies)}
    facts = {
        "seed": seed,
        "metrics": metrics,
        "config": {"seed": seed, "fusion": {"name": fusion, "rank": 4}, "rounds": 2, "tracker": {"x": str(folder)}}
        | config,
        "wall_time_s": 3.0,
    }
    (folder / "results.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture
def four(tmp_path):
    """Two fusions and two seeds: B is above A by 0.05 and 0.07 in the mean, and by 0.04 and 0.06 on the worst task."""
    return [
        write(tmp_path / "t0", 0, 0.60, 0.70),
        write(tmp_path / "t1", 1, 0.50, 0.60),
        write(tmp_path / "u1", 1, 0.56, 0.68, fusion="tsv"),
        write(tmp_path / "u0", 0, 0.64, 0.76, fusion="tsv"),
    ]


def test_runs_that_differ_in_their_seed_alone_are_one_and_paired_by_it(four):
    found = compare_runs.compare(four)
    assert [letter for letter, _ in found.members] == ["A", "B"] and str(four[3]) in found.members[1][1]
    ((title, header, rows),) = found.tables
    assert title == "Scores and costs" and header == ["", "A", "B", "B − A", "B − A: 95 % interval"]
    table = {row[0]: row[1:] for row in rows}
    low, high = stats.t.interval(0.95, 1, 0.06, 0.01)
    assert table["mean, fused received"] == ["0.600", "0.660", "0.060", f"{low:.3f} to {high:.3f}"]
    low, high = stats.t.interval(0.95, 1, 0.05, 0.01)
    assert table["worst task, fused received"] == ["0.550", "0.600", "0.050", f"{low:.3f} to {high:.3f}"]
    assert table["b-task, fused received"][:3] == ["0.650", "0.720", "0.070"]
    assert found.answer == (
        "Accuracy, mean, fused received: B is 0.060 above A (-0.067 to 0.187; this holds zero: the two are not told "
        "apart). Accuracy, worst task, fused received: B is 0.050 above A (-0.077 to 0.177; this holds zero: the "
        "two are not told apart)."
    )


def test_the_keys_in_which_they_differ(four):
    found = compare_runs.compare(four)
    assert ["fusion.name", "ties", "tsv"] in found.differences
    assert not {"rounds", "fusion.rank"} & {row[0] for row in found.differences}
    machine = found.facts()
    assert {"key": "fusion.name", "A": "ties", "B": "tsv"} in machine["differences"]
    assert json.loads(json.dumps(machine))["members"]["A"] == f"{four[0]}, {four[1]}"


def test_single_runs_have_differences_without_intervals(four):
    found = compare_runs.compare([four[0], four[3]])
    ((_, header, rows),) = found.tables
    assert header == ["", "A", "B", "B − A"] and ["mean, fused received", "0.650", "0.700", "0.050"] in rows
    assert found.answer == (
        "Accuracy, mean, fused received: B is 0.050 above A. Accuracy, worst task, fused received: B is 0.040 above A."
        " One seed each: there are no intervals, and small differences may be chance (name the runs of more seeds too: "
        "those that differ in nothing else count as one)."
    )


def test_equal_runs_are_as_much_as_each_other(tmp_path):
    one, two = write(tmp_path / "a", 0, 0.5, 0.6), write(tmp_path / "b", 0, 0.5, 0.6, fusion="tsv")
    assert "Accuracy, mean, fused received: B is as much as A." in compare_runs.compare([one, two]).answer


def test_the_interval_of_a_cost_is_of_amounts(four):
    for i, folder in enumerate(four):
        facts = json.loads((folder / "results.json").read_text()) | {"wall_time_s": (2e-4, 3e-4, 5e-4, 6e-4)[i]}
        (folder / "results.json").write_text(json.dumps(facts))
    ((_, _, rows),) = compare_runs.compare(four).tables
    table = {row[0]: row[1:] for row in rows}
    assert table["wall time (s)"][:3] == ["0.00025", "0.00055", "0.0003"]
    assert table["wall time (s)"][3].endswith(" to 0.00157")


def test_costs_are_amounts_and_what_is_measured_is_named(tmp_path):
    folders = [write(tmp_path / "a", 0, 0.5, 0.6), write(tmp_path / "b", 0, 0.5, 0.7, fusion="tsv")]
    for folder, energy in zip(folders, (0.000573, 0.000101), strict=True):
        facts = json.loads((folder / "results.json").read_text())
        facts["metrics"]["measure"] = "exact match"
        facts["wall_time_s"] = 12345.6
        for record in facts["metrics"]["rounds"]:
            record["uplink"]["clients"] = {"0": {"energy_j": energy}}
        (folder / "results.json").write_text(json.dumps(facts))
    found = compare_runs.compare(folders)
    ((_, _, rows),) = found.tables
    table = {row[0]: row[1:] for row in rows}
    assert table["transmit energy (J)"] == ["0.00115", "0.000202", "-0.000944"]
    assert table["wall time (s)"] == ["12,346", "12,346", "0"]
    assert found.answer.startswith("Exact match, mean") and [p.title for p in found.plots] == [
        "Exact match by round", "Exact match by task",
    ]  # fmt: skip
    assert found.plots[0].figure.axes[0].get_ylabel() == found.plots[1].figure.axes[0].get_xlabel()
    assert found.plots[1].figure.axes[0].get_xlabel() == "exact match, fused received"


def test_less_is_said_to_be_less(four):
    assert "B is 0.060 below A (-0.187 to 0.067;" in compare_runs.compare([*four[2:], *four[:2]]).answer


def test_runs_of_one_configuration_are_compared_with_each_other(four):
    found = compare_runs.compare(four[:2])
    assert found.differences[0] == ["seed", "0", "1"] and len(found.members) == 2
    assert "B is 0.100 below A (of other seeds)" in found.answer


def test_other_keys_are_shown_where_only_one_has_them(tmp_path):
    one, two = write(tmp_path / "a", 0, 0.5, 0.5), write(tmp_path / "b", 0, 0.5, 0.5, channel={"snr_db": 3.0})
    assert ["channel.snr_db", "–", "3"] in compare_runs.compare([one, two]).differences


def test_settings_that_are_equal_are_so_however_they_are_written(tmp_path):
    one = write(tmp_path / "a", 0, 0.5, 0.5, fraction=1, channel={"jsr_db": float("-inf")})
    two = write(tmp_path / "b", 1, 0.5, 0.5, fraction=1.0, channel={"jsr_db": "-inf"})
    three = write(tmp_path / "c", 0, 0.6, 0.6, fraction=0.5, channel={"jsr_db": "-inf"})
    found = compare_runs.compare([one, two, three])
    assert [len(runs.split(", ")) for _, runs in found.members] == [2, 1]
    assert [row for row in found.differences if row[0] in ("fraction", "channel.jsr_db")] == [["fraction", "1", "0.5"]]


def test_a_realignment_that_did_something_is_what_counts(tmp_path):
    one = write(tmp_path / "a", 0, 0.5, 0.6)
    two = write(tmp_path / "b", 0, 0.5, 0.6, realigned=0.2, realign="few_shot")
    assert "Accuracy, mean, realigned: B is 0.200 above A." in compare_runs.compare([one, two]).answer


def test_the_plots_lie_over_each_other(four):
    rounds, tasks = compare_runs.compare(four).plots
    mean, worst = rounds.figure.axes
    assert [line.get_label() for line in mean.lines] == ["A", "B"]
    assert list(mean.lines[1].get_xdata()) == [1, 2] and list(mean.lines[1].get_ydata()) == pytest.approx([0.56, 0.66])
    assert list(worst.lines[0].get_ydata()) == pytest.approx([0.45, 0.55])
    band = mean.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((0.45, 0.65))
    assert "B 0.560 after the first round and 0.660 after the last" in rounds.finding
    (axes,) = tasks.figure.axes
    assert list(axes.lines[1].get_xdata()) == pytest.approx([0.60, 0.72])
    assert [label.get_text() for label in axes.get_yticklabels()] == list(TASKS)


def test_the_page(four, tmp_path):
    compare_runs.compare(four).write(tmp_path / "compare.html")
    root = pages.check((tmp_path / "compare.html").read_text())
    assert root.all("h1")[0].text == "What is different between A and B?"
    assert len([e for e in root.all("svg") if not e.inside("svg")]) == 2 and ".pdf" not in root.text


def renamed(folder, **tasks):
    """A run with other names for its tasks."""
    facts = json.loads((folder / "results.json").read_text())
    for metrics in (facts["metrics"], *facts["metrics"]["rounds"]):
        metrics["tasks"] = {tasks.get(name[0], name): scores for name, scores in metrics["tasks"].items()}
    (folder / "results.json").write_text(json.dumps(facts))
    return folder


def test_scores_on_different_tasks_are_not_for_comparison(tmp_path):
    one, two = write(tmp_path / "a", 0, 0.5, 0.6), write(tmp_path / "b", 0, 0.5, 0.7, fusion="tsv")
    assert "same tasks" not in compare_runs.compare([one, two]).answer
    assert compare_runs.compare([one, renamed(two, b="c-task")]).answer.startswith(
        "These are not scores on the same tasks (A has b-task; B has c-task; 1 in common): what follows does not tell "
        "which is better. Accuracy, mean"
    )
    answer = compare_runs.compare([one, renamed(two, a="d-task")]).answer
    assert "(A has a-task, b-task; B has c-task, d-task; none in common)" in answer


def test_a_run_that_was_not_realigned_is_named_where_another_was(tmp_path):
    one = write(tmp_path / "a", 0, 0.5, 0.6)
    two = write(tmp_path / "b", 0, 0.5, 0.6, realigned=0.2, realign="few_shot")
    said = "What is called realigned of {} is as fused: it was not realigned, or that changed no score."
    answer = compare_runs.compare([one, two]).answer
    assert said.format("A") in answer and said.format("B") not in answer
    assert "as fused" not in compare_runs.compare([one, write(tmp_path / "c", 1, 0.5, 0.6)]).answer


def test_one_round_is_one_tick(tmp_path):
    folders = [write(tmp_path / "a", 0, 0.5, 0.6), write(tmp_path / "b", 0, 0.5, 0.7, fusion="tsv")]
    for folder in folders:
        facts = json.loads((folder / "results.json").read_text())
        del facts["metrics"]["rounds"][1:]
        (folder / "results.json").write_text(json.dumps(facts))
    for axes in compare_runs.compare(folders).plots[0].figure.axes:
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


@pytest.mark.slow
@pytest.mark.parametrize("width, dark", [(1200, False), (390, True)])
def test_the_page_in_a_browser(four, width, dark, tmp_path):
    compare_runs.compare(four).write(tmp_path / "compare.html")
    seen = pages.chromium(tmp_path / "compare.html", tmp_path, width, dark)
    assert seen.content <= seen.window == width and seen.picture.stat().st_size > 10_000
