import json
from pathlib import Path

import grids
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedfusion.reporting import figures as report
from fedfusion.reporting import kept
from fedfusion.reporting.sweep_tables import legend, tables


def cell(
    worst, mean=0.8, *, byzantine=(), error=None, realigned=None, attack="alie", accepted=None, refused=None, **point
):
    """A cell of 8 clients whose point has `attack.f` unless it is given another budget."""
    point = {key.replace("__", "."): str(value) for key, value in point.items()}
    facts = {"attack": attack, "point": point, "run": 0, "repeats": False, "error": error}
    if error:
        return facts
    realigned = worst if realigned is None else realigned
    return facts | {
        "num_clients": 8,
        "byzantine": list(byzantine),
        "mean": {"fused_received": mean, "realigned": mean},
        "worst": {"fused_received": worst, "realigned": realigned},
        "over_single_task": {"fused_received": 0.9, "realigned": 0.9},
        "success": {"fused_received": None, "realigned": None},
        "accepted_honest": accepted,
        "refused_byzantine": refused,
        "wall_time_s": 1.0,
    }


def grid(cells):
    """The facts of a sweep over what the points of its cells differ in."""
    axes = {}
    for one in cells:
        for key, value in one["point"].items():
            axes.setdefault(key, {})[value] = None
    return {"command": "fedfusion sweep", "axes": {k: list(v) for k, v in axes.items() if len(v) > 1}, "cells": cells}


def with_figures(cells):
    facts = grid(cells)
    return facts | report.figures(facts)


def defended():
    """Two seeds, two attacks, budgets 0, 1, 2; `mean` breaks at once under alie, `clip` only at 2 and at a cost."""
    worst = {
        ("alie", "mean"): [(0.70, 0.80), (0.60, 0.70), (0.50, 0.52)],
        ("alie", "clip"): [(0.72, 0.74), (0.71, 0.74), (0.60, 0.62)],
        ("ipm", "mean"): [(0.70, 0.80), (0.75, 0.75), (0.75, 0.75)],
        ("ipm", "clip"): [(0.72, 0.74), (0.75, 0.75), (0.75, 0.75)],
    }
    average = {"mean": (0.80, 0.90), "clip": (0.78, 0.88)}
    return [
        cell(
            scores[seed],
            average[defence][seed] - 0.05 * f,
            attack=attack,
            byzantine=range(f),
            accepted=1.0 if f == 0 else 0.5 + 0.25 * seed,
            refused=None if f == 0 else 0.5 * f,
        )
        | {"point": {"attack": attack, "attack.f": str(f), "defence": defence, "seed": str(seed)}}
        for (attack, defence), by_budget in worst.items()
        for f, scores in enumerate(by_budget)
        for seed in (0, 1)
    ]


def line(facts, attack, name):
    (found,) = [line for line in facts["lines"] if (line["attack"], line["line"]) == (attack, name)]
    return found


def point(facts, attack, name, budget):
    (found,) = [p for p in facts["points"] if (p["attack"], p["line"], p["budget"]) == (attack, name, budget)]
    return found


def test_points_are_means_and_ranges_over_seeds():
    facts = with_figures(defended())
    found = point(facts, "alie", "mean", 1.0)
    assert facts["budget"] == "attack.f" and len(facts["points"]) == 12 and found["runs"] == 2
    assert found["worst"]["fused_received"] == pytest.approx(0.65)
    assert found["mean"]["fused_received"] == pytest.approx(0.8)
    assert found["range"]["worst"]["fused_received"] == [0.60, 0.70]
    assert found["over_single_task"]["fused_received"] == pytest.approx(0.9)


def test_the_breakdown_point_is_the_least_budget_more_than_3_points_below_the_undefended_run_without_attack():
    facts = with_figures(defended())  # which has 0.75
    assert line(facts, "alie", "mean")["breakdown"]["fused_received"] == 1.0
    assert line(facts, "alie", "clip")["breakdown"]["fused_received"] == 2.0
    assert line(facts, "ipm", "clip")["breakdown"]["fused_received"] is None
    assert line(facts, "ipm", "clip")["comparable"]


@pytest.mark.parametrize("worst, broken", [(0.67, None), (0.6699, 1.0)])
def test_exactly_3_points_are_not_more_than_3(worst, broken):
    cells = [cell(0.70, attack__f=0), cell(worst, attack__f=1, byzantine=[0])]
    assert with_figures(cells)["lines"][0]["breakdown"]["fused_received"] == broken


def test_a_defence_that_costs_more_than_3_points_is_broken_without_an_attack():
    cells = [cell(0.70, attack__f=f, defence="mean", byzantine=range(f)) for f in (0, 1)]
    cells += [cell(0.60, attack__f=f, defence="krum", byzantine=range(f)) for f in (0, 1)]
    assert line(with_figures(cells), "alie", "krum")["breakdown"]["fused_received"] == 0.0


def test_the_cost_without_attack_is_the_mean_accuracy_lost_against_the_undefended_run():
    facts = with_figures(defended())
    assert line(facts, "alie", "clip")["no_attack_cost"]["fused_received"] == pytest.approx(0.02)
    assert line(facts, "alie", "mean")["no_attack_cost"]["fused_received"] == 0.0


