import pytest
from command import SMALL, fedfusion, results

MANY = [*SMALL, "suite.clients_per_task=4", "rounds=1", "client._target_=faulty.Faulty"]
FAULTS = {
    0: ("raise", "RuntimeError: out of battery"),
    2: ("poison", "sent values that are not finite"),
    3: ("huge", "sent a norm of"),
    4: ("shape", "RuntimeError: The size of tensor a"),
    5: ("dtype", "sent float64"),
    6: ("hang", "did not answer within"),
}
DEATHS = {7: ("die", "its process died 2 times")}
REVIVED = {1: "die once"}  # tried once more on another actor, and believed


@pytest.mark.parametrize(
    "federation, faults, revived",
    [
        pytest.param("inline", FAULTS, {}, id="inline"),
        pytest.param("ray", FAULTS | DEATHS, REVIVED, id="ray", marks=pytest.mark.slow),
    ],
)
def test_clients_that_misbehave_are_dropped_counted_and_named(federation, faults, revived, tmp_path):
    folder = tmp_path / "run"
    kinds = {client: kind for client, (kind, _) in faults.items()} | revived
    chosen = [f"federation={federation}", f"run_dir={folder}", f"+client.marker={tmp_path / 'died'}"]
    chosen.append(f"deadline_s={20 if federation == 'ray' else 10}")
    chosen.append(f"+client.faults={{{','.join(f'{client}:{kind}' for client, kind in kinds.items())}}}")
    done = fedfusion("run", *MANY, *chosen, check=True)
    last = results(folder)["metrics"]["rounds"][-1]
    assert last["believed"] == 8 - len(faults) and list(last["dropped"]) == [str(client) for client in faults]
    for client, (_, reason) in faults.items():
        assert last["dropped"][str(client)].startswith(reason)
        assert f"round 1, client {client}: {reason}" in done.stdout
    assert f"{len(faults) - 2} uploads dropped:" in done.stdout and "2 uploads refused by the guard:" in done.stdout
    assert "nan" not in (folder / "metrics.jsonl").read_text().lower()
    assert (tmp_path / "died").exists() == bool(revived)


def test_too_few_clients_end_the_run_and_keep_the_last_checkpoint(tmp_path):
    arguments = ["client._target_=faulty.Faulty", "+client.faults={0:raise,1:raise}", "min_clients=3"]
    done = fedfusion("run", *SMALL, *arguments, f"run_dir={tmp_path / 'few'}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "round 1: 2 uploads left, min_clients=3" in done.stderr and "out of battery" in done.stderr
