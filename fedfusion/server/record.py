"""The record of a round: what became of the uploads, and how good each adapter is."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fedfusion.server.evaluation import Scores, mean, summary
from fedfusion.server.uplink import decibel
from fedfusion.types import ChannelReport, GuardReport, Updates


@dataclass(frozen=True)
class Delivery:
    """The uploads of a round on their way, from the clients' training to what the server believes.

    Attributes
    ----------
    trained, intact
        As clients trained them, and those of them whose training was their own and sane.
    sent, received
        After the attack, and after the channel.
    report
        Of the channel.
    believed, judged
        After the guard, and its report.
    missing
        Clients whose upload never came, or was none, and why.
    """

    trained: Updates
    intact: Updates
    sent: Updates
    received: Updates
    report: ChannelReport
    believed: Updates
    judged: GuardReport
    missing: Mapping[int, str]

    @property
    def lost(self) -> dict[int, str]:
        """Clients whose upload the attackers or the channel erased, and why."""
        jammed = set(self.trained.clients) - set(self.sent.clients)
        return dict.fromkeys(jammed, "was erased on its way") | dict(self.report.erased)

    @property
    def dropped(self) -> dict[int, str]:
        """Clients of which nothing is believed, and why."""
        return {**self.missing, **self.lost, **self.judged.refused}

    @property
    def reported_nmse(self) -> dict[int, float]:
        """The error of each client's upload relative to its power, as far as the receiver estimates it."""
        return dict(zip(self.sent.clients, self.report.per_client.get("reported_nmse", ()), strict=False))

    def record(self, byzantine: Collection[int]) -> dict[str, Any]:
        """What the record of the round says of it; `byzantine` are those of all clients."""
        dropped, heard = self.dropped, set(self.intact.clients) - set(self.report.erased)
        losses = [measured["train_loss"] for measured in self.intact.metrics]
        arrived = [nmse for c, nmse in zip(self.sent.clients, self.report.nmse, strict=False) if c in heard]
        return {
            "believed": len(self.believed),
            "heard": list(self.believed.clients),
            "refused": sorted(self.judged.refused),
            "dropped": {str(client): dropped[client] for client in sorted(dropped)},
            "clipped": sorted(self.judged.clipped),
            "byzantine": [client for client in byzantine if client in self.trained.clients],
            "train_loss": mean(losses) if losses else None,
            "nmse_db": decibel(mean(arrived)) if arrived else None,
        }


def standings(scores: Mapping[str, Scores]) -> dict[str, Any]:
    """Mean and worst task of every stage that has scores, and `{stage: {task: score}}` as `{task: {stage: score}}`."""
    summaries = {stage: summary(score) for stage, score in scores.items() if score}
    tasks = dict.fromkeys(task for by_task in scores.values() for task in by_task)
    return {
        **{name: {stage: of[name] for stage, of in summaries.items()} for name in ("mean", "worst")},
        "tasks": {task: {stage: own[task] for stage, own in scores.items() if task in own} for task in tasks},
    }
