import io

from rich.console import Console

from fedfusion.reporting import plots, report


def results(**last):
    stages = dict.fromkeys(plots.STAGES, 0.5)
    record = {"round": 1, "clients": [0, 1], "dropped": {}, "byzantine": [], "nmse_db": None, "discarded_energy": 0.0}
    record |= {"learnt": True, "uplink": {"mean": {}, "product_nmse_db": None}}
    record |= {"measure": "accuracy", "mean": stages, "worst": stages} | last
    tasks = {
        "heard": {
            stage: {"accuracy": 0.75 if stage == "single_task" else 0.25 + 0.001 * i}
            for i, stage in enumerate(plots.STAGES)
        },
        "silent": {"base": {"accuracy": 0.75}, "control": {"accuracy": 0.5}},
    }
    metrics = {
        "measure": "accuracy",
        "num_clients": 2,
        "tasks": tasks,
        "mean": stages,
        "worst": stages,
        "rounds": [record],
    }
    return {"seed": 3, "metrics": metrics, "config": {"attack": {"_target_": "x.SignFlipping"}}}


def test_rows_end_with_mean_worst_and_normalised():
    rows = dict(report.rows(results()["metrics"]))
    assert list(rows) == ["heard", "silent", "mean", "worst task", "over single task"]
    assert rows["heard"] == ["0.250", "0.750", "0.252", "0.253", "0.254", "0.255", "0.256", "0.257"]
    assert rows["silent"] == ["0.750", "–", "–", "–", "–", "–", "–", "0.500"]
    assert rows["over single task"][:2] == ["0.333", "1.000"]


def test_notes_name_attackers_and_the_dropped():
    said = report.notes(results(byzantine=[1], dropped={"0": "sent nothing"}, nmse_db=3.0, discarded_energy=0.2))
    assert "1 Byzantine client (SignFlipping): 1" in said
    assert "  round 1, client 0: sent nothing" in said and any("20.0%" in line for line in said)


def test_notes_say_what_the_radio_cost_and_what_its_errors_became():
    mean = {"sinr_db": -3.21, "rate": 0.5, "outage": 0.75, "energy_j": 0.0123, "bler": 0.25, "erased_share": 0.125}
    uplink = {"mean": mean, "product_nmse_db": 4.0, "fused": {"nmse_db": -1.0}, "duration_s": 0.25}
    said = "\n".join(report.notes(results(uplink=uplink, learnt=False)))
    assert "SINR -3.2 dB, 0.50 bit per channel use, 75% of the coherence blocks in outage" in said
    assert "block error rate 0.250, 12.5% of the parameters lost" in said
    assert "0.25 s in virtual time, 0.0123 J per client" in said
    assert "products 4.0 dB, of the fused products -1.0 dB" in said
    assert "too little arrived in 1 round (1): the last model was kept" in said


def test_the_table_fits_80_columns():
    console = Console(width=80, record=True, file=io.StringIO())
    report.show(results(), console)
    printed = console.export_text()
    assert max(map(len, printed.splitlines())) <= 80 and "aligned" in printed and "…" not in printed


def test_bars_and_lines_are_drawn_for_every_stage():
    metrics = results()["metrics"]
    assert len(plots.by_task(metrics).axes[0].containers) == len(plots.STAGES)
    assert len(plots.by_round(metrics).axes[0].lines) == len(plots.STAGES)
