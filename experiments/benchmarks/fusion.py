"""What fusing eight dense task vectors costs, in CPU seconds of one thread and in copies of the task vectors.

    python -m experiments.benchmarks.fusion --out experiments/benchmarks/fusion.json

The task vectors are those of a ViT-S/16, 198 tensors of 21.7 million parameters, and random. The floor is to read each
of them once and to write the result, at the speed of a copy in the same run. Times are the least of three, memory is
the growth of the peak in a process of its own. Libraries do what they do on the same tensors, where they are installed.
The second section is the cost of rules on LoRA factors, see fusion_lora.py.
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from experiments.benchmarks.cohort import machine
from experiments.benchmarks.uplink import peak
from fedfusion.fusion import Breadcrumbs, Consensus, Dare, Emr, MetaGpt, Pcb, TaskArithmetic, Ties
from fedfusion.types import Evidence, Fusion, Layout

TASKS, DENSITY, DROP = 8, 0.2, 0.9
RULES: Mapping[str, Fusion] = {
    "task arithmetic": TaskArithmetic(0.3),
    "metagpt": MetaGpt(),
    "ties": Ties(DENSITY, space="dense"),
    "ties, by tensor": Ties(DENSITY, threshold="tensor", space="dense"),
    "dare": Dare(DROP, space="dense"),
    "dare, mean of signs": Dare(DROP, merge="mean", space="dense"),
    "breadcrumbs": Breadcrumbs(space="dense"),
    "pcb": Pcb(space="dense"),
    "consensus": Consensus(space="dense"),
    "emr": Emr(space="dense"),
}


def vit_small() -> Layout:
    """Entries of a ViT-S/16 without its head."""
    block = {
        **{f"{name}.{part}": (384,) for name in ("norm1", "norm2") for part in ("weight", "bias")},
        **{f"{name}.weight": (384, 384) for name in ("query", "key", "value", "output")},
        **{f"{name}.bias": (384,) for name in ("query", "key", "value", "output", "down")},
        **{"up.weight": (1536, 384), "up.bias": (1536,), "down.weight": (384, 1536)},
    }
    shapes = {"token": (1, 1, 384), "position": (1, 197, 384), "patch.weight": (384, 3, 16, 16), "patch.bias": (384,)}
    shapes |= {f"{i}.{name}": shape for i in range(12) for name, shape in block.items()}
    shapes |= {"norm.weight": (384,), "norm.bias": (384,)}
    return Layout(tuple(shapes), tuple(shapes.values()))


LAYOUT = vit_small()
Method = Callable[[torch.Tensor, Layout], object]


def fedfusion(rule: Fusion) -> Method:
    return lambda vectors, layout: rule(vectors, layout, Evidence(torch.Generator().manual_seed(0)))


def by_tensor(merge: Callable[[list[torch.Tensor]], object]) -> Method:
    return lambda vectors, layout: [merge(list(layout.entry(vectors, i))) for i in range(len(layout.names))]


def libraries() -> dict[str, Method]:
    """The same rules as others implement them."""
    from peft.utils import merge_utils

    weights = torch.full((TASKS,), 0.3)
    methods = {
        "task arithmetic, peft": by_tensor(lambda tensors: merge_utils.task_arithmetic(tensors, weights)),
        "ties, by tensor, peft": by_tensor(lambda tensors: merge_utils.ties(tensors, weights, DENSITY)),
        "dare, peft": by_tensor(lambda tensors: merge_utils.dare_linear(tensors, weights, 1 - DROP)),
    }
    try:
        from fusion_bench.method.dare.utils import param_random_drop_
        from fusion_bench.method.ties_merging.ties_merging_utils import ties_merging
        from fusion_bench.utils.state_dict_arithmetic import state_dict_mul, state_dict_sum
    except ImportError:
        return methods

    def add(vectors: torch.Tensor, layout: Layout) -> object:
        return state_dict_mul(state_dict_sum([layout.unflatten(vector) for vector in vectors]), 0.3)

    def drop(vectors: torch.Tensor, layout: Layout) -> object:
        states = [{name: tensor.clone() for name, tensor in layout.unflatten(v).items()} for v in vectors]
        for tensor in (tensor for state in states for tensor in state.values()):
            param_random_drop_(tensor, DROP, rescale=True)
        return state_dict_mul(state_dict_sum(states), 0.3)

    return methods | {
        "task arithmetic, fusion-bench": add,
        "ties, fusion-bench": lambda vectors, _: ties_merging(vectors, DENSITY, "dis-mean"),
        "dare, fusion-bench": drop,
    }


def task_vectors(layout: Layout) -> torch.Tensor:
    return torch.empty(TASKS, layout.dim).normal_(0, 1e-3, generator=torch.Generator().manual_seed(0))


def seconds(method: Callable[[], object], repetitions: int = 3) -> float:
    """CPU seconds, the least of some runs."""
    times = []
    for _ in range(repetitions):
        start = time.process_time()
        method()
        times.append(time.process_time() - start)
    return min(times)


def growth(method: Method) -> float:
    """Growth of the peak while it runs, in sizes of the task vectors."""
    tiny = Layout(("w", "b"), ((8, 8), (8,)))
    method(task_vectors(tiny), tiny)  # libraries are loaded
    vectors = task_vectors(LAYOUT)
    before = peak()
    method(vectors, LAYOUT)
    return (peak() - before) / (vectors.nbytes)


def dense() -> dict[str, object]:
    vectors, target = task_vectors(LAYOUT), torch.zeros(LAYOUT.dim)
    copies, found = [], {}
    methods = {name: fedfusion(rule) for name, rule in RULES.items()} | libraries()
    for name, method in methods.items():
        copies.append(seconds(lambda: target.copy_(vectors[0]), 9))
        with contextlib.redirect_stdout(io.StringIO()):
            found[name] = seconds(lambda method=method: method(vectors, LAYOUT))
    floor = (TASKS + 1) / 2 * min(copies)  # a copy reads one vector and writes one
    results = {}
    for name, spent in found.items():
        command = [sys.executable, "-m", "experiments.benchmarks.fusion", "--memory", name]
        memory = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        results[name] = {
            "cpu_s": round(spent, 4),
            "times_floor": round(spent / floor, 2),
            "extra_memory": round(memory, 3),
        }
        print(name, results[name], flush=True)
    return {
        "tasks": TASKS,
        "parameters": LAYOUT.dim,
        "copy_gb_per_s": round(8e-9 * LAYOUT.dim / min(copies), 1),
        "floor_s": round(floor, 4),
        "rules": results,
    }


def lora() -> dict[str, object]:
    from experiments.benchmarks.fusion_lora import measure

    return measure()


SECTIONS = {"dense": dense, "lora": lora}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments/benchmarks/fusion.json"))
    parser.add_argument(
        "--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="others stay as they are"
    )
    parser.add_argument("--memory", help="measure the memory of this method alone, and print it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory:
        rule = RULES.get(arguments.memory)
        print(growth(fedfusion(rule) if rule else libraries()[arguments.memory]))
        return
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    results |= {"machine": machine()} | {section: SECTIONS[section]() for section in arguments.sections}
    print(json.dumps(results, indent=1))
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
