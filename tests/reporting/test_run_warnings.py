from fedfusion.reporting import run_warnings


def record(server_round, dropped=None, **facts):
    quiet = {"refused": [], "heard": [], "nmse_db": 1.25, "learnt": True, "unheard": [], "discarded_energy": 0.0}
    return {"round": server_round, "dropped": dropped or {}} | quiet | facts


def test_what_did_not_count_is_gathered_by_its_fate_and_its_reason(tmp_path):
    late = {str(client): f"was {client}.5 s late" for client in range(8)}
    records = [
        record(
            1,
            late | {"8": "sent a norm of 1e3", "9": "sent a norm of 2e3"},
            refused=[8, 9],
            heard=[8, 10],
            learnt=False,
        ),
        record(2, {"1": "was 1e-3 s late", "2": "sent nothing"}, unheard=["a"], discarded_energy=0.25, nmse_db=-1.0),
    ]
    assert run_warnings.sentences(records, tmp_path / "none.log") == [
        "9 uploads dropped, the first of them: was 0.5 s late "
        f"({', '.join(f'client {client} in round 1' for client in range(6))} and 3 more).",
        "1 upload dropped: sent nothing (client 2 in round 2).",
        "2 uploads refused by the guard, the first of them: sent a norm of 1e3 (client 8 in round 1, client 9 in round "
        "1).",
        "The guard refused 2 of the 3 uploads that arrived in 1 round (1), which left too few: the last model was "
        "kept.",
        "Nothing is believed of task a.",
        "The fused rank discards up to 25.0% of a layer's energy (see fused_rank).",
        "Uploads arrived with more error than signal in 1 of 2 rounds (an NMSE of up to 1.2 dB).",
    ]


def test_what_is_lost_on_the_way_is_told_from_what_the_guard_refused():
    records = [record(1, learnt=False), record(2, refused=[1, 2], heard=[1, 2], learnt=False)]
    records += [record(3, refused=[3], heard=[1, 2], learnt=False), record(4, refused=[3]), record(5, learnt=False)]
    assert run_warnings.shortfalls(records) == [
        "the guard refused 3 of the 5 uploads that arrived in 2 rounds (2, 3), which left too few: the last model was "
        "kept",
        "too little arrived in 2 rounds (1, 5): the last model was kept",
    ]


def test_only_uploads_that_are_more_error_than_signal_are_warned_of(tmp_path):
    quiet = [record(1, nmse_db=0.0), record(2, nmse_db=None), record(3, nmse_db=-3.0)]
    assert run_warnings.sentences(quiet, tmp_path / "none.log") == []


def test_the_log_speaks_where_fedfusion_or_flower_warn(tmp_path):
    log, at, quiet = tmp_path / "run.log", "2026-01-01 10:00:00,000", [record(1, nmse_db=None)]
    lines = [f"{at} INFO flwr: all is well", f"{at} WARNING py.warnings: theirs", f"{at} WARNING flwrish: theirs"]
    lines += [f"{at} WARNING flwr: not resilient"] * 2 + ["no line of a logger WARNING flwr: x"]
    lines += [
        f"{at} WARNING fedfusion: tracker=wandb failed",
        f"{at} ERROR flwr: gone",
        f"{at} ERROR fedfusion: clients 1",
    ]
    log.write_text("\n".join(lines))
    assert run_warnings.sentences(quiet, log) == ["not resilient", "tracker=wandb failed", "gone", "clients 1"]
    log.write_text("\n".join(f"1 2 WARNING flwr: number {i}" for i in range(30)))
    said = run_warnings.sentences(quiet, log)
    assert len(said) == run_warnings.MOST + 1 and said[-1] == "10 more warnings are in run.log."
