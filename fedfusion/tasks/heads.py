"""What turns features into labels: prototypes, class names, or the model's own output embeddings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, CLIPModel

from fedfusion.lora.model import LoraModel, Model, locate
from fedfusion.types import FedfusionError, Samples, TaskSuite


class Head(Protocol):
    """Turns features `[n, h]` into logits `[n, C]`."""

    def __call__(self, features: Tensor) -> Tensor:
        """Logits `[n, C]` of `features [n, h]`."""
        ...

    def trainable(self) -> "Head":
        """A copy that a client may train, where there is something to train."""
        ...

    def parameters(self) -> Sequence[nn.Parameter]:
        """What is trained of it."""
        ...

    def detach(self) -> "Head":
        """The head as it is now, frozen."""
        ...


@dataclass(frozen=True)
class PrototypeHead:
    r"""Cosine classifier on class means of a few labelled samples, centred on their common mean.

    .. math:: \text{logit}_c(x) = \kappa \, \cos(x - \bar p,\; p_c - \bar p), \qquad
              p_c = \text{mean of the class-}c\text{ features}, \; \bar p = \text{mean}_c\, p_c

    Attributes
    ----------
    weight : [C, h]
        Centred, normalised prototypes; those of another length bring a temperature of their own.
    centre : [h]
        Their common mean. Without it every cosine is close to one and fusion gains little.
    scale
        The inverse temperature :math:`\kappa`.

    References
    ----------
    Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017,
    https://arxiv.org/abs/1703.05175
    """

    weight: Tensor
    centre: Tensor
    scale: float = 16.0

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor, num_classes: int) -> "PrototypeHead":
        """The head of `features [n, h]` with `labels [n]`; every class must occur."""
        prototypes = torch.stack([features[labels == c].mean(0) for c in range(num_classes)])
        return cls.of(prototypes)

    @classmethod
    def of(cls, prototypes: Tensor) -> "PrototypeHead":
        """The head of one mean feature per class, `[C, h]`."""
        centre = prototypes.mean(0)
        return cls(F.normalize(prototypes - centre, dim=-1), centre)

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> "PrototypeHead":
        """The inverse of :meth:`to_tensor`."""
        return cls(tensor[:-1], tensor[-1])

    def to_tensor(self) -> Tensor:
        """Weight and centre, one below the other: `[C + 1, h]`."""
        return torch.cat([self.weight, self.centre[None]])

    def trainable(self) -> "PrototypeHead":
        """A copy whose weight and centre are trained."""
        return replace(self, weight=nn.Parameter(self.weight.clone()), centre=nn.Parameter(self.centre.clone()))

    def parameters(self) -> list[nn.Parameter]:
        """Weight and centre, if they are trained."""
        return [tensor for tensor in (self.weight, self.centre) if isinstance(tensor, nn.Parameter)]

    def detach(self) -> "PrototypeHead":
        """The head as it is now, frozen."""
        return replace(self, weight=self.weight.detach(), centre=self.centre.detach())

    def __call__(self, features: Tensor) -> Tensor:
        """Logits `[n, C]` of `features [n, h]`."""
        return self.scale * F.normalize(features - self.centre, dim=-1) @ self.weight.T


@dataclass(frozen=True)
class LanguageHead:
    """The output embeddings `[V, h]` of a causal language model: logits over its vocabulary, never trained."""

    weight: Tensor

    def trainable(self) -> "LanguageHead":
        """The same head: it belongs to the base."""
        return self

    def parameters(self) -> list[nn.Parameter]:
        """Nothing."""
        return []

    def detach(self) -> "LanguageHead":
        """The same head."""
        return self

    def __call__(self, features: Tensor) -> Tensor:
        """Logits `[n, V]` of `features [n, h]`."""
        return (features.to(self.weight.dtype) @ self.weight.T).float()


class HeadSource(Protocol):
    """Where the frozen head of a classification task comes from."""

    def check(self, model: Model, suite: TaskSuite) -> None:
        """Raise a FedfusionError if there is none for this model and suite, without loading the model."""
        ...

    def __call__(self, model: LoraModel, suite: TaskSuite, task: str, root: Samples) -> Head:
        """The head of `task`, of which the server holds the samples `root`."""
        ...


@dataclass(frozen=True)
class Prototypes:
    """A :class:`PrototypeHead` on the base's features of the root set.

    References
    ----------
    Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017,
    https://arxiv.org/abs/1703.05175
    """

    def check(self, model: Model, suite: TaskSuite) -> None:
        """Every model and suite will do."""

    @torch.no_grad()
    def __call__(self, model: LoraModel, suite: TaskSuite, task: str, root: Samples) -> PrototypeHead:
        """The head of `task`, of which the server holds the samples `root`."""
        parts = [
            model.features(model.initial[None], root.take(rows), torch.zeros(len(rows), dtype=torch.long))[0]
            for rows in torch.arange(len(root)).split(64)  # B = 0: the base model itself
        ]
        return PrototypeHead.fit(torch.cat(parts), root.labels, suite.num_classes(task))


@runtime_checkable
class Named(Protocol):
    """A suite that knows what its classes are called."""

    def class_names(self, task: str) -> Sequence[str]:
        """What the labels of a task are called, in the order of their ids."""
        ...


@dataclass(frozen=True)
class ClassNames:
    r"""CLIP's zero-shot head: cosines with the embedded names of the classes, at CLIP's own temperature.

    .. math:: \text{logit}_c(x) = e^{\tau} \cos(x,\; t_c), \qquad
              t_c = \text{the text tower's embedding of the template with the class's name in it}

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
        head = PrototypeHead(F.normalize(embedded, dim=-1), torch.zeros(embedded.shape[1]))
        return replace(head, weight=head.weight * (temperature / head.scale))

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
