"""Settings that are each right, and together wrong."""

import importlib.metadata
import importlib.util
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fedfusion.coupling import Average, ProductAverage
from fedfusion.preaggregators import Unmixed
from fedfusion.types import TrustedSuite

if TYPE_CHECKING:
    from fedfusion.config import Experiment

CENTRAL = {  # Flower's mods that are half of a mechanism
    "fixedclipping_mod": "DifferentialPrivacyClientSideFixedClipping",
    "adaptiveclipping_mod": "DifferentialPrivacyClientSideAdaptiveClipping",
}


def contradictions(experiment: "Experiment") -> list[str]:
    """One sentence for each, with the keys and a way out."""
    stages = (_combinations, _mods, _groups, _trusted, _rouge)
    return [sentence for stage in stages for sentence in stage(experiment)]


def _combinations(experiment: "Experiment") -> Iterator[str]:
    """Choices of which one would undo the other, or do nothing."""
    model, suite, client, channel = experiment.model, experiment.suite, experiment.client, experiment.channel
    payload, coupling, fusion = experiment.payload, experiment.coupling, experiment.fusion
    words = any(suite.num_classes(task) == 0 for task in suite.tasks)
    virtual, causal = model.num_virtual_tokens, model.auto == "AutoModelForCausalLM"
    into_base, moments = coupling.into_base, experiment.server_optimizer.num_moments
    mixed = not isinstance(experiment.preaggregator, Unmixed)
    on_products = getattr(experiment.attack, "space", "factors") == "product"
    energy = getattr(experiment.guard, "energy", 1.0)
    alike = into_base or isinstance(coupling, (Average, ProductAverage))
    name, name_of_fusion = _class(channel), _class(fusion)
    given = getattr(getattr(fusion, "rule", fusion), "coefficient", None)
    coefficients = list(given) if isinstance(given, Sequence) else None
    wrong = {
        "client.train_head=true: the head of a task whose responses are text is the base's (set it to false)":
            client.train_head and words,
        "keep=best: heads that clients train are of the last round (set keep=last or client.train_head=false)":
            experiment.keep == "best" and client.train_head,
        "keep=best: with coupling=stacking the model of an earlier round is no adapter (set keep=last)":
            experiment.keep == "best" and into_base,
        "model.pooling=first: the first token of a causal model has not seen the text (choose last or mean)":
            causal and not words and model.pooling == "first",
        "client.ranks: virtual tokens have no rank (set it to null)": client.ranks is not None and virtual,
        "regularizer: virtual tokens have no factors that could be orthogonal (choose another)":
            client.regularizer.needs_tasks and virtual,
        "regularizer: with model.freeze_a=true the factors that should become orthogonal are frozen (change one)":
            client.regularizer.needs_tasks and model.freeze_a,
        f"fusion={name_of_fusion} needs client statistics: set client.statistics=curvature":
            fusion.data == "client statistics" and client.statistics == "none",
        "client.statistics=curvature: virtual tokens have no inputs and gradients (set it to none)":
            client.statistics != "none" and virtual,
        "client.statistics=curvature: with coupling=stacking nothing is fused that could use them (set it to none)":
            client.statistics != "none" and into_base,
        f"client.statistics=curvature: fusion={name_of_fusion} has no use for it (set it to none, or choose "
        "fusion=regmean, fisher or laplace)":
            client.statistics != "none" and fusion.data != "client statistics",
        "realign.loss=teachers: with coupling=stacking there are no adapters of single tasks (choose labels)":
            experiment.realign.needs_tasks and into_base,
        f"fusion.agree={getattr(fusion, 'agree', 0)} exceeds the {len(suite.tasks)} tasks (lower it)":
            getattr(fusion, "agree", 0) > len(suite.tasks),
        f"fusion.coefficient={coefficients} must have one number for each of the {len(suite.tasks)} tasks "
        f"{', '.join(suite.tasks)} (or give one for all)":
            coefficients is not None and len(coefficients) != len(suite.tasks),
        "coupling adds products to the base: virtual tokens have none (choose another coupling)":
            into_base and virtual,
        f"coupling={_class(coupling)} gives everybody the mean of all, and leaves nothing to do for "
        f"aggregator={_class(experiment.aggregator)} and preaggregator={_class(experiment.preaggregator)} (choose "
        "coupling=none, or aggregator=mean and preaggregator=none)":
            alike and (mixed or not experiment.aggregator.linear),
        f"guard.energy={energy}: virtual tokens have no product (set it to 1)":
            energy < 1 and virtual,
        f"guard.energy={energy} changes A, which model.freeze_a=true forbids (set it "
        "to 1)": energy < 1 and model.freeze_a,
        "attack.space=product: with model.freeze_a=true only B is sent, and the product is linear in it (set "
        "attack.space=factors)": on_products and model.freeze_a,
        "attack.space=product: virtual tokens have no product (set attack.space=factors)":
            on_products and virtual,
        "server_optimizer: with coupling=stacking nothing is left to do (choose plain)": into_base and moments,
        f"payload={payload} with model.freeze_a={str(model.freeze_a).lower()}: B alone is sent if, and "
        "only if, A is frozen (set payload=frozen_a and model.freeze_a=true, or neither)":
            (payload == "frozen_a") != model.freeze_a,
        "payload=product: virtual tokens have no product (choose factors)": payload == "product" and virtual,
        "payload=product: factors that the server makes anew in each round have no mean (choose payload=factors, "
        "or a coupling that averages none, as coupling=none)":
            payload == "product" and coupling.averages_factors,
        "payload=product: factors that the server makes anew in each round have no momentum (choose "
        "server_optimizer=plain, or payload=factors)":
            payload == "product" and bool(moments),
    } | {
        f"{stage} needs the upload of every single client, but channel={name} yields only the sum of a task's "
        f"clients ({fix})": channel.superposes and needs
        for stage, needs, fix in (
            (f"aggregator={_class(experiment.aggregator)}", not experiment.aggregator.linear, "choose aggregator=mean"),
            (f"preaggregator={_class(experiment.preaggregator)}", mixed, "choose preaggregator=none"),
            (f"guard={_class(experiment.guard)}", experiment.guard.needs_rows, "choose guard=norm_clip"),
            (f"coupling={_class(coupling)}", coupling.needs_rows, "choose coupling=none"),
        )
    } | {
        f"channel={name} sums A and B, and the product of the sums is not the sum of the products (choose "
        "payload=frozen_a with model.freeze_a=true, payload=product, or coupling=average, which averages factors)":
            channel.superposes and payload == "factors" and not coupling.averages_factors,
        f"channel={name} sums uploads of equal size, but client.ranks={client.ranks} differ (set it to null)":
            channel.superposes and payload != "product" and len(set(client.ranks or [])) > 1,
    }  # fmt: skip
    return (sentence for sentence, holds in wrong.items() if holds)


