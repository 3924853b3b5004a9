"""What a reader of a sweep's numbers must not miss."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedfusion.reporting.figures import Cells
from fedfusion.reporting.findings import NOT_YET, at
from fedfusion.reporting.kept import MEASURES, UPLINK

REFUSED = 0.1  # of the honest uploads: a guard that refuses more of them is warned of
NAMED = 3  # settings of one warning
# what no key that is in use leaves as it is
EFFECTS = (*MEASURES, "byzantine", "accepted_honest", "refused_byzantine", "rounds_not_learnt", *UPLINK)


def warnings(facts: Mapping[str, Any]) -> list[str]:
    """All of it."""
    done = [cell for cell in facts["cells"] if cell["error"] is None]
    return [
        *facts.get("warnings", []),
        *_missing(facts["cells"]),
        *_not_learnt(done),
        *_honest_refused(facts),
        *_hardly_tried(facts),
        *_changed_nothing(facts["axes"], done),
        *_few_seeds(facts),
    ]


def _missing(cells: Cells) -> list[str]:
    """Cells that have not finished, and cells that failed."""
    said, lost = [], [cell["error"] for cell in cells if cell["error"]]
    if open_yet := sum(error in NOT_YET for error in lost):
        said.append(f"{open_yet} of {len(cells)} cells have not finished; the numbers are of those that have.")
    if failed := len(lost) - open_yet:
        said.append(f"{failed} of {len(cells)} cells failed; means are over those that did not.")
    return said


def _not_learnt(done: Cells) -> list[str]:
    """Cells whose model is not what their uploads would have made of it."""
    short = [cell for cell in done if cell.get("rounds_not_learnt")]
    never = [cell for cell in short if cell["rounds_not_learnt"] == cell["rounds"]]
    partly = [cell for cell in short if cell["rounds_not_learnt"] < cell["rounds"]]
    said, few = [], f"of {len(done)} cells too few uploads were believed in"
    if never:
        said.append(f"In {len(never)} {few} every round: no upload taught their model anything ({_which(never)}).")
    if partly:
        said.append(f"In {len(partly)} {few} some rounds, which kept the model of the round before ({_which(partly)}).")
    return said


def _honest_refused(facts: Mapping[str, Any]) -> list[str]:
    """Points at which a guard is hard on those that it is to protect."""
    known = [point for point in facts["points"] if point["accepted_honest"] is not None]
    hard = [point for point in known if 1 - point["accepted_honest"] > REFUSED]
    if not hard:
        return []
    most = min(hard, key=lambda point: point["accepted_honest"])
    under = "" if most["attack"] == "none" else f" under {most['attack']}"
    where = f"{most['line'] or 'the setting'}{under}, at {at(facts['budget'], most['budget'])}"
    others = f", and more than {REFUSED:.0%} at {len(hard) - 1} of the other points" if len(hard) > 1 else ""
    share = 1 - most["accepted_honest"]
    return [f"The guard refused {share:.0%} of the honest uploads of {where}{others} (honest in, of every point)."]


def _hardly_tried(facts: Mapping[str, Any]) -> list[str]:
    """An attack that is refused before any defence meets it."""
    undefended = {(line["attack"], line["line"]) for line in facts["lines"] if line.get("undefended") == line["line"]}
    own = [p["refused_byzantine"] or 0.0 for p in facts["points"] if (p["attack"], p["line"]) in undefended]
    if max(own, default=0.0) == 0:
        return []
    return [
        f"Even the undefended run refuses up to {max(own):.0%} of the Byzantine uploads, whose norm is beyond what "
        "training gives: there the defences were hardly tried (choose a weaker attack, or channel=ideal)."
    ]


def _changed_nothing(axes: Mapping[str, Sequence[str]], done: Cells) -> list[str]:
    """Swept keys of which no two values have a different effect."""
    said = []
    for key, values in axes.items():
        if key == "seed":
            continue
        alike: dict[frozenset[tuple[str, str]], list[list[Any]]] = {}
        under = [cell for cell in done if cell["byzantine"]]
        for cell in under if key.partition(".")[0] == "attack" else done:
            rest = frozenset((name, value) for name, value in cell["point"].items() if name != key)
            alike.setdefault(rest, []).append([cell.get(name) for name in EFFECTS])
        several = [effects for effects in alike.values() if len(effects) > 1]
        if several and all(one == effects[0] for effects in several for one in effects):
            said.append(
                f"{key} changed nothing: cells that differ in it alone ({', '.join(values)}) have equal scores (is "
                "what it sets in use?)."
            )
    return said


def _few_seeds(facts: Mapping[str, Any]) -> list[str]:
    """Seeds of which no interval is known, or one that tells little."""
    most, swept = max((point["runs"] for point in facts["points"]), default=0), facts["axes"].get("seed", ())
    if most == 2:
        return ["Intervals are over 2 seeds, where Student's t is 12.7: of 3 it is 4.3, and they tell far more."]
    if most != 1:
        return []
    no_intervals = "there are no intervals, and small differences may be chance"
    if len(swept) > 1:
        return [f"No point has more than one of the {len(swept)} seeds that has finished: {no_intervals}."]
    return [f"One seed: {no_intervals} (sweep seed=0,1,2 has them)."]


def _which(cells: Cells) -> str:
    """Where they are, whatever their seed."""
    points = [" ".join(f"{k}={v}" for k, v in cell["point"].items() if k != "seed") for cell in cells]
    names = [name or "the setting" for name in dict.fromkeys(points)]
    return "; ".join(names[:NAMED]) + (f"; and {len(names) - NAMED} more" if len(names) > NAMED else "")
