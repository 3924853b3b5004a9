"""LoRA adapters in PEFT folders: read, checked and written, from their files alone; no base model is needed."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedfusion.lora.product import factors
from fedfusion.lora.spec import base_name
from fedfusion.types import FedfusionError, Layout, Pair

CONFIG, WEIGHTS, HEADS = "adapter_config.json", "adapter_model.safetensors", "heads.safetensors"
PREFIX = "base_model.model."  # of peft's names
PARTNER = {".lora_A.weight": ".lora_B.weight", ".lora_embedding_A": ".lora_embedding_B"}
WHERE = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
KEPT = ("base_model_name_or_path", "revision", "task_type", "auto_mapping", "fan_in_fan_out")
UNDERSTOOD = {
    *("peft_type", "peft_version", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", *WHERE, *KEPT),
    *("lora_dropout", "init_lora_weights", "eva_config", "velora_config", "inference_mode"),  # of training only
    *("megatron_core", "qalora_group_size"),  # nothing without megatron_config, use_qalora
}
WITHOUT_BASE = "how far {} moved is not known without the base model ({})"
REFUSED = {
    "use_dora": WITHOUT_BASE.format("its magnitudes", "fine-tune with use_dora=false"),
    "modules_to_save": WITHOUT_BASE.format(
        "these modules", f"take them out of {CONFIG} and {WEIGHTS} and serve each task with its own"
    ),
    "trainable_token_indices": WITHOUT_BASE.format("these tokens", "fine-tune without them"),
    "bias": WITHOUT_BASE.format("its biases", "fine-tune with bias=none"),
    "lora_bias": "biases are not in the product of A and B (fine-tune with lora_bias=false)",
}
REBASED = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Adapter:
    """One LoRA adapter as its files say it is.

    Attributes
    ----------
    name, source
        What it is called here, and what the user called it.
    config
        Its `adapter_config.json`.
    layout, vector : [d]
        Its factors in float32, whatever their dtype on disk; scales are in the layout.
    others
        Entries that are no factors, as peft writes them next to an adapted embedding.
    heads
        The head of each task, where the folder has any.
    sha256
        Of its weights on disk.
    """

    name: str
    source: str
    config: Mapping[str, Any]
    layout: Layout
    vector: Tensor
    others: Mapping[str, Tensor]
    heads: Mapping[str, Tensor]
    sha256: str

    @property
    def base(self) -> str:
        """The base model, as the adapter names it; empty where it does not."""
        return str(self.config.get("base_model_name_or_path") or "")

    @property
    def rank(self) -> int:
        """The largest rank of its modules."""
        return self.layout.rank


def read(source: str, name: str | None = None) -> Adapter:
    """The adapter in a folder, or of a hub id.

    Raises
    ------
    FedfusionError
        If files are missing or broken, entries are not finite, or more than products of `A` and `B` was trained.
    """
    folder = _locate(source)
    config = _config(source, folder)
    file = folder / WEIGHTS
    if not file.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        fix = "adapter_model.bin may run code when it is read: load it once and save_pretrained it" if pickled else ""
        raise FedfusionError(f"{source}: there is no {WEIGHTS} in it ({fix or 'save_pretrained writes it'})")
    tensors = _tensors(source, file)
    layout = _layout(source, config, tensors)
    others = {entry: tensor for entry, tensor in tensors.items() if entry not in layout.names}
    held = _tensors(source, folder / HEADS) if (folder / HEADS).is_file() else {}
    heads = {task: head.float() for task, head in held.items()}
    with file.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    name = name or called([source])[0]
    return Adapter(name, source, config, layout, layout.flatten(tensors), others, heads, sha256)


def read_all(sources: Sequence[str]) -> list[Adapter]:
    """Several adapters on the same modules of the same base.

    Raises
    ------
    FedfusionError
        With one sentence for each that cannot be read, or the first thing in which they differ.
    """
    adapters, errors = [], []
    for source, name in zip(sources, called(sources), strict=True):
        try:
            adapters.append(read(source, name))
        except FedfusionError as error:
            errors += str(error).splitlines()
    if errors:
        raise FedfusionError("\n".join(errors))
    for other in adapters[1:]:
        _check_alike(adapters[0], other)
    return adapters


def called(sources: Sequence[str]) -> list[str]:
    """The last part of each path or hub id, and as many more as it takes for them to differ."""
    parts = [Path(source).resolve().parts[1:] if Path(source).is_dir() else Path(source).parts for source in sources]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["-".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    twice = next(source for i, source in enumerate(sources) if parts[i] in parts[:i])
    raise FedfusionError(f"{twice} is given twice (give each adapter once, and those that count more a coefficient)")


def same_base(one: str, other: str) -> bool:
    """Whether two names of a base model may be the same: folders differ between machines, their last part does not."""
    short = [base_name(name) for name in (one, other)]
    if all("/" in name for name in short):
        return short[0] == short[1]
    return not all(short) or short[0].rpartition("/")[2] == short[1].rpartition("/")[2]


def of_rank(layout: Layout, rank: int | Mapping[str, int]) -> Layout:
    """The same modules with other ranks and scale one."""
    shapes = list(layout.shapes)
    for pair in layout.pairs:
        r = rank if isinstance(rank, int) else rank[pair.module]
        shapes[pair.a], shapes[pair.b] = (r, shapes[pair.a][1]), (shapes[pair.b][0], r)
    return Layout(layout.names, tuple(shapes), tuple(Pair(p.module, p.a, p.b, 1.0) for p in layout.pairs))


def common(adapters: Sequence[Adapter]) -> Layout:
    """One layout that holds all of them: the largest rank of each module, and scale one."""
    ranks: dict[str, int] = {}
    for layout in (adapter.layout for adapter in adapters):
        for pair in layout.pairs:
            ranks[pair.module] = max(ranks.get(pair.module, 0), layout.shapes[pair.a][0])
    return of_rank(adapters[0].layout, ranks)


def fit(adapter: Adapter, target: Layout) -> Tensor:
    """The adapter `[d]` in layout `target`, padded with zeros where that has a larger rank; products stay the same.

    Raises
    ------
    FedfusionError
        If `target` has other modules, or modules of other shapes.
    """
    layout, vector = adapter.layout, torch.zeros(target.dim)
    if difference := _difference(layout, target):
        raise FedfusionError(f"{adapter.source}: {difference}")
    source = {pair.module: pair for pair in layout.pairs}
    for goal in target.pairs:
        b, a = factors(layout, source[goal.module], adapter.vector)
        target.entry(vector, goal.b)[:, : len(a)] = b / goal.scale
        target.entry(vector, goal.a)[: len(a)] = a
    return vector


def where(adapters: Sequence[Adapter]) -> dict[str, Any]:
    """The arguments of `peft.LoraConfig` that name the modules these adapters share."""
    said = _agreed(adapters, WHERE)
    if len(said) == len(WHERE):
        return said
    return {"target_modules": [pair.module.removeprefix(PREFIX) for pair in adapters[0].layout.pairs]}


def write(
    folder: Path, vector: Tensor, layout: Layout, adapters: Sequence[Adapter], heads: Mapping[str, Tensor]
) -> None:
    """Write `vector [d]`, made of `adapters`, as a plain LoRA of one rank that `PeftModel.from_pretrained` loads."""
    rank = layout.rank
    config = _agreed(adapters, KEPT)
    config["base_model_name_or_path"] = next((adapter.base for adapter in adapters if adapter.base), None)
    config |= {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none", "inference_mode": True}
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps(config | where(adapters), indent=2, sort_keys=True) + "\n")
    tensors = {name: tensor.clone() for name, tensor in layout.unflatten(vector).items()}
    save_file(tensors | dict(adapters[0].others), folder / WEIGHTS, metadata={"format": "pt"})
    if heads:
        save_file(dict(heads), folder / HEADS)


def unite(adapters: Sequence[Adapter]) -> tuple[dict[str, Tensor], list[str]]:
    """The heads of all adapters, and the tasks of which two adapters have different ones, which are left out."""
    heads: dict[str, Tensor] = {}
    contradicted = set()
    for adapter in adapters:
        for task, head in adapter.heads.items():
            if not torch.equal(heads.setdefault(task, head), head):
                contradicted.add(task)
    return {task: head for task, head in heads.items() if task not in contradicted}, sorted(contradicted)


def _locate(source: str) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        if (folder / CONFIG).is_file():
            return folder
        inside = sorted(found.parent.relative_to(folder) for found in folder.glob(f"*/{CONFIG}"))
        hint = f"did you mean {folder / inside[0]}?" if inside else "give a folder that save_pretrained wrote"
        raise FedfusionError(f"{source}: there is no {CONFIG} in it ({hint})")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        raise FedfusionError(f"{source}: there is no such folder (give a PEFT folder, or a hub id 'owner/name')")
    try:
        return Path(snapshot_download(source, allow_patterns=["adapter_*", HEADS]))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise FedfusionError(
            f"{source}: there is no such folder, and the hub does not give it ({str(error).splitlines()[0]})"
        ) from error


def _config(source: str, folder: Path) -> dict[str, Any]:
    """The adapter's configuration; refused where more than products of `A` and `B` was trained."""
    if not (folder / CONFIG).is_file():
        raise FedfusionError(f"{source}: there is no {CONFIG} in it (give an adapter that save_pretrained wrote)")
    try:
        config = json.loads((folder / CONFIG).read_text())
        kind, rank, alpha = config["peft_type"], config.get("r", 8), config.get("lora_alpha", 8)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FedfusionError(f"{source}: {CONFIG} is not the configuration of an adapter ({error})") from error
    if kind != "LORA":
        raise FedfusionError(f"{source}: {CONFIG} says peft_type={kind}, but only LORA has products that can be fused")
    if not isinstance(rank, int) or not isinstance(alpha, int | float):
        raise FedfusionError(f"{source}: {CONFIG} says r={rank}, lora_alpha={alpha}, which are no numbers")
    for key, value in config.items():
        if value and key not in UNDERSTOOD and (key, value) != ("bias", "none"):
            reason = REFUSED.get(key, "fedfusion does not know what it changes (fine-tune without it)")
            raise FedfusionError(f"{source}: {CONFIG} sets {key}={value}: {reason}")
    if str(start := config.get("init_lora_weights", True)).startswith(REBASED):
        raise FedfusionError(
            f"{source}: {CONFIG} sets init_lora_weights={start}, which changes the base, but task vectors are counted "
            "from the base (convert it: save_pretrained(path_initial_model_for_weight_conversion=...))"
        )
    return config


