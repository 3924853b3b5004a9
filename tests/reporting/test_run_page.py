import pytest

from fedfusion.composition import compose, parse
from fedfusion.reporting import run_page
from fedfusion.strict_json import worded

MEANS = {"base": 0.5, "single_task": 0.9, "personal": 0.85, "fused_received": 0.6, "realigned": 0.7}


def record(server_round, dropped=None, **last):
    facts = {"round": server_round, "clients": [0, 1], "believed": 2, "refused": [], "dropped": dropped or {}}
    facts |= {"train_loss": 0.5, "nmse_db": 1.25, "learnt": True, "unheard": [], "discarded_energy": 0.0}
    facts |= {"mean": {stage: MEANS[stage] for stage in ("single_task", "fused_received", "realigned")}}
    return facts | {"uplink": {"mean": {}, "fused": {"nmse_db": None}, "duration_s": None}} | last


def metrics(*records, **means):
    tasks = {"a": {stage: {"accuracy": value} for stage, value in (MEANS | means).items()}}
    return {
        "measure": "accuracy",
        "num_clients": 4,
        "tasks": tasks,
        "mean": MEANS | means,
        "rounds": list(records) or [record(1)],
        "attack": {"byzantine": [], "accepted_honest": 1.0, "refused_byzantine": None, "success": {}},
    }


def answer(facts, channel="Awgn", upload=None, data=None, **attack):
    does = {"upload": upload and {"_target_": f"x.{upload}"}, "data": data and {"_target_": f"x.{data}"}}
    config = {"channel": {"_target_": f"x.{channel}"}, "attack": does}
    return run_page.answer({"metrics": facts | {"attack": facts["attack"] | attack}, "config": config})


def found(*overrides, command=True):
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(compose(parse(overrides)[0]))
    words = " ".join(["fedfusion run", *overrides])
    return {"config": {key: value for key, value in config.items() if key != "run_dir"}} | (
        {"command": words} if command else {}
    )


def test_the_answer_has_every_distance_and_the_worst_task():
    assert answer(metrics()) == (
        "The one model made of what all devices learned reaches a mean accuracy of 0.700 over 1 task, and 0.700 on the "
        "worst (a): 0.200 above the base (0.500), 0.200 below the adapter of each device on its own task (0.900). What "
        "a device goes on with reaches 0.850 on its own task."
    )
    assert "as much as the base (0.500)" in answer(metrics(realigned=0.5002))
    assert "0.040 above the control, the same tune from the base alone (0.660)" in answer(metrics(control=0.66))
    silent = metrics()
    del silent["mean"]["single_task"], silent["tasks"]["a"]["personal"], silent["mean"]["personal"]
    assert answer(silent).endswith("0.200 above the base (0.500).")
    weak = metrics()
    weak["tasks"]["weak"] = {"base": {"accuracy": 0.1}, "realigned": {"accuracy": 0.25}}
    assert "over 2 tasks, and 0.250 on the worst (weak)" in answer(weak)


def test_the_answer_says_what_the_way_to_the_server_cost_and_who_attacked():
    assert " The uplink cost the fused model 0.050 (0.650 without, 0.600 with)." in answer(metrics(fused_clean=0.65))
    gained = answer(metrics(fused_clean=0.55))
    assert " The uplink cost the fused model nothing in the mean (0.550 without, 0.600 with)." in gained
    guarded = metrics(record(1, {"1": "too long"}, refused=[1]), fused_clean=0.65)
    success = {"a": {"base": 0.0, "fused_received": 0.9, "realigned": 0.25}}
    told = answer(guarded, upload="SignFlipping", data="Backdoor", byzantine=[1], success=success)
    assert (
        " The uplink, the attack and the guard cost the fused model 0.050 (0.650 without, 0.600 with); 1 of 4 clients "
        "attacked (Backdoor, SignFlipping), with a trigger that works on 25% of the samples." in told
    )
    assert told.count(". ") == 2
    assert " The guard cost" in answer(guarded, "Ideal") and " What became of the uploads cost" in answer(
        metrics(fused_clean=0.65), "Ideal"
    )
    assert " 2 of 4 clients attacked (SignFlipping). " in answer(metrics(), upload="SignFlipping", byzantine=[0, 2])


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
    header, rows = run_page.by_round(
        metrics(record(1), record(2, {"0": "late", "1": "too long", "2": "late"}, refused=[1], uplink=radio))
    )
    last = dict(zip(header, rows[1], strict=True))
    assert (last["refused"], last["dropped"]) == ("1", "2") and last["fused NMSE (dB)"] == "-3.2"
    assert last["air time (s)"] == "0.25" and last["energy per client (J)"] == "0.0123"
    assert dict(zip(header, rows[0], strict=True))["air time (s)"] == "–"


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


