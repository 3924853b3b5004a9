"""From what clients send to what the server believes to have received, and how good it is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, log10, nan
from statistics import median
from typing import Any

import torch
from torch import Tensor

from fedfusion.channels.fidelity import fidelity
from fedfusion.lora.payload import Payload
from fedfusion.lora.product import distances, gram, kappa, outside
from fedfusion.types import Channel, ChannelReport, Layout, Updates

LINEAR = ("nmse", "expected_nmse", "reported_nmse", "snr", "sinr", "privacy_nmse")  # reported in dB
ROWS = 64  # that are looked at together
RECEIVED = ("nmse", "expected_nmse", "reported_nmse", "cosine", "sign_agreement")  # means are over what was received


@dataclass(frozen=True)
class Uplink:
    """Payload and channel together."""

    channel: Channel
    payload: Payload

    def __call__(self, sent: Updates, rng: torch.Generator) -> tuple[Updates, ChannelReport]:
        """What arrives of `sent`, without what was erased, for the guard to judge."""
        received, report = self.channel(self.payload.pack(sent), rng)
        return self.payload.unpack(received), report

    def uploads(self, believed: Updates, sent: Updates) -> Updates:
        """Uploads of adapters, from what the guard believes."""
        return self.payload.uploads(believed, sent)

    def record(self, sent: Updates, received: Updates, report: ChannelReport) -> dict[str, Any]:
        """Everything there is to say of one round, for people: ratios in dB.

        Means of errors are linear and over the clients that were received, of SNR and SINR in dB, over all. What mods
        changed at the clients, relative to their updates, is a figure of its own, `privacy_nmse`: it is part of what
        was sent, and in no other.

        `layers` compares each module over all clients that were received, as it was sent; `product_nmse_db` the
        changes of the products; `kappa` says what noise on the factors does to those, see
        :func:`fedfusion.lora.product.kappa`. Sums over the air are compared with the means that were meant.
        """
        columns = {name: list(values) for name, values in report.per_client.items()}
        if any("privacy_nmse" in reported for reported in sent.metrics):
            columns["privacy_nmse"] = [reported.get("privacy_nmse", nan) for reported in sent.metrics]
        of_client = [{name: values[i] for name, values in columns.items()} for i in range(len(sent))]
        heard = set(received.clients)
        kept = sent.keep([i for i, client in enumerate(sent.clients) if client in heard])
        meant = self.payload.pack(kept) if self.payload.kind == "product" else kept
        if self.channel.superposes:
            meant = _task_means(meant)
        fates = [
            figures["nmse"]
            for c, figures in zip(sent.clients, of_client, strict=True)
            if c in heard and "nmse" in figures
        ]
        finite = torch.nonzero(received.vectors.sum(1, dtype=torch.float64).isfinite())[:, 0].tolist()
        arrived = self.uploads(received.keep(finite), sent)
        means = {
            name: _mean([v for v, c in zip(values, sent.clients, strict=True) if name not in RECEIVED or c in heard])
            for name, values in columns.items()
        }
        means |= {name: _geometric(columns[name]) for name in ("snr", "sinr") if name in columns}
        return {
            "clients": {
                str(client): {_name(name): _shown(name, value) for name, value in figures.items()}
                for client, figures in zip(sent.clients, of_client, strict=True)
            },
            "mean": {_name(name): _shown(name, value) for name, value in means.items()},
            "nmse_median_db": decibel(median(fates)) if fates else None,
            "layers": _layers(meant, received.vectors),
            "product_nmse_db": decibel(_mean(self._product_nmse(meant.keep(finite), arrived))),
            "kappa": _mean([v for own in _adapters(kept) for v in kappa(sent.layout, own).flatten().tolist()]),
            "duration_s": max(columns.get("latency_s", []), default=None),
            "jamming": dict(report.jamming),
        }

    def _product_nmse(self, meant: Updates, arrived: Updates) -> list[float]:
        """NMSE of the change of each product, as the server goes on with it."""
        if self.payload.kind == "product":
            return list(fidelity(meant.vectors, self.payload.pack(arrived).vectors)["nmse"])
        nmse: list[float] = []
        starts = meant.start.split(ROWS)
        for trained, came, start in zip(_adapters(meant), _adapters(arrived), starts, strict=True):
            error = distances(meant.layout, came, trained)
            nmse += (error / distances(meant.layout, trained, start)).tolist()
        return nmse


def _adapters(updates: Updates) -> Iterator[Tensor]:
    """What clients trained, a few rows at a time: memory is that of the uploads."""
    for start, change in zip(updates.start.split(ROWS), updates.vectors.split(ROWS), strict=True):
        yield start + change


def fused_fidelity(layout: Layout, clean: Tensor, received: Tensor) -> dict[str, float | None]:
    """NMSE in dB and cosine of the product of `received [d]` against that of `clean [d]`."""
    g = gram(layout, torch.stack([clean, received]))
    power, seen, cross = float(g[0, 0]), float(g[1, 1]), float(g[0, 1])
    if power <= 0 or seen <= 0:
        return {"nmse_db": None, "cosine": None}
    return {"nmse_db": decibel((power + seen - 2 * cross) / power), "cosine": cross / (power * seen) ** 0.5}


def decibel(ratio: float | None) -> float | None:
    """A power ratio in dB; null where there is no power."""
    return 10 * log10(ratio) if ratio is not None and isfinite(ratio) and ratio > 0 else None


def _layers(meant: Updates, received: Tensor) -> dict[str, dict[str, float | None]]:
    """What :func:`fedfusion.channels.fidelity.fidelity` says of the entries of each module, of all clients together."""
    layout = meant.layout
    entries = {pair.module: [pair.a, pair.b] for pair in layout.pairs}
    entries |= {layout.names[i]: [i] for i in outside(layout)}
    found = {}
    for module, parts in entries.items():
        was, came = (
            torch.cat([layout.entry(vectors, i).flatten() for i in parts])[None]
            for vectors in (meant.vectors, received)
        )
        found[module] = {_name(name): _shown(name, value) for name, (value,) in fidelity(was, came).items()}
    return found


def _task_means(updates: Updates) -> Updates:
    """The mean of each task, weighted by examples, in the place of each of its rows."""
    vectors = updates.vectors.clone()
    for task in set(updates.tasks):
        rows = [i for i, other in enumerate(updates.tasks) if other == task]
        weights = torch.tensor([updates.num_examples[i] for i in rows], dtype=torch.float64)
        vectors[rows] = (weights / weights.sum()).to(vectors.dtype) @ updates.vectors[rows]
    return updates.with_vectors(vectors)


def _name(name: str) -> str:
    return f"{name}_db" if name in LINEAR else name


def _shown(name: str, value: float | None) -> float | None:
    """What JSON can say of a figure: decibel of a ratio, and null where it is no number."""
    if name in LINEAR:
        return decibel(value)
    return value if value is not None and isfinite(value) else None


def _geometric(values: Sequence[float]) -> float | None:
    """The mean in dB, as a ratio."""
    positive = [log10(value) for value in values if value > 0]
    return 10 ** (sum(positive) / len(positive)) if positive else None


def _mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if isfinite(value)]
    return sum(finite) / len(finite) if finite else None
