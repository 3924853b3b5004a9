"""What Flower loads: the client app and the server app. Every grid runs these two.

The one resolved configuration travels as JSON: to the server app in the run configuration, to the client app in
every message. Clients read nothing else, so a laptop, a Ray cluster and a device in the field behave alike.
"""

import json
import logging
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from logging import ERROR, INFO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common import log
from flwr.serverapp import Grid, ServerApp
from omegaconf import DictConfig, OmegaConf
from transformers.utils.logging import disable_progress_bar

from fedfusion.client import stock
from fedfusion.client.device import DEVICES, Device, OwnRows, compare
from fedfusion.client.privacy import protected
from fedfusion.client.train import Job, evaluate
from fedfusion.client.wire import encode
from fedfusion.config import Experiment, build, fresh_run_dir, resolve, to_json
from fedfusion.lora.model import LoraModel
from fedfusion.rng import generator
from fedfusion.server.checkpoint import write_atomically
from fedfusion.server.run import serve
from fedfusion.tasks.heads import Head, LanguageHead, PrototypeHead
from fedfusion.types import FedfusionError, Samples

disable_progress_bar()  # models load quickly, and logs are no terminal
client_app = ClientApp()
server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment of the run configuration: `config` as JSON, or Hydra `overrides` in words."""
    if given := str(context.run_config.get("config", "")):
        serve(grid, given)
        return
    try:
        cfg, run_dir = _composed(shlex.split(str(context.run_config.get("overrides", ""))))
        log(INFO, "run folder: %s", run_dir)
        serve(grid, to_json(cfg))
    except FedfusionError as error:
        for line in str(error).splitlines():
            log(ERROR, "error: %s", line)
        sys.tracebacklimit = 0  # this process ends with the run, and Flower prints where whatever ended it was raised
        raise
    log(INFO, "done: %s: adapter/ results.json metrics.jsonl; its report: fedfusion run --resume %s", run_dir, run_dir)


@client_app.query()
def hosted(message: Message, context: Context) -> Message:
    """Say which clients live on this node: all in simulation; of a device, which tasks it takes part in."""
    experiment, model = _workplace(*_given(message, context))
    device, server = Device.of(context.node_config), message.content.config_records["config"]
    if device is None:
        answer: dict[str, Any] = {"clients": list(range(experiment.suite.num_clients))}
    else:
        compare(server, experiment.suite, model)
        own_rows = isinstance(experiment.suite, OwnRows)
        tasks = device.held(experiment.suite.tasks, own_rows)
        answer = {"tasks": tasks, "part": device.part, "parts": device.parts, "own_rows": own_rows}
    return Message(RecordDict({"config": ConfigRecord(answer)}), reply_to=message)


@client_app.query("present")
def present(message: Message, context: Context) -> Message:
    """Say that this node takes messages."""
    return Message(RecordDict(), reply_to=message)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train the clients named in the message together; if it cannot be done, the server asks for each by itself."""
    experiment, model = _workplace(*_given(message, context))
    if (client := stock.asked(message, context)) is not None:
        _permitted(context, experiment, [client])
        return stock.train(message, context, experiment, model, client, _data(experiment, client))
    facts, tensors = _content(message)
    own = {client: experiment.suite.tasks.index(experiment.suite.task_of(client)) for client in _ids(facts)}
    metrics: dict[str, Any] = {name: [] for name in ("num_examples", "train_loss", "accuracy", "loss")}
    nothing = encode(np.zeros((0, model.layout.dim), np.float32), experiment.wire)
    arrays = dict(nothing)
    statistics: dict[str, np.ndarray] = {}
    failed: dict[int, str] = {}
    try:
        _permitted(context, experiment, _ids(facts))
        if "merged" in tensors:
            model.bake(tensors["merged"], _fused_model(int(str(facts["rank"])), *_given(message, context)).layout)
        jobs = [
            Job(
                client,
                start,
                _data(experiment, client),
                _head(experiment, model, tensors, client),
            )
            for client, start in zip(_ids(facts), tensors["start"], strict=True)
        ]
        trained, server_round = [], int(str(facts["round"]))
        for start in range(0, len(jobs), experiment.client.cohort_size):  # a device has one message for all it hosts
            trained += experiment.client(
                model,
                jobs[start : start + experiment.client.cohort_size],
                seed=experiment.seed,
                server_round=server_round,
                tasks=tensors.get("tasks"),
                own=own,
            )
        trained, privacy = protected(experiment, model, jobs, trained, server_round, message, context)
        arrays |= encode(np.stack([result.update.numpy() for result in trained]), experiment.wire)
        for job, result in zip(jobs, trained, strict=True):
            test = experiment.suite.test(experiment.suite.task_of(job.client))
            score = evaluate(model, job.start + result.update, test, result.head)
            if experiment.client.train_head and isinstance(result.head, PrototypeHead):
                arrays[f"head.{job.client}"] = result.head.to_tensor().numpy()
            for module, (inputs, gradients) in result.curvature.items():
                statistics[f"{job.client}.inputs.{module}"] = inputs.numpy()
                statistics[f"{job.client}.gradients.{module}"] = gradients.numpy()
            values = (len(job.data), result.loss, score["accuracy"], score["loss"])
            for name, value in zip(metrics, values, strict=True):
                metrics[name].append(float(value))
        metrics |= privacy
    except Exception as error:
        logging.getLogger("fedfusion").exception("clients %s", _ids(facts))
        failed = dict.fromkeys(_ids(facts), f"{type(error).__name__}: {error}")
        arrays, statistics = nothing, {}
        metrics = {name: [] for name in metrics}
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(array) for name, array in arrays.items()}),
            "statistics": ArrayRecord({name: Array(array) for name, array in statistics.items()}),
            "metrics": MetricRecord(metrics),
            "config": ConfigRecord(
                {
                    "clients": [client for client in _ids(facts) if client not in failed],
                    "failed": list(failed),
                    "reasons": list(failed.values()),
                }
            ),
        }
    )
    return Message(content, reply_to=message)


