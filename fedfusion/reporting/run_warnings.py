"""What a reader of a run's scores must not miss: uploads that did not count, rounds that taught little, the log."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedfusion.reporting.run_page import count

MOST = 20  # sentences of the log
NAMED = 6  # uploads of one reason
LOGGED = re.compile(r"^\S+ \S+ (?:WARNING|ERROR) (?:flwr|fedfusion)(?:\.\S+)?: (.+)$", re.MULTILINE)

Records = Sequence[Mapping[str, Any]]


class Upload(NamedTuple):
    """One that did not count."""

    round: int
    client: str
    why: str


def uploads(records: Records) -> dict[str, list[Upload]]:
    """Those that did not count, by what became of them: dropped before the guard saw them, or refused by it."""
    found: dict[str, list[Upload]] = {"dropped": [], "refused by the guard": []}
    for record in records:
        for client, why in record["dropped"].items():
            refused = int(client) in record.get("refused", ())
            found["refused by the guard" if refused else "dropped"].append(Upload(record["round"], client, why))
    return {fate: own for fate, own in found.items() if own}


def shortfalls(records: Records) -> list[str]:
    """Rounds that taught nothing, tasks of which nothing is believed, and what the fused rank has no room for."""
    said, last = [], records[-1]
    empty = [record for record in records if not record["learnt"]]
    if refused := [record for record in empty if record.get("refused")]:
        judged = sum(len({*record["refused"], *record["heard"]}) for record in refused)
        said.append(
            f"the guard refused {sum(len(record['refused']) for record in refused)} of the {judged} uploads that "
            f"arrived in {_rounds(refused)}, which left too few: the last model was kept"
        )
    if lost := [record for record in empty if not record.get("refused")]:
        said.append(f"too little arrived in {_rounds(lost)}: the last model was kept")
    if unheard := last["unheard"]:
        said.append(f"nothing is believed of task{'s' if len(unheard) > 1 else ''} {', '.join(unheard)}")
    if last["discarded_energy"] >= 0.001:
        said.append(
            f"the fused rank discards up to {last['discarded_energy']:.1%} of a layer's energy (see fused_rank)"
        )
    return said


def sentences(records: Records, log: Path) -> list[str]:
    """All of it, with what else is wrong: uploads that are more error than signal, and what the log warned of."""
    said = [text for fate, own in uploads(records).items() for text in _by_reason(fate, own)]
    said += [f"{text[0].upper()}{text[1:]}." for text in shortfalls(records)]
    if loud := [record["nmse_db"] for record in records if (record["nmse_db"] or 0.0) > 0]:
        said.append(
            f"Uploads arrived with more error than signal in {len(loud)} of {count(len(records), 'round')} (an NMSE of "
            f"up to {max(loud):.1f} dB)."
        )
    logged = list(dict.fromkeys(LOGGED.findall(log.read_text()))) if log.is_file() else []
    more = [f"{len(logged) - MOST} more warnings are in run.log."] if len(logged) > MOST else []
    return [*said, *logged[:MOST], *more]


def _rounds(records: Records) -> str:
    return f"{count(len(records), 'round')} ({', '.join(str(record['round']) for record in records)})"


def _by_reason(fate: str, own: Sequence[Upload]) -> list[str]:
    """A sentence for the uploads of each reason, whatever the numbers in it."""
    alike: dict[str, list[Upload]] = {}
    for upload in own:
        alike.setdefault(re.sub(r"[-+]?\d[\d.e+-]*", "", upload.why), []).append(upload)
    said = []
    for same in alike.values():
        what = f"{count(len(same), 'upload')} {fate}{', the first of them' * (len(same) > 1)}"
        whose = ", ".join(f"client {upload.client} in round {upload.round}" for upload in same[:NAMED])
        others = f" and {len(same) - NAMED} more" if len(same) > NAMED else ""
        said.append(f"{what}: {same[0].why} ({whose}{others}).")
    return said
