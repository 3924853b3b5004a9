import csv
import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from cells import TINY, fake, here, value
from command import TESTS, fedfusion
from omegaconf import OmegaConf

from fedfusion.sweep import facts as facts_of
from fedfusion.sweep import sweep
from fedfusion.sweep.folder import Folder
from fedfusion.types import FedfusionError

BUDGETS = [*TINY, "attack=sign_flipping", "attack.f=0,1"]


def swept(overrides, out, do=fake):
    return sweep(overrides, out, do, here)


class Counted:
    """Counts the runs that are done; some fail."""

    def __init__(self, **fails):
        self.done, self.fails = [], fails

    def __call__(self, work):
        self.done.append(work.folder.name)
        return self.fails.get(f"seed{work.config['seed']}") or fake(work)


def test_every_cell_is_run_with_its_overrides_and_summed_up(tmp_path, capsys):
    out, before = tmp_path / "out", list(sys.argv)
    facts = swept([*TINY, "attack=sign_flipping,ipm", "attack.f=0,1", "seed=2"], out)
    assert sys.argv == before and facts == json.loads((out / "sweep.json").read_text()) and facts["schema_version"] == 2
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["plots", "runs"]
    assert {path.name for path in (out / "runs").iterdir()} == {cell["run"] for cell in facts["cells"]}
    for cell in facts["cells"]:
        given = json.loads((out / "runs" / cell["run"] / "results.json").read_text())["given"]
        assert given == cell["overrides"] or cell["repeats"]
        assert all(value(cell["overrides"], key) == there for key, there in cell["point"].items())
    assert [(p["attack"], p["budget"], p["worst"]["fused_received"]) for p in facts["points"]] == [
        ("sign_flipping", 0.0, pytest.approx(0.802)),
        ("sign_flipping", 1.0, pytest.approx(0.702)),
        ("ipm", 0.0, pytest.approx(0.802)),
        ("ipm", 1.0, pytest.approx(0.702)),
    ]
    rows = list(csv.DictReader((out / "sweep.csv").read_text().splitlines()))
    assert [row["attack"] for row in rows] == ["sign_flipping", "sign_flipping", "ipm", "ipm"]
    assert [row["repeats"] for row in rows] == ["False", "False", "True", "False"]
    assert float(rows[3]["worst_fused_received"]) == pytest.approx(0.702)
    printed = capsys.readouterr()
    assert printed.out == "" and "4 cells, 3 runs, 1 local training between them" in printed.err
    assert [text[:6] for text in printed.err.splitlines()[1:]] == [f"   {i}/3" for i in (1, 2, 3)]
    assert "attack=ipm attack.f=1  mean 0.900  worst 0.702" in printed.err.splitlines()[-1]


def test_the_same_command_again_runs_nothing_and_finds_the_same(tmp_path, capsys):
    count, again = Counted(), Counted()
    first = swept([*BUDGETS, "seed=0,1"], tmp_path / "out", count)
    written = (tmp_path / "out" / "report.html").stat().st_mtime_ns
    second = swept([*BUDGETS, "seed=0,1"], tmp_path / "out", again)
    assert len(count.done) == 4 and again.done == [] and "4 finished already" in capsys.readouterr().err
    assert {**first, "wall_time_s": 0} == {**second, "wall_time_s": 0}
    assert (tmp_path / "out" / "report.html").stat().st_mtime_ns == written


def test_a_sweep_that_is_stopped_goes_on_where_it_was(tmp_path, capsys):
    def stopped(work):
        if work.config["seed"] == 1:
            raise KeyboardInterrupt
        return fake(work)

    with pytest.raises(KeyboardInterrupt):
        swept([*BUDGETS, "seed=0,1", "sweep.jobs=1"], tmp_path / "out", stopped)
    found = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert any(cell["error"] is None for cell in found["cells"]) and found["points"]
    left = [cell["run"] for cell in found["cells"] if cell["error"] == "not run yet"]
    assert left and facts_of(tmp_path / "out")["cells"] == found["cells"]
    again = Counted()
    facts = swept([*BUDGETS, "seed=0,1"], tmp_path / "out", again)
    assert sorted(again.done) == sorted(left) and not any(cell["error"] for cell in facts["cells"])