def _mods(experiment: "Experiment") -> Iterator[str]:
    """Client mods that are none, that need another server, or that something would bypass."""
    client = experiment.client
    for mod in client.mods:
        name = getattr(getattr(mod, "func", mod), "__name__", _class(mod))
        if not callable(mod):
            yield (
                f"client.mods: {mod!r} is no mod (give {{_target_: IMPORT.PATH, ...}}, for a function with "
                "_partial_: true)"
            )
        elif name in CENTRAL:
            yield (
                f"client.mods: {name} takes its clipping norm from a strategy of Flower's, {CENTRAL[name]}, which "
                "adds the noise; here is none (choose flwr.clientapp.mod.LocalDpMod, which clips and adds noise at "
                "the client, with sensitivity=0 clips only)"
            )
        elif name in ("secagg_mod", "secaggplus_mod"):
            yield f"client.mods: {name}, secure aggregation, {_why_no_sum(experiment)} (take it out)"
        for budget in ("epsilon", "delta"):
            if not getattr(mod, budget, 1) > 0:
                yield f"client.mods: {name} needs a positive {budget}, got {getattr(mod, budget)}"
    for setting, value in (("train_head", True), ("statistics", "curvature")):
        if client.mods and getattr(client, setting) == value:
            yield (
                f"client.mods: what client.{setting}={str(value).lower()} sends besides the update would bypass "
                f"them (set it to {'false' if value is True else 'none'}, or client.mods to [])"
            )


