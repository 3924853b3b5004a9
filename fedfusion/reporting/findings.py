"""What a sweep found, in sentences made from its numbers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedfusion.reporting.figures import SHARE, milder_first, unique
from fedfusion.reporting.interval import interval, mean, of_scores, paired
from fedfusion.reporting.kept import COSTS, STAGES, reason

BUDGETS = {
    "attack.fraction": "share of Byzantine clients",
    SHARE: "share of Byzantine clients",
    "attack.f": "number of Byzantine clients",
}
UNITS = {"nmse_db": "NMSE (dB)"} | {name: f"{cost.label} ({cost.unit})" for name, cost in COSTS.items()}
NOT_YET = ("not run yet", "did not finish")  # what a sweep says of such a cell

BySeed = Mapping[str, float]


def label(key: str) -> str:
    """What a swept key is called on an axis."""
    return BUDGETS.get(key, key)


def stages(facts: Mapping[str, Any]) -> list[str]:
    """The stages of the runs; a realignment that changed nothing in any of them is left out."""
    found = [stage for stage in STAGES if any(stage in point["mean"] for point in facts["points"])]
    scores = [[[p[name].get(stage) for name in ("mean", "worst")] for p in facts["points"]] for stage in found]
    return found[:1] if len(found) == 2 and scores[0] == scores[1] else found


def hardest(facts: Mapping[str, Any]) -> float:
    """The budget at which lines are compared."""
    return milder_first(facts["budget"], [point["budget"] for point in facts["points"]])[-1]


def measure(cells: Sequence[Mapping[str, Any]]) -> str:
    """What the scores of the cells are; those of older versions do not say that theirs are accuracies."""
    found = unique(cell.get("measure", "accuracy") for cell in cells if cell["error"] is None)
    return " or ".join(found) or "accuracy"


def question(facts: Mapping[str, Any]) -> str:
    """What was asked, or what was swept."""
    keys = [key for key in facts["axes"] if key != "seed"] or ["the seed"]
    swept = " and ".join([", ".join(keys[:-1]), keys[-1]] if keys[:-1] else keys)
    return facts.get("question") or f"What do{'es' * (len(keys) == 1)} {swept} change?"


def answer(facts: Mapping[str, Any]) -> str:
    """Which line keeps the worst task best at the highest budget, by how much, and how sure that is."""
    if not facts["points"]:
        return "No run of this sweep has finished, so there is nothing to answer with."
    stage, budget, scored = stages(facts)[-1], hardest(facts), measure(facts["cells"])
    here = [point for point in facts["points"] if point["budget"] == budget]
    attacks = unique(point["attack"] for point in here)
    met = {line: weakest(here, line, attacks, stage) for line in unique(line["line"] for line in facts["lines"])}
    scores = {line: by_seed for line, by_seed in met.items() if by_seed}
    where = f"At {at(facts['budget'], budget)}, " if budget or facts["budget"] != SHARE else "Without an attack, "
    if not scores:
        return f"{where}no line has a finished run under every attack, so none can be compared."
    ranked = sorted(scores, key=lambda line: -_mean(scores[line]))
    best = ranked[0]
    under = [point for point in here if point["line"] == best and point["attacked"]]
    strongest = min(under, key=lambda point: point["worst"][stage])["attack"] if under else None
    named = {0: "", 1: f" under {strongest}"}
    attacked = named.get(len(under), f" under the attack that is hardest on it ({strongest})")
    base = {seed: score for p in here if p["line"] == best for seed, score in p["base"]["worst"][stage].items()}
    found, no_gain = _score(scores[best]) + attacked, _no_gain(scores[best], base, stage)
    if len(scores) == 1:
        return f"{where}the worst task has an {scored} of {found}.{no_gain}{_from_no_attack(under, stage)}"
    undefended = next((line["undefended"] for line in facts["lines"] if line["line"] == best), None)
    said = f"{where}{_name(best, undefended)} keeps the worst task best: {scored} {found}"
    parts = []
    if undefended in scores and undefended != best:
        parts.append(apart(scores[best], scores[undefended], "the undefended run"))
    if ranked[1] != undefended:
        parts.append(apart(scores[best], scores[ranked[1]], f"the next, {ranked[1]}"))
    said += f", {' and '.join(parts)}.{no_gain}"
    if undefended == best:
        said += " No defence here is better than none."
    left_out = ", ".join(line for line in met if line not in scores)
    return said + (f" Without a run under every attack, and so not compared: {left_out}." if left_out else "")


def weakest(points: Sequence[Mapping[str, Any]], line: str, attacks: Sequence[str], stage: str) -> dict[str, float]:
    """By seed, the worst task of a line under the attack that is hardest on it; of seeds that met every attack."""
    own = [point["by_seed"]["worst"].get(stage, {}) for point in points if point["line"] == line]
    if len(own) < len(attacks):
        return {}
    return {seed: min(by_seed[seed] for by_seed in own) for seed in own[0] if all(seed in scores for scores in own)}


def without_attack(facts: Mapping[str, Any]) -> str:
    """What an attack is judged against: who, and at which budget, where that is none of the attack's own."""
    who = "the undefended run" if any(line["undefended"] for line in facts["lines"]) else "the same setting"
    own = facts["budget"] == SHARE or facts["budget"].startswith("attack.")
    return f"{who} without an attack" + ("" if own else f" at the same {label(facts['budget'])}")