def test_a_sweep_may_grow(tmp_path):
    swept([*BUDGETS, "seed=0"], tmp_path / "out")
    more = Counted()
    facts = swept([*BUDGETS, "seed=0,1"], tmp_path / "out", more)
    assert len(more.done) == 2 and len(facts["cells"]) == 4


def test_another_sweep_in_its_folder_is_refused_with_both_hashes(tmp_path):
    before = swept([*BUDGETS, "seed=0,1"], tmp_path / "out")
    hashes = [json.loads((tmp_path / "out" / "plan.json").read_text())["key"]]
    with pytest.raises(FedfusionError) as caught:
        swept([*BUDGETS, "seed=0,1", "client.lr=0.5"], tmp_path / "out", Counted(seed0="never"))
    said = str(caught.value)
    assert "holds another sweep: its plan has the hash " in said and ", this one " in said
    assert "'client.lr' is 0.0" in said and "there and 0.5 here" in said and "4 of its 4 runs" in said
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["key"] == hashes[0]
    assert json.loads((tmp_path / "out" / "sweep.json").read_text()) == before


@pytest.mark.parametrize("damage", ["results", "config", "empty"])
def test_a_damaged_run_is_run_again_and_said(damage, tmp_path, capsys):
    facts = swept(BUDGETS, tmp_path / "out")
    folder = tmp_path / "out" / "runs" / facts["cells"][1]["run"]
    if damage == "results":
        (folder / "results.json").write_text((folder / "results.json").read_text()[:100])
    elif damage == "config":
        (folder / "config.yaml").write_text("seed: [")
    else:
        for path in folder.iterdir():
            path.unlink()
    again = Counted()
    assert swept(BUDGETS, tmp_path / "out", again)["points"] == facts["points"]
    assert again.done == [folder.name]
    said = capsys.readouterr().err
    assert "1 finished already; 1 damaged" in said and f"{folder} is damaged: it is run again" in said


@pytest.mark.parametrize("failed", [False, True])
def test_a_run_that_was_gone_on_with_otherwise_is_kept_aside(failed, tmp_path, capsys):
    facts = swept(BUDGETS, tmp_path / "out")
    folder = tmp_path / "out" / "runs" / facts["cells"][1]["run"]
    for number in (1, 2):
        if failed:
            (folder / "error.txt").write_text("too hot")
        config = OmegaConf.load(folder / "config.yaml")
        config.rounds = 7
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(config))
        again = Counted()
        assert swept(BUDGETS, tmp_path / "out", again)["points"] == facts["points"] and again.done == [folder.name]
        aside = folder.with_name(f"{folder.name}.{number}")
        assert (aside / "results.json").is_file() and (aside / "error.txt").exists() == failed
        assert not (folder / "error.txt").exists() and OmegaConf.load(aside / "config.yaml").rounds == 7
        said = capsys.readouterr().err
        assert f"{folder} held a run of another configuration, which is in {aside.name} now: it is run again" in said
        assert "1 finished already; 1 of another configuration, will be kept aside" in said


@pytest.mark.parametrize("rounds", [1, 7])
def test_a_run_that_another_process_goes_on_with_is_left_alone(rounds, tmp_path):
    folder = tmp_path / "out" / "runs" / swept(BUDGETS, tmp_path / "out")["cells"][1]["run"]
    (folder / "results.json").unlink()
    config = OmegaConf.load(folder / "config.yaml")
    config.rounds = rounds
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config))
    again = Counted()
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FedfusionError, match=f"another process runs in {folder} "):
            swept(BUDGETS, tmp_path / "out", again)
    assert again.done == [] and (folder / "config.yaml").exists() and len(list(folder.parent.iterdir())) == 2
    swept(BUDGETS, tmp_path / "out", again)
    assert again.done == [folder.name]