def test_what_the_defence_accepted_and_refused_is_the_mean_over_budgets_under_attack():
    found = line(with_figures(defended()), "alie", "clip")
    assert found["accepted_honest"] == pytest.approx(0.625) and found["refused_byzantine"] == pytest.approx(0.75)


def test_without_an_undefended_run_nothing_is_compared():
    facts = with_figures([c for c in defended() if c["point"]["defence"] == "clip" or c["byzantine"]])
    assert not line(facts, "alie", "clip")["comparable"] and line(facts, "alie", "clip")["breakdown"] == {
        "fused_received": None,
        "realigned": None,
    }
    assert line(facts, "alie", "clip")["no_attack_cost"]["fused_received"] is None


def test_a_jammer_is_compared_at_its_own_power():
    cells = [
        cell(worst, attack=attack, byzantine=byzantine) | {"point": {"attack": attack, "channel.jsr_db": jsr}}
        for jsr, clean, attacked in (("0", 0.8, 0.79), ("10", 0.6, 0.58), ("20", 0.4, 0.3))
        for attack, worst, byzantine in (("none", clean, ()), ("alie", attacked, (0, 1)))
    ]
    facts = with_figures(cells)
    assert facts["budget"] == "channel.jsr_db"
    assert [p["lost"]["fused_received"] for p in facts["points"]] == pytest.approx([0.01, 0.02, 0.1])
    assert facts["lines"][0]["attack"] == "alie" and facts["lines"][0]["breakdown"]["fused_received"] == 20.0


def test_less_of_an_snr_is_harder():
    worst = {"20": (0.8, 0.79), "10": (0.7, 0.66), "0": (0.6, 0.4)}
    cells = [
        cell(score, attack=attack, byzantine=hostile) | {"point": {"attack": attack, "channel.snr_db": snr}}
        for snr, (clean, attacked) in worst.items()
        for attack, score, hostile in (("none", clean, ()), ("alie", attacked, (0, 1)))
    ]
    facts = with_figures(cells)
    assert facts["lines"][0]["breakdown"]["fused_received"] == 10.0
    (_, header, rows), *_ = tables(facts)
    assert rows[0][header.index("breaks at")] == "10"
    assert "breaks at: the highest SNR at which" in legend(facts)[0] and "< where the sweep" in legend(facts)[0]
    for one in cells:
        one["worst"]["fused_received"] = one["worst"]["realigned"] = 0.8
    (_, header, rows), *_ = tables(with_figures(cells))
    assert rows[0][header.index("breaks at")] == "<0"


def test_without_numbers_the_budget_is_the_share_of_byzantine_clients():
    cells = [
        cell(worst, attack=attack, byzantine=byzantine) | {"point": {"attack": attack, "seed": seed}}
        for attack, worst, byzantine in (("none", 0.8, ()), ("alie", 0.7, (0, 1)), ("ipm", 0.79, (3, 4)))
        for seed in ("0", "1")
    ]
    facts = with_figures(cells)
    assert [(p["attack"], p["budget"]) for p in facts["points"]] == [
        ("alie", 0.0),
        ("alie", 0.25),
        ("ipm", 0.0),
        ("ipm", 0.25),
    ]
    assert [found["breakdown"]["fused_received"] for found in facts["lines"]] == [0.25, None]


def test_other_keys_make_lines():
    cells = [
        cell(0.7) | {"point": {"attack.f": f, "defence": d, "attack.max_norm": m, "attack.tasks": t}}
        for f in "01"
        for d in ("mean", "clip")
        for m in ("1", "null")
        for t in ("[a]", "[b]")
    ]
    names = {found["line"] for found in with_figures(cells)["lines"]}
    assert len(names) == 8 and "clip, attack.max_norm=null, attack.tasks=[b]" in names


def test_a_failed_run_is_left_out_and_named():
    cells = defended()
    cells[2] = {**cells[2], "error": "Traceback\nValueError: too hot", "run": 7}
    facts = with_figures(cells)
    assert point(facts, "alie", "mean", 1.0)["runs"] == 1 and line(facts, "alie", "mean")["failed"] == 1
    assert "Run 7 failed: ValueError: too hot" in legend(facts)
    assert kept.row(cells[2])["error"] == "ValueError: too hot" and "failed: ValueError" in kept.in_short(cells[2])


def test_intervals_and_gains_are_over_seeds():
    facts = with_figures(defended())
    found = point(facts, "alie", "clip", 1.0)
    assert found["interval"]["worst"]["fused_received"] == pytest.approx(t_interval(0.71, 0.74))
    assert found["interval"]["mean"]["fused_received"] == pytest.approx(t_interval(0.73, 0.83))
    assert found["interval"]["success"]["fused_received"] is None
    assert found["by_seed"]["worst"]["fused_received"] == {"0": 0.71, "1": 0.74}
    gain = found["gain"]["fused_received"]  # 0.11 and 0.04: paired by seed
    assert (gain["mean"], gain["seeds"]) == (pytest.approx(0.075), 2)
    assert gain["interval"] == pytest.approx(t_interval(0.11, 0.04))
    assert point(facts, "alie", "mean", 1.0)["gain"]["fused_received"]["mean"] == 0.0
    assert found["no_attack"] == {
        "worst": {"fused_received": pytest.approx(0.75), "realigned": pytest.approx(0.75)},
        "mean": {"fused_received": pytest.approx(0.85), "realigned": pytest.approx(0.85)},
    }


