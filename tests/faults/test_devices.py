"""What happens to a run on devices when its processes are killed: real ones, on this machine."""

import contextlib
import json
import shutil
import signal
import sqlite3
import subprocess
import time

import pytest
from deployed import ENVIRONMENT, FIELD, PATIENCE_S, RUN, Run, command, deploy, eventually, kill, process
from recovery import recovered, told

from fedfusion.deploy import init, members, services
from fedfusion.deploy.certificates import write_authority, write_device_key
from fedfusion.deploy.folder import Deployment
from fedfusion.deploy.supervisor import log_file
from fedfusion.federation.tls import reach
from fedfusion.types import FedfusionError

pytestmark = pytest.mark.slow
PORT = 42500


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two devices that are up; at the end everything is gone."""
    folder = tmp_path_factory.mktemp("field") / "deploy"
    done = deploy("init", "--port", PORT, home=folder)
    assert done.returncode == 0, done.stderr
    try:
        done = deploy("up", "--nodes", 2, "--plain", home=folder)
        assert done.returncode == 0, done.stderr
        assert "node-0     online" in done.stdout and "node-1     online" in done.stdout
        yield folder
    finally:
        done = deploy("down", home=folder)
    assert done.returncode == 0 and "superlink stopped" in done.stdout, done.stderr
    assert not list(services.members(folder)) and not list((folder / "pids").iterdir())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The metrics of the same configuration in one process."""
    folder = tmp_path_factory.mktemp("inline") / "run"
    words = command("run", *FIELD, *RUN, f"run_dir={folder}")
    subprocess.run(words, check=True, capture_output=True, env=ENVIRONMENT, timeout=PATIENCE_S)
    return json.loads((folder / "results.json").read_text())["metrics"]


@pytest.fixture
def run(home, tmp_path):
    """Starts a run on the devices; nothing of it is left at the end."""
    started = []

    def start(*arguments, resume=None):
        folder = resume or tmp_path / "run"
        chosen = ["--resume", str(folder)] if resume else [*RUN, f"run_dir={folder}"]
        started.append(Run(home, folder, *chosen, *arguments))
        return started[-1]

    yield start
    for each in started:
        each.close()


def online(home):
    deployment = Deployment.at(home)
    known = members.states(deployment)
    return [known[members.node_id(device)]["status"] for device in deployment.devices()] == ["online", "online"]


def test_a_run_on_devices_gives_the_same_bits_as_one_in_a_single_process(run, home, undisturbed):
    disturbed = run()
    assert disturbed.metrics() == undisturbed
    assert "test accuracy" in disturbed.printed.read_text()
    for name in ("adapter/README.md", "report.html", "run.log", "metrics.jsonl"):
        assert (disturbed.folder / name).stat().st_size > 0, name
    assert not (disturbed.folder / ".flower").exists()


def test_status_shows_superlink_certificate_devices_and_runs(home):
    eventually(lambda: members.going(Deployment.at(home)) == [], "the end of the run before")
    facts = json.loads(deploy("status", "--json", home=home).stdout)
    assert facts["superlink"] == {"address": f"127.0.0.1:{PORT}", "healthy": True, "problem": None}
    assert [(d["name"], d["state"], d["tasks"]) for d in facts["devices"]] == [
        ("node-0", "online", "all"), ("node-1", "online", "all"),
    ]  # fmt: skip
    assert facts["services"] == ["node-0", "node-1", "superexec", "superlink"]
    assert facts["runs"] and facts["runs"][0]["status"] == "finished:completed"


def test_a_supernode_that_is_killed_comes_back_and_the_round_is_not_lost(run, home, undisturbed, record_property):
    disturbed = run().after_round(1)
    log = log_file(home, "node-0")
    eventually(lambda: "ROUND 2" in log.read_text().rpartition("SuperNode ID")[2], "a message of round 2")
    killed = kill(home, "node-0", "flower-supernode")
    eventually(lambda: "ended with code -9" in log.read_text().rpartition("ROUND 2")[2], "its end")
    eventually(lambda: "SuperNode ID" in log.read_text().rpartition("ended with code -9")[2], "its return")
    assert disturbed.metrics() == undisturbed
    recovered(record_property, disturbed.folder, killed, "a device's SuperNode is killed while it trains", 2)