def test_a_run_that_fails_is_named_at_once_and_does_not_end_the_sweep(tmp_path, capsys):
    def run(work):
        if work.config["seed"] == 1:
            return "min_clients=1: nobody was believed"
        fake(work)
        return "Traceback\nValueError: too hot" * (work.config["seed"] == 2)  # though there are results

    chosen = [*TINY, "attack=sign_flipping", "attack.f=1", "seed=0,1,2"]
    facts = swept(chosen, tmp_path / "out", run)
    assert [cell["error"] is None for cell in facts["cells"]] == [True, False, False]
    assert facts["cells"][1]["error"] == "min_clients=1: nobody was believed"
    assert "too hot" in (tmp_path / "out" / "runs" / facts["cells"][2]["run"] / "error.txt").read_text()
    assert facts["points"][0]["runs"] == 1 and facts["lines"][0]["failed"] == 2
    said = capsys.readouterr().err
    assert "seed=2  failed: ValueError: too hot" in said and "run.log, error.txt" in said
    again = Counted()
    swept(chosen, tmp_path / "out", again)
    assert sorted(again.done) == sorted(cell["run"] for cell in facts["cells"][1:])
    assert "1 finished already; 2 failed, will be tried again" in capsys.readouterr().err


def test_fail_fast_ends_with_the_first_failure(tmp_path, capsys):
    run = Counted(seed0="too hot")
    facts = swept([*BUDGETS, "seed=0,1,2", "sweep.fail_fast=true", "sweep.jobs=1"], tmp_path / "out", run)
    assert len(run.done) == 1 and "no other cell is run" in capsys.readouterr().err
    assert sorted({cell["error"] for cell in facts["cells"]}) == ["not run yet", "too hot"]


def test_a_sweep_without_a_single_result_says_so(tmp_path):
    facts = swept(BUDGETS, tmp_path / "out", lambda work: "too hot")
    assert all(cell["error"] for cell in facts["cells"]) and facts["points"] == []


def test_a_dry_run_shows_the_cells_runs_the_first_and_estimates_the_rest(tmp_path, capsys):
    run = Counted()
    chosen = [*BUDGETS, "fusion=task_arithmetic,ties", "seed=0,1"]
    facts = swept([*chosen, "sweep.dry_run=true", "sweep.jobs=2"], tmp_path / "out", run)
    assert len(run.done) == 1 and facts["estimate_s"] == 2.0 + 7 * 1.0 / 2  # the other training, and what is beside it
    said = capsys.readouterr().err
    assert (
        "8 cells, 8 runs, 2 local trainings between them" in said
        and "time for what is left: at most about 0.1 min" in said
    )
    assert all(cell["run"] in said for cell in facts["cells"])
    again = Counted()
    swept([*chosen, "sweep.dry_run=true"], tmp_path / "out", again)
    assert again.done == []
    swept(chosen, tmp_path / "out", again)
    assert len(again.done) == 7


def test_where_the_first_run_fails_nobody_knows_how_long_it_takes(tmp_path, capsys):
    facts = swept([*BUDGETS, "sweep.dry_run=true"], tmp_path / "out", lambda work: "too hot")
    assert facts["estimate_s"] is None and "cannot be said: the first run failed" in capsys.readouterr().err


def test_a_folder_of_something_else_is_not_written_over(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(FedfusionError, match="holds no sweep, but README.md: it is not written over"):
        swept(BUDGETS, tmp_path, Counted(seed0="never"))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("README.md", "mine")]


@pytest.mark.parametrize("lost", ["sweep.json", "report.html"])
def test_what_a_process_that_died_did_not_write_is_written_the_next_time(lost, tmp_path):
    before = swept(BUDGETS, tmp_path / "out")
    (tmp_path / "out" / lost).unlink()
    again = Counted()
    facts = swept(BUDGETS, tmp_path / "out", again)
    assert again.done == [] and (tmp_path / "out" / lost).exists()
    assert {**facts, "wall_time_s": 0} == {**before, "wall_time_s": 0}


def test_cells_that_repeat_others_are_added_without_a_run(tmp_path):
    swept([*TINY, "attack=ipm", "attack.f=0"], tmp_path / "out")
    again = Counted()
    swept([*TINY, "attack=ipm,alie", "attack.f=0"], tmp_path / "out", again)
    assert again.done == [] and len(json.loads((tmp_path / "out" / "sweep.json").read_text())["cells"]) == 2


def test_a_plan_is_made_again_where_files_that_it_names_have_changed(tmp_path, monkeypatch):
    graph, chosen = tmp_path / "g.csv", ["method=mira", "adjacency=file", "seed=0"]
    chosen = [*(text for text in TINY if not text.startswith("guard")), *chosen, f"coupling.adjacency.path={graph}"]
    graph.write_text("\n".join(",".join("1" for _ in range(4)) for _ in range(4)))
    swept(chosen, tmp_path / "out")
    graph.write_text("1,1\n1,1\n")
    with pytest.raises(FedfusionError, match="g.csv"):
        swept(chosen, tmp_path / "out")


