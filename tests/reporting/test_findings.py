import grids
import pytest

from fedfusion.reporting import findings
from fedfusion.reporting.figures import figures


def of(scores, seeds=3):
    """Defences at budgets 0 and 0.5; `scores` has the worst task of each seed at 0.5."""
    axes = {"attack.fraction": ["0", "0.5"], "defence": list(scores), "seed": [str(s) for s in range(seeds)]}
    return grids.sweep(axes, lambda p: 0.9 if p["attack.fraction"] == "0" else scores[p["defence"]][int(p["seed"])])


def test_the_answer_names_the_best_and_what_it_gains_and_how_sure_that_is():
    facts = of({"mean": [0.40, 0.42, 0.44], "clip": [0.80, 0.82, 0.84], "krum": [0.70, 0.71, 0.75]})
    assert findings.answer(facts) == (
        "At a share of Byzantine clients of 0.5, clip keeps the worst task best: accuracy 0.820 (95 % interval 0.770 "
        "to 0.870, 3 seeds) under ipm, 0.400 above the undefended run (0.400 to 0.400) and 0.100 "
        "above the next, krum (0.075 to 0.125)."
    )


def test_what_cannot_be_told_apart_is_said_to_be():
    facts = of({"mean": [0.40, 0.42, 0.44], "clip": [0.80, 0.82, 0.84], "krum": [0.84, 0.80, 0.79]})
    assert "0.010 above the next, krum (-0.104 to 0.124; this holds zero: the two are not told apart)." in (
        findings.answer(facts)
    )
    facts = of({"mean": [0.40, 0.80, 0.44], "clip": [0.80, 0.50, 0.84]})
    assert "0.167 above the undefended run (-0.837 to 1.171; this holds zero: the two" in findings.answer(facts)


def test_no_defence_may_be_better_than_none():
    answer = findings.answer(of({"mean": [0.8, 0.8, 0.8], "clip": [0.5, 0.5, 0.5]}))
    assert "the undefended run keeps the worst task best: accuracy 0.800" in answer
    assert "0.300 above the next, clip (0.300 to 0.300). No defence here is better than none." in answer


def test_of_one_seed_no_interval_is_claimed():
    answer = findings.answer(of({"mean": [0.4], "clip": [0.8]}, seeds=1))
    assert "accuracy 0.800 (one seed) under ipm, 0.400 above the undefended run." in answer and "interval" not in answer


def test_of_several_attacks_the_hardest_on_each_line_counts():
    facts = grids.budget(attacks=("alie", "ipm"))
    answer = findings.answer(facts)
    assert "task_aware keeps the worst task best: accuracy 0.860" in answer
    assert "under the attack that is hardest on it (ipm), 0.675 above the undefended run (0.675 to 0.675)" in answer
    points = [point for point in facts["points"] if point["budget"] == 0.45]
    assert findings.weakest(points, "mean", ["alie", "ipm"], "fused_received") == pytest.approx({"0": 0.18, "1": 0.19})


def test_a_line_that_did_not_meet_every_attack_is_not_compared():
    facts = grids.budget(attacks=("alie", "ipm"))
    for cell in facts["cells"]:
        if cell["point"]["defence"] == "task_aware" and cell["attack"] == "ipm":
            cell["error"] = "ValueError: too hot"
    facts |= figures(facts)
    answer = findings.answer(facts)
    assert "fltrust keeps the worst task best" in answer
    assert answer.endswith("Without a run under every attack, and so not compared: task_aware.")


def test_without_a_defence_the_lines_are_compared_with_each_other():
    assert findings.answer(grids.jammed()) == (
        "At channel.jammer.jsr_db=20, fusion=tsv keeps the worst task best: accuracy 0.637 (95 % interval 0.585 to "
        "0.688, 3 seeds), 0.070 above the next, fusion=ties (0.070 to 0.070)."
    )


def test_without_numbers_and_without_an_attack():
    facts = grids.sweep({"fusion": ["ties", "tsv"]}, lambda p: {"ties": 0.5, "tsv": 0.6}[p["fusion"]])
    assert findings.answer(facts) == (
        "Without an attack, fusion=tsv keeps the worst task best: accuracy 0.600 (one seed), 0.100 above the next, "
        "fusion=ties."
    )


def test_one_line_alone():
    facts = grids.sweep(
        {"attack.fraction": ["0", "0.5"], "seed": ["0", "1"]}, lambda p: 0.9 - float(p["attack.fraction"])
    )
    assert findings.answer(facts) == (
        "At a share of Byzantine clients of 0.5, the worst task has an accuracy of 0.400 (95 % interval 0.400 to "
        "0.400, 2 seeds) under ipm. Without an attack it has 0.900."
    )


def test_what_is_measured_is_named_and_of_old_sweeps_it_is_accuracy():
    facts = grids.budget()
    assert findings.measure(facts["cells"]) == "accuracy" and "accuracy" in findings.answer(facts)
    for cell in facts["cells"]:
        cell["measure"] = "exact match"
    assert "keeps the worst task best: exact match 0.8" in findings.answer(facts)
    facts["cells"][0]["measure"] = "accuracy"
    assert findings.measure(facts["cells"]) == "accuracy or exact match"
    assert findings.measure([]) == "accuracy"