def test_a_server_app_that_is_killed_is_submitted_again_and_continues(run, home, undisturbed, record_property):
    disturbed = run().after_round(1)
    killed = kill(home, "superexec", "flwr-serverapp")
    eventually(lambda: process(home, "superexec", "flwr-serverapp"), "a new server app")
    assert disturbed.metrics() == undisturbed
    said = disturbed.printed.read_text()
    assert said.count("the server app died; it is started again (1 of federation.restarts=2)") == 1
    assert "continuing after round" in said
    recovered(record_property, disturbed.folder, killed, "the server app on devices is killed", 2)


def test_a_superlink_that_is_killed_is_waited_for(run, home, undisturbed, record_property):
    disturbed = run().after_round(1)
    killed = kill(home, "superlink", "flower-superlink")

    def there():
        try:
            reach(f"127.0.0.1:{PORT}", home / "ca.crt")
        except FedfusionError:
            return False
        return True

    eventually(lambda: not there(), "its end")
    eventually(there, "its return")
    answered = round(time.time() - killed)
    assert disturbed.metrics() == undisturbed
    eventually(lambda: online(home), "both devices online")
    log = (disturbed.folder / "run.log").read_text()
    assert log.count("Start `flwr-serverapp`") <= 1  # a stream that begins again repeats nothing
    told(record_property, "the SuperLink of devices is killed; it answers again", "nothing", answered)


def database(home):
    """The SuperLink's state."""
    return contextlib.closing(sqlite3.connect(home / "state.db", timeout=60.0, isolation_level=None))


def row_of_a_device(home):
    """The id of node-0 as the database keeps it."""
    number = int(members.node_id(Deployment.at(home).devices()[0]))
    return number - 2**64 if number >= 2**63 else number


def test_a_message_that_was_handed_out_and_did_not_arrive_is_sent_again(run, home, undisturbed, record_property):
    log, said = log_file(home, "node-0"), log_file(home, "node-0").stat().st_size
    row = row_of_a_device(home)
    disturbed = run()
    eventually(lambda: "Sent successfully" in log.read_text()[said:].partition("ROUND 1]")[2], "its upload of round 1")
    supernode = process(home, "node-0", "flower-supernode")
    supernode.suspend()
    try:
        with database(home) as state:
            sent = "UPDATE message_ins SET delivered_at = 'lost' WHERE dst_node_id = ? AND group_id = '2'"
            eventually(lambda: state.execute(sent, (row,)).rowcount, "the message of round 2")
        lost = time.time()
    finally:
        supernode.resume()
    assert disturbed.metrics() == undisturbed
    assert "was lost on the way; clients" in (disturbed.folder / "run.log").read_text()
    recovered(record_property, disturbed.folder, lost, "a message to a device, or its answer, is lost on the way", 2)


def test_a_device_whose_first_question_is_lost_is_asked_again(run, home, undisturbed, record_property):
    mine = f"message_type = 'query' AND dst_node_id = {row_of_a_device(home)}"
    with database(home) as state:
        state.execute(
            f"CREATE TRIGGER lose AFTER INSERT ON message_ins WHEN (SELECT count(*) = 1 FROM message_ins WHERE {mine} "
            f"AND run_id = NEW.run_id) BEGIN UPDATE message_ins SET delivered_at = 'lost' WHERE {mine} AND "
            "message_id = NEW.message_id; END"
        )
    try:
        disturbed = run()
        assert disturbed.metrics() == undisturbed
    finally:
        with database(home) as state:
            state.execute("DROP TRIGGER lose")
    assert "was lost on the way; it is asked again" in (disturbed.folder / "run.log").read_text()
    told(record_property, "the first question to a device is lost on the way", "nothing: it is asked again")


def test_a_run_that_may_not_start_again_names_its_checkpoint_and_can_be_resumed(
    run, home, undisturbed, record_property
):
    disturbed = run("federation.restarts=0").after_round(1)
    kill(home, "superexec", "flwr-serverapp")
    assert disturbed.end() == 1
    said = disturbed.printed.read_text()
    assert "ended without a result: the server app died; the last checkpoint is" in said and "Traceback" not in said
    assert f"continue with: fedfusion deploy run --dir {home} --resume {disturbed.folder}" in said
    again = run(resume=disturbed.folder)
    assert again.metrics() == undisturbed and "continuing after round" in again.printed.read_text()
    lost = "nothing after the last checkpoint; it is named"
    told(record_property, "the server app on devices is killed, and `federation.restarts=0`", lost)


