"""From what clients send to what the server believes to have received, and how good it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, log10
from statistics import median
from typing import Any

import torch
from torch import Tensor

from fedfusion.lora.payload import Payload
from fedfusion.lora.product import distances, gram, kappa
from fedfusion.types import Channel, ChannelReport, Layout, Updates

LINEAR = ("nmse", "expected_nmse", "sinr")  # reported in dB


@dataclass(frozen=True)
class Uplink:
    """Payload and channel together: uploads in, uploads out."""

    channel: Channel
    payload: Payload

    def __call__(self, sent: Updates, rng: torch.Generator) -> tuple[Updates, ChannelReport]:
        """What arrives of `sent`, without what was erased."""
        received, report = self.channel(self.payload.pack(sent), rng)
        return self.payload.unpack(received), report

    def record(self, sent: Updates, received: Updates, report: ChannelReport) -> dict[str, Any]:
        """Everything there is to say of one round, for people: ratios in dB, means taken before that.

        `layers` is the NMSE of each module over all clients that were received; `product_nmse_db` that of the changes
        of the products; `kappa` what noise on the factors does to it, see :func:`fedfusion.lora.product.kappa`.
        """
        columns = {name: list(values) for name, values in report.per_client.items()}
        of_client = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        kept = sent.keep([i for i, client in enumerate(sent.clients) if client in set(received.clients)])
        trained, arrived = kept.start + kept.vectors, received.start + received.vectors
        layout = sent.layout
        means = {name: _mean(values) for name, values in columns.items()}
        return {
            "clients": {
                str(client): {_name(name): _shown(name, value) for name, value in figures.items()}
                for client, figures in zip(sent.clients, of_client, strict=True)
            },
            "mean": {_name(name): _shown(name, value) for name, value in means.items()},
            "nmse_median_db": decibel(median(columns["nmse"])) if columns.get("nmse") else None,
            "layers": _layers(layout, kept.vectors, received.vectors),
            "product_nmse_db": decibel(
                _mean((distances(layout, arrived, trained) / distances(layout, trained, kept.start)).tolist())
            ),
            "kappa": _mean(kappa(layout, trained).flatten().tolist()),
            "duration_s": max(columns.get("latency_s", []), default=None),
            "jamming": dict(report.jamming),
        }


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


def _layers(layout: Layout, sent: Tensor, received: Tensor) -> dict[str, float | None]:
    """NMSE in dB of the entries of each module."""
    entries = {pair.module: (pair.a, pair.b) for pair in layout.pairs}
    ratios = {}
    for module, parts in entries.items():
        power = sum(float(layout.entry(sent, i).double().square().sum()) for i in parts)
        error = sum(
            float((layout.entry(received, i).double() - layout.entry(sent, i).double()).square().sum()) for i in parts
        )
        ratios[module] = decibel(error / power) if power > 0 else None
    return ratios


def _name(name: str) -> str:
    return f"{name}_db" if name in LINEAR else name


def _shown(name: str, value: float | None) -> float | None:
    """What JSON can say of a figure: decibel of a ratio, and null where it is no number."""
    if name in LINEAR:
        return decibel(value)
    return value if value is not None and isfinite(value) else None


def _mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if isfinite(value)]
    return sum(finite) / len(finite) if finite else None
