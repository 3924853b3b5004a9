"""What a LoRA adapter is worth: accuracy and loss on the test sets of a suite, beside the base model's."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from omegaconf import OmegaConf

from fedfusion import __version__, config
from fedfusion.config import Experiment
from fedfusion.lora.model import LoraModel, locate
from fedfusion.offline.adapters import Adapter, fit, read, same_base, unite, where
from fedfusion.offline.settings import DATA, of_run
from fedfusion.server.evaluation import Evaluator, summary
from fedfusion.tasks.heads import PrototypeHead
from fedfusion.types import FedfusionError

TAKES = ("seed", *DATA, "experiment")


def evaluate(source: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Accuracy and loss, by task, of the adapter in `source` and of its base.

    Parameters
    ----------
    source
        A PEFT folder, or a hub id; its heads are used for the tasks it has them for.
    overrides
        `suite`, `model`, `head` and `seed`, which names the draw of the samples that heads are made of.

    Raises
    ------
    FedfusionError
        With one sentence per problem, before a model is loaded where that is possible.
    """
    cfg = of_run("evaluate", overrides, TAKES)
    experiment, adapter = config.build(cfg), read(source)
    torch.set_num_threads(experiment.client.threads)
    evaluator = evaluator_of(experiment, [adapter])
    vectors = {"base": evaluator.base, "adapter": fit(adapter, evaluator.model.layout)}
    scores = {name: evaluator(vector) for name, vector in vectors.items()}
    tasks, words = experiment.suite.tasks, not any(map(experiment.suite.num_classes, experiment.suite.tasks))
    return {
        "fedfusion": __version__,
        "adapter": source,
        "sha256": adapter.sha256,
        "seed": experiment.seed,
        "measure": "exact match" if words else "accuracy",
        "own_heads": [task for task in tasks if task in adapter.heads and experiment.suite.num_classes(task)],
        "tasks": {task: {name: score[task] for name, score in scores.items()} for task in tasks},
        "mean": {name: summary(score)["mean"] for name, score in scores.items()},
        "worst": {name: summary(score)["worst"] for name, score in scores.items()},
        "config": OmegaConf.to_container(OmegaConf.create({key: cfg[key] for key in ("suite", "model", "head")})),
    }


def evaluator_of(experiment: Experiment, adapters: Sequence[Adapter]) -> Evaluator:
    """The evaluator of a federation, on a model that adapts the modules of `adapters` at their largest rank.

    Raises
    ------
    FedfusionError
        If the adapters are of another base, or hold weights or heads that do not fit it.
    """
    model, first = experiment.model, adapters[0]
    if not any(same_base(first.base, name) for name in (model.path, locate(model.path))):
        raise FedfusionError(
            f"{first.source} adapts '{first.base}', but model.path is '{model.path}' (choose the model it was "
            "fine-tuned on)"
        )
    if first.others:
        raise FedfusionError(
            f"{first.source}: '{next(iter(first.others))}' is no LoRA factor, and would not be loaded (only plain "
            "LoRA can be evaluated here)"
        )
    model = replace(model, lora=where(adapters), freeze_a=False, num_virtual_tokens=0)
    rank = max(adapter.rank for adapter in adapters)
    carrier = LoraModel(model, experiment.seed, rank, experiment.client.engine)
    evaluator = Evaluator(experiment.suite, carrier, experiment.seed, experiment.head)
    heads = {t: head for t, head in unite(adapters)[0].items() if isinstance(evaluator.heads.get(t), PrototypeHead)}
    for task, head in heads.items():
        fitting = evaluator.heads[task]
        assert isinstance(fitting, PrototypeHead)
        if head.shape != fitting.to_tensor().shape:
            raise FedfusionError(
                f"heads.safetensors: the head of '{task}' is {tuple(head.shape)}, but this suite and model need "
                f"{tuple(fitting.to_tensor().shape)}, [classes + 1, features] (choose those it was made for)"
            )
    evaluator.adopt(heads)
    return evaluator
