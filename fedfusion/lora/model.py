"""The base model, the layout of a LoRA adapter on it, and its features under many adapters at once.

`peft.LoraConfig` arguments are taken verbatim; nothing outside this package imports peft, and this package not before
a model is made: peft takes longer to import than everything else together.
"""

import copy
import hashlib
import inspect
import json
import math
import warnings
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from fedfusion.lora.adapter import check_ranks, config_of, layout_of, own, streams
from fedfusion.lora.cohort import PREFIX, PROMPT, Cohort, pool, unsupported
from fedfusion.lora.spec import Model as Model
from fedfusion.lora.spec import locate as locate
from fedfusion.rng import seed_of
from fedfusion.types import FedfusionError, Layout, Samples

if TYPE_CHECKING:
    from peft import PeftModel

GENERATED = 32  # prompts that are answered at once


@lru_cache(maxsize=2)
def _base(location: str, load: str, auto: str, precision: str) -> nn.Module:
    import transformers

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    kwargs = json.loads(load)
    if precision == "bf16":  # the backward of scaled_dot_product_attention in bfloat16 is eight times slower on a CPU
        kwargs = {"attn_implementation": "eager"} | kwargs
    try:
        base, report = getattr(transformers, auto).from_pretrained(
            location, dtype=dtype, output_loading_info=True, **kwargs
        )
    except (OSError, ValueError, TypeError) as error:
        raise FedfusionError(f"model.path: cannot load '{location}' ({str(error).splitlines()[0]})") from error
    if absent := sorted(key for key in report["missing_keys"] if "pooler." not in key):
        raise FedfusionError(
            f"model.path: '{location}' has no weights for '{absent[0]}' (choose another model.path, or model.auto)"
        )
    return base.requires_grad_(False).eval()


