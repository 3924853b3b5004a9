"""Fuse LoRA adapters that exist already into one, as the server of a federation fuses those of its tasks."""

import contextlib
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from safetensors import SafetensorError
from torch import Tensor

from fedfusion import __version__, config
from fedfusion.config import Experiment
from fedfusion.lora.product import CoreSpace, norms
from fedfusion.offline import card
from fedfusion.offline.adapters import Adapter, common, fit, of_rank, read_all, unite, write
from fedfusion.offline.evaluate import evaluator_of
from fedfusion.offline.settings import DATA, key_of, of_root
from fedfusion.rng import generator
from fedfusion.server.evaluation import Evaluator
from fedfusion.types import Evidence, FedfusionError, Fusion, Layout, Serving

Exported = tuple[Tensor, Layout, dict[str, float]]  # adapter, its layout, and the energy its rank discards, by module


@dataclass(frozen=True, kw_only=True)
class Merge:
    """How adapters are merged; the top level of `conf/merge.yaml`.

    Parameters
    ----------
    seed
        Names the draws of the rule.
    rank
        Of the result: a number, the share of the energy that every module keeps at least, or null, which is the
        smallest that loses nothing.
    fusion
        The rule.
    """

    seed: int
    rank: int | float | None
    fusion: Fusion

    def __post_init__(self) -> None:
        share = isinstance(self.rank, float)
        if self.rank is not None and not (0 < self.rank <= 1 if share else self.rank >= 1):
            raise FedfusionError(
                "rank must be a number of directions (16), the share of the energy to keep (0.95) or null, got "
                f"{self.rank}"
            )


def merge(sources: Sequence[str], overrides: Sequence[str], out: Path, per_task: bool = False) -> dict[str, Any]:
    """Fuse the adapters in `sources` into the new folder `out`, and say what was done.

    Parameters
    ----------
    sources
        PEFT folders, or hub ids.
    overrides
        Of :class:`Merge`, and for a rule that needs data `suite`, `model` and `head`; the tasks of the suite are those
        of the adapters, in their order.
    out
        It must not exist.
    per_task
        Write what the rule has for devices that know their task, too.

    Raises
    ------
    FedfusionError
        With one sentence per problem; nothing is written then.
    """
    if out.exists():
        raise FedfusionError(f"--out {out} exists already and is never overwritten (choose another)")
    data = [override for override in overrides if key_of(override) in DATA]
    own = [override for override in overrides if key_of(override) not in DATA]
    cfg = of_root("merge", Merge, own, ["fusion"])
    plan = cast(Merge, config.build(cfg))
    rule, seed = plan.fusion, plan.seed
    _check(rule, len(sources), [key_of(override) for override in data], per_task)
    run = None
    if rule.data != "none":
        run = config.resolve([*data, *(override for override in own if key_of(override) != "rank")])
    torch.set_num_threads(1)  # sums change their order with it
    adapters = read_all(sources)
    evaluator = _evaluator(config.build(run), adapters) if run else None
    layout = evaluator.model.layout if evaluator else common(adapters)
    rows = torch.stack([fit(adapter, layout) for adapter in adapters])
    core = CoreSpace.of(layout, rows, torch.zeros(layout.dim), space=rule.space)
    vectors = core.project(layout, rows)
    fused = rule(vectors, core.layout, _evidence(rule, core, seed, evaluator))
    served = vectors[:0]
    if per_task and isinstance(rule, Serving):
        served = rule.served(vectors, core.layout, _evidence(rule, core, seed, evaluator))
    if not (fused.isfinite().all() and served.isfinite().all()):
        raise FedfusionError(f"{_name(rule)} makes entries of these adapters that are not finite (choose another rule)")
    whole, *parts = [_export(core, coordinates, layout, plan.rank) for coordinates in (fused, *served)]
    alone = dict(zip([adapter.name for adapter in adapters], parts, strict=False))  # empty without --per-task

    settings = {key: cfg[key] for key in ("fusion", "rank", "seed")}
    settings |= {key: run[key] for key in ("suite", "model", "head")} if run else {}
    heads, contradicted = unite(adapters)
    facts = {
        "fedfusion": __version__,
        "command": _command(sources, overrides, out, per_task),
        "out": str(out),
        "base": adapters[0].base,
        "adapters": [
            {
                "name": adapter.name,
                "source": adapter.source,
                "sha256": adapter.sha256,
                "rank": adapter.rank,
                "norm": float(vector.double().norm()),
                "cosine": float(F.cosine_similarity(vector.double(), fused.double(), 0)),
            }
            for adapter, vector in zip(adapters, vectors, strict=True)
        ],
        "merged": _facts(*whole),
        "per_task": {name: _facts(*part) for name, part in alone.items()},
        "heads": sorted(heads),
        "contradicted_heads": contradicted,
        "config": OmegaConf.to_container(OmegaConf.create(settings), resolve=True),
    }
    with _whole(out) as folder:
        write(folder, *whole[:2], adapters, heads)
        (folder / "README.md").write_text(card.text(facts, rule))
        for adapter in adapters if alone else ():
            write(folder / "per_task" / adapter.name, *alone[adapter.name][:2], adapters, adapter.heads)
    return facts