@client_app.evaluate()
def measure(message: Message, context: Context) -> Message:
    """Measure the personal adapter of each client named in the message, and the shared one, on its own test data."""
    experiment, model = _workplace(*_given(message, context))
    if (client := stock.asked(message, context)) is not None:
        _permitted(context, experiment, [client])
        return stock.measure(message, experiment, model, client)
    facts, tensors = _content(message)
    _permitted(context, experiment, _ids(facts))
    fused = _fused_model(int(str(facts["rank"])), *_given(message, context))
    if "merged" in tensors:
        model.bake(tensors["merged"], fused.layout)
    metrics: dict[str, Any] = {name: [] for name in ("accuracy", "loss", "shared_accuracy", "shared_loss")}
    for client, personal in zip(_ids(facts), tensors["start"], strict=True):
        head, test = _head(experiment, model, tensors, client), experiment.suite.test(experiment.suite.task_of(client))
        own = evaluate(model, personal, test, head)
        shared = evaluate(fused, tensors["shared"], test, head)
        for name, value in zip(metrics, (*own.values(), *shared.values()), strict=True):
            metrics[name].append(value)
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def _composed(overrides: Sequence[str]) -> tuple[DictConfig, Path]:
    """The configuration that `overrides` make, and its new run folder, which can be resumed."""
    cfg = resolve(overrides)
    run_dir = fresh_run_dir(cfg).resolve()
    cfg.run_dir = str(run_dir)
    run_dir.mkdir(parents=True)
    write_atomically(run_dir / "config.yaml", OmegaConf.to_yaml(cfg))
    write_atomically(run_dir / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(list(overrides))))
    return cfg, run_dir


@lru_cache(maxsize=1)
def _workplace(experiment_json: str, device: Device | None) -> tuple[Experiment, LoraModel]:
    """The experiment, as far as the device allows it, and the base model with its adapter, warm between messages."""
    if device is None:
        if json.loads(experiment_json)["federation"]["_target_"] == DEVICES:
            raise FedfusionError('the configuration of this node names no data folder (add data-path="FOLDER" to it)')
        experiment = build(experiment_json)
    else:
        device.limit_memory()
        experiment = build(device.admit(experiment_json))
        experiment = device.place(experiment, json.loads(experiment_json)["suite"]["tasks"])
    torch.set_num_threads(experiment.client.threads)
    return experiment, LoraModel(experiment.model, experiment.seed, engine=experiment.client.engine)


@lru_cache(maxsize=1)
def _fused_model(rank: int, experiment_json: str, device: Device | None) -> LoraModel:
    """The same base with an adapter of the fused rank."""
    experiment, _ = _workplace(experiment_json, device)
    return LoraModel(experiment.model, experiment.seed, rank, experiment.client.engine)


def _permitted(context: Context, experiment: Experiment, clients: Iterable[int]) -> None:
    """Refuse clients of tasks that the owner of the device has not agreed to."""
    if device := Device.of(context.node_config):
        device.takes(map(experiment.suite.task_of, clients))


def _head(experiment: Experiment, model: LoraModel, tensors: Mapping[str, torch.Tensor], client: int) -> Head:
    """The head of the client's task: as sent, or the output embeddings of a language model."""
    sent = tensors.get(f"head.{experiment.suite.task_of(client)}")
    return LanguageHead(model.output) if sent is None else PrototypeHead.from_tensor(sent)


def _data(experiment: Experiment, client: int) -> Samples:
    """What a client learns from: its share, or what an adversary makes of it."""
    own, task = experiment.suite.train(client, experiment.seed), experiment.suite.task_of(client)
    if not experiment.attack.poisons or client not in experiment.byzantine():
        return own
    rng = generator(experiment.seed, "poison", client)
    return experiment.attack.poison(own, experiment.suite.num_classes(task), rng)


def _content(message: Message) -> tuple[ConfigRecord, dict[str, torch.Tensor]]:
    records = message.content.array_records
    sent = {**records["arrays"], **records.get("shared", {})}
    tensors = {name: torch.from_numpy(array.numpy().copy()) for name, array in sent.items()}
    return message.content.config_records["config"], tensors


def _given(message: Message, context: Context) -> tuple[str, Device | None]:
    """The experiment as the server describes it, and the rules of the device that this node is."""
    return str(message.content.config_records["config"]["experiment"]), Device.of(context.node_config)


def _ids(facts: ConfigRecord) -> list[int]:
    clients: Any = facts["clients"]
    return [int(client) for client in clients]
