"""What it costs to merge eight LoRA adapters of a ViT-B, in CPU seconds of one thread, the least of three.

    python -m experiments.benchmarks.fusion_lora

All 72 linear layers, rank 16, random factors: the worst case, as nothing is shared. Rules run from factors to factors:
core space, coordinates, rule, adapter of the stacked rank. What others do on dense products is measured on one layer of
each shape and scaled by the number of such layers.
"""

import contextlib
import io
import json
import time
from collections.abc import Callable
from importlib import import_module

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from fedfusion.fusion import Isotropic, Ties, TsvM
from fedfusion.lora.product import CoreSpace, factors, stack, truncate
from fedfusion.types import Evidence, Fusion, Layout, Pair

TASKS, RANK = 8, 16
LAYERS = {(768, 768): 48, (3072, 768): 12, (768, 3072): 12}  # rows and columns of a layer, and how many there are
RULES: dict[str, Fusion] = {
    "TSV-M": TsvM(),
    "Iso-C": Isotropic(),
    "Iso-CTS": Isotropic(fraction=0.8),
    "TIES in core space": Ties(),
}


def least(run: Callable[[], object]) -> float:
    """CPU seconds, the least of three."""
    times = []
    for _ in range(3):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def adapter(rank: int, layers: dict[tuple[int, int], int] = LAYERS) -> Layout:
    """The layout of an adapter on all layers."""
    shapes = [shape for shape, number in layers.items() for _ in range(number)]
    return Layout(
        tuple(f"{i}.{factor}" for i in range(len(shapes)) for factor in "AB"),
        tuple(entry for m, n in shapes for entry in ((rank, n), (m, rank))),
        tuple(Pair(str(i), 2 * i, 2 * i + 1, 1.0) for i in range(len(shapes))),
    )


def merged(rule: Fusion, layout: Layout, vectors: Tensor, wide: Layout) -> Tensor:
    """The adapter that a rule makes of those of the tasks."""
    core = CoreSpace.of(layout, vectors, torch.zeros(layout.dim), rule.space)
    evidence = Evidence(torch.Generator().manual_seed(0))
    return core.to_adapter(rule(core.project(layout, vectors), core.layout, evidence), wide)[0]


def ours() -> dict[str, float]:
    """Seconds of all layers by what is done."""
    layout, wide = adapter(RANK), adapter(TASKS * RANK)
    vectors = torch.randn(TASKS, layout.dim, generator=torch.Generator().manual_seed(0))

    def cut() -> None:
        for pair in layout.pairs:
            b, a = factors(layout, pair, vectors)
            truncate(stack(list(zip(b, a, strict=True))), RANK)

    seconds = {"sum, cut to the rank of one": least(cut)}
    for name, rule in RULES.items():
        seconds[name] = least(lambda rule=rule: merged(rule, layout, vectors, wide))
    return seconds


def peft(b: Tensor, a: Tensor) -> Callable[[], object]:
    """peft's merge of adapters by a decomposition of the dense sum, on one layer."""
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["0"])
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(a.shape[-1], b.shape[-2], bias=False)), config, "0")
    names = [str(task) for task in range(TASKS)]
    for name in names[1:]:
        model.add_adapter(name, config)
    layer = model.base_model.model[0]
    with torch.no_grad():
        for name, left, right in zip(names, b, a, strict=True):
            layer.lora_B[name].weight.copy_(left)
            layer.lora_A[name].weight.copy_(right)

    def run() -> None:
        model.add_weighted_adapter(names, [1.0] * TASKS, "merged", combination_type="svd", svd_rank=RANK)
        model.delete_adapter("merged")

    return run


def theirs() -> dict[str, float]:
    """Seconds of all layers, scaled from one of each shape."""
    rng, seconds = torch.Generator().manual_seed(0), {}
    for (m, n), number in LAYERS.items():
        layout = adapter(RANK, {(m, n): 1})
        b, a = factors(layout, layout.pairs[0], torch.randn(TASKS, layout.dim, generator=rng))
        runs: dict[str, Callable[[], object]] = {
            "sum, cut to the rank of one: torch, dense": lambda b=b, a=a: torch.linalg.svd(
                (b @ a).sum(0), full_matrices=False
            ),
            "sum, cut to the rank of one: peft": peft(b, a),
        }
        with contextlib.suppress(ImportError):
            tsv = import_module("fusion_bench.method.task_singular_vector.utils.TSVM_utils")
            iso = import_module("fusion_bench.method.isotropic_merging.iso_utils")
            states = [{"w": product} for product in b @ a]
            runs |= {
                "TSV-M: fusion_bench": lambda s=states, f=tsv.compute_and_sum_svd_mem_reduction: f(
                    s, accelerator="cpu"
                ),
                "Iso-C: fusion_bench": lambda s=states, f=iso.iso_c: f(s, accelerator="cpu"),
                "Iso-CTS: fusion_bench": lambda s=states, f=iso.iso_cts: f(s, 0.8, accelerator="cpu"),
            }
        for name, run in runs.items():
            with contextlib.redirect_stdout(io.StringIO()):  # fusion_bench tells of every tensor
                seconds[name] = seconds.get(name, 0.0) + number * least(run)
    return seconds


def measure() -> dict[str, object]:
    """Seconds of merging the adapters, and of what others do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = {"cpu_s": ours(), "cpu_s_scaled_from_one_layer_of_each_shape": theirs()}
    finally:
        torch.set_num_threads(threads)
    rounded = {part: {name: round(value, 3) for name, value in seconds.items()} for part, seconds in found.items()}
    return {"adapters": f"{TASKS} of rank {RANK} on {sum(LAYERS.values())} layers of a ViT-B", **rounded}


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