def _tensors(source: str, file: Path) -> dict[str, Tensor]:
    """All entries of a file of safetensors, every one finite."""
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise FedfusionError(f"{source}: {file.name} cannot be read ({error}; fetch or save it again)") from error
    for name, tensor in tensors.items():
        if not tensor.float().isfinite().all():
            raise FedfusionError(f"{source}: '{name}' in {file.name} has entries that are NaN or infinite")
    return tensors


def _layout(source: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Layout:
    """Where the factors of each module are, and their scale."""
    names: list[str] = []
    pairs: list[Pair] = []
    for a, suffix in ((n, s) for n in sorted(tensors, key=_natural) for s in PARTNER if n.endswith(s)):
        module = a.removesuffix(suffix)
        b = module + PARTNER[suffix]
        shapes = [tuple(tensors[name].shape) if name in tensors else () for name in (a, b)]
        if [len(shape) for shape in shapes] != [2, 2] or shapes[0][0] != shapes[1][1]:
            raise FedfusionError(
                f"{source}: A and B of '{module}' have shapes {shapes[0]} and {shapes[1]}, which are no pair of "
                "matrices: only linear layers and embeddings can be fused (fine-tune with other target_modules)"
            )
        rank, said = shapes[0][0], _by_pattern(config, "rank_pattern", module, config.get("r", 8))
        if rank != said:
            raise FedfusionError(f"{source}: '{module}' has rank {rank}, but {CONFIG} says {said} (save it again)")
        alpha = _by_pattern(config, "alpha_pattern", module, config.get("lora_alpha", 8))
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        pairs.append(Pair(module, len(names), len(names) + 1, scale))
        names += [a, b]
    if stray := [name for name in tensors if "lora_" in name and name not in names]:
        raise FedfusionError(f"{source}: '{stray[0]}' in {WEIGHTS} is no factor of a linear layer or an embedding")
    if not pairs:
        raise FedfusionError(f"{source}: {WEIGHTS} has no LoRA factors (give an adapter that save_pretrained wrote)")
    return Layout(tuple(names), tuple(tuple(tensors[name].shape) for name in names), tuple(pairs))


def _by_pattern(config: Mapping[str, Any], key: str, module: str, default: float) -> float:
    """What the first pattern that ends the module's name says, as peft matches it."""
    patterns: Mapping[str, float] = config.get(key) or {}
    name = module.removeprefix(PREFIX)
    return next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name)), default)


