import re

import grids

from fedfusion.reporting.figures import figures
from fedfusion.reporting.sweep_warnings import warnings


def of(facts, word):
    """Those warnings of the sweep, with its figures made anew, in which `word` is."""
    return [said for said in warnings(facts | figures(facts)) if word in said]


def test_of_a_sound_sweep_there_is_nothing_to_warn_of():
    assert warnings(grids.with_base(grids.budget(seeds=("0", "1", "2")))) == []


def test_where_nobody_needs_a_defence_it_is_said():
    facts = grids.budget()
    under = [cell for cell in facts["cells"] if cell["point"]["defence"] == "mean" and cell["byzantine"]]
    assert not any("Even the undefended run" in said for said in warnings(facts))
    under[0]["refused_byzantine"] = 0.4
    facts |= figures(facts)
    (said,) = (said for said in warnings(facts) if "Even the undefended run" in said)
    assert re.search(r"refuses up to (20|40)% of the Byzantine uploads", said)


def test_cells_that_never_learnt_are_told_from_those_that_did_not_always():
    facts = grids.budget()
    for cell in facts["cells"]:
        cell |= {"rounds": 3, "rounds_not_learnt": 0}
    for cell in facts["cells"][:10]:  # without an attack
        cell["rounds_not_learnt"] = 3
    facts["cells"][-1]["rounds_not_learnt"] = 1
    assert of(facts, "uploads were believed") == [
        "In 10 of 100 cells too few uploads were believed in every round: no upload taught their model anything "
        "(attack.fraction=0 defence=mean; attack.fraction=0 defence=median; attack.fraction=0 defence=krum; and 2 "
        "more).",
        "In 1 of 100 cells too few uploads were believed in some rounds, which kept the model of the round before "
        "(attack.fraction=0.45 defence=task_aware).",
    ]


def test_a_guard_that_refuses_honest_uploads_is_named_with_point_and_share():
    facts = grids.budget()
    assert of(facts, "honest uploads") == []
    for cell in facts["cells"]:
        if cell["point"]["defence"] == "task_aware":
            cell["accepted_honest"] = {"0.05": 0.9, "0.1": 0.89, "0.3": 0.0, "0.45": None}.get(
                cell["point"]["attack.fraction"], 0.95
            )
    assert of(facts, "honest uploads") == [
        "The guard refused 100% of the honest uploads of task_aware under ipm, at a share of Byzantine clients of 0.3, "
        "and more than 10% at 1 of the other points (honest in, of every point)."
    ]
    facts = grids.sweep({"rounds": ["1", "2"]}, lambda p: 0.1 * int(p["rounds"]), accepted_honest=lambda p: 0.25)
    for cell in facts["cells"]:
        cell["attack"] = "none"
    (said,) = of({**facts, "cells": facts["cells"][:1]}, "honest uploads")
    assert said.startswith("The guard refused 75% of the honest uploads of the setting, at rounds=1 (")


JAMMED = {"channel.jammer.jsr_db": ["0", "30"], "fusion": ["a", "b"]}


def test_a_key_that_changes_nothing_is_named():
    facts = grids.sweep(JAMMED, lambda p: 0.5 + 0.1 * (p["fusion"] == "b"))
    assert of(facts, "changed nothing") == [
        "channel.jammer.jsr_db changed nothing: cells that differ in it alone (0, 30) have equal scores (is what it "
        "sets in use?)."
    ]


def test_a_key_that_changes_one_pair_or_the_uplink_alone_is_in_use():
    def one_pair(point):
        return 0.5 + 1e-9 * (point == {"channel.jammer.jsr_db": "30", "fusion": "b"})

    assert of(grids.sweep(JAMMED, one_pair), "changed nothing") == []
    heard = grids.sweep(JAMMED, lambda p: 0.5, nmse_db=lambda p: float(p["channel.jammer.jsr_db"]))
    assert [said.split()[0] for said in of(heard, "changed nothing")] == ["fusion"]


def test_neither_seeds_nor_attacks_of_nobody_need_change_anything():
    axes = {
        "attack": ["ipm", "alie"],
        "attack.fraction": ["0", "0.01"],
        "defence": ["mean", "krum"],
        "seed": ["0", "1"],
    }
    facts = grids.sweep(axes, lambda p: 0.5 + 0.1 * (p["defence"] == "krum"))
    assert of(facts, "changed nothing") == []
    facts = grids.sweep(axes | {"attack.fraction": ["0.1", "0.12"]}, lambda p: 0.5 + 0.1 * (p["defence"] == "krum"))
    assert [said.split()[0] for said in of(facts, "changed nothing")] == ["attack", "attack.fraction"]


def test_a_value_without_a_finished_cell_to_compare_says_nothing():
    facts = grids.sweep({"fusion": ["a", "b"]}, lambda p: 0.5)
    facts["cells"][1]["error"] = "not run yet"
    assert of(facts, "changed nothing") == []


def test_how_little_few_seeds_tell():
    assert of(grids.budget(seeds=("0", "1")), "seed") == [
        "Intervals are over 2 seeds, where Student's t is 12.7: of 3 it is 4.3, and they tell far more."
    ]
    one = ["One seed: there are no intervals, and small differences may be chance (sweep seed=0,1,2 has them)."]
    assert of(grids.budget(seeds=("7",)), "seed") == one
    facts = grids.budget(seeds=("0", "1", "2"))
    for cell in facts["cells"]:
        cell["error"] = None if cell["point"]["seed"] == "0" else "not run yet"
    assert of(facts, "seed") == [
        "No point has more than one of the 3 seeds that has finished: there are no intervals, and small differences "
        "may be chance."
    ]


def test_of_an_attack_only_what_was_attacked_is_compared():
    facts = grids.sweep({"attack": ["ipm", "alie"], "attack.fraction": ["0", "0.4"]}, lambda p: 0.5)
    for cell in facts["cells"]:
        cell["byzantine"] = [0] * (cell["point"]["attack.fraction"] != "0")
    assert [said.partition(" ")[0] for said in of(facts, "changed nothing")] == ["attack"]
    facts["cells"][-1]["error"] = "not run yet"
    assert not of(facts, "changed nothing"), "without an attack both are the same run"
