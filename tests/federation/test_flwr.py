"""fedfusion as an app of Flower: its bundle, and `flwr run .` in a checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import psutil
import pytest
from command import SMALL, fedfusion, results

from fedfusion.federation.flower import SWITCHES

ROOT = Path(__file__).parents[2]
LIMIT_B = 10 * 2**20  # of a bundle
PORTS = {"FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": "43301", "FLWR_LOCAL_CONTROL_API_PORT": "43302", "RAY_ADDRESS": "local"}


def environment(home, **more):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | SWITCHES | PORTS | {"FLWR_HOME": str(home), "PATH": path} | more


def flwr(*arguments, home, cwd):
    """Flower's command line; what it says, without colours."""
    command = [Path(sys.executable).with_name("flwr"), *arguments]
    done = subprocess.run(command, env=environment(home), cwd=cwd, capture_output=True, text=True, timeout=400)
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    said = flwr("build", "--app", str(ROOT), home=folder / "home", cwd=folder)
    (file,) = folder.glob("*.fab")
    assert "Successfully built" in said
    return file


@pytest.fixture(scope="module")
def unpacked(bundle):
    folder = bundle.parent / "app"
    zipfile.ZipFile(bundle).extractall(folder)
    return folder


def sources(suffix, *folders):
    """The files of the checkout with a suffix, that git does not ignore."""
    found = (path for folder in folders for path in (ROOT / folder).rglob(f"*{suffix}"))
    return {str(path.relative_to(ROOT)) for path in found if "__pycache__" not in path.parts}


def test_the_bundle_holds_the_app_and_nothing_else(bundle):
    names = set(zipfile.ZipFile(bundle).namelist())
    others = {"pyproject.toml", "README.md", "LICENSE", ".info/CONTENT"}
    assert names == sources(".py", "fedfusion") | sources(".yaml", "conf") | others
    assert bundle.stat().st_size < LIMIT_B / 5


