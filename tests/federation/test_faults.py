import pytest
from runs import SMALL, fedfusion, results

FAULTS = "{0:raise,2:poison,3:huge,4:shape,5:dtype,6:hang}"
MANY = [*SMALL, "suite.clients_per_task=4", "rounds=1", "client._target_=faulty.Faulty"]
REASONS = {
    "0": "RuntimeError: out of battery",
    "2": "sent values that are not finite",
    "3": "sent a norm of",
    "4": "sent float32 (1, 5), expected float32 (1, 86016)",
    "5": "sent float64",
    "6": "did not answer within",
}


@pytest.mark.parametrize("federation", ["inline", "ray"])
def test_clients_that_misbehave_are_dropped_counted_and_named(federation, tmp_path):
    folder = tmp_path / "run"
    chosen = [f"federation={federation}", f"+client.faults={FAULTS}", "deadline_s=20", f"run_dir={folder}"]
    done = fedfusion("run", *MANY, *chosen, check=True)
    last = results(folder)["metrics"]["rounds"][-1]
    assert last["believed"] == 2 and list(last["dropped"]) == list(REASONS)
    for client, reason in REASONS.items():
        assert last["dropped"][client].startswith(reason)
        assert f"round 1, client {client}: {reason}" in done.stdout
    assert "6 uploads dropped" in done.stdout and "nan" not in (folder / "metrics.jsonl").read_text().lower()


def test_too_few_clients_end_the_run_and_keep_the_last_checkpoint(tmp_path):
    arguments = ["client._target_=faulty.Faulty", "+client.faults={0:raise,1:raise}", "min_clients=3"]
    done = fedfusion("run", *SMALL, *arguments, f"run_dir={tmp_path / 'few'}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "round 1: 2 uploads left, min_clients=3" in done.stderr and "out of battery" in done.stderr


@pytest.mark.parametrize("fault, believed", [("die once", 4), ("die", 3)])
def test_a_client_whose_actor_dies_is_tried_once_more_elsewhere(fault, believed, tmp_path):
    folder = tmp_path / "run"
    arguments = [
        "client._target_=faulty.Faulty",
        f"+client.faults={{1:{fault}}}",
        f"+client.marker={tmp_path / 'died'}",
    ]
    fedfusion("run", *SMALL, "rounds=1", "federation=ray", *arguments, f"run_dir={folder}", check=True)
    last = results(folder)["metrics"]["rounds"][-1]
    assert last["believed"] == believed
    assert last["dropped"] == ({} if believed == 4 else {"1": "its process died 2 times"})