def test_a_plan_is_strict_json_and_read_exactly(tmp_path):
    chosen = [*BUDGETS, "channel=aircomp", "payload=product"]
    swept(chosen, tmp_path / "out")
    stored = tmp_path / "out" / "plan.json"
    assert json.loads(stored.read_text(), parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    plan = Folder(tmp_path / "out").planned(json.loads(stored.read_text())["key"])
    assert [config["channel"]["jsr_db"] for config in plan.configs.values()] == [-math.inf] * 2
    again = Counted()
    swept(chosen, tmp_path / "out", again)
    assert again.done == []


def test_a_plan_with_a_text_that_looks_like_a_number_is_made_again(tmp_path):
    pytest.importorskip("ray")
    chosen = [*BUDGETS, "federation=ray", "federation.address='inf'"]
    swept(chosen, tmp_path / "out")
    folder = Folder(tmp_path / "out")
    assert folder.planned() and folder.planned(json.loads((tmp_path / "out" / "plan.json").read_text())["key"]) is None
    again = Counted()
    swept(chosen, tmp_path / "out", again)
    assert again.done == []


@pytest.mark.parametrize("content", ["{", '{"schema_version": 1}', '{"schema_version": 2, "key": "", "plan": {}}'])
def test_a_plan_that_cannot_be_read_is_said(content, tmp_path):
    swept(BUDGETS, tmp_path / "out")
    (tmp_path / "out" / "plan.json").write_text(content)
    for read in (lambda: swept(BUDGETS, tmp_path / "out"), lambda: facts_of(tmp_path / "out")):
        with pytest.raises(FedfusionError, match="plan.json cannot be read .*remove it and sweep again"):
            read()


def test_the_folder_is_named_after_the_grid_and_its_overrides(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for chosen in (BUDGETS, [*BUDGETS, "sweep.jobs=1"], [*BUDGETS, "seed=1"]):
        swept(chosen, None)
    assert len(list((tmp_path / "sweeps").glob("grid-????????"))) == 2  # settings change nothing


def test_nobody_else_may_sweep_in_the_folder(tmp_path):
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FedfusionError, match="another process sweeps in .*out"):
            swept(BUDGETS, tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_said_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FedfusionError, match="--out .*file/out: cannot be written"):
        swept(BUDGETS, tmp_path / "file" / "out")


def test_no_key_of_hydra_reaches_a_run(tmp_path):
    facts = swept([*BUDGETS, "hydra.sweeper.max_batch_size=1"], tmp_path / "x")
    assert not any("hydra" in text for cell in facts["cells"] for text in cell["overrides"])
    assert [cell["worst"]["fused_received"] for cell in facts["cells"]] == [0.8, 0.7]


def eventually(condition, what):
    deadline = time.time() + 300
    while not condition():
        assert time.time() < deadline, what
        time.sleep(0.1)


def command(out):
    environment = os.environ | {"PYTHONPATH": str(TESTS), "PYTHONWARNINGS": "ignore"}
    words = [sys.executable, "-m", "fedfusion", "sweep", *TINY, "rounds=4", "fusion=task_arithmetic,ties", "seed=0,1"]
    return subprocess.Popen(
        [*words, "--out", str(out)], env=environment, stderr=subprocess.PIPE, text=True, stdout=subprocess.PIPE
    )


@pytest.mark.slow
def test_workers_end_with_the_process_that_sweeps(tmp_path):
    first = command(tmp_path / "out")
    eventually(lambda: list((tmp_path / "out").glob("runs/*/run.log")), "a run")
    workers = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    first.communicate()
    assert workers and not psutil.wait_procs(workers, 30)[1]


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_sweep_ended_in_the_middle_goes_on_and_trains_once_for_each_seed(end, tmp_path):
    """Multi-round runs that differ in the fusion alone share every round; results are those of single runs."""
    out = tmp_path / "out"
    first = command(out)
    eventually(lambda: list(out.glob("runs/*/checkpoints/round-0001")), "a round")
    first.send_signal(end)
    said = first.communicate(timeout=60)[1]
    assert first.returncode in ((130,) if end == signal.SIGINT else (-9,))
    if end == signal.SIGINT:
        assert "interrupted; continue with: fedfusion sweep" in said and f"--out {out}" in said
    second = command(out)
    _, said = second.communicate(timeout=400)
    assert second.returncode == 0 and "begun, will be continued" in said, said
    facts = json.loads((out / "sweep.json").read_text())
    assert facts["trainings"] == 2 and not any(cell["error"] for cell in facts["cells"])
    assert len(list((out / "trainings").glob("training-*"))) == 2 * 4  # seeds and rounds
    cell = facts["cells"][-1]
    done = fedfusion("run", *cell["overrides"], f"run_dir={tmp_path / 'alone'}", check=True)
    alone, shared = (
        json.loads((folder / "results.json").read_text())["metrics"]
        for folder in (tmp_path / "alone", out / "runs" / cell["run"])
    )
    assert alone == shared and done.returncode == 0


@pytest.mark.slow
def test_the_command_runs_cells_and_ends_with_1_where_one_failed(tmp_path):
    """Garbage from everybody leaves nothing to fuse."""
    done = fedfusion("sweep", *TINY, "attack=garbage", "attack.f=0,4", cwd=tmp_path)
    (out,) = (tmp_path / "sweeps").iterdir()
    facts = json.loads((out / "sweep.json").read_text())
    assert done.returncode == 1 and "Traceback" not in done.stderr + done.stdout, done.stderr
    assert [cell["error"] is None for cell in facts["cells"]] == [True, False]
    assert "min_clients" in facts["cells"][1]["error"] and "attack.f=4  failed: " in done.stderr
    folder = out / "runs" / facts["cells"][0]["run"]
    found = json.loads((folder / "results.json").read_text())
    assert found["metrics"]["worst"]["fused_received"] == facts["cells"][0]["worst"]["fused_received"]
    assert not {"hydra", "sweep", "trainings"} & found["config"].keys()
    assert (folder / "run.log").stat().st_size > 0 and not (folder / "checkpoints").exists()
    assert "garbage: worst task, fused received, by number of Byzantine clients" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["hydra/launcher=basic", "sweep.on=ray"])
