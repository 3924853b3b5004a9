"""What a round with very many clients costs on Ray beyond training: two actors, 75,000 float32 (0.3 MB) per client.

    python experiments/benchmarks/scale.py --out experiments/benchmarks/scale.json

`exchange`: messages are made, sent, answered by a client that returns what it was given, and taken into the matrix of
uploads, with one client or eight in a message. There is no training, so all of it is overhead; all adapters are one row
in memory. `run`: a whole run of 1,000 clients of the digits (d = 86,016), one local step and one round. One thread per
process; every case is a process of its own, whose memory is looked at every 20 ms: `peak_mb` is its own,
`object_store_mb` what it has touched of the memory it shares with Ray. `limit_mb` is 1.5 x the matrix of uploads + 400
MB.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_NUM_THREADS": "1",
}

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

RANK, INPUTS, OUTPUTS = 10, 2500, 5000
DIM = RANK * (INPUTS + OUTPUTS)
REPETITIONS = 3
ROUND = 1_000  # clients
client_app = ClientApp()


@client_app.train()
def echo(message: Message, context: Context) -> Message:
    start = message.content.array_records["arrays"]["start"].numpy()
    clients = message.content.config_records["config"]["clients"]
    columns = dict.fromkeys(("num_examples", "train_loss", "accuracy", "loss"), [1.0] * len(start))
    facts = ConfigRecord({"clients": list(clients), "failed": [], "reasons": []})
    arrays = ArrayRecord({"vectors": Array(start)})
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(columns), "config": facts}), reply_to=message)


class OneTask:
    def task_of(self, client: int) -> str:
        return "task"


def exchange(num_clients: int, cohort_size: int, repetitions: int) -> dict[str, float]:
    """Best seconds of some rounds; the first is no warm-up and counts."""
    import ray
    import torch

    from fedfusion.federation import Ray
    from fedfusion.federation.ray import RayGrid
    from fedfusion.server.nodes import Nodes
    from fedfusion.server.uploads import Uploads
    from fedfusion.types import Layout, Pair

    ray.init("local", log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    sys.path.insert(0, str(Path(__file__).parent))
    torch.set_num_threads(1)
    layout = Layout(("A", "B"), ((RANK, INPUTS), (OUTPUTS, RANK)), (Pair("m", 0, 1, 1.0),))
    adapters = torch.linspace(0, 1, DIM).expand(num_clients, DIM)  # all start from the same
    everyone = range(num_clients)
    grid = RayGrid("scale:client_app", 2, 600.0, Ray(actors=2))
    nodes = Nodes("{}", dict.fromkeys(grid.get_node_ids(), everyone))
    best = float("inf")
    for server_round in range(1, 1 + repetitions):
        started = time.perf_counter()
        uploads = Uploads(everyone, layout)
        groups = nodes.groups(everyone, cohort_size)
        messages = nodes.messages(server_round, groups, adapters, OneTask(), {"task": None}, {})
        nodes.exchange(grid, messages, num_clients, 600.0, lambda *_: None, uploads.take)
        updates = uploads.updates(adapters, OneTask())
        best = min(best, time.perf_counter() - started)
        assert len(updates.clients) == num_clients and torch.equal(updates.vectors[-1], adapters[-1])
        del uploads, updates
    ray.shutdown()
    return {"seconds": round(best, 2)}


def measured(command: list[str]) -> dict[str, float]:
    """Peak memory of a process that has to end well, and what it says on its last line if that is JSON."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = {"RssAnon": 0, "RssShmem": 0}
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
            for name in peak:
                peak[name] = max(peak[name], int(status.get(name, "0 kB").split()[0]) * 1024 // 10**6)
        time.sleep(0.02)
    assert process.returncode == 0 and process.stdout is not None, command
    said = process.stdout.read().splitlines()[-1]
    return (json.loads(said) if said.startswith("{") else {}) | {
        "peak_mb": peak["RssAnon"],
        "object_store_mb": peak["RssShmem"],
    }


def run(num_clients: int) -> dict[str, float]:
    """Seconds and peak memory of a whole run of one round."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fedfusion", "run", "federation=ray", "rounds=1", "client.steps=1"]
        command += [f"suite.clients_per_task={num_clients // 8}", "guard=norm_clip", f"run_dir={folder}/run"]
        memory = measured(command)
        results = json.loads(Path(folder, "run", "results.json").read_text())
    assert len(results["metrics"]["rounds"][-1]["heard"]) == num_clients
    return {"seconds": results["wall_time_s"]} | memory


def limits(num_clients: int) -> dict[str, float]:
    return {"matrix_mb": num_clients * DIM * 4 // 10**6, "limit_mb": round(1.5 * num_clients * DIM * 4 / 1e6) + 400}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--case", nargs="+", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        print(json.dumps(exchange(*given.case)))
        return
    result: dict[str, dict[str, float]] = {}
    for num_clients in (ROUND, 10 * ROUND):
        for cohort_size in (1, 8):
            name = f"exchange, {num_clients} clients, {cohort_size} to a message"
            case = [num_clients, cohort_size, REPETITIONS if num_clients == ROUND else 1]
            command = [sys.executable, __file__, "--case", *map(str, case)]
            result[name] = measured(command) | limits(num_clients)
            print(name, result[name], flush=True)
    name = f"run, {ROUND} clients"
    result[name] = run(ROUND) | limits(ROUND)
    print(name, result[name], flush=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
