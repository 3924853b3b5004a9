"""Heads made of the names of the classes, by CLIP's text tower."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, CLIPModel

from fedfusion.lora.model import LoraModel, Model, locate
from fedfusion.tasks.heads import PrototypeHead
from fedfusion.types import FedfusionError, Samples, TaskSuite


@runtime_checkable
class Named(Protocol):
    """A suite that knows what its classes are called."""

    def class_names(self, task: str) -> Sequence[str]:
        """What the labels of a task are called, in the order of their ids."""
        ...


@dataclass(frozen=True)
class ClassNames:
    r"""CLIP's zero-shot head: cosines with the embedded names of the classes, at CLIP's own temperature.

    .. math:: \text{logit}_c(x) = e^{\tau} \cos(x,\; t_c),
              \qquad t_c = \text{the text tower's embedding of the template with the class's name in it}

    Only the vision tower is trained; the text tower is read once, from the folder or hub id of the model.

    Parameters
    ----------
    template
        A sentence with `{}` where the name of the class stands; in names, `_` becomes a space.
    names
        What the classes of a task are called, in the order of their labels, where the suite only numbers them or
        better names are known.

    References
    ----------
    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021,
    https://arxiv.org/abs/2103.00020
    """

    template: str = "a photo of a {}."
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.template.count("{}") != 1:
            raise FedfusionError(f"head.template={self.template!r} must have {{}} in it once, for the class's name")

    def check(self, model: Model, suite: TaskSuite) -> None:
        """Raise a FedfusionError if the model is not CLIP's, or classes have no names."""
        if not any(map(suite.num_classes, suite.tasks)):
            return
        if (model.auto, model.pooling) != ("CLIPVisionModelWithProjection", "pooler"):
            raise FedfusionError(
                "head=class_names compares images with texts: it needs model.auto=CLIPVisionModelWithProjection and "
                f"model.pooling=pooler, got {model.auto} and {model.pooling} (choose model=clip_vit_b32, or "
                "head=prototype)"
            )
        _check_towers(model.path)
        for task in suite.tasks:
            self._prompts(suite, task)

    def __call__(self, model: LoraModel, suite: TaskSuite, task: str, root: Samples) -> PrototypeHead:
        """The head of `task`; `root` is not looked at."""
        self.check(model.model, suite)
        embedded, temperature = _embed(locate(model.model.path), self._prompts(suite, task))
        return PrototypeHead(temperature * F.normalize(embedded, dim=-1), torch.zeros(embedded.shape[1]))

    def _prompts(self, suite: TaskSuite, task: str) -> tuple[str, ...]:
        """One sentence per class."""
        names = self.names.get(task) or (suite.class_names(task) if isinstance(suite, Named) else ())
        n = suite.num_classes(task)
        if len(names) != n:
            raise FedfusionError(
                f"head=class_names: task '{task}' has {n} classes and {len(names)} names {_advice(task)}"
            )
        if task not in self.names and all(name.isdecimal() for name in names):
            raise FedfusionError(
                f"head=class_names: the classes of task '{task}' are only numbered, {', '.join(names)} {_advice(task)}"
            )
        return tuple(self.template.replace("{}", str(name).replace("_", " ")) for name in names)


def _advice(task: str) -> str:
    return f"(name them, +head.names.{task}=[...], or choose head=prototype)"


def _check_towers(path: str) -> None:
    try:
        kind = AutoConfig.from_pretrained(locate(path)).model_type
    except (OSError, ValueError, KeyError) as error:
        raise FedfusionError(f"model.path: cannot read '{path}' ({str(error).strip().splitlines()[0]})") from error
    if kind != "clip":
        raise FedfusionError(
            f"head=class_names: '{path}' is a {kind}, without the text tower of CLIP (choose a model.path that has "
            "both towers, or head=prototype)"
        )


@torch.no_grad()
def _embed(location: str, prompts: Sequence[str]) -> tuple[Tensor, float]:
    """Embeddings `[C, h]` of sentences, and the factor that CLIP puts before a cosine."""
    tokenizer, clip = _clip(location)
    longest = clip.config.text_config.max_position_embeddings
    tokens = [tokenizer(prompt, truncation=True, max_length=longest, return_tensors="pt") for prompt in prompts]
    pooled = [clip.text_model(t["input_ids"], t["attention_mask"]).pooler_output for t in tokens]
    return clip.text_projection(torch.cat(pooled)), float(clip.logit_scale.exp())


@lru_cache(maxsize=1)
def _clip(location: str) -> tuple[Any, Any]:
    """Tokenizer and text side of a CLIP model."""
    try:
        loaded: Any = CLIPModel.from_pretrained(location, dtype=torch.float32, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(location)
    except (OSError, ValueError, KeyError) as error:
        raise FedfusionError(
            f"head=class_names: cannot read the text tower of '{location}' ({str(error).strip().splitlines()[0]}; "
            "choose another model.path, or head=prototype)"
        ) from error
    clip, report = loaded
    if missing := sorted(name for name in report["missing_keys"] if not name.startswith("vision_model.")):
        raise FedfusionError(
            f"head=class_names: '{location}' has no weights for {missing[0]} (choose another model.path, or "
            "head=prototype)"
        )
    del clip.vision_model, clip.visual_projection
    return tokenizer, clip.eval()
