"""What the page of a run says beside its table and plots."""

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from fedfusion.composition import CONF, ELSEWHERE, SEARCHPATH, compose, groups, parse, searched
from fedfusion.config import differ
from fedfusion.reporting.run_plots import STAGES, final, stages
from fedfusion.strict_json import unworded
from fedfusion.validation import ConfigErrors, flat

NOTHING = "–"
MOST = 4  # entries of a list that are shown


def answer(results: Mapping[str, Any]) -> str:
    """How good the one model is, what lost it some of that on its way, and what devices have for themselves."""
    metrics = results["metrics"]
    last, means, shown = final(metrics), metrics["mean"], stages(metrics)
    scores = {task: own[last]["accuracy"] for task, own in metrics["tasks"].items() if last in own}
    worst = min(scores, key=scores.__getitem__)
    gaps = [_apart(means[last], "the base", means["base"])]
    if last == "realigned" and "control" in shown:
        gaps.append(_apart(means[last], "the control, the same tune from the base alone", means["control"]))
    if means.get("single_task") is not None:
        gaps.append(_apart(means[last], "the adapter of each device on its own task", means["single_task"]))
    said = [
        f"The one model made of what all devices learned reaches a mean {metrics['measure']} of {means[last]:.3f} over "
        f"{count(len(metrics['tasks']), 'task')}, and {scores[worst]:.3f} on the worst ({worst}): {', '.join(gaps)}.",
        *_on_the_way(results),
    ]
    if "personal" in shown:
        said.append(f"What a device goes on with reaches {means['personal']:.3f} on its own task.")
    return " ".join(said)


def _on_the_way(results: Mapping[str, Any]) -> list[str]:
    """What uplink, attackers and guard did to the fused model, and who attacked."""
    metrics, config = results["metrics"], results["config"]
    hostile = metrics["attack"]["byzantine"]
    who = f"{len(hostile)} of {count(metrics['num_clients'], 'client')} attacked ({', '.join(attacks(config))})"
    if success := [own[final(metrics)] for own in metrics["attack"]["success"].values()]:
        who += f", with a trigger that works on {sum(success) / len(success):.0%} of the samples"
    if "fused_clean" not in stages(metrics):
        return [f"{who}."] if hostile else []
    clean, received = metrics["mean"]["fused_clean"], metrics["mean"]["fused_received"]
    causes = ["the uplink"] * (_class(config["channel"]) != "Ideal") + ["the attack"] * bool(hostile)
    causes += ["the guard"] * any(r.get("refused") or r.get("clipped") for r in metrics["rounds"])
    causes = causes or ["what became of the uploads"]
    what = " and ".join([", ".join(causes[:-1]), causes[-1]] if causes[1:] else causes)
    gap = round(clean, 3) - round(received, 3)
    cost = f"{gap:.3f}" if gap > 0.0005 else "nothing in the mean"
    said = f"{what[0].upper()}{what[1:]} cost the fused model {cost} ({clean:.3f} without, {received:.3f} with)"
    return [f"{said}; {who}." if hostile else f"{said}."]


def attacks(config: Mapping[str, Any]) -> list[str]:
    """What attackers do, to their data and to their uploads."""
    return [_class(part) for part in (config["attack"]["data"], config["attack"]["upload"]) if part]