def test_the_same_number_written_otherwise_is_no_difference():
    results = found()
    results["config"]["channel"]["jsr_db"] = 22
    assert run_page.differences(results) == []
    results["config"]["model"]["freeze_a"] = 0
    assert run_page.differences(results) == [["model.freeze_a", "false", "0"]]


def test_a_long_list_is_shortened_where_that_tells_it_from_the_default():
    tasks = [f"task-{i}" for i in range(8)]
    theirs, ours = {"suite.tasks": tasks[:3]}, {"suite.tasks": tasks}
    assert run_page._values("suite.tasks", theirs, ours) == [str(tasks[:3]), "8 tasks: task-0, task-1, ..."]
    other = {"suite.tasks": [*tasks[:7], "other"]}
    assert run_page._values("suite.tasks", theirs=other, ours=ours) == [str(other["suite.tasks"]), str(tasks)]


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


@pytest.mark.parametrize(
    "overrides, rows",
    [
        (["experiment=quickstart"], []),
        (["experiment=quickstart", "channel=mimo"], [["channel", "awgn", "mimo"]]),
        (["channel=awgn", "realign=few_shot"], []),
        (["method=mira", "coupling=laplacian"], [["method", "none", "mira"]]),
        (["experiment=quickstart", "rounds=5"], [["rounds", "3", "5"]]),
        (["channel=mimo", "fading=rayleigh"], [["channel", "awgn", "mimo"]]),
    ],
)
def test_an_option_that_changes_nothing_is_no_difference(overrides, rows):
    assert run_page.differences(found(*overrides)) == rows


def test_one_of_two_options_that_say_the_same_is_told(tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults:\n  - override /channel: ideal\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    told = run_page.differences(found(f"hydra.searchpath=['file://{tmp_path}']", "experiment=mine", "channel=ideal"))
    assert told == [["channel", "awgn", "ideal"]]


def test_folders_of_options_are_told_where_one_of_theirs_is_chosen(tmp_path):
    (tmp_path / "channel").mkdir()
    (tmp_path / "channel" / "mine.yaml").write_text("_target_: fedfusion.channels.Ideal\n")
    assert run_page.differences(found(f"hydra.searchpath=['file://{tmp_path}']")) == []


def test_settings_that_are_not_finite_are_compared_and_shown_as_they_are():
    results = found("channel=aircomp")
    results["config"] = worded(results["config"])
    assert results["config"]["channel"]["jsr_db"] == "-inf"
    assert run_page.differences(results) == [["channel", "awgn", "aircomp"]]
    assert "  jsr_db: -.inf\n" in run_page.as_yaml(results["config"])
    results["config"]["channel"]["snr_db"] = "inf"
    assert run_page.differences(results)[1:] == [
        ["channel.snr_db", str(found("channel=aircomp")["config"]["channel"]["snr_db"]), "inf"]
    ]


def test_a_mean_needs_all_that_it_is_of():
    assert run_page.known_mean([1.0, 2.0]) == 1.5
    assert run_page.known_mean([]) is run_page.known_mean([1.0, None]) is run_page.known_mean([None]) is None
