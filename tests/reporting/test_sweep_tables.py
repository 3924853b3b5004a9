import grids

from fedfusion.reporting import sweep_tables
from fedfusion.reporting.figures import figures


def test_a_table_per_attack_and_a_row_per_line():
    title, header, rows = sweep_tables.tables(grids.budget(seeds=("0",), attacks=("ipm", "alie")))[0]
    assert title == "ipm: worst task, fused received, by share of Byzantine clients"
    assert header == ["", *grids.BUDGETS, "breaks at", "cost", "honest in", "Byz. out"]
    assert rows[0] == [
        "mean", "0.900", "0.820", "0.740", "0.660", "0.580", "0.500", "0.420", "0.340", "0.260", "0.180",
        "0.05", "0.000", "1.000", "0.000",
    ]  # fmt: skip
    assert rows[-1][11] == "0.35" and rows[-1][0] == "task_aware"  # 0.865 is more than 0.03 below 0.9


def test_every_point_has_its_interval_and_its_range():
    title, header, rows = sweep_tables.over_seeds(grids.budget())[0]
    assert title == "ipm: every point, fused received" and len(rows) == 50
    assert header == [
        "", "share of Byzantine clients", "worst task", "worst: 95 % interval", "worst: range", "mean",
        "mean: 95 % interval", "mean: range", "over undefended", "over undefended: 95 % interval", "honest in",
        "Byz. out", "runs",
    ]  # fmt: skip
    last = dict(zip(header, rows[-1], strict=True))
    assert (last[""], last["share of Byzantine clients"], last["runs"]) == ("task_aware", "0.45", "2")
    assert (last["worst task"], last["worst: range"]) == ("0.860", "0.855 to 0.865")
    assert last["worst: 95 % interval"] == "0.796 to 0.924"  # 0.860 -+ 12.706 * 0.005
    assert last["over undefended"] == "0.675" and (last["honest in"], last["Byz. out"]) == ("1.000", "0.500")


def test_no_interval_of_a_score_is_beyond_one_but_that_of_a_difference_may_be():
    axes = {"attack.fraction": ["0", "0.4"], "defence": ["mean", "clip"], "seed": ["0", "1"]}
    facts = grids.sweep(axes, lambda p: (0.6, 0.9)[int(p["seed"])] if p["defence"] == "clip" else 0.3)
    _, header, rows = sweep_tables.over_seeds(facts)[0]
    last = dict(zip(header, rows[-1], strict=True))
    assert last["worst: 95 % interval"] == last["mean: 95 % interval"] == "0.000 to 1.000"
    assert last["over undefended: 95 % interval"] == "-1.456 to 2.356"


def test_what_a_guard_takes_of_the_honest_is_told_of_every_point_also_without_an_attack():
    facts = free({"rounds": ["1", "2"]}, lambda p: 0.5)
    assert "honest in" not in sweep_tables.over_seeds(facts)[0][1]
    facts["cells"][1]["accepted_honest"] = 0.0
    _, header, rows = sweep_tables.over_seeds(facts | figures(facts))[0]
    assert [row[header.index("honest in")] for row in rows] == ["1.000", "0.000"]


def test_costs_are_in_it_where_there_are_any():
    _, header, rows = sweep_tables.over_seeds(grids.jammed())[0]
    last = dict(zip(header, rows[-1], strict=True))
    assert (last["NMSE (dB)"], last["information sent (Mbit)"]) == ("8", "3")
    assert (last["transmit energy (J)"], last["air time (s)"]) == ("2", "1.5")
    assert "over undefended" not in header


def test_of_one_seed_there_is_neither_interval_nor_range():
    header = sweep_tables.over_seeds(grids.budget(seeds=("0",)))[0][1]
    assert not any("interval" in name or "range" in name for name in header)


def free(axes, score):
    """The facts of a sweep in which nobody attacks."""
    facts = grids.sweep(axes, score)
    for cell in facts["cells"]:
        cell |= {"attack": "none", "byzantine": []}
    return facts | figures(facts)


def test_without_attack_and_defence_nothing_is_said_of_either():
    facts = free({"rounds": ["1", "2"]}, lambda p: 0.5)
    title, header, rows = sweep_tables.tables(facts)[0]
    assert (title, header) == ("Worst task, fused received, by rounds", ["", "1", "2"])
    assert rows == [["all", "0.500", "0.500"]]
    assert sweep_tables.reading(facts) == "Accuracy on the worst task, mean over seeds."


def test_what_a_defence_costs_is_told_without_an_attack():
    facts = free({"defence": ["mean", "median"], "rounds": ["1", "2"]}, lambda p: 0.5 - 0.1 * (p["defence"] != "mean"))
    _, header, rows = sweep_tables.tables(facts)[0]
    assert header == ["", "1", "2", "cost"] and [row[-1] for row in rows] == ["0.000", "0.050"]  # of the mean task
    said = sweep_tables.reading(facts)
    assert "cost: " in said and "Undefended is defence=mean" in said and "breaks at" not in said and "Byz." not in said


def test_under_a_jammer_alone_nothing_is_judged_against_itself():
    facts = free({"channel.jsr_db": ["0", "10"]}, lambda p: 0.8 - 0.02 * float(p["channel.jsr_db"]))
    assert sweep_tables.tables(facts)[0][1] == ["", "0", "10"]


def test_under_a_jammer_it_is_told_where_a_defence_breaks_and_at_which_power_it_is_judged():
    axes = {"channel.jsr_db": ["0", "10"], "defence": ["mean", "median"]}
    facts = free(axes, lambda p: 0.8 - 0.02 * float(p["channel.jsr_db"]) * (1 + (p["defence"] == "median")))
    _, header, rows = sweep_tables.tables(facts)[0]
    assert [row[header.index("breaks at")] for row in rows] == [">10", "10"]
    said = sweep_tables.reading(facts)
    assert "below that of the undefended run without an attack at the same channel.jsr_db, > where" in said


def test_nothing_is_called_undefended_where_no_defence_is_swept():
    axes = {"attack": ["none", "ipm"], "channel.jsr_db": ["0", "10"]}
    facts = grids.sweep(axes, lambda p: 0.5)
    for cell in facts["cells"]:
        cell["byzantine"] = [0] if cell["attack"] == "ipm" else []
    said = sweep_tables.reading(facts | figures(facts))
    assert "below that of the same setting without an attack at the same channel.jsr_db" in said
    assert "ndefended" not in said


def test_the_legend_says_what_every_column_is():
    said = sweep_tables.reading(grids.budget())
    assert all(f"{name}:" in said for name in ("breaks at", "cost", "Byz. out")) and "success" not in said


def test_the_legend_names_what_failed_but_not_what_is_still_to_run():
    facts = grids.budget()
    facts["cells"][3]["error"] = "Traceback\nValueError: too hot"
    facts["cells"][4]["error"] = "not run yet"
    facts |= figures(facts)
    assert sweep_tables.legend(facts)[1:] == [f"Run {3:012x} failed: ValueError: too hot"]