def t_interval(*values):
    return list(stats.t.interval(0.95, len(values) - 1, sum(values) / len(values), stats.sem(values)))


def test_a_gain_is_over_the_undefended_run_of_the_same_attack_budget_and_seeds_only():
    cells = [c for c in defended() if not (c["point"]["defence"] == "mean" and c["point"]["seed"] == "0")]
    found = point(with_figures(cells), "alie", "clip", 2.0)["gain"]["fused_received"]
    assert found == {"mean": pytest.approx(0.62 - 0.52), "interval": None, "seeds": 1}
    cells = [c for c in defended() if c["point"]["defence"] != "mean" or c["point"]["attack.f"] == "1"]
    assert point(with_figures(cells), "alie", "clip", 2.0)["gain"]["fused_received"] is None


def test_the_undefended_line_of_each_line():
    cells = [
        cell(0.7) | {"point": {"attack.f": f, "fusion": fusion, "defence": defence}}
        for f in "01"
        for fusion in ("a", "b")
        for defence in ("mean", "clip")
    ]
    found = {line["line"]: line["undefended"] for line in with_figures(cells)["lines"]}
    assert found["fusion=b, clip"] == found["fusion=b, mean"] == "fusion=b, mean"
    assert {line["undefended"] for line in with_figures([cell(0.7, attack__f=0)])["lines"]} == {None}


def test_a_value_that_is_not_finite_makes_no_budget():
    cells = [cell(0.7) | {"point": {"channel.jsr_db": jsr, "attack.f": f}} for jsr in ("-inf", "10") for f in "01"]
    facts = with_figures(cells)
    assert facts["budget"] == "attack.f"
    assert {line["line"] for line in facts["lines"]} == {"channel.jsr_db=-inf", "channel.jsr_db=10"}


@settings(max_examples=30)
@given(st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=5), min_size=1, max_size=4))
def test_points_are_the_means_of_their_seeds_in_any_order(by_budget):
    cells = [
        cell(worst, attack__f=f, seed=seed) for f, scores in enumerate(by_budget) for seed, worst in enumerate(scores)
    ]
    facts, turned = with_figures(cells), with_figures(cells[::-1])
    for f, scores in enumerate(by_budget):
        budget = float(f) if len(by_budget) > 1 else 0.0
        for found in (point(facts, "alie", "", budget), point(turned, "alie", "", budget)):
            low, high = found["interval"]["worst"]["fused_received"]
            assert found["worst"]["fused_received"] == pytest.approx(sum(scores) / len(scores))
            assert found["range"]["worst"]["fused_received"] == [min(scores), max(scores)]
            assert low <= found["worst"]["fused_received"] + 1e-12 and found["worst"]["fused_received"] <= high + 1e-12
            assert found["runs"] == len(scores)


def test_the_known_answer():
    facts = grids.budget()
    best = point(facts, "ipm", "task_aware", 0.45)
    assert best["worst"]["fused_received"] == pytest.approx(0.86) and best["runs"] == 2
    assert best["gain"]["fused_received"]["mean"] == pytest.approx(0.675)
    assert best["gain"]["fused_received"]["interval"] == pytest.approx([0.675, 0.675])
    assert len(facts["cells"]) == 100 and len(facts["points"]) == 50


def test_a_sweep_of_before_there_were_intervals_has_the_same_means():
    file = Path(__file__).parents[2] / "experiments" / "resilience" / "budget.json"
    facts = json.loads(file.read_text())
    found = report.figures(facts)
    assert found["budget"] == facts["budget"]
    for old, new in zip(facts["points"], found["points"], strict=True):
        assert old == {key: value for key, value in new.items() if key in old}
        assert new["interval"]["worst"]["fused_received"] is None and new["energy_j"] is None
        assert new["base"]["worst"] == {"fused_received": {}, "realigned": {}}
    for old, new in zip(facts["lines"], found["lines"], strict=True):
        assert old == {key: value for key, value in new.items() if key in old}


def test_the_base_of_a_point_is_told_by_seed():
    cells = defended()
    for one in cells:
        one["worst"]["base"], one["mean"]["base"] = 0.1 + 0.1 * int(one["point"]["seed"]), 0.5
        one["worst"]["control"] = 0.3
    found = point(with_figures(cells), "ipm", "clip", 1.0)["base"]
    assert found["worst"] == {"fused_received": {"0": 0.1, "1": 0.2}, "realigned": {"0": 0.3, "1": 0.3}}
    assert found["mean"] == {"fused_received": {"0": 0.5, "1": 0.5}, "realigned": {}}