def by_round(metrics: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of the rounds; a column in which nothing ever happened is left out."""
    records = metrics["rounds"]
    shown = [stage for stage in stages(metrics) if any(stage in record["mean"] for record in records)]
    columns = {
        "clients": [str(len(r["clients"])) for r in records],
        "believed": [_number(r.get("believed"), "d") for r in records],
        "refused": [str(len(r.get("refused", ()))) for r in records],
        "dropped": [str(len(r["dropped"]) - len(r.get("refused", ()))) for r in records],
        "train loss": [_number(r.get("train_loss"), ".3f") for r in records],
        **{STAGES[stage].label: [text(r["mean"].get(stage)) for r in records] for stage in shown},
        "NMSE (dB)": [_number(r["nmse_db"], ".1f") for r in records],
        "fused NMSE (dB)": [_number(r["uplink"].get("fused", {}).get("nmse_db"), ".1f") for r in records],
        "air time (s)": [_number(r["uplink"].get("duration_s"), ".3g") for r in records],
        "energy per client (J)": [_number(r["uplink"]["mean"].get("energy_j"), ".3g") for r in records],
    }
    kept = {name: cells for name, cells in columns.items() if not set(cells) <= {NOTHING, "0"}}
    rows = [[str(record["round"]), *(cells[i] for cells in kept.values())] for i, record in enumerate(records)]
    return ["round", *kept], rows


def differences(results: Mapping[str, Any]) -> list[list[str]]:
    """What was chosen, and set, otherwise than by `fedfusion run` alone: key, default and value.

    Options of groups are those of the command that changed a setting, and the default of a setting is that of its
    option. Where the command says nothing, or names options that are no more, every setting is compared with that of
    the default options.
    """
    parsed = parse(_overrides(results))[0]
    try:
        offered = {SEARCHPATH, *groups(searched(parsed))}
        chosen = _telling([override for override in parsed if override.key_or_group in offered])
        composed = OmegaConf.to_container(compose(chosen))
    except ConfigErrors:
        composed, chosen = OmegaConf.to_container(compose([])), []
    assert isinstance(composed, dict)
    theirs, ours = (
        flat({key: value for key, value in whole.items() if key not in ELSEWHERE})
        for whole in (composed, unworded(results["config"]))
    )
    if not theirs.get("suite.tasks"):  # all of the suite, which a run names
        theirs |= {key: ours[key] for key in ("suite.tasks",) if key in ours}
    keys = [key for key in {**theirs, **ours} if differ(ours.get(key), theirs.get(key))]
    keys.sort(key=lambda key: not key.endswith("_target_"))
    default = _defaults()
    options = [(override.key_or_group, str(override.value())) for override in chosen]
    return [
        *([key, default.get(key, NOTHING), name] for key, name in options if name != default.get(key)),
        *([key.removesuffix("._target_"), *_values(key, theirs, ours)] for key in keys),
    ]


def _telling(chosen: Sequence[Override]) -> list[Override]:
    """The options without which the configuration would be another one."""
    kept, whole = list(chosen), compose(chosen)
    for override in chosen:
        others = [other for other in kept if other is not override]
        with contextlib.suppress(ConfigErrors):  # another option goes only with this one
            if compose(others) == whole:
                kept = others
    return kept


def _overrides(results: Mapping[str, Any]) -> list[str]:
    """Those of the command that made a run; of other verbs, and of runs that do not know it, there are none."""
    words = shlex.split(results.get("command", ""))
    return words[2:] if words[:2] == ["fedfusion", "run"] else []


def _defaults() -> dict[str, str]:
    """The options of `fedfusion run` alone, by group."""
    entries = [entry for entry in OmegaConf.load(CONF / "config.yaml").defaults if entry != "_self_"]
    named = [(str(key).removeprefix("optional "), name) for entry in entries for key, name in entry.items()]
    return {group: "none" if name is None else str(name) for group, name in named}


def environment(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where it ran, with what, and for how long."""
    machine = {name: str(value) for name, value in results["machine"].items()}
    pairs = {
        "wall time": f"{results['wall_time_s']:.0f} s",
        "memory of the server at most": f"{results['peak_memory_mb']} MB",
        "seed": str(results["seed"]),
        "federation": _class(results["config"].get("federation", {})),
        **{name: machine.pop(name) for name in ("device", "threads", "commit") if name in machine},
        **machine,
    }
    return [*pairs.items(), *((name, version or "not installed") for name, version in results["versions"].items())]


def strategy(config: Mapping[str, Any]) -> str:
    """The strategy of Flower's that was in the place of the round, or nothing."""
    return str(config.get("server", {}).get("strategy", {}).get("_target_") or "").rpartition(".")[2]


def as_yaml(config: Mapping[str, Any]) -> str:
    """The whole configuration."""
    return OmegaConf.to_yaml(OmegaConf.create(unworded(config)))


def count(number: int, noun: str) -> str:
    """A number and its noun."""
    return f"{number} {noun}{'s' if number != 1 else ''}"


def text(value: float | None) -> str:
    """A score."""
    return NOTHING if value is None else f"{value:.3f}"


def known_mean(values: Sequence[float | None]) -> float | None:
    """The mean, or None unless there are values, and all are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) > 0 else None


def _apart(ours: float, name: str, theirs: float) -> str:
    gap = round(ours, 3) - round(theirs, 3)
    much = f"{abs(gap):.3f} {'above' if gap > 0 else 'below'}" if abs(gap) > 0.0005 else "as much as"
    return f"{much} {name} ({theirs:.3f})"


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _values(key: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """A setting of both, its lists in short where that keeps them apart."""
    in_short = [_value(leaves, key, MOST) for leaves in (theirs, ours)]
    return in_short if in_short[0] != in_short[1] else [_value(leaves, key) for leaves in (theirs, ours)]


def _value(leaves: Mapping[str, Any], key: str, most: int | None = None) -> str:
    if key not in leaves:
        return NOTHING
    value = leaves[key]
    if most is not None and isinstance(value, list) and len(value) > most:
        return f"{len(value)} {key.rpartition('.')[2]}: {', '.join(map(str, value[:2]))}, ..."
    if key.endswith("_target_"):
        return str(value).rpartition(".")[2] if value else "none"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _class(node: Mapping[str, Any]) -> str:
    return str(node.get("_target_", "")).rpartition(".")[2] or NOTHING
