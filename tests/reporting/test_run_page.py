import pytest

from fedfusion.composition import compose, parse
from fedfusion.reporting import run_page

MEANS = {"base": 0.5, "single_task": 0.9, "personal": 0.85, "fused_received": 0.6, "realigned": 0.7}


def record(server_round, dropped=None, **last):
    facts = {"round": server_round, "clients": [0, 1], "believed": 2, "refused": [], "dropped": dropped or {}}
    facts |= {"train_loss": 0.5, "nmse_db": 1.25, "learnt": True, "unheard": [], "discarded_energy": 0.0}
    facts |= {"mean": {stage: MEANS[stage] for stage in ("single_task", "fused_received", "realigned")}}
    return facts | {"uplink": {"mean": {}, "fused": {"nmse_db": None}, "duration_s": None}} | last


def metrics(*records, **means):
    tasks = {"a": {stage: {"accuracy": value} for stage, value in (MEANS | means).items()}}
    return {"measure": "accuracy", "tasks": tasks, "mean": MEANS | means, "rounds": list(records) or [record(1)]}


def found(*overrides, command=True):
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(compose(parse(overrides)[0]))
    words = " ".join(["fedfusion run", *overrides])
    return {"config": {key: value for key, value in config.items() if key != "run_dir"}} | (
        {"command": words} if command else {}
    )


def test_the_answer_is_one_sentence_with_every_distance():
    assert run_page.answer(metrics()) == (
        "The one model made of what all devices learned reaches a mean accuracy of 0.700 over 1 task: 0.200 above the "
        "base (0.500), 0.200 below the adapter of each device on its own task (0.900), and what a device goes on with "
        "reaches 0.850 on its own task."
    )
    assert "as much as the base (0.500)" in run_page.answer(metrics(realigned=0.5002))
    silent = metrics()
    del silent["mean"]["single_task"], silent["tasks"]["a"]["personal"], silent["mean"]["personal"]
    assert run_page.answer(silent).endswith("0.200 above the base (0.500).")


def test_a_row_for_each_round_and_no_column_in_which_nothing_happened():
    quiet = run_page.by_round(metrics(record(1), record(2)))
    assert quiet[0] == [
        "round",
        "clients",
        "believed",
        "train loss",
        "single task",
        "fused received",
        "realigned",
        "NMSE (dB)",
    ]
    assert quiet[1][1] == ["2", "2", "2", "0.500", "0.900", "0.600", "0.700", "1.2"]
    radio = {"mean": {"energy_j": 0.012345}, "fused": {"nmse_db": -3.21}, "duration_s": 0.25}
    header, rows = run_page.by_round(metrics(record(1), record(2, {"1": "late"}, refused=[1], uplink=radio)))
    last = dict(zip(header, rows[1], strict=True))
    assert last["refused"] == last["dropped"] == "1" and last["fused NMSE (dB)"] == "-3.2"
    assert last["air time (s)"] == "0.25" and last["energy per client (J)"] == "0.0123"
    assert dict(zip(header, rows[0], strict=True))["air time (s)"] == "–"


def test_warnings_gather_what_was_lost_and_what_the_log_says(tmp_path):
    late = {str(client): f"was {client}.5 s late" for client in range(8)}
    records = [
        record(1, late, learnt=False),
        record(2, {"1": "was 1e-3 s late", "2": "sent nothing"}, unheard=["a"], discarded_energy=0.25),
    ]
    lines = ["2026-01-01 10:00:00,000 INFO flwr: all is well", "2026-01-01 10:00:00,000 WARNING py.warnings: theirs"]
    lines += ["2026-01-01 10:00:00,000 WARNING flwr: not resilient"] * 2 + ["no line of a logger WARNING flwr: x"]
    (tmp_path / "run.log").write_text("\n".join(lines))
    said = run_page.warnings({"metrics": metrics(*records)}, tmp_path / "run.log")
    assert said == [
        "9 uploads dropped, the first of them: was 0.5 s late "
        f"({', '.join(f'client {client} in round 1' for client in range(6))} and 3 more).",
        "1 upload dropped: sent nothing (client 2 in round 2).",
        "Too little arrived in 1 round (1): the last model was kept.",
        "Nothing is believed of a in the last round.",
        "The fused rank discards up to 25.0% of a layer's energy (raise fused_rank).",
        "not resilient",
    ]
    (tmp_path / "run.log").write_text("\n".join(f"1 2 WARNING flwr: number {i}" for i in range(30)))
    said = run_page.warnings({"metrics": metrics()}, tmp_path / "run.log")
    assert len(said) == run_page.MOST + 1 and said[-1] == "10 more warnings are in run.log."
    assert run_page.warnings({"metrics": metrics()}, tmp_path / "none.log") == []


