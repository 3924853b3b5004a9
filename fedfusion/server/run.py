"""One run of the server: from the resolved configuration to the files of the run folder."""

import importlib.metadata
import json
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from safetensors.torch import save_file

from fedfusion.config import Experiment, build
from fedfusion.lora.model import LoraModel
from fedfusion.server.checkpoint import Checkpoints, write_atomically
from fedfusion.server.evaluation import Evaluator, summary
from fedfusion.server.strategy import RoundStrategy
from fedfusion.tracking import Jsonl, Terminal

SCHEMA_VERSION = 1
PACKAGES = ("fedfusion", "flwr", "torch", "peft", "transformers", "datasets", "flwr-datasets", "hydra-core", "ray")


def serve(grid: Grid, experiment_json: str) -> None:
    """Run all rounds on `grid` and write adapters, metrics and results into the run folder.

    A folder that holds checkpoints already is continued.
    """
    started = time.monotonic()
    experiment = build(experiment_json)
    assert experiment.run_dir is not None
    run_dir = Path(experiment.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(experiment.client.threads)
    client_model = LoraModel(experiment.model, experiment.seed)
    fused_model = LoraModel(experiment.model, experiment.seed, rank=_fused_rank(experiment, client_model))
    strategy = RoundStrategy(
        experiment=experiment,
        experiment_json=experiment_json,
        layout=client_model.layout,
        initial=client_model.read(),
        evaluator=Evaluator(experiment.suite, fused_model, experiment.seed),
        trackers=(Jsonl(run_dir / "metrics.jsonl"), Terminal()),
        checkpoints=Checkpoints(run_dir),
    )
    strategy.start(grid, ArrayRecord(), num_rounds=experiment.rounds, timeout=experiment.deadline_s)
    _save_adapters(run_dir, strategy, client_model)
    results = {
        "schema_version": SCHEMA_VERSION,
        "seed": experiment.seed,
        "metrics": _metrics(strategy),
        "config": {key: value for key, value in json.loads(experiment_json).items() if key != "run_dir"},
        "versions": versions(),
        "machine": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "threads": torch.get_num_threads(),
        },
        "wall_time_s": round(time.monotonic() - started, 2),
        "peak_memory_mb": round(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 2**20)
        ),
    }
    write_atomically(run_dir / "results.json", json.dumps(results, indent=1) + "\n")


def _fused_rank(experiment: Experiment, model: LoraModel) -> int:
    """The configured rank, or what holds every task's adapter without loss; never more than a full matrix has."""
    layout = model.layout
    full = max(min(layout.shapes[p.a][1], layout.shapes[p.b][0]) for p in layout.pairs)
    rank = max(layout.shapes[pair.a][0] for pair in layout.pairs)
    return min(full, experiment.fused_rank or len(experiment.suite.tasks) * rank)


def _save_adapters(run_dir: Path, strategy: RoundStrategy, client_model: LoraModel) -> None:
    """`adapter/` with its heads, and `personal/client-00/` for every client that was heard."""
    model = strategy.evaluator.model
    model.save(run_dir / "adapter", strategy.state.realigned)
    heads = {task: head.to_tensor() for task, head in strategy.evaluator.heads.items()}
    save_file(heads, run_dir / "adapter" / "heads.safetensors")
    for client, adapter in enumerate(strategy.state.adapters):
        if strategy.state.examples[client]:
            client_model.save(run_dir / "personal" / f"client-{client:02d}", adapter)


def _metrics(strategy: RoundStrategy) -> dict[str, Any]:
    """The scores of the last round beside those that no round changes, and every round's record."""
    state = strategy.state
    last = state.history[-1]
    tasks = {
        task: {name: scores[task] for name, scores in state.reference.items()} | last["tasks"].get(task, {})
        for task in strategy.suite.tasks
    }
    fixed = {name: summary(scores) for name, scores in state.reference.items()}
    return {
        "tasks": tasks,
        "mean": {name: s["mean"] for name, s in fixed.items()} | last["mean"],
        "worst": {name: s["worst"] for name, s in fixed.items()} | last["worst"],
        "rounds": state.history,
    }


def versions() -> dict[str, str | None]:
    """Installed versions of fedfusion and of what it stands on."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found
