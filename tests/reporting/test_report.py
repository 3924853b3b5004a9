import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pages
import pytest
from inline import run
from rich.console import Console

from fedfusion.reporting import report, run_plots
from fedfusion.types import FedfusionError

EXPERIMENTS = Path(__file__).parents[2] / "experiments"

NOBODY = {"byzantine": [], "accepted_honest": 1.0, "refused_byzantine": None, "success": {}}


def results(attack=NOBODY, upload="x.SignFlipping", data=None, **last):
    stages = dict.fromkeys(run_plots.STAGES, 0.5)
    record = {"round": 1, "clients": [0, 1], "dropped": {}, "byzantine": [], "nmse_db": None, "discarded_energy": 0.0}
    record |= {"learnt": True, "unheard": [], "uplink": {"mean": {}, "product_nmse_db": None}}
    record |= {"measure": "accuracy", "mean": stages, "worst": stages} | last
    tasks = {
        "heard": {
            stage: {"accuracy": 0.75 if stage == "single_task" else 0.25 + 0.001 * i}
            for i, stage in enumerate(run_plots.STAGES)
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
        "attack": attack,
    }
    does = {"upload": upload and {"_target_": upload}, "data": data and {"_target_": data}}
    return {"seed": 3, "metrics": metrics, "config": {"attack": {"_target_": "x.Adversary", **does}}}


def test_rows_end_with_mean_worst_and_normalised():
    rows = dict(report.rows(results()["metrics"]))
    assert list(rows) == ["heard", "silent", "mean", "worst task", "over single task"]
    assert rows["heard"] == ["0.250", "0.750", "0.252", "0.253", "0.254", "0.255", "0.256", "0.257"]
    assert rows["silent"] == ["0.750", "–", "–", "–", "–", "–", "–", "0.500"]
    assert rows["over single task"][:2] == ["0.333", "1.000"]


def test_notes_name_the_dropped():
    said = report.notes(results(dropped={"0": "sent nothing"}, nmse_db=3.0, discarded_energy=0.2))
    assert "  round 1, client 0: sent nothing" in said and any("20.0%" in line for line in said)
    assert not any("Byzantine" in line or "believed" in line for line in said)


def test_notes_tell_what_the_guard_refused_from_what_was_dropped():
    why = {"0": "sent nothing", "1": "changes its task's loss"}
    said = report.notes(results(dropped=why, refused=[1]))
    assert said[said.index("1 upload dropped:") + 1] == "  round 1, client 0: sent nothing"
    assert said[said.index("1 upload refused by the guard:") + 1] == "  round 1, client 1: changes its task's loss"


def test_notes_name_attackers_by_what_they_do_and_say_how_well_they_were_told_apart():
    attack = {"byzantine": [0, 4, 11], "accepted_honest": 0.975, "refused_byzantine": 0.5, "success": {}}
    said = report.notes(results(attack))
    assert "3 Byzantine clients (SignFlipping): 0, 4, 11" in said
    assert "by the guard 98% of the honest uploads believed, 50% of the Byzantine ones refused" in said
    said = report.notes(results(attack | {"byzantine": [1], "refused_byzantine": None, "accepted_honest": 1.0}))
    assert "1 Byzantine client (SignFlipping): 1" in said and "by the guard 100% of the honest uploads believed" in said
    said = report.notes(results(attack | {"refused_byzantine": None, "accepted_honest": None}))
    assert not any("believed" in line for line in said)


def test_notes_tell_the_success_of_a_backdoor_in_the_mean_of_its_tasks():
    stages = {"base": 0.1, "fused_clean": 0.2, "fused_received": 0.9, "realigned": 0.5}
    success = {"heard": stages, "silent": stages | {"base": 0.3, "fused_received": 0.7, "realigned": 0.25}}
    attack = {"byzantine": [0, 1], "accepted_honest": 1.0, "refused_byzantine": 0.0, "success": success}
    said = report.notes(results(attack, upload="x.Amplified", data="x.Backdoor"))
    assert "2 Byzantine clients (Backdoor, Amplified): 0, 1" in said
    assert "attack success 0.800 once fused, 0.375 realigned (base 0.200)" in said
    assert "2 Byzantine clients (Backdoor): 0, 1" in report.notes(results(attack, upload=None, data="x.Backdoor"))


def test_notes_name_tasks_of_which_nothing_is_believed():
    assert "nothing is believed of task silent" in report.notes(results(unheard=["silent"]))
    assert "nothing is believed of tasks heard, silent" in report.notes(results(unheard=["heard", "silent"]))


def test_notes_say_what_the_radio_cost_and_what_its_errors_became():
    mean = {"sinr_db": -3.21, "rate": 0.5, "outage": 0.75, "energy_j": 0.0123, "bler": 0.25, "erased_share": 0.125}
    uplink = {"mean": mean, "product_nmse_db": 4.0, "fused": {"nmse_db": -1.0}, "duration_s": 0.25}
    said = "\n".join(report.notes(results(uplink=uplink, learnt=False)))
    assert "SINR -3.2 dB, 0.50 bit per channel use, 75% of the coherence blocks in outage" in said
    assert "block error rate 0.250, 12.5% of the parameters lost" in said
    assert "0.25 s in virtual time, 0.0123 J per client" in said
    assert "products 4.0 dB, of the fused products -1.0 dB" in said
    assert "too little arrived in 1 round (1): the last model was kept" in said


def test_notes_say_what_privacy_changed():
    uplink = {"mean": {"privacy_nmse_db": -3.21}, "product_nmse_db": None}
    said = report.notes(results(uplink=uplink))
    assert "what clients changed for privacy, before they sent it: NMSE -3.2 dB" in said


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_table_fits_the_terminal_in_as_many_parts_as_it_needs_and_breaks_no_word(width):
    console = Console(width=width, record=True, file=io.StringIO())
    report.show(results(), console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width and "…" not in "".join(lines)
    words = " ".join(lines).split()
    for label in ("base", "single", "personal", "received", "known", "aligned", "control", "heard", "silent", "worst"):
        assert label in words
    assert words.count("heard") == {40: 4, 80: 2, 120: 1}[width]
    cells = dict(report.rows(results()["metrics"]))["heard"]
    assert all(cell in words for cell in cells)


def test_it_is_plain_text_where_colours_are_not_wanted(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(results()))
    script = (
        f"import json; from fedfusion.reporting import report; report.show(json.load(open('{tmp_path}/results.json')))"
    )
    environment = os.environ | {"NO_COLOR": "1", "COLUMNS": "40", "FORCE_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", done.stdout) and "fused" in done.stdout
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    assert max(map(len, plain.splitlines())) <= 40


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A small run with everything that can be drawn."""
    folder = tmp_path_factory.mktemp("run") / "run"
    radio = ["channel=mimo", "channel.level=packet", "attack=alie", "attack.f=1", "coupling=laplacian"]
    run(folder, *radio, "guard=norm_clip", "channel.coherence_block=2016")
    facts = json.loads((folder / "results.json").read_text())
    facts["command"] = "fedfusion run channel=mimo channel.level=packet <b>"
    (folder / "results.json").write_text(json.dumps(facts))
    report.make(folder)
    return folder


def test_a_run_becomes_one_sound_page_with_every_plot_beside_it(real):
    root = pages.check((real / "report.html").read_text())
    names = ["by_task", "by_round", "by_error", "spectra", "relation", "by_air_time"]
    assert [figure.all("desc")[0].attributes["id"] for figure in root.all("figure")] == [f"{n}-desc" for n in names]
    assert sorted(path.name for path in (real / "plots").iterdir()) == sorted(
        f"{name}.{suffix}" for name in names for suffix in ("pdf", "png")
    )
    headings = [heading.text for heading in root.all("h2")]
    assert headings == [
        "Command", "What differs from the default", "Scores", "Plots", "Rounds", "Warnings", "Environment",
        "Configuration",
    ]  # fmt: skip
    metrics = report.load(real)["metrics"]
    assert f"{metrics['mean']['fused_received']:.3f}" in root.all("header")[0].text
    assert root.all("pre")[0].text == "fedfusion run channel=mimo channel.level=packet <b>"
    differing = [[cell.text for cell in row.children] for row in root.all("table")[0].all("tr")]
    assert ["channel", "awgn", "mimo"] in differing and ["channel.level", "mse", "packet"] in differing
    scores = [[cell.text for cell in row.children] for row in root.all("table")[1].all("tr")][1:]
    assert scores == [[name, *cells] for name, cells in report.rows(metrics)]
    assert "; by information sent (" in root.text, "each round costs the same: the lines are"
    assert "not resilient" not in root.text or root.all("li")
    assert "Laplacian" in root.all("details")[0].text
    assert (real / "adapter" / "README.md").is_file() and len((real / "report.html").read_text()) < 400_000


def test_the_same_results_make_the_same_page(real, tmp_path):
    before = (real / "report.html").read_bytes(), (real / "plots" / "by_task.pdf").read_bytes()
    report.make(real)
    assert ((real / "report.html").read_bytes(), (real / "plots" / "by_task.pdf").read_bytes()) == before


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_it_on_a_phone_and_on_a_desk_by_day_and_by_night(real, tmp_path, width):
    for dark in (False, True):
        seen = pages.chromium(real / "report.html", tmp_path, width, dark)
        assert seen.content <= seen.window == width
        assert seen.background == ("rgb(23, 23, 23)" if dark else "rgb(255, 255, 255)")


def test_results_of_an_earlier_version_still_become_a_page(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "results.json").write_text((EXPERIMENTS / "quickstart" / "results.json").read_text())
    report.make(tmp_path)
    root = pages.check((tmp_path / "report.html").read_text())
    drawn = [figure.all("desc")[0].attributes["id"] for figure in root.all("figure")]
    assert drawn == ["by_task-desc", "by_round-desc", "by_error-desc"]


def test_a_folder_without_results_is_said_with_what_to_do(tmp_path):
    with pytest.raises(FedfusionError, match=r"nowhere is no folder \(give the folder of a finished run\)"):
        report.make(tmp_path / "nowhere")
    with pytest.raises(
        FedfusionError, match=r"is not the folder of a run: results.json, config.yaml and overrides.yaml are missing"
    ):
        report.make(tmp_path)
    for name in ("config.yaml", "overrides.yaml"):
        (tmp_path / name).write_text("")
    with pytest.raises(FedfusionError, match=r"has not ended: .* \(end it with: fedfusion run --resume /"):
        report.make(tmp_path)
    for text in ('{"half":', "{}", "[]", '{"metrics": {}}', '{"metrics": {"mean": {}}}', '{"config": {"seed": 0}}'):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(FedfusionError, match=r"results.json cannot be read: .*\(write it anew with"):
            report.make(tmp_path)


def test_a_run_without_an_adapter_has_a_page_and_no_card(tmp_path):
    (tmp_path / "results.json").write_text((EXPERIMENTS / "quickstart" / "results.json").read_text())
    report.make(tmp_path)
    assert (tmp_path / "report.html").is_file() and not (tmp_path / "adapter").exists()


def test_a_folder_that_cannot_be_written_is_said_in_a_sentence(tmp_path):
    (tmp_path / "results.json").write_text((EXPERIMENTS / "quickstart" / "results.json").read_text())
    (tmp_path / "plots").write_text("in the way")
    with pytest.raises(FedfusionError, match=r"cannot write .*plots/by_task: File exists$"):
        report.make(tmp_path)
