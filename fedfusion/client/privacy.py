"""Flower's client mods around what each client trained: privacy by composition."""

import copy
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedfusion.channels.fidelity import fidelity
from fedfusion.client.train import Job, Trained
from fedfusion.config import Experiment
from fedfusion.lora.model import LoraModel
from fedfusion.lora.product import restrict
from fedfusion.rng import seed_of, seeded
from fedfusion.types import FedfusionError


def protected(
    experiment: Experiment,
    model: LoraModel,
    jobs: Sequence[Job],
    trained: Sequence[Trained],
    server_round: int,
    message: Message,
    context: Context,
) -> tuple[list[Trained], dict[str, list[float]]]:
    """Pass what each client of a cohort trained through `client.mods`, one client after another.

    A mod sees a message with the client's start adapter as one `ArrayRecord`, and a reply with the trained one and one
    `MetricRecord`: what Flower's mods for differential privacy ask for. What leaves the first of them, less the start,
    is the upload. Factors that the client does not train, or that are beyond its own rank, stay as they are. The number
    of examples, the training loss, and accuracy and loss on the client's test data are sent as they are.

    Flower draws noise from numpy's global generator, which is given back as it was. In simulation it is seeded for each
    client by its name. A server that knows the seed of the run could take such noise away again, so that on a device it
    is seeded by the system, and runs with mods on devices do not repeat.

    Parameters
    ----------
    message, context
        What the node was sent, whose settings the mods see.

    Returns
    -------
    trained, metrics
        The same with other updates, and `privacy_nmse`: the power of the change relative to that of the update. It
        tells something of the update, and no device sends it. Without mods nothing changes, and there is no figure.

    Raises
    ------
    FedfusionError
        What a mod refused.

    References
    ----------
    Local differential privacy by the Gaussian mechanism: Dwork, Roth, "The Algorithmic Foundations of Differential
    Privacy", 2014, theorem A.1. Its guarantee is for `epsilon < 1`, one upload, and a `sensitivity` of at least twice
    the `clipping_norm` where any two updates must look alike; that of several rounds is the sum.
    """
    if not experiment.client.mods:
        return list(trained), {}
    names = [name for i, name in enumerate(model.layout.names) if i not in model.frozen]
    results: list[Trained] = []
    changed: list[float] = []
    for job, result in zip(jobs, trained, strict=True):
        adapter, asked = job.start + result.update, copy.copy(message)  # the copy has a content of its own
        facts = ConfigRecord({**message.content.config_records["config"], "clients": [job.client]})
        asked.content = RecordDict({"arrays": _record(model, names, job.start), "config": facts})
        answer = RecordDict(
            {
                "arrays": _record(model, names, adapter),
                "metrics": MetricRecord({"num-examples": len(job.data), "train_loss": result.loss}),
            }
        )
        named = seed_of(experiment.seed, "mods", server_round, job.client)
        with seeded(named if experiment.federation.simulated else secrets.randbits(64)):
            reply = _composed(experiment.client.mods, answer)(asked, context)
        if reply.has_error():
            raise FedfusionError(f"client.mods: {reply.error.reason}")
        (arrays,) = reply.content.array_records.values()
        sent = {name: torch.from_numpy(array.numpy().copy()) for name, array in arrays.items()}
        after = model.layout.flatten(model.layout.unflatten(adapter) | sent)
        update = result.update if torch.equal(after, adapter) else after - job.start
        if ranks := experiment.client.ranks:
            update = restrict(model.layout, update[None], torch.tensor([ranks[job.client % len(ranks)]]))[0]
        results.append(replace(result, update=update))
        changed += fidelity(result.update[None], update[None])["nmse"]
    return results, {"privacy_nmse": changed} if experiment.federation.simulated else {}


def _record(model: LoraModel, names: Sequence[str], adapter: torch.Tensor) -> ArrayRecord:
    """The entries `names` of `adapter [d]`, by their own names."""
    entries = model.layout.unflatten(adapter)
    return ArrayRecord({name: Array(entries[name].numpy()) for name in names})


def _composed(mods: Sequence[Callable[..., Message]], answer: RecordDict) -> ClientApp:
    """A client app that answers with `answer`, behind `mods`, the first of which is the outermost."""
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(answer, reply_to=message)

    return app
