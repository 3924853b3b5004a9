"""One run of the server: from the resolved configuration to the files of the run folder."""

import contextlib
import importlib.metadata
import json
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from logging import WARNING
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord
from flwr.common import log
from flwr.serverapp import Grid
from safetensors.torch import save_file

from fedfusion.config import Experiment, build, for_clients
from fedfusion.coupling import Laplacian
from fedfusion.lora.model import LoraModel
from fedfusion.server.checkpoint import Checkpoints, folders, write_atomically
from fedfusion.server.evaluation import Evaluator, summary
from fedfusion.server.lock import locked
from fedfusion.server.stock import serve_stock
from fedfusion.server.store import Store
from fedfusion.server.strategy import RoundStrategy
from fedfusion.server.structure import relation, spectra
from fedfusion.strict_json import dumps, worded
from fedfusion.tasks.heads import PrototypeHead
from fedfusion.tracking import Jsonl, Terminal, Tracker
from fedfusion.types import FedfusionError

SCHEMA_VERSION = 1
FOLDERS = ("run_dir", "trainings")  # where a run happens to be, and finds what it computes
PACKAGES = (
    "fedfusion",
    "flwr",
    "torch",
    "peft",
    "transformers",
    "datasets",
    "flwr-datasets",
    "hydra-core",
    "ray",
    "sionna-no-rt",
)