def test_other_places_give_the_same(launcher, tmp_path):
    if launcher.endswith("ray"):
        pytest.importorskip("ray")
    chosen = [*TINY, "fusion=task_arithmetic,ties"]
    here_, there = (
        fedfusion("sweep", *chosen, *more, "--out", str(tmp_path / str(i)), "--json", check=True)
        for i, more in enumerate(([], [launcher]))
    )
    cells = [json.loads(done.stdout)["cells"] for done in (here_, there)]
    for own, other in zip(*cells, strict=True):
        assert {**own, "wall_time_s": 0} == {**other, "wall_time_s": 0} and own["error"] is None


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_cells_of_a_dry_run_are_shown_without_a_broken_word(width, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    chosen = [*BUDGETS, "fusion=task_arithmetic,ties", "channel.jsr_db=0.0,10.0", "seed=0"]
    facts = swept([*chosen, "sweep.dry_run=true"], tmp_path / "out")
    lines = capsys.readouterr().err.splitlines()
    runs = [cell["run"] for cell in facts["cells"]]
    for i, cell in enumerate(facts["cells"]):
        told = " ".join(line for line in lines if line.startswith(cell["run"])).split()
        assert {*cell["point"].values()} < {*told} and told[-1] in ("new", "above"), (i, told)
    words = " ".join(lines).split()
    assert {"attack.f", "fusion", "channel.jsr_db", "training"} < {*words}
    rows = [i for i, line in enumerate(lines) if line.split(" ")[0] in runs]
    assert max(len(lines[i].rstrip()) for i in rows) <= width
    assert words.count("run") >= (2 if width == 40 else 1)


def test_what_is_concluded_is_strict_json_and_is_concluded_once(tmp_path):
    facts = swept(BUDGETS, tmp_path / "out") | {"lost": [math.nan, math.inf]}
    folder, report = Folder(tmp_path / "out"), tmp_path / "out" / "report.html"
    folder.conclude(facts)
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["lost"] == [None, None]
    written = report.stat().st_mtime_ns
    folder.conclude(facts)
    assert report.stat().st_mtime_ns == written