def test_differences_are_the_options_chosen_and_the_settings_that_are_not_theirs():
    assert run_page.differences(found()) == []
    assert run_page.differences(found("channel=mimo", "attack=none", "channel.jammer.jsr_db=10", "rounds=5")) == [
        ["channel", "awgn", "mimo"],
        ["rounds", "3", "5"],
        ["channel.jammer.jsr_db", "0.0", "10"],
    ]
    assert run_page.differences(found("method=mira", "run_dir=x", "federation=ray")) == [
        ["method", "none", "mira"],
        ["federation", "inline", "ray"],
    ]


@pytest.mark.parametrize("command", [None, "fedfusion deploy run realign=none", "fedfusion run realign=gone"])
def test_without_a_command_that_says_it_every_setting_is_compared(command):
    results = found("realign=none", command=False) | ({"command": command} if command else {})
    rows = run_page.differences(results)
    assert rows[0] == ["realign", "FewShot", "Unaligned"]
    assert {key for key, *_ in rows[1:]} > {"realign.steps", "realign.lr"}
    assert all(here == run_page.NOTHING for key, _, here in rows[1:])


def test_tasks_that_a_run_names_because_they_are_all_are_no_difference():
    results = found("suite=lists")
    assert not results["config"]["suite"].get("tasks")
    results["config"]["suite"]["tasks"] = ["reverse-digits"]
    assert ["suite.tasks", "null", "['reverse-digits']"] not in run_page.differences(results)
    assert len(run_page.differences(results)) == 1


def test_the_environment_names_time_memory_device_commit_and_versions():
    machine = {"python": "3.12", "platform": "Linux", "threads": 2, "device": "cpu", "commit": "abc"}
    facts = {
        "machine": machine,
        "versions": {"fedfusion": "1", "ray": None},
        "wall_time_s": 61.4,
        "peak_memory_mb": 900,
    }
    said = dict(run_page.environment(facts | {"seed": 3, "config": {"federation": {"_target_": "x.Inline"}}}))
    assert said["wall time"] == "61 s" and said["memory of the server at most"] == "900 MB" and said["seed"] == "3"
    assert said["device"] == "cpu" and said["commit"] == "abc" and said["threads"] == "2"
    assert said["federation"] == "Inline" and said["ray"] == "not installed" and said["python"] == "3.12"


def test_a_strategy_of_flowers_is_named():
    assert run_page.strategy({"server": {"strategy": {"_target_": "flwr.serverapp.strategy.FedMedian"}}}) == "FedMedian"
    assert run_page.strategy({"server": {"strategy": {"_target_": None}}}) == run_page.strategy({}) == ""


def test_options_of_ones_own_count_as_chosen(tmp_path):
    (tmp_path / "channel").mkdir()
    (tmp_path / "channel" / "mine.yaml").write_text("_target_: fedfusion.channels.Ideal\n")
    results = found(f"hydra.searchpath=['file://{tmp_path}']", "channel=mine")
    assert ["channel", "awgn", "mine"] in run_page.differences(results)
    assert len(run_page.differences(results)) <= 2