def test_run_folders_and_the_folder_of_a_deployment_stay_out_of_it(bundle, tmp_path):
    """However they came to lie in the checkout: the bundle, and so its hash, stays the same."""
    copy = tmp_path / "fedfusion"
    copy.mkdir()
    for name in ("fedfusion", "conf", "docker", ".gitignore", "pyproject.toml", "README.md", "LICENSE"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    for name in ("runs/a/config.yaml", "deploy/nodes/node-0/node.toml", "multirun/x.yaml", "outputs/x.yaml", "my.md"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("secret: true\n")
    flwr("build", "--app", str(copy), home=tmp_path / "home", cwd=tmp_path)
    (again,) = tmp_path.glob("*.fab")
    assert again.name == bundle.name


def run_app(app, package, run_dir, *overrides):
    """The two apps of `app`, in this order on the import path: the bundle, then `package`."""
    code = f"""
import sys
sys.path[:0] = [{str(app)!r}, {str(package)!r}]
from flwr.app import Context, RecordDict
from fedfusion import apps, config
assert apps.__file__.startswith({str(app)!r}) and str(config.CONF).startswith({str(app)!r}), apps.__file__
from fedfusion.federation.inline import InlineGrid
words = {{"config": "", "overrides": {" ".join([*overrides, f"run_dir={run_dir}"])!r}}}
apps.server_app(InlineGrid(apps.client_app, 1, 60.0), Context(1, 0, {{}}, RecordDict(), words))
"""
    site = next(path for path in sys.path if path.endswith("site-packages"))
    command = [sys.executable, "-S", "-c", f"import sys; sys.path.append({site!r})\n{code}"]  # without the checkout
    return subprocess.run(command, capture_output=True, text=True, cwd=run_dir.parent, env=environment(run_dir.parent))


def test_the_apps_run_from_the_bundle_with_the_data_of_the_installed_package(unpacked, tmp_path):
    package = tmp_path / "site"
    (package / "fedfusion").mkdir(parents=True)
    shutil.copytree(ROOT / "fedfusion" / "assets", package / "fedfusion" / "assets")
    done = run_app(unpacked, package, tmp_path / "run", *SMALL, "rounds=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(tmp_path / "run")["metrics"]["rounds"][0]["believed"] == 4
    assert f"run folder: {tmp_path / 'run'}" in done.stderr + done.stdout


@pytest.mark.slow
def test_without_the_installed_package_it_says_what_is_missing(unpacked, tmp_path):
    done = run_app(unpacked, tmp_path, tmp_path / "run", *SMALL)
    assert done.returncode == 1 and not (tmp_path / "run").exists()
    said = done.stdout + done.stderr
    assert "error: model.path: no model at 'vit-glyphs'" in said and "the package itself, pip install fedfusion" in said
    assert "File " not in said


@pytest.fixture(scope="module")
def superlink(tmp_path_factory):
    """The local SuperLink that `flwr run` starts and leaves running; it is ended after the last test."""
    home = tmp_path_factory.mktemp("flower")
    yield home
    mine = [p for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get("FLWR_HOME") == str(home)]
    for process in mine:
        process.terminate()
    _, alive = psutil.wait_procs(mine, timeout=20)
    for process in alive:
        process.kill()


def streamed(overrides, home, cwd, *more):
    return flwr("run", str(ROOT), "--stream", *more, "--run-config", f'overrides="{overrides}"', home=home, cwd=cwd)


@pytest.mark.slow
def test_flwr_run_runs_what_its_overrides_say_where_it_was_called(superlink, tmp_path):
    chosen = [*SMALL, "channel=mimo", "attack=ipm", "attack.fraction=0.25"]
    size = "num-supernodes=2 client-resources-num-cpus=1"
    said = streamed(" ".join(chosen), superlink, tmp_path, "--federation-config", size)
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"run folder: {folder}" in said and f"done: {folder}" in said and "Loading weights" not in said
    assert re.search(r"round 2/2  loss \d\.\d\d  single ", said)
    metrics = results(folder)["metrics"]
    assert len(metrics["attack"]["byzantine"]) == 1
    fedfusion("run", *chosen, f"run_dir={tmp_path / 'inline'}", check=True)
    assert metrics == results(tmp_path / "inline")["metrics"]
    fedfusion("run", "--resume", str(folder), check=True)  # there is nothing left to do but the report
    assert (folder / "report.html").is_file() and results(folder)["metrics"] == metrics


@pytest.mark.slow
def test_what_is_wrong_with_overrides_is_said_in_the_stream(superlink, tmp_path):
    said = streamed("channel=mimmo attack.fraction=2 nonsense", superlink, tmp_path)
    for sentence in (
        "error: nonsense: cannot be read as key=value",
        "error: channel=mimmo: no 'mimmo' in channel/ (did you mean 'mimo'?)",
        "error: attack.fraction must be in [0, 1], got 2",
    ):
        assert sentence in said
    assert "File " not in said
    (run,) = [run for run in runs(superlink, tmp_path) if run["run-id"] in said]
    assert run["status"] == "finished:failed" and not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_strategy_of_flower_runs_under_flower(superlink, tmp_path):
    small = [override for override in SMALL if not override.startswith("realign")]
    chosen = [*small, "server.strategy._target_=flwr.serverapp.strategy.FedMedian"]
    overrides, size = (
        " ".join([*chosen, f"run_dir={tmp_path / 'flower'}"]),
        "client-resources-num-cpus=1 num-supernodes=",
    )
    said = streamed(overrides, superlink, tmp_path, "--federation-config", f"{size}4")
    assert "[ROUND 2/2]" in said
    fedfusion("run", *chosen, f"run_dir={tmp_path / 'inline'}", check=True)
    assert results(tmp_path / "flower")["metrics"] == results(tmp_path / "inline")["metrics"]


def runs(home, cwd):
    time.sleep(1)  # the status of a run follows its last line
    return json.loads(flwr("list", "--format", "json", home=home, cwd=cwd))["runs"]