def serve(grid: Grid, experiment_json: str) -> None:
    """Run all rounds on `grid` and write adapters, metrics and results into the run folder.

    A folder that holds checkpoints already is continued.
    """
    started = time.monotonic()
    experiment = build(experiment_json)
    experiment_json = _named(experiment, experiment_json)
    assert experiment.run_dir is not None
    run_dir = Path(experiment.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    with _alone(run_dir), _telling(experiment, experiment_json, run_dir) as trackers:
        results = _serve(grid, experiment, experiment_json, run_dir, started, trackers)
        for tracker in trackers:
            tracker.concluded(results)


def _named(experiment: Experiment, experiment_json: str) -> str:
    """The same with every task by its name, since devices see no other folder than their own."""
    cfg = json.loads(experiment_json)
    if not cfg["suite"].get("tasks", True):
        cfg["suite"]["tasks"] = list(experiment.suite.tasks)
    return json.dumps(cfg)


@contextlib.contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with this process however it ends."""
    with locked(run_dir / ".lock") as mine:
        if not mine:
            raise FedfusionError(f"another process is still writing to {run_dir} (wait for it, or end it)")
        yield


@contextlib.contextmanager
def _telling(experiment: Experiment, experiment_json: str, run_dir: Path) -> Iterator[Sequence[Tracker]]:
    """Those who are told about the run, until it is over."""
    chosen = experiment.tracker.open(run_dir, json.loads(experiment_json))
    with contextlib.ExitStack() as over:
        trackers = Jsonl(run_dir / "metrics.jsonl"), Terminal(), chosen
        for tracker in trackers:
            over.callback(tracker.close)
        yield trackers


def _serve(
    grid: Grid,
    experiment: Experiment,
    experiment_json: str,
    run_dir: Path,
    started: float,
    trackers: Sequence[Tracker],
) -> dict[str, Any]:
    torch.set_num_threads(experiment.client.threads)
    if experiment.server.stock:
        metrics = serve_stock(grid, experiment, experiment_json, run_dir, trackers)
        seconds = {"wall_time_s": time.monotonic() - started}
        return _conclude(run_dir, experiment_json, metrics, seconds, Checkpoints(run_dir))
    client_model = LoraModel(experiment.model, experiment.seed, engine=experiment.client.engine)
    if client_model.fallback:
        log(WARNING, "client.engine=peft, slower: the cohort engine cannot run this adapter, %s", client_model.fallback)
    rank = _fused_rank(experiment, client_model)
    fused_model = LoraModel(experiment.model, experiment.seed, rank, experiment.client.engine)
    if experiment.coupling.into_base:  # nothing yet, but an adapter that cannot be added is refused here
        client_model.bake(fused_model.initial, fused_model.layout)
    # of a coupling into the base, each round has another base
    store = None if experiment.coupling.into_base else Store.of(json.loads(experiment_json), experiment)
    strategy = RoundStrategy(
        experiment=experiment,
        experiment_json=for_clients(experiment_json),
        model=client_model,
        evaluator=Evaluator(experiment.suite, fused_model, experiment.seed, experiment.head, store),
        trackers=trackers,
        checkpoints=Checkpoints(run_dir),
    )
    for damage in strategy.checkpoints.damaged:
        Terminal().warn(f"damaged checkpoint {damage} (the round before it is used)")
    strategy.start(grid, ArrayRecord(), num_rounds=experiment.rounds, timeout=experiment.deadline_s)
    with strategy.checkpoints.writing(run_dir / "adapter"), folders(run_dir) as folder:
        _save_adapters(folder, strategy, client_model)
    metrics = _metrics(strategy) | _rouge_l(strategy, experiment.rouge_rows) | _structure(strategy)
    total = strategy.state.seconds + time.monotonic() - started
    seconds = {"wall_time_s": total, "training_s": strategy.training_s}
    return _conclude(run_dir, experiment_json, metrics, seconds, strategy.checkpoints)


def _conclude(
    run_dir: Path, experiment_json: str, metrics: dict[str, Any], seconds: Mapping[str, float], checkpoints: Checkpoints
) -> dict[str, Any]:
    """Write results.json, and return what is in it."""
    config = json.loads(experiment_json)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    results = {
        "schema_version": SCHEMA_VERSION,
        "seed": config["seed"],
        "metrics": metrics,
        "config": worded({key: value for key, value in config.items() if key not in FOLDERS}),
        "versions": versions(),
        "machine": machine(),
        **{name: round(value, 2) for name, value in seconds.items()},
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6),
    }
    with checkpoints.writing(run_dir / "results.json"):
        write_atomically(run_dir / "results.json", dumps(results, indent=1) + "\n")
    return results


def _fused_rank(experiment: Experiment, model: LoraModel) -> int:
    """The configured rank, or number of tasks times rank of a client; never more than a full matrix has."""
    layout = model.layout
    if not layout.pairs:
        return 1
    full = max(min(layout.shapes[p.a][1], layout.shapes[p.b][0]) for p in layout.pairs)
    rank = layout.rank
    return min(full, experiment.fused_rank or len(experiment.suite.tasks) * rank)


def _save_adapters(run_dir: Path, strategy: RoundStrategy, client_model: LoraModel) -> None:
    """`adapter/` with its heads, `served/` by task, and `personal/client-00/` for every client that was heard."""
    model = strategy.evaluator.model
    best = strategy.experiment.keep == "best"
    model.save(run_dir / "adapter", strategy.state.best if best else strategy.state.realigned)
    if best:
        model.save(run_dir / "last", strategy.state.realigned)
    heads = {
        task: head.to_tensor() for task, head in strategy.evaluator.heads.items() if isinstance(head, PrototypeHead)
    }
    if heads:
        save_file(heads, run_dir / "adapter" / "heads.safetensors")
    for task, adapter in strategy.state.served.items():
        model.save(run_dir / "served" / task, adapter)
        if task in heads:
            save_file({task: heads[task]}, run_dir / "served" / task / "heads.safetensors")
    if strategy.experiment.coupling.into_base:
        return  # everyone has the one model
    for client, adapter in enumerate(strategy.starts()):
        if strategy.state.examples[client]:
            folder, task = run_dir / "personal" / f"client-{client:02d}", strategy.suite.task_of(client)
            client_model.save(folder, adapter)
            if task in heads:
                save_file({task: heads[task]}, folder / "heads.safetensors")
            (folder / "README.md").write_text(f"What client {client}, task {task}, continues from.\n")


def _metrics(strategy: RoundStrategy) -> dict[str, Any]:
    """The scores of the round that is kept beside those that no round changes, and every round's record."""
    state = strategy.state
    last = state.history[state.best_round - 1]
    tasks = {
        task: {name: scores[task] for name, scores in state.reference.items()} | last["tasks"].get(task, {})
        for task in strategy.suite.tasks
    }
    fixed = {name: summary(scores) for name, scores in state.reference.items()}
    words = all(strategy.suite.num_classes(task) == 0 for task in strategy.suite.tasks)
    return {
        "measure": "exact match" if words else "accuracy",
        "num_clients": strategy.suite.num_clients,
        "kept_round": state.best_round,
        "tasks": tasks,
        "mean": {name: s["mean"] for name, s in fixed.items()} | last["mean"],
        "worst": {name: s["worst"] for name, s in fixed.items()} | last["worst"],
        "attack": _attack(strategy),
        "clients": {
            client: {"task": strategy.suite.task_of(int(client)), **score} for client, score in state.personal.items()
        },
        "rounds": state.history,
    }


def _attack(strategy: RoundStrategy) -> dict[str, Any]:
    """Who attacked, and over all rounds what share of the honest uploads was believed, and of theirs refused.

    An upload that the uplink lost is no matter of belief, and in neither share.
    """
    history, hostile = strategy.state.history, set(strategy.byzantine)
    judged = [(client, client not in r["refused"]) for r in history for client in {*r["refused"], *r["heard"]}]
    honest = [believed for client, believed in judged if client not in hostile]
    byzantine = [not believed for client, believed in judged if client in hostile]
    return {
        "byzantine": sorted(hostile),
        "accepted_honest": sum(honest) / len(honest) if honest else None,
        "refused_byzantine": sum(byzantine) / len(byzantine) if byzantine else None,
        "success": history[strategy.state.best_round - 1]["attack_success"],
    }


def _structure(strategy: RoundStrategy) -> dict[str, Any]:
    """`relation` of the clients, where a coupling knows one, and `spectra` of what was learned."""
    state, coupling, clients = strategy.state, strategy.experiment.coupling, strategy.coupler.clients
    fused = strategy.evaluator.model.layout, state.fused
    found: dict[str, Any] = {"spectra": spectra(strategy.layout, state.adapters, state.examples, clients.tasks, fused)}
    if isinstance(coupling, Laplacian):
        rounds, seed = len(state.history), strategy.experiment.seed
        found["relation"] = relation(coupling.adjacency, clients, state.adapters, seed, rounds)
    return found


def _rouge_l(strategy: RoundStrategy, rows: int) -> dict[str, Any]:
    """ROUGE-L, by task, of base, realigned and personal adapters on the first `rows` test samples."""
    if not rows:
        return {}
    evaluator, state, suite, scores = strategy.evaluator, strategy.state, strategy.suite, {}
    for task in suite.tasks:
        adapters = {"base": evaluator.base, "realigned": state.realigned}
        scores[task] = {name: evaluator.rouge_l(evaluator.model, a, task, rows) for name, a in adapters.items()}
        starts = [] if strategy.experiment.coupling.into_base else list(strategy.starts())  # there is one model
        own = [a for c, a in enumerate(starts) if str(c) in state.personal and suite.task_of(c) == task]
        if own:
            own = [evaluator.rouge_l(strategy.model, adapter, task, rows) for adapter in own]
            scores[task]["personal"] = sum(own) / len(own)
    return {"rouge_l": scores}


def machine() -> dict[str, Any]:
    """Where it ran, and the commit of a fedfusion that is a checkout."""
    facts = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "device": str(torch.get_default_device()),
    }
    checkout = Path(__file__).parents[2]
    git = ["git", "-C", str(checkout), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    if (checkout / ".git").exists() and shutil.which("git"):
        described = subprocess.run(git, capture_output=True, text=True, check=False)
        facts |= {"commit": described.stdout.strip()} if described.returncode == 0 else {}
    return facts


def versions() -> dict[str, str | None]:
    """Installed versions of fedfusion and of what it stands on."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found
