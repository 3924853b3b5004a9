"""The resolved experiment: composed by Hydra, checked in one go, carried as one JSON string."""

import datetime
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fedfusion import hub
from fedfusion.composition import CONF as CONF
from fedfusion.composition import composed as composed
from fedfusion.composition import groups as groups
from fedfusion.composition import loaded
from fedfusion.contradictions import contradictions
from fedfusion.lora.spec import locate
from fedfusion.rng import generator
from fedfusion.soundness import sound
from fedfusion.types import (
    Aggregator,
    Attack,
    Channel,
    CheckedSuite,
    Clients,
    Coupling,
    FedfusionError,
    Fusion,
    Guard,
    Layout,
    PreAggregator,
    Realigner,
    ServerOptimizer,
    TaskSuite,
)
from fedfusion.validation import ConfigErrors, first_line, flat

CHECKED_ROUNDS = 20  # draws of clients for which the stability of a coupling is checked before the run
# what --resume may change without changing what is computed in the rounds that are already done
RESUMABLE = frozenset(
    {
        "rounds",
        "federation",
        "tracker",
        "run_dir",
        "trainings",
        "push_to_hub",
        "deadline_s",
        "round_deadline_s",
        "min_clients",
        "rouge_rows",
    }
)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One whole run; the top level of `conf/config.yaml`.

    Parameters
    ----------
    seed
        Names every random draw of the run.
    rounds
        Rounds of local training, upload and fusion.
    fraction
        Share of the clients that is drawn in each round.
    min_clients
        A round with fewer uploads ends the run; the last checkpoint is kept. Where it is the uplink that lost them, or
        a guard that judges by trusted samples that refused them, the round keeps the last model, and the run goes on.
    deadline_s
        Seconds after which a client that has not answered is dropped from the round.
    round_deadline_s
        Seconds after which a round goes on with those that have answered; null waits for all within `deadline_s`.
    evaluation
        Who measures personal adapters: the `server`, or the `clients`, which measure the realigned one too.
    fused_rank
        LoRA rank of the fused adapter; null is the number of tasks times `model.lora.r`.
    keep
        Which round's model becomes `adapter/`: the `last`, or the `best`, by its mean loss over tasks on the labelled
        samples that the server holds (`suite.trusted`); no test set is looked at for it.
    rouge_rows
        Test samples per task whose responses are generated after the last round, for their ROUGE-L; `0` is none.
    payload
        What clients send: `factors`, `frozen_a` (with `model.freeze_a=true`) or `product`, see
        :class:`fedfusion.lora.payload.Payload`.
    wire
        How the numbers of an upload are sent: `float32`, `float16` or `int8`, see :func:`fedfusion.client.wire.encode`.
        Unlike the channel, which is simulated, this is what really happens to them, on every grid.
    aggregate_within
        `task`: uploads are aggregated within each task, and the results fused. `federation`: all together, as rules
        for one task do it; the result stands for every task, and counts as often in the fusion.
    server
        Who makes a model of the uploads, see :class:`fedfusion.server.choice.Server`.
    run_dir
        Folder of the run; null is `runs/` and the time.
    push_to_hub
        Where the fused adapter goes on the Hugging Face hub once the run is done, as `user/name`; null is nowhere. See
        :func:`fedfusion.hub.push`.
    trainings
        Folder where uploads and scores are kept, and looked up before anything is trained or measured. Runs that
        differ only behind the upload train once; the results are the same bits. Null trains. A sweep names one.
    """

    seed: int
    rounds: int
    fraction: float
    min_clients: int
    deadline_s: float
    round_deadline_s: float | None
    evaluation: Literal["server", "clients"]
    fused_rank: int | None
    keep: Literal["last", "best"]
    rouge_rows: int
    payload: Literal["factors", "frozen_a", "product"]
    wire: Literal["float32", "float16", "int8"]
    server: Any
    run_dir: str | None
    push_to_hub: str | None
    trainings: str | None
    model: Any
    head: Any
    suite: TaskSuite
    client: Any
    attack: Attack
    channel: Channel
    guard: Guard
    coupling: Coupling
    server_optimizer: ServerOptimizer
    preaggregator: PreAggregator
    aggregator: Aggregator
    aggregate_within: Literal["task", "federation"]
    fusion: Fusion
    realign: Realigner
    federation: Any
    tracker: Any

    def __post_init__(self) -> None:
        n = self.suite.num_clients
        drawn = max(1, round(self.fraction * n)) if 0 < self.fraction <= 1 else n
        checks = {
            f"rounds must be at least 1, got {self.rounds}": self.rounds >= 1,
            f"fraction must be in (0, 1], got {self.fraction}": 0 < self.fraction <= 1,
            f"deadline_s must be positive, got {self.deadline_s}": self.deadline_s > 0,
            f"round_deadline_s must be positive or null, got {self.round_deadline_s}": self.round_deadline_s is None
            or self.round_deadline_s > 0,
            f"fused_rank must be at least 1 or null, got {self.fused_rank}": self.fused_rank is None
            or self.fused_rank >= 1,
            f"rouge_rows must be at least 0, got {self.rouge_rows}": self.rouge_rows >= 0,
            f"min_clients={self.min_clients} must be between 1 and the {drawn} clients of a round "
            "(lower min_clients, or raise suite.clients_per_task or fraction)": 1 <= self.min_clients <= drawn,
        }
        ranks, rank = self.client.ranks, int(self.model.lora.get("r", 8))
        if ranks is not None:
            checks[f"client.ranks={list(ranks)} must not exceed model.lora.r={rank}"] = max(ranks) <= rank
        if violated := [sentence for sentence, holds in checks.items() if not holds]:
            raise FedfusionError("\n".join(violated))

    def byzantine(self) -> tuple[int, ...]:
        """The Byzantine clients of the run, drawn by its seed."""
        tasks = [self.suite.task_of(client) for client in range(self.suite.num_clients)]
        return self.attack.byzantine(tasks, generator(self.seed, "byzantine"))

    def lack(self, n: int) -> tuple[str, PreAggregator | Aggregator, int] | None:
        """The first rule for which `n` uploads are too few: its key, itself, and how many reach it."""
        before, rule = self.preaggregator, self.aggregator
        stages = (("preaggregator", before, n), ("aggregator", rule, before.rows(n)))
        return next((stage for stage in stages if stage[2] < stage[1].min_rows), None)

    def chosen(self, server_round: int) -> set[int]:
        """The clients of a round, drawn by its name."""
        n = self.suite.num_clients
        order = torch.randperm(n, generator=generator(self.seed, "sample", server_round))
        return set(order[: max(1, round(self.fraction * n))].tolist())

    def clients(self, layout: Layout, initial: Tensor) -> Clients:
        """All clients, and how their tasks are related."""
        tasks = tuple(self.suite.task_of(client) for client in range(self.suite.num_clients))
        related = {(t, o): self.suite.relation(t, o) for t in self.suite.tasks for o in self.suite.tasks}
        relation = torch.tensor([[related[task, other] for other in tasks] for task in tasks])
        return Clients(layout, tasks, initial, relation)

    def check(self) -> None:
        """Refuse data that cannot be learnt from, heads and scores that do not fit it, and a coupling that fails.

        No model is loaded.

        Raises
        ------
        FedfusionError
            One sentence per problem.
        """
        if self.server.stock:
            return self.server.check(self)
        if isinstance(self.suite, CheckedSuite):
            self.suite.check(self.seed)
        words = [task for task in self.suite.tasks if self.suite.num_classes(task) == 0]
        if words and self.model.auto != "AutoModelForCausalLM":
            raise FedfusionError(
                f"the responses of '{words[0]}' are text: model.auto must be AutoModelForCausalLM, got "
                f"{self.model.auto} (choose another model, or another suite)"
            )
        self.head.check(self.model, self.suite)
        if found := contradictions(self):
            raise FedfusionError("\n".join(found))
        for task in dict.fromkeys(self.suite.task_of(client) for client in self.byzantine()):
            if self.attack.poisons:  # tried on a few samples
                rng, few = generator(self.seed, "poison"), self.suite.root(task, self.seed)
                self.attack.poison(few, self.suite.num_classes(task), rng)
        self._try_coupling()

    def _try_coupling(self) -> None:
        """Couple adapters of one parameter for some rounds, and refuse what is unstable or makes something else."""
        clients = self.clients(Layout(("nothing",), ((1,),)), torch.zeros(1))
        adapters = torch.arange(1.0, self.suite.num_clients + 1)[:, None]
        for server_round in range(1, 1 + (1 if self.fraction == 1 else min(self.rounds, CHECKED_ROUNDS))):
            heard = torch.tensor(sorted(self.chosen(server_round)))
            weights = torch.full((len(heard),), 1 / len(heard))
            match self.coupling(adapters, heard, weights, clients, generator(self.seed, "coupling", server_round)):
                case (coupled, Mapping()):
                    sound("coupling", self.coupling, coupled, adapters.shape)
                case made:
                    raise FedfusionError(
                        f"coupling={type(self.coupling).__name__} returns {type(made).__name__}, expected adapters and "
                        "a report (mend it)"
                    )


def resolve(overrides: Sequence[str]) -> DictConfig:
    """Compose `conf/` with Hydra overrides and check everything before anything is loaded.

    Raises
    ------
    ConfigErrors
        With one sentence per error: unknown names and their nearest valid ones, wrong types, values that a stage
        refuses, files that do not exist, a folder that cannot be made.
    """
    cfg, errors, unfit = composed(overrides, "config", Experiment)
    if not unfit:
        try:
            experiment = build(cfg)
            locate(experiment.model.path)
            experiment.federation.check()
            experiment.tracker.check()
            if experiment.push_to_hub is not None:
                hub.check(experiment.push_to_hub)
            experiment.check()
        except FedfusionError as error:
            unfit += str(error).splitlines()
        unfit += _unwritable(Path(cfg.run_dir)) if cfg.run_dir else []
    if errors or unfit:
        raise ConfigErrors([*errors, *unfit])
    return cfg


def resume(run_dir: Path, overrides: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """The configuration of an interrupted run, with overrides that do not change what was computed already.

    Returns
    -------
    cfg, overrides
        The configuration, and the overrides of the first call and of this one together.

    Raises
    ------
    ConfigErrors
        If there is no run in `run_dir`, or one that cannot be read, or something else than the keys of `RESUMABLE`
        differs.
    """
    if not all((run_dir / name).is_file() for name in ("config.yaml", "overrides.yaml")):
        raise ConfigErrors([f"--resume {run_dir}: there is no config.yaml in it (give the folder of an earlier run)"])
    way_out = "restore it from a copy, or begin a new run"
    stored = loaded(run_dir / "config.yaml", dict, way_out)
    if not stored:
        raise ConfigErrors([f"{run_dir / 'config.yaml'} cannot be read: it is empty ({way_out})"])
    earlier = [str(override) for override in loaded(run_dir / "overrides.yaml", list, way_out)]
    for group in ("federation", "tracker"):
        if any(override.startswith(f"{group}=") for override in overrides):
            earlier = [override for override in earlier if not override.startswith((f"{group}=", f"{group}."))]
    combined = list({text.partition("=")[0]: text for text in [*earlier, *overrides]}.values())  # the last of each key
    cfg = resolve([*combined, f"run_dir='{run_dir}'"])
    fresh = OmegaConf.to_container(cfg)
    assert isinstance(fresh, dict)
    ours, theirs = (flat({k: v for k, v in cfg.items() if k not in RESUMABLE}) for cfg in (fresh, stored))
    differing = [key for key in sorted(ours.keys() | theirs.keys()) if differ(ours.get(key), theirs.get(key))]
    if differing:
        allowed = ", ".join(sorted(RESUMABLE - {"run_dir"}))
        raise ConfigErrors(
            [
                f"--resume {run_dir}: '{key}' is {ours.get(key)!r} here and {theirs.get(key)!r} in the run "
                f"(only {allowed} may change)"
                for key in differing
            ]
        )
    return cfg, combined


def differ(ours: Any, theirs: Any) -> bool:
    """Whether two settings do; 20 is 20.0 and nan is nan, but 1 is not true."""
    return repr(plain(ours)) != repr(plain(theirs))


def plain(setting: Any) -> Any:
    """The same with whole numbers as integers."""
    if isinstance(setting, list):
        return [plain(each) for each in setting]
    if isinstance(setting, dict):
        return {key: plain(value) for key, value in sorted(setting.items())}
    return int(setting) if isinstance(setting, float) and setting.is_integer() else setting


def fresh_run_dir(cfg: DictConfig) -> Path:
    """The folder of a new run: `run_dir`, or one named after the time.

    Raises
    ------
    FedfusionError
        If it exists, for a run is never overwritten, or if it cannot be made where it is to be.
    """
    folder = Path(cfg.run_dir or f"runs/{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}")
    if os.path.exists(folder):
        raise FedfusionError(
            f"run_dir={folder} exists already and is never overwritten (choose another, or --resume {folder})"
        )
    if wrong := _unwritable(folder):
        raise FedfusionError(wrong[0])
    return folder


def _unwritable(folder: Path) -> list[str]:
    """Say whether nothing can be written into a folder, or where it is to be made."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
    try:
        with tempfile.TemporaryFile(dir=there):
            return []
    except OSError as error:
        return [f"run_dir={folder}: {there} cannot be written: {error.strerror} (choose a folder of yours for run_dir)"]


def build(cfg: DictConfig | str) -> Experiment:
    """Instantiate a resolved configuration, or the JSON of one."""
    try:
        return instantiate(OmegaConf.create(json.loads(cfg)) if isinstance(cfg, str) else cfg, _convert_="all")
    except HydraException as error:
        if isinstance(error.__cause__, FedfusionError):
            raise error.__cause__ from error
        raise ConfigErrors([first_line(error.__cause__ or error)]) from error


def to_json(cfg: DictConfig) -> str:
    """The resolved configuration as one line of JSON."""
    return json.dumps(OmegaConf.to_container(cfg, resolve=True))


def for_clients(experiment_json: str) -> str:
    """The configuration without what is the server's affair, for devices that allow few callables and no folders."""
    cfg = json.loads(experiment_json)
    cfg["server"]["strategy"] = {"_target_": None}
    cfg |= {"tracker": {"_target_": "fedfusion.tracking.Untracked"}, "trainings": None}
    return json.dumps(cfg)
