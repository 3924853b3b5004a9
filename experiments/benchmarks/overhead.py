"""Overhead per message of each federation beyond training: an echo client, 0.1 MB each way.

    python experiments/benchmarks/overhead.py --out experiments/benchmarks/overhead.json

A message is packed from an array, sent, unpacked, changed and packed again by the client, and unpacked from the
reply. One thread per process, two actors; Flower's own simulation engine is measured beside ours in the same run.
Best of the repetitions after a warm-up round.
"""

import argparse
import json
import logging
import os
import sys
import time
from pathlib import Path

os.environ |= {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_NUM_THREADS": "1",
}
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import ray
from echo import client_app, pack, unpack
from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from fedfusion.federation import Ray
from fedfusion.federation.inline import InlineGrid
from fedfusion.federation.ray import RayGrid

PAYLOAD = np.zeros(25_000, np.float32)  # 0.1 MB
REPETITIONS = 5


def rounds(grid: Grid, num_nodes: int, repetitions: int = REPETITIONS) -> float:
    """Best wall time per message in ms over some rounds, each with one message per node."""
    while len(nodes := list(grid.get_node_ids())) < num_nodes:
        time.sleep(0.1)
    best = float("inf")
    for _ in range(1 + repetitions):
        started = time.perf_counter()
        messages = [Message(pack(PAYLOAD), node, "train") for node in nodes]
        vectors = [unpack(reply.content) for reply in grid.send_and_receive(messages)]
        best = min(best, time.perf_counter() - started)
        assert len(vectors) == num_nodes and all(vector[0] == 1.0 for vector in vectors)
    return 1000 * best / num_nodes


def flower_engine(num_nodes: int, repetitions: int) -> float:
    """The same rounds on Flower's own simulation engine."""
    measured: list[float] = []
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        measured.append(rounds(grid, num_nodes, repetitions))

    backend = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": 2, "log_to_driver": False},
    }
    run_simulation(server_app, client_app, num_nodes, backend_config=backend)
    return measured[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    logging.disable(logging.WARNING)
    result: dict[str, dict[str, float]] = {}
    for num_nodes in (100, 1000):
        row = {"inline_ms": rounds(InlineGrid(client_app, num_nodes, 600.0), num_nodes)}
        path = os.pathsep.join(p for p in sys.path if p)
        ray.init(log_to_driver=False, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
        row["ray_ms"] = rounds(RayGrid("echo:client_app", num_nodes, 600.0, Ray(actors=2)), num_nodes)
        ray.shutdown()
        row["flower_engine_ms"] = flower_engine(num_nodes, repetitions=2)
        result[f"{num_nodes} clients"] = {name: round(value, 3) for name, value in row.items()}
        print(json.dumps({f"{num_nodes} clients": result[f"{num_nodes} clients"]}), flush=True)
    out.write_text(json.dumps({"payload_mb": 0.1, "ms_per_message": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
