"""Who makes a model of the uploads: fedfusion's own round, or a strategy of Flower's."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    FedProx,
    FedXgbBagging,
    FedXgbCyclic,
    Strategy,
)
from hydra.errors import HydraException
from hydra.utils import instantiate

from fedfusion.composition import composed
from fedfusion.config import Experiment
from fedfusion.coupling import Average
from fedfusion.guard import NormClip
from fedfusion.regularizers import Unregularized
from fedfusion.server.wireless import WirelessStrategy
from fedfusion.types import FedfusionError
from fedfusion.validation import first_line

STAGES = ("guard", "coupling", "server_optimizer", "preaggregator", "aggregator", "fusion", "realign")
KEYS = {"arrayrecord_key": "arrays", "configrecord_key": "config", "weighted_by_key": "num-examples"}
MINIMA = ("min_available_nodes", "min_train_nodes", "min_evaluate_nodes")
TREES = (FedXgbBagging, FedXgbCyclic)
CLIPPED_THERE = (DifferentialPrivacyClientSideFixedClipping, DifferentialPrivacyClientSideAdaptiveClipping)


@dataclass(frozen=True)
class Server:
    """Who makes a model of the uploads.

    Parameters
    ----------
    strategy
        `_target_` and arguments of a strategy of Flower's, which takes the place of guard, coupling, aggregator, fusion
        and realign. A `_target_` of null is fedfusion's own round.
    """

    strategy: Mapping[str, Any]

    @property
    def stock(self) -> bool:
        """Whether it is a strategy of Flower's."""
        return self.strategy.get("_target_") is not None

    def make(self) -> Strategy:
        """The strategy, as it is before its first round.

        Raises
        ------
        FedfusionError
            If it is none, or refuses its arguments.
        """
        try:
            made = instantiate(dict(self.strategy), _convert_="all")
        except HydraException as error:
            raise FedfusionError(f"server.strategy: {first_line(error.__cause__ or error)}") from error
        if not isinstance(made, Strategy):
            raise FedfusionError(
                f"server.strategy._target_: {type(made).__name__} is no strategy of Flower's "
                "(choose one of flwr.serverapp.strategy, as flwr.serverapp.strategy.FedMedian)"
            )
        return made

    def check(self, experiment: Experiment) -> None:
        """Refuse what a strategy of Flower's cannot take part in, and what else is wrong with the experiment.

        Raises
        ------
        FedfusionError
            One sentence per problem.
        """
        strategy = self.make()
        if wrong := [*_refused(strategy, experiment), *_idle(type(strategy).__name__, experiment)]:
            raise FedfusionError("\n".join(wrong))
        WirelessStrategy(strategy, experiment.channel)
        replace(experiment, server=Server({"_target_": None}), guard=NormClip(), coupling=Average()).check()


def _refused(strategy: Strategy, experiment: Experiment) -> list[str]:
    """What a strategy asks for and clients do not give."""
    name, innermost = type(strategy).__name__, strategy
    while isinstance(inner := getattr(innermost, "strategy", None), Strategy):
        innermost = inner
    wrong = [
        f"+server.strategy.{key}={getattr(innermost, key)}: clients know '{fixed}' alone (leave it out)"
        for key, fixed in KEYS.items()
        if getattr(innermost, key, fixed) != fixed
    ]
    there = experiment.suite.num_clients
    wrong += [
        f"+server.strategy.{key}={wanted}: it would wait for ever for more than the {there} clients there are (set it "
        f"to at most {there}, or raise suite.clients_per_task)"
        for key in MINIMA
        if (wanted := getattr(innermost, key, 0)) > there
    ]
    if isinstance(innermost, TREES):
        wrong.append(f"server.strategy={name} adds up trees, and clients train adapters (choose another strategy)")
    if isinstance(strategy, CLIPPED_THERE):
        wrong.append(
            f"server.strategy={name} takes it that clients clip what they send to a norm that it names, which they do "
            "not (choose its ServerSide counterpart, or client.mods with flwr.clientapp.mod.LocalDpMod)"
        )
    if isinstance(innermost, FedProx) and not isinstance(experiment.client.regularizer, Unregularized):
        wrong.append(
            "server.strategy=FedProx brings a penalty of its own, +server.strategy.proximal_mu (set regularizer=none)"
        )
    return wrong


def _idle(name: str, experiment: Experiment) -> list[str]:
    """What was chosen and would have no part in the run."""
    client, cfg = experiment.client, composed([], "config", Experiment)[0]
    stages = [s for s in STAGES if instantiate(cfg[s], _convert_="all") != getattr(experiment, s)]
    idle = {
        f"keep={experiment.keep}: it keeps the last model (set keep=last)":
            experiment.keep != "last",
        f"fraction={experiment.fraction}: it draws clients itself (set +server.strategy.fraction_train)":
            experiment.fraction != 1,
        f"aggregate_within={experiment.aggregate_within}: there is one adapter for all tasks (set it to task)":
            experiment.aggregate_within != "task",
        f"fused_rank={experiment.fused_rank}: its adapter is of rank model.lora.r (set it to null)":
            experiment.fused_rank is not None,
        "payload=product: it aggregates factors (set it to factors)": experiment.payload == "product",
        f"wire={experiment.wire}: it aggregates what clients hold (set it to float32)": experiment.wire != "float32",
        f"round_deadline_s={experiment.round_deadline_s}: Flower knows one deadline (set deadline_s)":
            experiment.round_deadline_s is not None,
        f"rouge_rows={experiment.rouge_rows}: no responses are generated (set it to 0)": experiment.rouge_rows > 0,
        f"client.ranks={client.ranks}: the one adapter is of one rank (set it to null)": client.ranks is not None,
        "client.train_head=true: heads belong to a task, and it sends none back (set it to false)": client.train_head,
        f"client.statistics={client.statistics}: it has no use for them (set it to none)": client.statistics != "none",
        f"regularizer={type(client.regularizer).__name__} needs the mean adapter of each task (choose another)":
            client.regularizer.needs_tasks,
    }  # fmt: skip
    return [
        f"{stage}={type(getattr(experiment, stage)).__name__} has no part in a run of server.strategy={name} "
        "(leave it at its default)"
        for stage in stages
    ] + [f"with server.strategy={name}, {sentence}" for sentence, holds in idle.items() if holds]
