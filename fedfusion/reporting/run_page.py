"""What the page of a run says beside its table and plots."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fedfusion.composition import CONF, SEARCHPATH, compose, groups, parse, searched
from fedfusion.reporting.run_plots import STAGES, final, stages
from fedfusion.validation import ConfigErrors, flat

NOTHING = "–"
ELSEWHERE = ("run_dir", "trainings", "tracker", "federation", "push_to_hub")  # do not change what is computed
MOST = 20  # sentences of the log


def answer(metrics: Mapping[str, Any]) -> str:
    """How good the one model is, beside the base and beside what each device has for itself."""
    last, means = final(metrics), metrics["mean"]
    tasks = f"{count(len(metrics['tasks']), 'task')}"
    said = (
        f"The one model made of what all devices learned reaches a mean {metrics['measure']} of {means[last]:.3f} over "
        f"{tasks}: {_apart(means[last], 'the base', means['base'])}"
    )
    if means.get("single_task") is not None:
        said += f", {_apart(means[last], 'the adapter of each device on its own task', means['single_task'])}"
    if "personal" in stages(metrics):
        said += f", and what a device goes on with reaches {means['personal']:.3f} on its own task"
    return said + "."


def by_round(metrics: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of the rounds; a column in which nothing ever happened is left out."""
    records = metrics["rounds"]
    shown = [stage for stage in stages(metrics) if any(stage in record["mean"] for record in records)]
    columns = {
        "clients": [str(len(r["clients"])) for r in records],
        "believed": [_number(r.get("believed"), "d") for r in records],
        "refused": [str(len(r.get("refused", ()))) for r in records],
        "dropped": [str(len(r["dropped"])) for r in records],
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


def warnings(results: Mapping[str, Any], log: Path) -> list[str]:
    """What a reader must not miss: uploads and rounds that were lost, and what the log warned of."""
    metrics = results["metrics"]
    records = metrics["rounds"]
    said = []
    lost: dict[str, list[tuple[str, str]]] = {}  # by the reason without its numbers
    for record in records:
        for client, why in record["dropped"].items():
            whose = f"client {client} in round {record['round']}"
            lost.setdefault(re.sub(r"[-+]?\d[\d.e+-]*", "", why), []).append((why, whose))
    for drops in lost.values():
        others = f" and {len(drops) - 6} more" if len(drops) > 6 else ""
        whose, such = ", ".join(whose for _, whose in drops[:6]), ", the first of them" * (len(drops) > 1)
        said.append(f"{count(len(drops), 'upload')} dropped{such}: {drops[0][0]} ({whose}{others}).")
    if empty := [str(record["round"]) for record in records if not record["learnt"]]:
        said.append(
            f"Too little arrived in {count(len(empty), 'round')} ({', '.join(empty)}): the last model was kept."
        )
    if records[-1]["unheard"]:
        said.append(f"Nothing is believed of {', '.join(records[-1]['unheard'])} in the last round.")
    if (share := records[-1]["discarded_energy"]) >= 0.01:
        said.append(f"The fused rank discards up to {share:.1%} of a layer's energy (raise fused_rank).")
    logged = re.findall(r"^\S+ \S+ WARNING flwr: (.+)$", log.read_text(), re.MULTILINE) if log.is_file() else []
    distinct = list(dict.fromkeys(logged))
    more = [f"{len(distinct) - MOST} more warnings are in run.log."] if len(distinct) > MOST else []
    return [*said, *distinct[:MOST], *more]


def differences(results: Mapping[str, Any]) -> list[list[str]]:
    """What was chosen, and set, otherwise than by `fedfusion run` alone: key, default and value.

    Options of groups are those of the command, and the default of a setting is that of its option. Where the command
    says nothing, or names options that are no more, every setting is compared with that of the default options.
    """
    parsed = parse(_overrides(results))[0]
    try:
        offered = {SEARCHPATH, *groups(searched(parsed))}
        chosen = [override for override in parsed if override.key_or_group in offered]
        composed = OmegaConf.to_container(compose(chosen))
    except ConfigErrors:
        composed, chosen = OmegaConf.to_container(compose([])), []
    assert isinstance(composed, dict)
    theirs, ours = (
        flat({key: value for key, value in whole.items() if key not in ELSEWHERE})
        for whole in (composed, results["config"])
    )
    if not theirs.get("suite.tasks"):  # all of the suite, which a run names
        theirs |= {key: ours[key] for key in ("suite.tasks",) if key in ours}
    keys = [key for key in {**theirs, **ours} if repr(ours.get(key)) != repr(theirs.get(key))]
    keys.sort(key=lambda key: not key.endswith("_target_"))
    default = _defaults()
    options = [(override.key_or_group, str(override.value())) for override in chosen]
    return [
        *([key, default.get(key, NOTHING), name] for key, name in options if name != default.get(key)),
        *([key.removesuffix("._target_"), _value(theirs, key), _value(ours, key)] for key in keys),
    ]


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
    return OmegaConf.to_yaml(OmegaConf.create(dict(config)))


def count(number: int, noun: str) -> str:
    """A number and its noun."""
    return f"{number} {noun}{'s' if number != 1 else ''}"


def text(value: float | None) -> str:
    """A score."""
    return NOTHING if value is None else f"{value:.3f}"


def mean(values: Sequence[float]) -> float | None:
    """The mean of what there is."""
    return sum(values) / len(values) if values else None


def _apart(ours: float, name: str, theirs: float) -> str:
    gap = round(ours, 3) - round(theirs, 3)
    much = f"{abs(gap):.3f} {'above' if gap > 0 else 'below'}" if abs(gap) > 0.0005 else "as much as"
    return f"{much} {name} ({theirs:.3f})"


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _value(leaves: Mapping[str, Any], key: str) -> str:
    if key not in leaves:
        return NOTHING
    value = leaves[key]
    if key.endswith("_target_"):
        return str(value).rpartition(".")[2] if value else "none"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _class(node: Mapping[str, Any]) -> str:
    return str(node.get("_target_", "")).rpartition(".")[2] or NOTHING
