"""Additive white Gaussian noise, and a barrage jammer that adds more of it."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedfusion.channels.fidelity import fidelity
from fedfusion.types import ChannelReport, FedfusionError, Updates

LIMIT_DB = 100.0  # a ratio beyond it is a mistake, and float32 has few digits left


@dataclass(frozen=True)
class Awgn:
    r"""Each real coordinate of each upload receives independent Gaussian noise and jamming.

    .. math:: \hat\tau_k = \tau_k + n_k,
              \qquad
              n_k \sim \mathcal N\bigl(0,\; s_k^2 (10^{-\mathrm{SNR}/10} + 10^{\mathrm{JSR}/10})\, I_d\bigr), \qquad
              s_k = \lVert\tau_k\rVert / \sqrt d

    Both ratios are per real coordinate and against the upload's own mean power `s_k^2`: a client with power
    control spends the same energy on any task vector. Expected NMSE: `10^(-snr_db/10) + 10^(jsr_db/10)`.

    Parameters
    ----------
    snr_db
        Signal-to-noise ratio in dB. `inf` is a noise-free receiver.
    jsr_db
        Jammer-to-signal ratio in dB at the receiver. `-inf` is no jammer; with `snr_db=inf` too this is the
        ideal channel.

    References
    ----------
    Scaling by the sender's own power, as an equivalent real channel of a power-controlled uplink: Amiri, Gunduz,
    "Federated Learning over Wireless Fading Channels", IEEE TWC 2020, https://arxiv.org/abs/1907.09769
    """

    superposes: ClassVar[bool] = False
    snr_db: float = 20.0
    jsr_db: float = -math.inf

    def __post_init__(self) -> None:
        if not self.snr_db >= -LIMIT_DB or not self.jsr_db <= LIMIT_DB:
            raise FedfusionError(
                f"channel.snr_db={self.snr_db}, channel.jsr_db={self.jsr_db}: the noise would be infinite or no number "
                f"(snr_db >= -{LIMIT_DB:g}, inf is noise-free; jsr_db <= {LIMIT_DB:g}, -inf is no jammer)"
            )

    @property
    def expected_nmse(self) -> float:
        """Mean of `||received - sent||^2 / ||sent||^2` (linear)."""
        return 10 ** (-self.snr_db / 10) + 10 ** (self.jsr_db / 10)

    def __call__(self, updates: Updates, rng: torch.Generator) -> tuple[Updates, ChannelReport]:
        """Add noise to `updates.vectors [n, d]`; the report carries the measured quality of each row."""
        sent, sizes = updates.vectors, updates.sizes or (updates.vectors.shape[1],) * len(updates)
        received = torch.randn(sent.shape, generator=rng)
        for row, size in enumerate(sizes):
            rms = float(sent[row, :size].double().square().mean().sqrt())  # float64: a wild upload must not overflow
            received[row].mul_(rms * math.sqrt(self.expected_nmse)).add_(sent[row])
        expected = (self.expected_nmse,) * len(updates)
        figures = fidelity(sent, received, sizes) | {"expected_nmse": expected, "reported_nmse": expected}
        return updates.with_vectors(received), ChannelReport(per_client=figures)
