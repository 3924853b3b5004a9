"""The resolved experiment: composed by Hydra, checked in one go, carried as one JSON string."""

import datetime
import importlib.metadata
import importlib.util
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fedfusion import hub
from fedfusion.composition import CONF as CONF
from fedfusion.composition import composed as composed
from fedfusion.composition import groups as groups
from fedfusion.coupling import Average, ProductAverage
from fedfusion.lora.spec import locate
from fedfusion.preaggregators import Unmixed
from fedfusion.rng import generator
from fedfusion.types import (
    Aggregator,
    Attack,
    Channel,
    Clients,
    Coupling,
    FedfusionError,
    Fusion,
    Guard,
    Layout,
    PreAggregator,
    Realigner,
    Samples,
    ServerOptimizer,
    TaskSuite,
)
from fedfusion.validation import ConfigErrors, first_line, flat

CHECKED_ROUNDS = 20  # draws of clients for which the stability of a coupling is checked before the run
CENTRAL = {  # Flower's mods that are half of a mechanism
    "fixedclipping_mod": "DifferentialPrivacyClientSideFixedClipping",
    "adaptiveclipping_mod": "DifferentialPrivacyClientSideAdaptiveClipping",
}
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


@runtime_checkable
class CheckedSuite(Protocol):
    """A suite that can say what is wrong with its data without a model."""

    def check(self, seed: int) -> None:
        """Raise a FedfusionError that says what is wrong."""


