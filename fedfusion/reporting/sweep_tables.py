"""What a sweep found, as tables and the words to read them with."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedfusion.reporting.figures import MARGIN, UNDEFENDED, milder_first
from fedfusion.reporting.findings import UNITS, amount, failures, label, measure, spread, stages, text, without_attack
from fedfusion.reporting.interval import of_scores
from fedfusion.reporting.kept import UPLINK
from fedfusion.reporting.run_plots import STAGES

NOTHING = "–"

Grid = tuple[str, list[str], list[list[str]]]  # title, header, rows; the first column names the row


def tables(facts: Mapping[str, Any]) -> list[Grid]:
    """The score of the worst task, one table per attack and stage.

    A column without a number is left out, and so is what tells nothing where there is no attack, or no defence beside
    the undefended run: without both, every point would be judged against itself.
    """
    attacked = any(point["attacked"] for point in facts["points"])
    defended = any(line["undefended"] for line in facts["lines"])
    left_out = {
        *(() if attacked or (defended and facts["budget"].endswith("_db")) else ("breaks at",)),
        *(() if defended else ("cost",)),
        *(() if attacked else ("honest in", "Byz. out")),
    }
    found = []
    for attack in dict.fromkeys(line["attack"] for line in facts["lines"]):
        points = [point for point in facts["points"] if point["attack"] == attack]
        lines = [line for line in facts["lines"] if line["attack"] == attack]
        budgets = sorted({point["budget"] for point in points})
        for stage in stages(facts):
            worst = {(p["line"], p["budget"]): p["worst"].get(stage) for p in points}
            columns = {f"{x:g}": [text(worst.get((line["line"], x))) for line in lines] for x in budgets}
            columns |= {
                "breaks at": [_breakdown(line, stage, milder_first(facts["budget"], budgets)) for line in lines],
                "cost": [text(line["no_attack_cost"].get(stage)) for line in lines],
                "success": [text(line["success"].get(stage)) for line in lines],
                "honest in": [text(line["accepted_honest"]) for line in lines],
                "Byz. out": [text(line["refused_byzantine"]) for line in lines],
            }
            columns = {name: texts for name, texts in columns.items() if name not in left_out}
            title = _title(attack, f"worst task, {STAGES[stage].label}, by {label(facts['budget'])}")
            found.append((title, *_without_nothing([line["line"] or "all" for line in lines], columns)))
    return found


def over_seeds(facts: Mapping[str, Any]) -> list[Grid]:
    """Every point with its interval and its range over seeds, one table per attack and stage."""
    found = []
    judged = any(point["attacked"] or point["accepted_honest"] not in (None, 1.0) for point in facts["points"])
    for attack in dict.fromkeys(point["attack"] for point in facts["points"]):
        points = [point for point in facts["points"] if point["attack"] == attack]
        for stage in stages(facts):
            columns: dict[str, list[str]] = {label(facts["budget"]): [f"{point['budget']:g}" for point in points]}
            for name in ("worst", "mean"):
                columns |= {
                    f"{name} task" if name == "worst" else name: [text(point[name][stage]) for point in points],
                    f"{name}: 95 % interval": [_interval(point, name, stage) for point in points],
                    f"{name}: range": [_range(point, name, stage) for point in points],
                }
            gains = [point["gain"][stage] for point in points]
            columns["over undefended"] = [text(gain and gain["mean"]) for gain in gains]
            columns["over undefended: 95 % interval"] = [spread(gain and gain["interval"]) for gain in gains]
            if judged:
                columns["honest in"] = [text(point["accepted_honest"]) for point in points]
                columns["Byz. out"] = [text(point["refused_byzantine"]) for point in points]
            columns |= {UNITS[name]: [amount(point[name]) for point in points] for name in UPLINK}
            columns["runs"] = [str(point["runs"]) for point in points]
            names = [point["line"] or "all" for point in points]
            title = _title(attack, f"every point, {STAGES[stage].label}")
            found.append((title, *_without_nothing(names, columns)))
    return found


def legend(facts: Mapping[str, Any]) -> list[str]:
    """How the tables are to be read, and what failed."""
    return [reading(facts), *(f"Run {run} failed: {why}" for _, run, why in failures(facts))]


def reading(facts: Mapping[str, Any]) -> str:
    """What the columns of the tables are."""
    scored, rising = measure(facts["cells"]), milder_first(facts["budget"], (0, 1)) == [0, 1]
    names = {name for _, header, _ in tables(facts) for name in header}
    said = [f"{scored.capitalize()} on the worst task, mean over seeds."]
    if "breaks at" in names:
        said.append(
            f"breaks at: the {'least budget' if rising else 'highest SNR'} at which it is more than "
            f"{100 * MARGIN:.0f} points below that of {without_attack(facts)}, {'>' if rising else '<'} where the "
            "sweep has none."
        )
    if "cost" in names:
        said.append(
            f"cost: what the defence loses of the mean {scored} over tasks without an attack, against the undefended "
            "run."
        )
    if names & {"breaks at", "cost"}:
        said += [f"Undefended is defence={UNDEFENDED}."] * any(line["undefended"] for line in facts["lines"])
    if "success" in names:
        said.append("success: how often a backdoor succeeds, where somebody is Byzantine.")
    if "honest in" in names:
        said.append(
            "honest in, Byz. out: the share of the honest uploads that the guard accepted and of the Byzantine ones "
            "that it refused, before anything was aggregated: of a line, where somebody is Byzantine; of every point, "
            "there."
        )
    return " ".join(said)


def _title(attack: str, rest: str) -> str:
    return rest[0].upper() + rest[1:] if attack == "none" else f"{attack}: {rest}"


def _without_nothing(names: Sequence[str], columns: Mapping[str, Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    kept = {name: texts for name, texts in columns.items() if set(texts) != {NOTHING}}
    return ["", *kept], [[name, *(texts[i] for texts in kept.values())] for i, name in enumerate(names)]


def _interval(point: Mapping[str, Any], name: str, stage: str) -> str:
    ends = point["interval"][name][stage]
    return spread(ends and of_scores(ends))


def _range(point: Mapping[str, Any], name: str, stage: str) -> str:
    return spread(point["range"][name][stage]) if point["runs"] > 1 else NOTHING


def _breakdown(line: Mapping[str, Any], stage: str, budgets: Sequence[float]) -> str:
    if not line["comparable"]:
        return NOTHING
    point = line["breakdown"][stage]
    beyond = "<" if budgets[0] > budgets[-1] else ">"
    return f"{beyond}{budgets[-1]:g}" if point is None else f"{point:g}"
