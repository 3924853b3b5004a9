"""Over-the-air computation: clients transmit at once, and the channel itself adds up what they send."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, inf, log
from typing import ClassVar

import torch
from torch import Tensor

from fedfusion.channels.fidelity import fidelity
from fedfusion.channels.levels import SIDE_BITS
from fedfusion.types import ChannelReport, FedfusionError, Updates

TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class AirComp:
    r"""Broadband analog aggregation: of each task, only the weighted sum of its clients' vectors is received.

    Two real parameters make one complex symbol :math:`x_k`. In each coherence block, where client `k` has the fade
    :math:`h_k \sim \mathcal{CN}(0, 1)`, it sends :math:`p_k w_k x_k / c` with truncated channel inversion, and the
    receiver scales back, knowing from pilots who was active:

    .. math:: p_k = \frac{\sqrt{\rho_0}}{h_k}\, [\,|h_k|^2 \ge g\,], \quad \rho_0 = \frac{P}{E_1(g)},
              \quad c = \sqrt 2 \max_k w_k s_k, \qquad
              \hat\tau = \frac{\sum_{k\,\mathrm{active}} w_k \tau_k + n}{\sum_{k\,\mathrm{active}} w_k}

    The weights :math:`w_k` are shares of the task's training examples, :math:`s_k` is the RMS of :math:`\tau_k`. The
    gain `c` is common to all, so that amplitudes stay comparable: the client of largest weighted power spends `P` on
    average over fades, the others less. Noise and barrage jamming leave in each real parameter

    .. math:: n \sim \mathcal N\bigl(0,\; (\max_k w_k s_k)^2\, E_1(g)\, (10^{-\mathrm{SNR}/10}
              + 10^{\mathrm{JSR}/10})\bigr),

    which shrinks with the updates: a common factor on all vectors does not change the NMSE. The share
    :math:`1 - e^{-g}` of blocks is truncated; one in which nobody is active is received as zero. Without noise, the
    result tends to the weighted mean as `g` tends to zero, while the power that inversion takes grows without bound.

    Tasks are sent one after another, in the order in which they appear. Every client of a task is given the same row,
    so rows say nothing of single clients.

    Parameters
    ----------
    snr_db
        Received power of one client that transmits `P`, over noise, at the one receive antenna. `inf` is noise-free.
    jsr_db
        Received power of the jammer over that of such a client; `-inf` is no jammer. With one antenna the worst
        jamming is white.
    truncation_threshold
        `g`, the smallest :math:`|h|^2` that a client inverts, at most 10 (there 5 of 100,000 blocks are sent).
    coherence_block
        Complex symbols in each coherence block.
    bandwidth_hz, overhead
        Bandwidth, of which the share `overhead` carries no data (pilots, guards, control): virtual time.
    tx_power_dbm
        `P`.

    Raises
    ------
    FedfusionError
        If a value has no meaning; when called, if the clients of one task send vectors of different sizes.

    References
    ----------
    Zhu, Wang, Huang, "Broadband Analog Aggregation for Low-Latency Federated Edge Learning", IEEE TWC 2020,
    https://arxiv.org/abs/1812.11494; the common gain: Sery, Shlezinger, Cohen, Eldar, "Over-the-Air Federated
    Learning from Heterogeneous Data" (COTAF), IEEE TSP 2021, https://arxiv.org/abs/2009.12787
    """

    superposes: ClassVar[bool] = True
    snr_db: float = 10.0
    jsr_db: float = -inf
    truncation_threshold: float = 0.1
    coherence_block: int = 168
    bandwidth_hz: float = 18.72e6
    overhead: float = 0.2
    tx_power_dbm: float = 23.0

    def __post_init__(self) -> None:
        checks = {
            f"channel.snr_db={self.snr_db} must be at least -100 dB (inf is noise-free)": self.snr_db >= -100,
            f"channel.jsr_db={self.jsr_db} must be at most 100 dB (-inf is no jammer)": self.jsr_db <= 100,
            f"channel.truncation_threshold={self.truncation_threshold} must be above 0, where inverting deep fades "
            "takes unlimited power, and at most 10, where nearly nothing is sent":
                0 < self.truncation_threshold <= 10,
            f"channel.coherence_block={self.coherence_block} must be at least 1 symbol": self.coherence_block >= 1,
            f"channel.bandwidth_hz={self.bandwidth_hz} must be positive and finite": 0 < self.bandwidth_hz < inf,
            f"channel.overhead={self.overhead} must be in [0, 1)": 0 <= self.overhead < 1,
            f"channel.tx_power_dbm={self.tx_power_dbm} must lie within -100 and 100": abs(self.tx_power_dbm) <= 100,
        }  # fmt: skip
        if violated := [sentence for sentence, holds in checks.items() if not holds]:
            raise FedfusionError("\n".join(violated))

    def __call__(self, updates: Updates, rng: torch.Generator) -> tuple[Updates, ChannelReport]:
        """Receive the weighted mean of `updates.vectors [n, d]` of each task; who is erased is left out.

        The report's `nmse` is that of the task's mean, the same for all of its clients, and `expected_nmse` its exact
        mean over noise for the fades that were drawn. `erased_share` counts the blocks that a client did not send,
        `energy_j` is what inverting its fades took, `bits` is protected side information.
        """
        received, erased, end_s = torch.zeros_like(updates.vectors), dict[int, str](), 0.0
        columns: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(updates))
        for task in dict.fromkeys(updates.tasks):
            rows = [row for row, other in enumerate(updates.tasks) if other == task]
            size = self._size(updates, task, rows)
            mean, figures, lost = self._sum(
                [updates.vectors[row, :size] for row in rows], [updates.num_examples[row] for row in rows], rng
            )
            end_s += ceil(size / 2) * self._symbol_s
            figures |= {"air_time_s": ceil(size / 2) * self._symbol_s, "latency_s": end_s, "bits": SIDE_BITS}
            for i, row in enumerate(rows):
                received[row, :size] = mean
                for name, values in figures.items():
                    columns[name][row] = values[i] if isinstance(values, list) else values
            erased |= {updates.clients[rows[i]]: reason for i, reason in lost.items()}
        report = ChannelReport({name: tuple(values) for name, values in columns.items()}, erased)
        kept = [row for row, client in enumerate(updates.clients) if client not in erased]
        return updates.with_vectors(received).keep(kept), report

    def _size(self, updates: Updates, task: str, rows: Sequence[int]) -> int:
        sizes = {updates.sizes[row] for row in rows} if updates.sizes else {updates.vectors.shape[1]}
        if len(sizes) > 1:
            raise FedfusionError(
                f"channel: AirComp adds vectors entry by entry, but the clients of task '{task}' send "
                f"{min(sizes)} to {max(sizes)} entries (give them equal client.ranks, or choose another channel)"
            )
        return sizes.pop()

    def _sum(
        self, vectors: Sequence[Tensor], examples: Sequence[float], rng: torch.Generator
    ) -> tuple[Tensor, dict[str, float | list[float]], dict[int, str]]:
        """The mean `[d]` that is received of one task, figures of all or of each client, and why some are erased."""
        size, k = len(vectors[0]), len(vectors)
        fades = torch.empty(k, ceil(size / (2 * self.coherence_block)), dtype=torch.float64)  # |h|^2 [k, B]
        fades.exponential_(generator=rng)
        power = torch.stack([vector.double().square().mean() for vector in vectors])  # s_k^2
        finite = power.isfinite()
        active = (fades >= self.truncation_threshold) & finite[:, None]
        weights = torch.tensor(examples, dtype=torch.float64) * finite
        weights = weights / weights.sum().clamp_min(TINY)

        inside = self._blocks(torch.ones(size))  # zero behind the last entry
        true, total, inverted = torch.zeros_like(inside), torch.zeros_like(inside), torch.zeros(k, dtype=torch.float64)
        for i in finite.nonzero()[:, 0].tolist():
            part = weights[i] * self._blocks(vectors[i])
            true += part
            total += active[i, :, None] * part
            inverted[i] = part.square().sum(1) @ (active[i] / fades[i])
        strongest = (weights.square() * power.nan_to_num(0.0, 0.0)).max()  # max (w_k s_k)^2 = c^2 / 2
        inversion = exponential_integral(self.truncation_threshold)  # P / rho_0
        noise = strongest * inversion * (10 ** (-self.snr_db / 10) + 10 ** (self.jsr_db / 10))
        joule = 10 ** (self.tx_power_dbm / 10 - 3) * self._symbol_s  # of one symbol at power P
        present = weights @ active.double()
        scale = torch.where(present > 0, 1 / present.clamp_min(TINY), 0.0)[:, None]
        drawn = torch.randn(inside.shape, generator=rng, dtype=torch.float64) * noise.sqrt()
        mean = (scale * (total + drawn)).flatten()[:size].to(vectors[0].dtype)

        error = (scale * total - true).square().sum() + noise * (scale.square() * inside).sum()
        figures: dict[str, float | list[float]] = {
            **{name: values[0] for name, values in fidelity(true.flatten()[None, :size], mean[None]).items()},
            "expected_nmse": float(error / true.square().sum().clamp_min(TINY)),
            "erased_share": (1 - active.double().mean(1)).tolist(),
            "energy_j": (joule / (2 * strongest.clamp_min(TINY) * inversion) * inverted).tolist(),
        }
        if not finite.any():  # there is no mean to compare with, and nothing arrived
            figures |= {"nmse": 1.0, "expected_nmse": 1.0, "sign_agreement": 0.0}
        unsent = f"its fades were below channel.truncation_threshold={self.truncation_threshold:g} in every block"
        lost = {i: unsent for i, sent in enumerate(active.any(1).tolist()) if not sent}
        return mean, figures, lost | {i: "its upload was not finite" for i in lost if not finite[i]}

    @property
    def _symbol_s(self) -> float:
        return 1 / (self.bandwidth_hz * (1 - self.overhead))

    def _blocks(self, vector: Tensor) -> Tensor:
        """The entries of `vector [d]` by coherence block, `[B, 2 * coherence_block]` in float64, padded with zeros."""
        width = 2 * self.coherence_block
        return torch.nn.functional.pad(vector.double(), (0, -len(vector) % width)).view(-1, width)


def exponential_integral(x: float) -> float:
    r"""The exponential integral :math:`E_1(x) = \int_x^\infty e^{-t}/t\, dt` of `x > 0`, to about 14 digits.

    Below one it is the power series, above one the continued fraction, evaluated from its end (Abramowitz, Stegun,
    "Handbook of Mathematical Functions", 1964, 5.1.11 and 5.1.22).
    """
    if x < 1:
        total, term = -0.5772156649015329 - log(x), -1.0
        for n in range(1, 25):
            term *= -x / n
            total += term / n
        return total
    fraction = 0.0
    for n in range(100, 0, -1):
        fraction = n * n / (x + 2 * n + 1 - fraction)
    return exp(-x) / (x + 1 - fraction)
