"""What Flower loads: the client app and the server app. Every grid runs these two.

The one resolved configuration travels as JSON: to the server app in the run configuration, to the client app in
every message. Clients read nothing else, so a laptop, a Ray cluster and a device in the field behave alike.
"""

import logging
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedfusion.client.train import evaluate
from fedfusion.config import Experiment, build, fresh_run_dir, resolve, to_json
from fedfusion.lora.model import LoraModel
from fedfusion.server.run import serve
from fedfusion.tasks.heads import PrototypeHead

client_app = ClientApp()
server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment of the run configuration: `config` as JSON, or Hydra `overrides` in words."""
    given = str(context.run_config.get("config", ""))
    if not given:
        cfg = resolve(str(context.run_config.get("overrides", "")).split())
        cfg.run_dir = str(fresh_run_dir(cfg).resolve())
        given = to_json(cfg)
    serve(grid, given)


@client_app.query()
def hosted(message: Message, context: Context) -> Message:
    """Say which clients live on this node: the `p`-th of `P` equal parts of the sorted client ids."""
    experiment, _ = _workplace(_config(message))
    part, parts = int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
    clients = np.array_split(np.arange(experiment.suite.num_clients), parts)[part]
    return Message(RecordDict({"config": ConfigRecord({"clients": clients.tolist()})}), reply_to=message)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train the clients named in the message, one adapter each; one that raises is reported, not fatal."""
    experiment, model = _workplace(_config(message))
    facts, arrays = message.content.config_records["config"], message.content.array_records["arrays"]
    server_round, starts = int(str(facts["round"])), torch.from_numpy(arrays["start"].numpy().copy())
    trained: list[int] = []
    vectors: list[np.ndarray] = []
    failed: dict[int, str] = {}
    metrics: dict[str, Any] = {name: [] for name in ("num_examples", "train_loss", "accuracy", "loss")}
    for client, start in zip(_ids(facts), starts, strict=True):
        task = experiment.suite.task_of(client)
        head = PrototypeHead.from_tensor(torch.from_numpy(arrays[f"head.{task}"].numpy().copy()))
        try:
            data = experiment.suite.train(client, experiment.seed)
            update, loss = experiment.client(
                model, start, data, head, seed=experiment.seed, server_round=server_round, client=client
            )
            accuracy, test_loss = evaluate(model, model.read(), experiment.suite.test(task), head)
        except Exception as error:
            logging.getLogger("fedfusion").exception("client %d", client)
            failed[client] = f"{type(error).__name__}: {error}"
            continue
        trained.append(client)
        vectors.append(update.numpy())
        for name, value in zip(metrics, (len(data), loss, accuracy, test_loss), strict=True):
            metrics[name].append(float(value))
    stacked = np.stack(vectors) if vectors else np.zeros((0, model.layout.dim), np.float32)
    content = RecordDict(
        {
            "arrays": ArrayRecord({"vectors": Array(stacked)}),
            "metrics": MetricRecord(metrics),
            "config": ConfigRecord({"clients": trained, "failed": list(failed), "reasons": list(failed.values())}),
        }
    )
    return Message(content, reply_to=message)


@lru_cache(maxsize=1)
def _workplace(experiment_json: str) -> tuple[Experiment, LoraModel]:
    """The experiment and the base model with its adapter, kept warm between messages."""
    experiment = build(experiment_json)
    torch.set_num_threads(experiment.client.threads)
    return experiment, LoraModel(experiment.model, experiment.seed)


def _config(message: Message) -> str:
    return str(message.content.config_records["config"]["experiment"])


def _ids(facts: ConfigRecord) -> list[int]:
    clients: Any = facts["clients"]
    return [int(client) for client in clients]