def _check(rule: Fusion, adapters: int, data: Sequence[str], per_task: bool) -> None:
    """Refuse what cannot be done with these files, before they are read."""
    if adapters < 2:
        raise FedfusionError(f"merge needs two adapters or more, got {adapters} (give PEFT folders or hub ids)")
    if rule.data == "client statistics":
        raise FedfusionError(
            f"{_name(rule)} needs statistics of the clients' data, which adapters do not carry (choose another rule, "
            "or `fedfusion run`)"
        )
    if rule.data != "none" and "suite" not in data:
        raise FedfusionError(
            f"{_name(rule)} learns from samples of every task ({rule.data}), and none are given (add suite=, and "
            "model= and head= unless the defaults fit, or choose a rule that needs no data)"
        )
    if rule.data == "none" and data:
        raise FedfusionError(f"{data[0]} would change nothing: {_name(rule)} needs no data (drop it)")
    if per_task and not isinstance(rule, Serving):
        raise FedfusionError(
            f"--per-task: {_name(rule)} has one vector for all tasks (drop it, or choose a rule with one for each)"
        )


def _name(rule: Fusion) -> str:
    return f"fusion={type(rule).__name__}"


def _evaluator(experiment: Experiment, adapters: Sequence[Adapter]) -> Evaluator:
    """What knows samples of the task of each adapter."""
    evaluator = evaluator_of(experiment, adapters)
    if len(evaluator.suite.tasks) != len(adapters):
        raise FedfusionError(
            f"suite.tasks names {len(evaluator.suite.tasks)} tasks, but there are {len(adapters)} adapters (name the "
            "task of each adapter, in their order)"
        )
    return evaluator


def _evidence(rule: Fusion, core: CoreSpace, seed: int, evaluator: Evaluator | None) -> Evidence:
    probe = None
    if evaluator:
        probe = evaluator.unlabelled(core) if rule.data == "unlabelled" else evaluator.probe(core)
    return Evidence(generator(seed, "fusion"), probe=probe)


def _export(core: CoreSpace, coordinates: Tensor, layout: Layout, rank: int | float | None) -> Exported:
    """The adapter of that rank, or of the smallest that keeps that share of the energy, or all of it."""
    number = rank if isinstance(rank, int) else core.rank_of(coordinates, rank or 1.0)
    target = of_rank(layout, number)
    vector, discarded = core.to_adapter(coordinates, target)
    return vector, target, discarded


def _facts(vector: Tensor, layout: Layout, discarded: Mapping[str, float]) -> dict[str, Any]:
    """Rank, norm, and the energy that the rank discards of each module."""
    worst = max(discarded, key=lambda module: discarded[module])
    return {
        "rank": layout.rank,
        "norm": float(norms(layout, vector[None])),
        "discarded": discarded[worst],
        "discarded_most_in": worst,
        "discarded_by_module": dict(discarded),
    }


def _command(sources: Sequence[str], overrides: Sequence[str], out: Path, per_task: bool) -> str:
    options = ["--out", str(out), *(["--per-task"] if per_task else [])]
    return shlex.join(["fedfusion", "merge", *sources, *overrides, *options])


@contextlib.contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` in the end, or vanishes."""
    folder = out.parent / f".{out.name}.{os.getpid()}.tmp"
    try:
        yield folder
        folder.rename(out)
    except (OSError, SafetensorError) as error:
        raise FedfusionError(f"--out {out} cannot be written ({error})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