def _check_alike(one: Adapter, other: Adapter) -> None:
    revisions = [str(adapter.config.get("revision") or "") for adapter in (one, other)]
    if not same_base(one.base, other.base) or (all(revisions) and revisions[0] != revisions[1]):
        named = [f"'{a.base}{'@' * bool(r)}{r}'" for a, r in zip((one, other), revisions, strict=True)]
        raise FedfusionError(
            f"{one.source} adapts {named[0]}, but {other.source} adapts {named[1]}: task vectors of different bases "
            "cannot be fused (merge adapters of one base)"
        )
    if difference := _difference(one.layout, other.layout):
        raise FedfusionError(
            f"the layouts of {one.source} and {other.source} differ: {difference} (merge adapters that were "
            "fine-tuned with the same target_modules)"
        )
    for name in sorted(one.others.keys() | other.others.keys()):
        ours, theirs = one.others.get(name), other.others.get(name)
        if ours is None or theirs is None or not torch.equal(ours, theirs):
            raise FedfusionError(
                f"'{name}', which is no LoRA factor, differs between {one.source} and {other.source}: "
                + WITHOUT_BASE.format("it", f"take it out of {WEIGHTS} if it is the base's own")
            )


def _difference(one: Layout, other: Layout) -> str | None:
    """The first module that only one of them has, or whose layer has another shape."""
    ours, theirs = (
        {p.module: (layout.shapes[p.b][0], layout.shapes[p.a][1]) for p in layout.pairs} for layout in (one, other)
    )
    for module in sorted(ours.keys() | theirs.keys(), key=_natural):
        if ours.get(module) != theirs.get(module):
            shapes = [f"{s[0]} x {s[1]}" if s else "not adapted" for s in (ours.get(module), theirs.get(module))]
            return f"'{module.removeprefix(PREFIX)}' is {shapes[0]} in the first and {shapes[1]} in the other"
    return None


def _agreed(adapters: Sequence[Adapter], keys: Sequence[str]) -> dict[str, Any]:
    """What all configurations say, of those keys on which they agree; lists may have any order."""
    said = {}
    for key in keys:
        values = [adapter.config.get(key) for adapter in adapters]
        first, *others = [sorted(value) if isinstance(value, list) else value for value in values]
        if all(value == first for value in others):
            said[key] = first
    return said


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which layer 2 comes before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