def test_a_run_that_is_interrupted_is_stopped_on_the_superlink_and_can_be_resumed(run, home, undisturbed):
    disturbed = run().after_round(1)
    disturbed.process.send_signal(signal.SIGINT)
    assert disturbed.end() == 130 and "interrupted; continue with" in disturbed.printed.read_text()
    assert members.going(Deployment.at(home)) == []
    again = run(resume=disturbed.folder)
    assert again.metrics() == undisturbed


def test_an_error_of_the_run_is_told_as_it_is_and_not_tried_again(run, home):
    failing = run("client._target_=faulty.Faulty", "+client.faults={0:raise,1:raise,2:raise,3:raise}", "min_clients=4")
    assert failing.end() == 1
    said = failing.printed.read_text()
    assert "allowed-targets" in said and "started again" not in said and "Traceback" not in said


def test_a_second_server_on_the_port_is_refused_and_the_first_goes_on(home, tmp_path, record_property):
    init.create(tmp_path / "deploy", 1, [], PORT)
    done = deploy("up", "--plain", home=tmp_path / "deploy")
    assert done.returncode == 2 and f"port {PORT}, which the SuperLink needs, is taken by flower" in done.stderr
    assert services.running(tmp_path / "deploy") == []
    reach(f"127.0.0.1:{PORT}", home / "ca.crt")
    told(record_property, "two SuperLinks on one port", "nothing: the newcomer is refused, the first goes on")


def node(folder):
    words = command("deploy", "node", folder, "--superlink", f"127.0.0.1:{PORT}", "--port", PORT + 90)
    return subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, timeout=PATIENCE_S)


@pytest.fixture
def copied(home, tmp_path):
    """The folder of a device, as it was carried to the device itself."""
    return shutil.copytree(home / "nodes" / "node-0", tmp_path / "node-0", ignore=shutil.ignore_patterns(".flower"))


def test_a_device_with_the_authority_of_another_deployment_is_refused(copied, tmp_path, record_property):
    write_authority(tmp_path)
    shutil.copy(tmp_path / "ca.crt", copied / "ca.crt")
    done = node(copied)
    assert done.returncode == 2 and "is not certified by" in done.stderr and services.running(copied) == []
    told(record_property, "a device trusts another authority", "nothing: it is refused, with the reason")


def test_a_device_whose_key_is_not_registered_is_refused(copied, record_property):
    write_device_key(copied)
    done = node(copied)
    assert done.returncode == 2 and "it is not registered there" in done.stderr, done.stderr
    assert "it tries again in 60 s" in done.stdout and not list(services.members(copied))
    told(record_property, "a device's key is not registered", "nothing: it is refused, with the reason")


def test_a_device_that_is_terminated_leaves_nothing_and_runs_only_once(copied, tmp_path):
    write_device_key(copied)  # it is refused, and tries again for a minute
    words = command("deploy", "node", copied, "--superlink", f"127.0.0.1:{PORT}", "--port", PORT + 90)
    with (tmp_path / "printed").open("w") as file:
        first = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=ENVIRONMENT)
    try:
        eventually(lambda: process(copied, "node-0", "flower-supernode"), "its SuperNode")
        second = node(copied)
        assert second.returncode == 2 and "node-0 runs already (process" in second.stderr, second.stderr
        assert first.poll() is None and services.running(copied) == ["node-0"]
        first.terminate()
        assert first.wait(PATIENCE_S) == 143 and not list(services.members(copied))
    finally:
        first.kill()
        first.wait()
        services.stop(copied)


def test_new_keys_replace_the_former_ones_in_a_deployment_that_is_up(home, copied):
    former = {members.node_id(device) for device in Deployment.at(home).devices()}
    done = deploy("init", "--rotate", home=home)
    assert done.returncode == 0 and "node-0     online" in done.stdout and "node-1     online" in done.stdout
    assert not former & set(members.states(Deployment.at(home))) and online(home)
    assert node(copied).returncode == 2  # it still has its former key


def test_down_in_the_middle_of_a_run_ends_it_and_leaves_nothing(run, home):
    disturbed = run("rounds=50").after_round(1)  # a busy machine must not reach its end first
    done = deploy("down", home=home)
    assert done.returncode == 0 and "stopped" in done.stdout and not list(services.members(home))
    assert disturbed.end() == 1
    said = disturbed.printed.read_text()
    assert "ended without a result" in said and "the last checkpoint is" in said and "Traceback" not in said
    assert deploy("up", "--plain", home=home).returncode == 0
    assert members.going(Deployment.at(home)) == []
