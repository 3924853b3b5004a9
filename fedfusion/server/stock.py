"""A strategy of Flower's own in the place of fedfusion's round: one adapter for all tasks, every client a node."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp import Grid
from safetensors.torch import save, save_file

from fedfusion.client.device import facts
from fedfusion.client.stock import adapter_of
from fedfusion.config import Experiment, for_clients
from fedfusion.lora.model import LoraModel
from fedfusion.server.checkpoint import Checkpoints, folders
from fedfusion.server.evaluation import Evaluator, summary
from fedfusion.server.meeting import meet
from fedfusion.server.nodes import Nodes
from fedfusion.server.stock_strategy import StockStrategy
from fedfusion.server.strategy import STARTUP_S
from fedfusion.server.structure import energies
from fedfusion.tasks.heads import PrototypeHead
from fedfusion.tracking import Tracker
from fedfusion.types import FedfusionError

REGISTERED_S = 30.0  # simulated nodes have this long to appear after the first


def serve_stock(
    grid: Grid, experiment: Experiment, experiment_json: str, run_dir: Path, trackers: Sequence[Tracker]
) -> dict[str, Any]:
    """Run all rounds with the strategy of `server.strategy`, and write the adapter; returns the metrics.

    Flower's strategies keep nothing from round to round that could be continued: they begin at round one.
    """
    model = LoraModel(experiment.model, experiment.seed, engine=experiment.client.engine)
    evaluator = Evaluator(experiment.suite, model, experiment.seed, experiment.head)
    heads = {task: head.to_tensor() for task, head in evaluator.heads.items() if isinstance(head, PrototypeHead)}
    patience = max(experiment.deadline_s, STARTUP_S)
    given, suite = for_clients(experiment_json), experiment.suite
    tasks = [suite.task_of(client) for client in range(suite.num_clients)]
    simulated = experiment.federation.simulated
    nodes = meet(grid, given, tasks, patience, facts=facts(suite, model), simulated=simulated)
    places = _places(grid, nodes, suite.num_clients)
    told: dict[str, str | bytes] = {"experiment": given, "heads": save(heads), "places": json.dumps(places)}
    strategy = StockStrategy(experiment.server.make(), experiment, model, evaluator, places, told, trackers)
    for tracker in trackers:
        tracker.started([], experiment.rounds)
    result = strategy.start(
        grid,
        ArrayRecord({name: Array(entry.numpy()) for name, entry in model.layout.unflatten(model.initial).items()}),
        num_rounds=experiment.rounds,
        timeout=experiment.deadline_s,
        evaluate_fn=strategy.evaluate,
    )
    with Checkpoints(run_dir).writing(run_dir / "adapter"), folders(run_dir) as folder:
        model.save(folder / "adapter", adapter_of(result.arrays, model))
        if heads:
            save_file(heads, folder / "adapter" / "heads.safetensors")
    fused = adapter_of(result.arrays, model)[None]
    return _metrics(strategy) | {"spectra": {"fused": energies(model.layout, fused, torch.ones(1))}}


def _places(grid: Grid, nodes: Nodes, num_clients: int) -> dict[int, int]:
    """The client of each node: the one that a device holds, else, where every node hosts all, any."""
    alike = all(len(clients) == num_clients for clients in nodes.hosted.values())
    deadline = time.monotonic() + REGISTERED_S
    while alike and len(ids := sorted(grid.get_node_ids())) < num_clients and time.monotonic() < deadline:
        time.sleep(0.1)
    places = dict(zip(ids, range(num_clients), strict=False)) if alike else _alone(nodes.hosted)
    if len(places) < num_clients:
        raise FedfusionError(
            f"server.strategy: every client is a node of its own, but there are {len(places)} such nodes for "
            f"{num_clients} clients (start as many, with flwr run by --federation-config num-supernodes={num_clients}; "
            "or lower suite.clients_per_task)"
        )
    return places


def _alone(hosted: Mapping[int, Sequence[int]]) -> dict[int, int]:
    return {node: clients[0] for node, clients in hosted.items() if len(clients) == 1}


def _metrics(strategy: StockStrategy) -> dict[str, Any]:
    """The scores of the last round beside those that no round changes, and every round's record."""
    suite, last, fixed = strategy.suite, strategy.history[-1], strategy.reference
    words = all(suite.num_classes(task) == 0 for task in suite.tasks)
    return {
        "measure": "exact match" if words else "accuracy",
        "num_clients": suite.num_clients,
        "tasks": {t: {name: s[t] for name, s in fixed.items()} | last["tasks"][t] for t in suite.tasks},
        "mean": {name: summary(s)["mean"] for name, s in fixed.items()} | last["mean"],
        "worst": {name: summary(s)["worst"] for name, s in fixed.items()} | last["worst"],
        "attack": {
            "byzantine": list(strategy.byzantine),
            "accepted_honest": None,
            "refused_byzantine": None,
            "success": last["attack_success"],
        },
        "clients": {},
        "rounds": strategy.history,
    }