def _why_no_sum(experiment: "Experiment") -> str:
    """Why the sum of all uploads alone would not do."""
    needing = [
        f"{key}={_class(stage)}"
        for key, stage, needs in (
            ("guard", experiment.guard, experiment.guard.needs_rows),
            ("preaggregator", experiment.preaggregator, not isinstance(experiment.preaggregator, Unmixed)),
            ("aggregator", experiment.aggregator, not experiment.aggregator.linear),
            ("coupling", experiment.coupling, experiment.coupling.needs_rows),
        )
        if needs
    ]
    if len(experiment.suite.tasks) > 1 and experiment.aggregate_within == "task":
        needing.append(f"fusion={_class(experiment.fusion)} of {len(experiment.suite.tasks)} tasks")
    if needing:
        return (
            f"shows the server only the sum of all uploads, but {', '.join(needing)} must see more: each client's, "
            "or each task's"
        )
    return f"is offered by Flower {importlib.metadata.version('flwr')} for its former API alone"


def _groups(experiment: "Experiment") -> Iterator[str]:
    """A rule that is meant for more clients than it will see."""
    held = Counter(experiment.suite.task_of(client) for client in range(experiment.suite.num_clients))
    sizes = {f"task '{task}' has": n for task, n in held.items()}
    if experiment.aggregate_within == "federation":
        sizes = {"the federation has": experiment.suite.num_clients}
    for group, n in sizes.items():
        if lack := experiment.lack(n):
            key, stage, size = lack
            mixed = f" of {n} once {_class(experiment.preaggregator)} has merged them" if size < n else ""
            yield (
                f"{key}={_class(stage)} needs {stage.inequality} uploads: {group} n={size}{mixed}, "
                f"{key}.f={stage.f} ({'lower it, or ' * (stage.f > 0)}raise suite.clients_per_task)"
            )
            return  # of other groups the same would be said


def _trusted(experiment: "Experiment") -> Iterator[str]:
    """Stages that judge by samples which the server does not hold."""
    held = int(getattr(experiment.suite, "trusted", 2)) if isinstance(experiment.suite, TrustedSuite) else 0
    if experiment.keep == "best" and held < 2:
        yield (
            f"keep=best compares rounds on labelled samples that no head was made of, and needs 2 of each task or "
            f"more, but suite.trusted={held} (set it to 64, or keep=last)"
        )
    for stage, rule, other in (("guard", experiment.guard, "norm_clip"), ("aggregator", experiment.aggregator, "mean")):
        if rule.needs_root and held < 2:
            yield (
                f"{stage}={_class(rule)} judges uploads by labelled samples that no head was made of, and needs 2 "
                f"of each task or more, but suite.trusted={held} (set it to 64, or choose {stage}={other})"
            )


def _rouge(experiment: "Experiment") -> Iterator[str]:
    """A score of texts that there are not, or that cannot be computed."""
    if not experiment.rouge_rows:
        return
    classes = [task for task in experiment.suite.tasks if experiment.suite.num_classes(task)]
    if classes:
        yield (
            f"rouge_rows={experiment.rouge_rows} needs responses of text, but the labels of task '{classes[0]}' are "
            "classes (set rouge_rows=0, or choose a suite of instructions, as suite=lists)"
        )
    if importlib.util.find_spec("rouge_score") is None:
        yield (
            f"rouge_rows={experiment.rouge_rows} needs rouge-score, which is not installed: "
            "pip install 'fedfusion[instruct]' (or set rouge_rows=0)"
        )


def _class(stage: object) -> str:
    return type(stage).__name__