def test_equal_scores_are_as_much_as_each_other():
    assert findings.apart({"0": 0.5}, {"0": 0.5004}, "A") == "as much as A"
    assert findings.apart({"0": 0.499}, {"0": 0.5}, "A") == "0.001 below A"
    assert findings.apart({"0": 0.5, "1": 0.6}, {"0": 0.5, "1": 0.6}, "A").startswith("as much as A (0.000 to 0.000")


def test_the_hardest_snr_is_the_lowest():
    facts = grids.sweep(
        {"channel.snr_db": ["0", "20"], "fusion": ["a", "b"]}, lambda p: float(p["channel.snr_db"]) / 30
    )
    assert findings.hardest(facts) == 0.0 and findings.answer(facts).startswith("At channel.snr_db=0, fusion=a")


def test_nothing_finished_is_no_answer():
    facts = of({"mean": [0.4, 0.4, 0.4]})
    for cell in facts["cells"]:
        cell["error"] = "not run yet"
    facts |= figures(facts)
    assert findings.answer(facts) == "No run of this sweep has finished, so there is nothing to answer with."
    assert findings.failures(facts) == []


def test_the_question_is_that_of_the_grid_or_what_was_swept():
    facts = grids.budget(attacks=("ipm", "alie"))
    assert findings.question(facts) == "What do attack, attack.fraction and defence change?"
    assert findings.question(facts | {"question": "Which defence holds?"}) == "Which defence holds?"
    assert findings.question({"axes": {"fusion": ["a", "b"]}}) == "What does fusion change?"
    assert findings.question({"axes": {"seed": ["0", "1"]}}) == "What does the seed change?"


def test_failures_name_cell_run_and_reason_once():
    facts = grids.budget()
    facts["cells"][0] |= {"error": "Traceback\nValueError: too hot"}
    facts["cells"][1] |= {"error": "Traceback\nValueError: too hot", "repeats": True}
    facts["cells"][2] |= {"error": "did not finish"}
    assert findings.failures(facts) == [("attack.fraction=0 defence=mean seed=0", f"{0:012x}", "ValueError: too hot")]


@pytest.mark.parametrize(
    "value, said", [(None, "–"), (0.0, "0"), (12.345, "12.3"), (999.4, "999"), (1234.5, "1,234"), (-2e6, "-2,000,000")]
)
def test_amounts_are_read_without_an_exponent(value, said):
    assert findings.amount(value) == said


def test_a_line_that_is_no_better_than_the_base_is_said_to_be():
    facts = of({"mean": [0.1, 0.1, 0.1], "clip": [0.30, 0.31, 0.32]})
    said = findings.answer(grids.with_base(facts, worst=0.3))
    assert ", 3 seeds) under ipm, 0.210 above the undefended run" in said
    assert said.endswith(". That 0.310 is no more than the base has (0.310).")
    assert "the base" not in findings.answer(grids.with_base(facts, worst=0.298))
    alone = grids.sweep({"attack.fraction": ["0", "0.5"]}, lambda p: 0.4)
    assert (
        "has an accuracy of 0.400 (one seed) under ipm. That 0.400 is no more than the base has (0.500). Without"
        in (findings.answer(grids.with_base(alone, worst=0.5)))
    )


def test_the_base_is_that_of_the_same_seeds():
    facts = grids.with_base(grids.budget(attacks=("ipm", "alie"), seeds=("0", "1", "2")), worst=0.855)
    assert "no more than the base has (0.865)" in findings.answer(facts)
    (lost,) = (
        cell
        for cell in facts["cells"]
        if cell["point"] == {"attack": "alie", "attack.fraction": "0.45", "defence": "task_aware", "seed": "2"}
    )
    lost["error"] = "did not finish"
    assert "no more than the base has (0.860)" in findings.answer(facts | figures(facts))


def test_the_interval_of_a_score_ends_where_scores_end():
    answer = findings.answer(of({"mean": [0.4, 0.4], "clip": [0.6, 0.9]}, seeds=2))
    assert "0.750 (95 % interval 0.000 to 1.000, 2 seeds)" in answer and "undefended run (-1.556 to 2.256;" in answer


def test_what_an_attack_is_judged_against():
    assert findings.without_attack(grids.budget()) == "the undefended run without an attack"
    assert findings.without_attack(grids.jammed()) == (
        "the same setting without an attack at the same channel.jammer.jsr_db"
    )
    facts = grids.sweep({"attack": ["none", "ipm"]}, lambda p: 0.5)
    assert findings.without_attack(facts) == "the same setting without an attack"


def realigned(facts, gain=0.05, control=0.4):
    """The same where realignment brings this, and the base this level."""
    for cell in facts["cells"]:
        for name in ("worst", "mean"):
            cell[name] |= {"realigned": cell[name]["fused_received"] + gain, "base": 0.3, "control": control}
        for name in ("success", "over_single_task"):
            cell[name]["realigned"] = cell[name]["fused_received"]
    return facts | figures(facts)


def test_what_is_realigned_is_held_against_the_base_that_is_realigned_too():
    facts = of({"mean": [0.1], "clip": [0.34]}, seeds=1)
    assert findings.answer(realigned(facts)).endswith("That 0.390 is no more than the base has once realigned (0.400).")
    assert "the base" not in findings.answer(realigned(facts, control=0.38))
