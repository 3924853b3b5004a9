"""What one round of the uplink costs the server, in CPU seconds of one thread, and in copies of the matrix of uploads.

    python -m experiments.benchmarks.uplink --out experiments/benchmarks/uplink.json

Eight clients of a million parameters each cross every level, and a thousand of 75,268 the first; the least of three
runs in one process. Memory is the growth of the peak while a round runs, in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from experiments.benchmarks.cohort import machine
from fedfusion.channels import Awgn, Jammer, Mimo, Receiver
from fedfusion.types import Layout, Updates

MILLION = 1_000_000
CHANNELS = {
    "white noise": Awgn(snr_db=10.0),
    "equivalent noise, barrage": Mimo(jammer=Jammer(objective="barrage")),
    "equivalent noise, worst for the rate": Mimo(jammer=Jammer(objective="sum_rate")),
    "symbols, barrage": Mimo(level="analog", jammer=Jammer(objective="barrage")),
    "symbols, worst for the rate": Mimo(level="analog", jammer=Jammer(objective="sum_rate")),
    "packets, barrage": Mimo(level="packet", coherence_block=2016, jammer=Jammer(objective="barrage")),
}
ROUND = Mimo(jammer=Jammer(objective="sum_rate"), receiver=Receiver(knowledge="sample"))


def uploads(n: int, d: int) -> Updates:
    vectors = torch.empty(n, d).normal_(generator=torch.Generator().manual_seed(0))
    return Updates(Layout(("w",), ((d,),)), vectors, torch.zeros(n, 0), tuple(range(n)), ("",) * n, (1,) * n, ({},) * n)


def seconds(channel, sent: Updates) -> float:
    """CPU seconds of one round, the least of three."""
    times = []
    for seed in range(3):
        start = time.process_time()
        channel(sent, torch.Generator().manual_seed(seed))
        times.append(time.process_time() - start)
    return min(times)


def copies(n: int, d: int) -> float:
    """Peak of a round over what the process held before, with the uploads in it, in sizes of their matrix."""
    sent = uploads(n, d)
    ROUND(uploads(8, d), torch.Generator().manual_seed(0))  # libraries are loaded
    before = peak()
    ROUND(sent, torch.Generator().manual_seed(0))
    return 1 + (peak() - before) / (4 * n * d)


def peak() -> float:
    """Bytes of memory that this process held at most (Linux; what getrusage tells is the parent's after a fork)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments/benchmarks/uplink.json"))
    parser.add_argument("--memory", action="store_true", help="measure memory alone, and print it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory:
        print(copies(1000, 75_268))
        return
    results = {"machine": machine(), "cpu_s_per_million_and_client": {}}
    sent = uploads(8, MILLION)
    for name, channel in CHANNELS.items():
        results["cpu_s_per_million_and_client"][name] = round(seconds(channel, sent) / len(sent), 4)
        print(name, results["cpu_s_per_million_and_client"][name], flush=True)
    results["cpu_s_of_1000_clients"] = round(seconds(ROUND, uploads(1000, 75_268)), 3)
    command = [sys.executable, "-m", "experiments.benchmarks.uplink", "--memory"]
    results["copies_of_the_matrix"] = round(float(subprocess.run(command, check=True, capture_output=True).stdout), 2)
    print(json.dumps(results, indent=1))
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