@lru_cache(maxsize=2)
def _fingerprint(*source: str) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(_base(*source).state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class LoraModel:
    """One frozen base model, and adapters on it as rows of a matrix.

    The base is loaded once per process and shared by every `LoraModel` on it.

    Parameters
    ----------
    model
        Base and adapter.
    seed
        Names the initial adapter: `A` is drawn as peft draws it, `B` is zero.
    rank
        Overrides the rank of `model.lora` with a plain adapter of that rank and scale one, as fusion needs it.
    engine
        `cohort` runs all adapters of a batch together; `peft` one after another, through peft's own modules.

    Attributes
    ----------
    layout
        How an adapter is laid out.
    initial : [d]
        The adapter everyone starts from.
    frozen
        Index of the entries that are not trained.
    fallback
        Why the engine is `peft` although `cohort` was asked for, or None.
    """

    def __init__(
        self, model: Model, seed: int, rank: int | None = None, engine: Literal["cohort", "peft"] = "cohort"
    ) -> None:
        from peft import get_peft_model

        self.model = model
        location = locate(model.path)
        self.source = location, json.dumps(dict(model.load), sort_keys=True), model.auto, model.precision
        base = _base(*self.source)
        shared = {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft sets fan_in_fan_out itself, and says so
            torch.manual_seed(seed_of(seed, "lora"))
            try:
                self.module: PeftModel = get_peft_model(copy.deepcopy(base, dict(shared)), config_of(model, base, rank))
            except ValueError as error:
                raise FedfusionError(f"model.lora: peft refuses it ({str(error).splitlines()[0]})") from error
        own(self.module, shared)
        trained = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        self.entries = {  # peft's name in the module, and on disk
            name: PROMPT if model.num_virtual_tokens else name.replace(".default", "") for name in trained
        }
        parameters = {self.entries[name]: parameter for name, parameter in trained.items()}
        self.layout = layout_of(self.module, parameters)
        _check_inside(base, self.layout)
        if rank is None:
            check_ranks(self.layout)
        self.initial = self.layout.flatten(parameters)
        self.frozen = tuple(pair.a for pair in self.layout.pairs) if model.freeze_a else ()
        self.module.eval()
        stacked = engine == "cohort" or bool(model.num_virtual_tokens)  # virtual tokens run nowhere else
        self.fallback = unsupported(self.module, self.layout) if stacked else None
        self.dropout = 0.0 if rank is not None else float(model.lora.get("lora_dropout", 0.0))
        self.dropouts = streams(self.module)
        self.image_tokens = _image_tokens(base.config)
        self.takes = set(inspect.signature(base.forward).parameters)
        self.cohort: Cohort | None = None
        if stacked and self.fallback is None:
            self.cohort = Cohort(copy.deepcopy(base, dict(shared)), self.layout, model.pooling, self.dropout)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the base model's parameters, by which two machines know that theirs are the same."""
        return _fingerprint(*self.source)

    @property
    def output(self) -> Tensor:
        """The output embeddings `[V, h]` of a causal language model."""
        return self.module.get_base_model().get_output_embeddings().weight

    def features(
        self, adapters: Tensor, samples: Samples, owner: Tensor, dropout: list[torch.Generator] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features of `samples`, each under the adapter of its owner; differentiable in the adapters.

        Parameters
        ----------
        adapters : [K, d]
            One adapter per client.
        owner : [n]
            Which adapter each sample belongs to.
        dropout
            One generator per client, from which LoRA dropout is drawn; None is no dropout.

        Returns
        -------
        features, labels, rows
            `[m, h]` (float32), `[m]` and `[m]`: one per sample, or one per token of a response, with the sample
            that each belongs to.
        """
        for name in samples.inputs:
            if name != PREFIX and name not in self.takes:
                raise FedfusionError(
                    f"the suite gives '{name}', which the model at model.path={self.model.path} does not take "
                    "(choose a suite and a model that fit)"
                )
        hidden = self._hidden(adapters, samples, owner, dropout)
        if samples.labels.dim() == 1:
            return hidden.float(), samples.labels, torch.arange(len(samples))
        rows, columns = torch.nonzero(samples.labels[:, 1:] != -100, as_tuple=True)
        return hidden[rows, columns].float(), samples.labels[rows, columns + 1], rows

    def bake(self, adapter: Tensor, layout: Layout) -> None:
        """Add the product of `adapter [d']` in `layout` to this model's base, in place of what was added before.

        Raises
        ------
        FedfusionError
            If the cohort engine, which alone can do it, does not run this adapter.
        """
        if self.cohort is None or not self.layout.pairs:
            raise FedfusionError(
                "the coupling adds to the base, which needs client.engine=cohort and LoRA factors "
                f"({self.fallback or 'these run on peft'})"
            )
        self.cohort.bake(adapter, layout)

    def prefix_bytes(self, samples: Samples) -> int:
        """What :meth:`with_prefix` would add to `samples`."""
        if self.cohort is None or not self.cohort.depth:
            return 0
        hidden = getattr(self.cohort.backbone.config, "hidden_size", 0)
        return len(samples) * self._width(samples) * hidden * (2 if self.model.precision == "bf16" else 4)

    def with_prefix(self, samples: Samples, max_tokens: int) -> Samples:
        """The same samples with what the layers below the first adapted one make of them, so that they run once only.

        Exact; samples come back as they are where the first layer is adapted, or the architecture is not known.
        """
        if self.cohort is None or not self.cohort.depth:
            return samples
        rows = torch.arange(len(samples)).split(max(1, max_tokens // self._width(samples)))
        prefix = torch.cat([self.cohort.below(samples.take(part)) for part in rows])
        return replace(samples, inputs={**samples.inputs, PREFIX: prefix})

    def _width(self, samples: Samples) -> int:
        """Tokens of each sample, with their padding."""
        return self.image_tokens if samples.lengths is None else samples.inputs["attention_mask"].shape[1]

    def _hidden(
        self, adapters: Tensor, samples: Samples, owner: Tensor, dropout: list[torch.Generator] | None
    ) -> Tensor:
        if self.cohort is not None:
            return self.cohort(adapters, samples, owner, dropout)
        base = self.module.get_base_model()
        backbone, prefix = base, "base_model.model."
        if self.model.auto == "AutoModelForCausalLM":
            backbone, prefix = base.base_model, f"base_model.model.{base.base_model_prefix}."
        parts, order = [], []
        for k in owner.unique().tolist():
            rows = torch.nonzero(owner == k)[:, 0]
            mine, state = samples.take(rows), self.layout.unflatten(adapters[k])
            weights = {name.removeprefix(prefix): state[entry] for name, entry in self.entries.items()}
            for layer in self.dropouts:
                layer.draw(dropout[k] if dropout is not None else None, mine)
            output = torch.func.functional_call(backbone, weights, kwargs=dict(mine.inputs))
            tokens = mine.labels.dim() == 2
            parts.append(output.last_hidden_state if tokens else pool(output, mine, self.model.pooling))
            order.append(rows)
        return torch.cat(parts)[torch.argsort(torch.cat(order))]

    def save(self, folder: Path, adapter: Tensor) -> None:
        """Write `adapter [d]` as a PEFT folder that `PeftModel.from_pretrained` loads."""
        self._adopt(adapter)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft looks for the base's vocabulary on the hub
            self.module.save_pretrained(folder)

    @torch.no_grad()
    def generate(self, adapter: Tensor, samples: Samples, max_new_tokens: int) -> list[list[int]]:
        """Responses to the prompts of `samples`, the tokens before the first label, by greedy decoding.

        It is the `generate` of transformers through peft's own module. A response ends with the end-of-sequence
        token, or after `max_new_tokens`, or where the model has no more positions for a prompt of its batch.
        """
        self._adopt(adapter)
        for layer in self.dropouts:
            layer.draw(None, samples)
        config, ends = self.module.get_base_model().config, self.module.generation_config.eos_token_id
        stop = set(ends if isinstance(ends, list) else [ends])
        positions = getattr(config, "max_position_embeddings", None) or math.inf
        lengths = (samples.labels != -100).int().argmax(1)
        order = torch.argsort(lengths, stable=True)
        # peft numbers the positions of padded prompts after virtual tokens otherwise than while training
        alike = torch.nonzero(lengths[order].diff())[:, 0].add(1).tolist() if self.model.num_virtual_tokens else []
        responses: dict[int, list[int]] = {}
        for rows in [part for group in order.tensor_split(alike) for part in group.split(GENERATED)]:
            width = int(lengths[rows].max())
            prompts = [samples.inputs["input_ids"][row, : lengths[row]] for row in rows]
            room = positions - width - self.model.num_virtual_tokens
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # peft says that it numbers positions itself
                tokens = self.module.generate(
                    input_ids=torch.stack([F.pad(prompt, (width - len(prompt), 0)) for prompt in prompts]),
                    attention_mask=(torch.arange(width) >= width - lengths[rows, None]).long(),
                    max_new_tokens=int(min(max_new_tokens, room)),
                    do_sample=False,
                    num_beams=1,
                    repetition_penalty=1.0,
                    pad_token_id=next(iter(stop)) or 0,  # what is after the end is cut off here
                )
            for row, response in zip(rows.tolist(), tokens[:, width:].tolist(), strict=True):
                end = next((i + 1 for i, token in enumerate(response) if token in stop), len(response))
                responses[row] = response[:end]
        return [responses[row] for row in range(len(samples))]

    def _adopt(self, adapter: Tensor) -> None:
        """Give `adapter [d]` to peft's module."""
        state = self.layout.unflatten(adapter)
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                if name in self.entries:
                    parameter.copy_(state[self.entries[name]])

    def load(self, folder: Path) -> Tensor:
        """The adapter `[d]` in a PEFT folder.

        Raises
        ------
        FedfusionError
            If its entries or shapes are not those of this model's layout.
        """
        return self.layout.flatten(load_file(folder / "adapter_model.safetensors"))


def _image_tokens(config: Any) -> int:
    """How many tokens a vision transformer makes of an image; one where the model says nothing of it."""
    size, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    return (size // patch) ** 2 + 1 if isinstance(size, int) and isinstance(patch, int) else 1


def _check_inside(base: nn.Module, layout: Layout) -> None:
    """Features are those of the backbone: what is adapted outside of it would never be seen."""
    if base.get_output_embeddings() is None:  # type: ignore[operator]
        return
    prefix = f"base_model.model.{base.base_model_prefix}."
    outside = [pair.module for pair in layout.pairs if not pair.module.startswith(prefix)]
    if outside:
        raise FedfusionError(
            f"model.lora adapts '{outside[0].removeprefix('base_model.model.')}', the output layer, which is shared by "
            "all tasks and stays frozen (choose other target_modules)"
        )