@runtime_checkable
class TrustedSuite(Protocol):
    """A suite of which the server holds more labelled rows, to judge uploads by."""

    def trusted_rows(self, task: str, seed: int) -> Samples:
        """Those rows of a task; there may be none."""
        ...


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

    def _check_combinations(self, words: bool) -> None:
        """Refuse choices of which one would undo the other, or do nothing."""
        client, virtual, causal = self.client, self.model.num_virtual_tokens, self.model.auto == "AutoModelForCausalLM"
        into_base, moments = self.coupling.into_base, self.server_optimizer.num_moments
        mixed = not isinstance(self.preaggregator, Unmixed)
        on_products = getattr(self.attack, "space", "factors") == "product"
        energy = getattr(self.guard, "energy", 1.0)
        alike = into_base or isinstance(self.coupling, (Average, ProductAverage))
        name, name_of_fusion = _class(self.channel), _class(self.fusion)
        given = getattr(getattr(self.fusion, "rule", self.fusion), "coefficient", None)
        coefficients = list(given) if isinstance(given, Sequence) else None
        wrong = {
            "client.train_head=true: the head of a task whose responses are text is the base's (set it to false)":
                client.train_head and words,
            "keep=best: heads that clients train are of the last round (set keep=last or client.train_head=false)":
                self.keep == "best" and client.train_head,
            "keep=best: with coupling=stacking the model of an earlier round is no adapter (set keep=last)":
                self.keep == "best" and into_base,
            "model.pooling=first: the first token of a causal model has not seen the text (choose last or mean)":
                causal and not words and self.model.pooling == "first",
            "client.ranks: virtual tokens have no rank (set it to null)": client.ranks is not None and virtual,
            "regularizer: virtual tokens have no factors that could be orthogonal (choose another)":
                client.regularizer.needs_tasks and virtual,
            "regularizer: with model.freeze_a=true the factors that should become orthogonal are frozen (change one)":
                client.regularizer.needs_tasks and self.model.freeze_a,
            f"fusion={name_of_fusion} needs client statistics: set client.statistics=curvature":
                self.fusion.data == "client statistics" and client.statistics == "none",
            "client.statistics=curvature: virtual tokens have no inputs and gradients (set it to none)":
                client.statistics != "none" and virtual,
            "client.statistics=curvature: with coupling=stacking nothing is fused that could use them (set it to none)":
                client.statistics != "none" and into_base,
            f"client.statistics=curvature: fusion={name_of_fusion} has no use for it (set it to none, or choose "
            "fusion=regmean, fisher or laplace)":
                client.statistics != "none" and self.fusion.data != "client statistics",
            "realign.loss=teachers: with coupling=stacking there are no adapters of single tasks (choose labels)":
                self.realign.needs_tasks and into_base,
            f"fusion.agree={getattr(self.fusion, 'agree', 0)} exceeds the {len(self.suite.tasks)} tasks (lower it)":
                getattr(self.fusion, "agree", 0) > len(self.suite.tasks),
            f"fusion.coefficient={coefficients} must have one number for each of the {len(self.suite.tasks)} tasks "
            f"{', '.join(self.suite.tasks)} (or give one for all)":
                coefficients is not None and len(coefficients) != len(self.suite.tasks),
            "coupling adds products to the base: virtual tokens have none (choose another coupling)":
                into_base and virtual,
            f"coupling={_class(self.coupling)} gives everybody the mean of all, and leaves nothing to do for "
            f"aggregator={_class(self.aggregator)} and preaggregator={_class(self.preaggregator)} (choose "
            "coupling=none, or aggregator=mean and preaggregator=none)":
                alike and (mixed or not self.aggregator.linear),
            f"guard.energy={energy}: virtual tokens have no product (set it to 1)":
                energy < 1 and virtual,
            f"guard.energy={energy} changes A, which model.freeze_a=true forbids (set it "
            "to 1)": energy < 1 and self.model.freeze_a,
            "attack.space=product: with model.freeze_a=true only B is sent, and the product is linear in it (set "
            "attack.space=factors)": on_products and self.model.freeze_a,
            "attack.space=product: virtual tokens have no product (set attack.space=factors)":
                on_products and virtual,
            "server_optimizer: with coupling=stacking nothing is left to do (choose plain)": into_base and moments,
            f"payload={self.payload} with model.freeze_a={str(self.model.freeze_a).lower()}: B alone is sent if, and "
            "only if, A is frozen (set payload=frozen_a and model.freeze_a=true, or neither)":
                (self.payload == "frozen_a") != self.model.freeze_a,
            "payload=product: virtual tokens have no product (choose factors)": self.payload == "product" and virtual,
            "payload=product: factors that the server makes anew in each round have no mean (choose payload=factors, "
            "or a coupling that averages none, as coupling=none)":
                self.payload == "product" and self.coupling.averages_factors,
            "payload=product: factors that the server makes anew in each round have no momentum (choose "
            "server_optimizer=plain, or payload=factors)":
                self.payload == "product" and bool(moments),
        } | {
            f"{stage} needs the upload of every single client, but channel={name} yields only the sum of a task's "
            f"clients ({fix})": self.channel.superposes and needs
            for stage, needs, fix in (
                (f"aggregator={_class(self.aggregator)}", not self.aggregator.linear, "choose aggregator=mean"),
                (f"preaggregator={_class(self.preaggregator)}", mixed, "choose preaggregator=none"),
                (f"guard={_class(self.guard)}", self.guard.needs_rows, "choose guard=norm_clip"),
                (f"coupling={_class(self.coupling)}", self.coupling.needs_rows, "choose coupling=none"),
            )
        } | {
            f"channel={name} sums A and B, and the product of the sums is not the sum of the products (choose "
            "payload=frozen_a with model.freeze_a=true, payload=product, or coupling=average, which averages factors)":
                self.channel.superposes and self.payload == "factors" and not self.coupling.averages_factors,
            f"channel={name} sums uploads of equal size, but client.ranks={client.ranks} differ (set it to null)":
                self.channel.superposes and self.payload != "product" and len(set(client.ranks or [])) > 1,
        }  # fmt: skip
        if violated := [sentence for sentence, holds in wrong.items() if holds]:
            raise FedfusionError("\n".join(violated))

    def _check_mods(self) -> None:
        """Refuse client mods that are none, that need another server, or that something would bypass."""
        client, wrong = self.client, []
        for mod in client.mods:
            name = getattr(getattr(mod, "func", mod), "__name__", _class(mod))
            if not callable(mod):
                wrong.append(
                    f"client.mods: {mod!r} is no mod (give {{_target_: IMPORT.PATH, ...}}, for a function with "
                    "_partial_: true)"
                )
            elif name in CENTRAL:
                wrong.append(
                    f"client.mods: {name} takes its clipping norm from a strategy of Flower's, {CENTRAL[name]}, which "
                    "adds the noise; here is none (choose flwr.clientapp.mod.LocalDpMod, which clips and adds noise at "
                    "the client, with sensitivity=0 clips only)"
                )
            elif name in ("secagg_mod", "secaggplus_mod"):
                wrong.append(f"client.mods: {name}, secure aggregation, {self._why_no_sum()} (take it out)")
            for budget in ("epsilon", "delta"):
                if not getattr(mod, budget, 1) > 0:
                    wrong.append(f"client.mods: {name} needs a positive {budget}, got {getattr(mod, budget)}")
        for setting, value in (("train_head", True), ("statistics", "curvature")):
            if client.mods and getattr(client, setting) == value:
                wrong.append(
                    f"client.mods: what client.{setting}={str(value).lower()} sends besides the update would bypass "
                    f"them (set it to {'false' if value is True else 'none'}, or client.mods to [])"
                )
        if wrong:
            raise FedfusionError("\n".join(wrong))

    def _why_no_sum(self) -> str:
        """Why the sum of all uploads alone would not do."""
        needing = [
            f"{key}={_class(stage)}"
            for key, stage, needs in (
                ("guard", self.guard, self.guard.needs_rows),
                ("preaggregator", self.preaggregator, not isinstance(self.preaggregator, Unmixed)),
                ("aggregator", self.aggregator, not self.aggregator.linear),
                ("coupling", self.coupling, self.coupling.needs_rows),
            )
            if needs
        ]
        if len(self.suite.tasks) > 1 and self.aggregate_within == "task":
            needing.append(f"fusion={_class(self.fusion)} of {len(self.suite.tasks)} tasks")
        if needing:
            return (
                f"shows the server only the sum of all uploads, but {', '.join(needing)} must see more: each client's, "
                "or each task's"
            )
        return f"is offered by Flower {importlib.metadata.version('flwr')} for its former API alone"

    def _check_groups(self) -> None:
        """Refuse a rule that is meant for more clients than it will see."""
        held = Counter(self.suite.task_of(client) for client in range(self.suite.num_clients))
        sizes = {f"task '{task}' has": n for task, n in held.items()}
        if self.aggregate_within == "federation":
            sizes = {"the federation has": self.suite.num_clients}
        for group, n in sizes.items():
            if lack := self.lack(n):
                key, stage, size = lack
                mixed = f" of {n} once {_class(self.preaggregator)} has merged them" if size < n else ""
                raise FedfusionError(
                    f"{key}={_class(stage)} needs {stage.inequality} uploads: {group} n={size}{mixed}, "
                    f"{key}.f={stage.f} ({'lower it, or ' * (stage.f > 0)}raise suite.clients_per_task)"
                )

    def _check_trusted(self) -> None:
        """Refuse stages that judge by samples which the server does not hold."""
        held = int(getattr(self.suite, "trusted", 2)) if isinstance(self.suite, TrustedSuite) else 0
        if self.keep == "best" and held < 2:
            raise FedfusionError(
                f"keep=best compares rounds on labelled samples that no head was made of, and needs 2 of each task or "
                f"more, but suite.trusted={held} (set it to 64, or keep=last)"
            )
        for stage, rule, other in (("guard", self.guard, "norm_clip"), ("aggregator", self.aggregator, "mean")):
            if rule.needs_root and held < 2:
                raise FedfusionError(
                    f"{stage}={_class(rule)} judges uploads by labelled samples that no head was made of, and needs 2 "
                    f"of each task or more, but suite.trusted={held} (set it to 64, or choose {stage}={other})"
                )

    def _check_rouge(self) -> None:
        classes = [task for task in self.suite.tasks if self.suite.num_classes(task)]
        if classes:
            raise FedfusionError(
                f"rouge_rows={self.rouge_rows} needs responses of text, but the labels of task '{classes[0]}' are "
                "classes (set rouge_rows=0, or choose a suite of instructions, as suite=lists)"
            )
        if importlib.util.find_spec("rouge_score") is None:
            raise FedfusionError(
                f"rouge_rows={self.rouge_rows} needs rouge-score, which is not installed: "
                "pip install 'fedfusion[instruct]' (or set rouge_rows=0)"
            )

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
        """Refuse data that cannot be learnt from, heads and scores that do not fit it, and a coupling that diverges.

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
        self._check_combinations(bool(words))
        self._check_mods()
        for task in dict.fromkeys(self.suite.task_of(client) for client in self.byzantine()):
            if self.attack.poisons:  # tried on a few samples
                rng, few = generator(self.seed, "poison"), self.suite.root(task, self.seed)
                self.attack.poison(few, self.suite.num_classes(task), rng)
        self._check_groups()
        self._check_trusted()
        if self.rouge_rows:
            self._check_rouge()
        clients = self.clients(Layout(("nothing",), ((1,),)), torch.zeros(1))
        adapters = torch.zeros(self.suite.num_clients, 1)
        for server_round in range(1, 1 + (1 if self.fraction == 1 else min(self.rounds, CHECKED_ROUNDS))):
            heard = torch.tensor(sorted(self.chosen(server_round)))
            weights = torch.full((len(heard),), 1 / len(heard))
            self.coupling(adapters, heard, weights, clients, generator(self.seed, "coupling", server_round))


def _class(stage: object) -> str:
    return type(stage).__name__


def resolve(overrides: Sequence[str]) -> DictConfig:
    """Compose `conf/` with Hydra overrides and check everything before anything is loaded.

    Raises
    ------
    ConfigErrors
        With one sentence per error: unknown names and their nearest valid ones, wrong types, values that a stage
        refuses, files that do not exist.
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
        If there is no run in `run_dir`, or something else than the keys of `RESUMABLE` differs.
    """
    if not all((run_dir / name).is_file() for name in ("config.yaml", "overrides.yaml")):
        raise ConfigErrors([f"--resume {run_dir}: there is no config.yaml in it (give the folder of an earlier run)"])
    stored = OmegaConf.to_container(OmegaConf.load(run_dir / "config.yaml"))
    earlier = [str(override) for override in OmegaConf.load(run_dir / "overrides.yaml")]
    for group in ("federation", "tracker"):
        if any(override.startswith(f"{group}=") for override in overrides):
            earlier = [override for override in earlier if not override.startswith((f"{group}=", f"{group}."))]
    combined = [*earlier, *overrides]
    cfg = resolve([*combined, f"run_dir='{run_dir}'"])
    fresh = OmegaConf.to_container(cfg)
    assert isinstance(stored, dict) and isinstance(fresh, dict)
    ours, theirs = (flat({k: v for k, v in cfg.items() if k not in RESUMABLE}) for cfg in (fresh, stored))
    differing = [key for key in sorted(ours.keys() | theirs.keys()) if repr(ours.get(key)) != repr(theirs.get(key))]
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


def fresh_run_dir(cfg: DictConfig) -> Path:
    """The folder of a new run: `run_dir`, or one named after the time.

    Raises
    ------
    FedfusionError
        If it exists, for a run is never overwritten, or if it cannot be made where it is to be.
    """
    folder = Path(cfg.run_dir or f"runs/{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}")
    if folder.exists():
        raise FedfusionError(
            f"run_dir={folder} exists already and is never overwritten (choose another, or --resume {folder})"
        )
    there = next(parent for parent in folder.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return folder
    except OSError as error:
        raise FedfusionError(
            f"run_dir={folder}: {there} cannot be written: {error.strerror} (choose a folder of yours for run_dir)"
        ) from error


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
