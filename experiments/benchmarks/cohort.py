"""How much faster a cohort trains than clients one after another, in CPU time, interleaved in one process.

python -m experiments.benchmarks.cohort --out experiments/benchmarks/cohort.json

`reload` loads the base for every client, as FlowerTune does; `swap` keeps one base and exchanges adapters by peft's
state dicts, as OpenFedLLM and FederatedScope do. Both are peft and torch as anybody would write them. One thread;
MiniLM (22M parameters) with LoRA r=8 on query and value, unless said otherwise; random tokens: the cost is that of any.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from fedfusion.client.train import Job, LocalTraining
from fedfusion.coupling import Laplacian, Task
from fedfusion.lora.model import LoraModel, Model, locate
from fedfusion.tasks.heads import LanguageHead, PrototypeHead
from fedfusion.types import Clients, Layout, Samples

MINILM = Model("minilm", {"r": 8, "lora_alpha": 16, "target_modules": ["query", "value"]}, {"add_pooling_layer": False})
LEARNING = {"lr": 1e-3, "max_grad_norm": 1.0}
Method = Callable[[], object]


def texts(n: int, length: int, rng: torch.Generator, lengths: torch.Tensor | None = None) -> Samples:
    lengths = torch.full((n,), length) if lengths is None else lengths
    mask = (torch.arange(length) < lengths[:, None]).long()
    tokens = torch.randint(1000, 30000, (n, length), generator=rng) * mask
    return Samples({"input_ids": tokens, "attention_mask": mask}, torch.randint(0, 4, (n,), generator=rng))


def clients(model: LoraModel, data: list[Samples], head: object) -> list[Job]:
    return [Job(client, model.initial, samples, head) for client, samples in enumerate(data)]


class Peft:
    """Clients one after another, on plain peft: one AdamW step each."""

    def __init__(self, spec: Model) -> None:
        self.spec = spec
        self.auto = AutoModelForCausalLM if spec.auto == "AutoModelForCausalLM" else AutoModel
        self.module = self.load()

    def load(self) -> nn.Module:
        base = self.auto.from_pretrained(locate(self.spec.path), **self.spec.load).requires_grad_(False)
        return get_peft_model(base, LoraConfig(**dict(self.spec.lora))).eval()

    def step(self, module: nn.Module, job: Job) -> None:
        parameters = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=LEARNING["lr"], weight_decay=0.0)
        if isinstance(job.head, LanguageHead):
            loss = module(**job.data.inputs, labels=job.data.labels).loss
        else:
            hidden = module(**job.data.inputs).last_hidden_state[:, 0]
            loss = F.cross_entropy(job.head(hidden), job.data.labels)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, LEARNING["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()

    def swap(self, jobs: list[Job]) -> Method:
        states = [{n: p.clone() for n, p in get_peft_model_state_dict(self.module).items()} for _ in jobs]

        def run() -> None:
            for job, state in zip(jobs, states, strict=True):
                set_peft_model_state_dict(self.module, state)
                self.step(self.module, job)
                get_peft_model_state_dict(self.module)

        return run

    def reload(self, jobs: list[Job]) -> Method:
        def run() -> None:
            for job in jobs:
                module = self.load()
                self.step(module, job)
                get_peft_model_state_dict(module)

        return run


def cohort(model: LoraModel, jobs: list[Job], **plan: object) -> Method:
    size = len(jobs[0].data)
    train = LocalTraining(**({"steps": 1, "batch_size": size} | LEARNING | plan))
    return lambda: train(model, jobs, seed=0, server_round=1)


def measure(methods: dict[str, Method], repetitions: int) -> dict[str, float]:
    """Median CPU seconds of each method; all take turns, the first turn does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(repetitions + 1):
        for name, method in methods.items():
            started = time.process_time()
            method()
            if turn:
                seconds[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def against(seconds: dict[str, float], baselines: list[str]) -> dict[str, dict[str, float]]:
    """How many times less than each baseline the others take."""
    return {
        name: {baseline: round(seconds[baseline] / seconds[name], 2) for baseline in baselines}
        for name in seconds
        if name not in baselines
    }


def floor(rows: int, repetitions: int) -> float:
    """GFLOP/s of the frozen products of MiniLM's layers, by whichever library is faster."""
    x, w = torch.randn(rows, 384), torch.randn(1536, 384)
    bias = torch.zeros(1536)
    libraries: dict[str, Method] = {"torch": lambda: torch.addmm(bias, x, w.t())}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        libraries["onednn"] = lambda: torch.ops.mkldnn._linear_pointwise(x, w, bias, "none", [], "")
    repeated = {name: lambda f=f: [f() for _ in range(10)] for name, f in libraries.items()}
    return 10 * 2 * rows * 384 * 1536 / min(measure(repeated, repetitions).values()) / 1e9


def products(k: int, b: int, t: int) -> float:
    """GFLOP of one step of a cohort in the frozen products and attention of MiniLM, with the last layer pruned.

    Forward, and backward through activations only; of the last layer only keys and values see all tokens, and no
    gradient reaches below the first layer's query and value.
    """
    h, wide, layers = 384, 1536, 6
    dense, attention = 2 * (4 * h * h + 2 * h * wide), 4 * t * h
    last = 2 * (2 * h * h) + (2 * (2 * h * h + 2 * h * wide) + attention) / t
    forward = (layers - 1) * (dense + attention) + last
    backward = forward + (layers - 1) * attention - 3 * 2 * h * h
    return k * b * t * (forward + backward) / 1e9


def minilm(k: int, b: int, t: int, repetitions: int, with_reload: bool) -> dict:
    rng = torch.Generator().manual_seed(0)
    exact, coarse = LoraModel(MINILM, 0), LoraModel(replace(MINILM, precision="bf16"), 0)
    head = PrototypeHead.fit(torch.randn(4, 384, generator=rng), torch.arange(4), 4)
    jobs = clients(exact, [texts(b, t, rng) for _ in range(k)], head)
    peft = Peft(MINILM)
    methods = {"swap": peft.swap(jobs), "cohort fp32": cohort(exact, jobs), "cohort bf16": cohort(coarse, jobs)}
    few = jobs[:4]
    if with_reload:
        methods = {"reload": peft.reload(few)} | methods
    seconds = measure(methods, repetitions)
    if with_reload:
        seconds["reload"] *= k / len(few)
    rate = floor(k * b * t if k * b * t < 4096 else 4096, repetitions)
    efficiency = products(k, b, t) / rate / seconds["cohort fp32"]
    return {
        "clients": k,
        "batch": b,
        "tokens": t,
        "seconds": seconds,
        "times_faster_than": against(seconds, [name for name in ("reload", "swap") if name in seconds]),
        "gemm_gflops": round(rate),
        "fp32_share_of_gemm_floor": round(efficiency, 3),
    }


def lengths(repetitions: int) -> dict:
    """Lognormal lengths, mean about 24, at most 60, padded to 64."""
    rng = torch.Generator().manual_seed(0)
    model, head = LoraModel(MINILM, 0), PrototypeHead.fit(torch.randn(4, 384, generator=rng), torch.arange(4), 4)
    drawn = (torch.randn(8, 16, generator=rng) * 0.5 + 3.05).exp().long().clamp(4, 60)
    jobs = clients(model, [texts(16, 64, rng, row) for row in drawn], head)
    whole = [replace(job, data=replace(job.data, inputs=full(job.data.inputs))) for job in jobs]
    trimmed = [replace(job, data=job.data.pad(int(row.max()))) for job, row in zip(jobs, drawn, strict=True)]
    peft = Peft(MINILM)
    seconds = measure(
        {
            "cohort padded to 64": cohort(model, whole),
            "swap padded to 64": peft.swap(jobs),
            "swap padded to each batch": peft.swap(trimmed),
            "cohort in buckets": cohort(model, jobs),
        },
        repetitions,
    )
    return {"mean_length": round(float(drawn.float().mean()), 1), "seconds": seconds} | {
        "times_faster_than": against(seconds, [name for name in seconds if name != "cohort in buckets"])
    }


def full(inputs: dict) -> dict:
    """The same tokens with a mask that hides none, so that nothing can be cut."""
    return {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}


def causal(folder: Path, repetitions: int) -> dict:
    """A GPT-2 with a vocabulary of 8,192; the response is a quarter of the tokens."""
    rng = torch.Generator().manual_seed(0)
    config = GPT2Config(vocab_size=8192, n_embd=256, n_layer=4, n_head=4, n_positions=64, pad_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    lora = {"r": 8, "lora_alpha": 16, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    spec = Model(str(folder), lora, auto="AutoModelForCausalLM")
    model = LoraModel(spec, 0)
    head, data = LanguageHead(model.output), []
    for _ in range(8):
        tokens = torch.randint(1, 8192, (4, 32), generator=rng)
        labels = tokens.clone()
        labels[:, :24] = -100
        data.append(Samples({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, labels))
    jobs = clients(model, data, head)
    seconds = measure({"swap": Peft(spec).swap(jobs), "cohort fp32": cohort(model, jobs)}, repetitions)
    return {"clients": 8, "batch": 4, "tokens": 32, "seconds": seconds, "times_faster_than": against(seconds, ["swap"])}


def prefix(repetitions: int) -> dict:
    """Adapters on the upper two of six layers, ten passes over 32 samples per client; the cache is made in the time."""
    rng = torch.Generator().manual_seed(0)
    spec = replace(MINILM, lora=dict(MINILM.lora) | {"layers_to_transform": [4, 5]})
    model, without = LoraModel(spec, 0), LoraModel(spec, 0)
    assert without.cohort is not None
    without.cohort.depth = 0
    jobs = clients(
        model,
        [texts(32, 32, rng) for _ in range(4)],
        PrototypeHead.fit(torch.randn(4, 384, generator=rng), torch.arange(4), 4),
    )
    plan = {"epochs": 10, "batch_size": 16}
    seconds = measure(
        {"cohort without": cohort(without, jobs, **plan), "cohort with cache": cohort(model, jobs, **plan)}, repetitions
    )
    return {"seconds": seconds, "times_faster_than": against(seconds, ["cohort without"])}


def coupling(repetitions: int) -> dict:
    """One Laplacian step of 1,000 clients x 75,268 parameters, against a loop over pairs of related clients."""
    tasks = tuple(f"task-{i % 100}" for i in range(1000))  # ten clients of each task are related
    relation = torch.tensor([[float(a == b) for b in tasks] for a in tasks])
    adapters, heard = torch.randn(1000, 75_268), torch.arange(1000)
    everyone = Clients(Layout(("w",), ((75_268,),)), tasks, adapters[0], relation)
    step = Laplacian(Task(), strength=0.5, normalise="row")

    def loop() -> None:
        for k in range(1000):
            related = [other for other in range(1000) if other != k and relation[k, other]]
            for other in related:
                adapters[k] - 0.5 / len(related) * (adapters[k] - adapters[other])

    seconds = measure(
        {"loop": loop, "coupling": lambda: step(adapters, heard, torch.ones(1000) / 1000, everyone, torch.Generator())},
        repetitions,
    )
    return {"clients": 1000, "parameters": 75_268, "seconds": seconds, "times_faster_than": against(seconds, ["loop"])}


def machine() -> dict[str, object]:
    """What it was measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "processor": next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor()),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    n = arguments.repetitions
    with tempfile.TemporaryDirectory() as folder:
        results = {
            "small batches": minilm(64, 4, 16, n, with_reload=True),
            "large batches": minilm(8, 16, 32, n, with_reload=True),
            "lengths": lengths(n),
            "causal": causal(Path(folder), n),
            "prefix": prefix(max(1, n // 2)),
            "coupling": coupling(max(1, n // 2)),
        }
    results["machine"] = machine() | {"repetitions": n}
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