def failures(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Point, run and reason of every run that failed; not of what has not been run."""
    return [
        (" ".join(f"{key}={value}" for key, value in cell["point"].items()), str(cell["run"]), reason(cell))
        for cell in facts["cells"]
        if cell["error"] and cell["error"] not in NOT_YET and not cell["repeats"]
    ]


def text(value: float | None) -> str:
    """A score, or a difference of two, for people."""
    return "–" if value is None else f"{value:.3f}".replace("-0.000", "0.000")


def amount(value: float | None) -> str:
    """A figure without a fixed scale, for people."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def spread(ends: Sequence[float] | None, say: Callable[[float], str] = text) -> str:
    """An interval for people."""
    return "–" if ends is None else f"{say(ends[0])} to {say(ends[1])}"


def apart(ours: BySeed, theirs: BySeed, of: str) -> str:
    """How far `ours` is above that of `of`, its interval, and whether that can be told from nothing."""
    differences, sure = paired(ours, theirs)
    gap = mean(differences) if differences else _mean(ours) - _mean(theirs)
    assert gap is not None
    far = text(abs(gap))
    said = f"as much as {of}" if far == "0.000" else f"{far} {'above' if gap > 0 else 'below'} {of}"
    if not differences:
        return f"{said} (of other seeds)"
    if sure is None:
        return said
    held = "; this holds zero: the two are not told apart" if sure[0] <= 0 <= sure[1] else ""
    return f"{said} ({spread(sure)}{held})"


def at(key: str, budget: float) -> str:
    """A value of the budget, for people."""
    return f"a {BUDGETS[key]} of {budget:g}" if key in BUDGETS else f"{key}={budget:g}"


def _name(line: str, undefended: str | None) -> str:
    return "the undefended run" if line == undefended else (line or "it")


def _score(by_seed: BySeed) -> str:
    sure = interval(list(by_seed.values()))
    over = f"95 % interval {spread(of_scores(sure))}, {len(by_seed)} seeds" if sure else "one seed"
    return f"{text(_mean(by_seed))} ({over})"


def _no_gain(by_seed: BySeed, base: BySeed, stage: str) -> str:
    """That the scores are no better than those of the base with the same seeds, where it is so."""
    level = mean(base[seed] for seed in by_seed if seed in base)
    if level is None or round(_mean(by_seed) - level, 3) > 0:
        return ""
    realigned = " once realigned" if stage == "realigned" else ""
    return f" That {text(_mean(by_seed))} is no more than the base has{realigned} ({text(level)})."


def _from_no_attack(under: Sequence[Mapping[str, Any]], stage: str) -> str:
    clean = mean(point["no_attack"]["worst"][stage] for point in under)
    return "" if clean is None else f" Without an attack it has {text(clean)}."


def _mean(by_seed: BySeed) -> float:
    return sum(by_seed.values()) / len(by_seed)
