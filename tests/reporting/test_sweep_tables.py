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
        "mean: 95 % interval", "mean: range", "over undefended", "over undefended: 95 % interval", "runs",
    ]  # fmt: skip
    last = dict(zip(header, rows[-1], strict=True))
    assert (last[""], last["share of Byzantine clients"], last["runs"]) == ("task_aware", "0.45", "2")
    assert (last["worst task"], last["worst: range"]) == ("0.860", "0.855 to 0.865")
    assert last["worst: 95 % interval"] == "0.796 to 0.924"  # 0.860 -+ 12.706 * 0.005
    assert last["over undefended"] == "0.675"


def test_costs_are_in_it_where_there_are_any():
    _, header, rows = sweep_tables.over_seeds(grids.jammed())[0]
    last = dict(zip(header, rows[-1], strict=True))
    assert (last["NMSE (dB)"], last["information sent (Mbit)"]) == ("8", "3")
    assert (last["transmit energy (J)"], last["air time (s)"]) == ("2", "1.5")
    assert "over undefended" not in header


def test_of_one_seed_there_is_neither_interval_nor_range():
    header = sweep_tables.over_seeds(grids.budget(seeds=("0",)))[0][1]
    assert not any("interval" in name or "range" in name for name in header)


def test_without_an_attack_nothing_is_said_of_attackers():
    facts = grids.sweep({"rounds": ["1", "2"]}, lambda p: 0.5)
    for cell in facts["cells"]:
        cell["attack"] = "none"
    facts |= figures(facts)
    assert sweep_tables.tables(facts)[0][0] == "Worst task, fused received, by rounds"
    assert len(sweep_tables.legend(facts)) == 1 and "Byz. out" in sweep_tables.legend(grids.budget())[1]


def test_the_legend_names_what_failed_but_not_what_is_still_to_run():
    facts = grids.budget()
    facts["cells"][3]["error"] = "Traceback\nValueError: too hot"
    facts["cells"][4]["error"] = "not run yet"
    facts |= figures(facts)
    assert sweep_tables.legend(facts)[2:] == [f"Run {3:012x} failed: ValueError: too hot"]
