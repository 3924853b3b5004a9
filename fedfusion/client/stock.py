"""What a client answers to a strategy of Flower's: its whole adapter as one record, and one record of figures."""

import json
from dataclasses import replace
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from safetensors.torch import load
from torch import Tensor

from fedfusion.client.privacy import protected
from fedfusion.client.train import Job, evaluate
from fedfusion.config import Experiment
from fedfusion.lora.model import LoraModel
from fedfusion.regularizers import Proximal
from fedfusion.tasks.heads import Head, LanguageHead, PrototypeHead
from fedfusion.types import Samples


def asked(message: Message, context: Context) -> int | None:
    """The client that a strategy of Flower's takes this node for; None where it is fedfusion's own round that asks."""
    places = message.content.config_records["config"].get("places")
    return None if places is None else json.loads(str(places))[str(context.node_id)]


def train(
    message: Message, context: Context, experiment: Experiment, model: LoraModel, client: int, data: Samples
) -> Message:
    """Train the global adapter on the data of one client, and send it back with what a strategy weighs it by."""
    facts = message.content.config_records["config"]
    start, head, task = (
        adapter_of(message.content.array_records["arrays"], model),
        _head(message, model, experiment, client),
        experiment.suite.task_of(client),
    )
    plan, server_round = experiment.client, int(str(facts["server-round"]))
    if mu := float(str(facts.get("proximal-mu", 0.0))):
        plan = replace(plan, regularizer=Proximal(mu))
    job, own = Job(client, start, data, head), {client: experiment.suite.tasks.index(task)}
    trained = plan(model, [job], seed=experiment.seed, server_round=server_round, own=own)
    (result,), privacy = protected(experiment, model, [job], trained, server_round, message, context)
    adapter = start + result.update
    figures: dict[str, Any] = {"num-examples": len(data), "train_loss": float(result.loss)}
    figures |= evaluate(model, adapter, experiment.suite.test(task), result.head)
    figures |= {name: values[0] for name, values in privacy.items()}
    arrays = ArrayRecord({name: Array(entry.numpy()) for name, entry in model.layout.unflatten(adapter).items()})
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(figures)}), reply_to=message)


def measure(message: Message, experiment: Experiment, model: LoraModel, client: int) -> Message:
    """Measure the global adapter on the test data of one client."""
    test, head = experiment.suite.test(experiment.suite.task_of(client)), _head(message, model, experiment, client)
    figures: dict[str, Any] = {
        "num-examples": len(test),
        **evaluate(model, adapter_of(message.content.array_records["arrays"], model), test, head),
    }
    return Message(RecordDict({"metrics": MetricRecord(figures)}), reply_to=message)


def adapter_of(arrays: ArrayRecord, model: LoraModel) -> Tensor:
    """The adapter `[d]` that a record of Flower's holds."""
    return model.layout.flatten({name: torch.from_numpy(array.numpy().copy()) for name, array in arrays.items()})


def _head(message: Message, model: LoraModel, experiment: Experiment, client: int) -> Head:
    """The head of the client's task: as sent, or the output embeddings of a language model."""
    sent, task = message.content.config_records["config"]["heads"], experiment.suite.task_of(client)
    assert isinstance(sent, bytes)
    heads = load(sent)
    return PrototypeHead.from_tensor(heads[task]) if task in heads else LanguageHead(model.output)
