"""Packets: quantised parameters in code blocks, each of which arrives whole or is lost."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedfusion import assets
from fedfusion.types import FedfusionError

CLIP = {8: 6.0, 4: 2.5}  # largest level in root mean squares of the row
SMALLEST = 1e-36  # step whose inverse is still a float32


@dataclass(frozen=True)
class Mcs:
    """A modulation and coding scheme of 5G and how often its code blocks are lost, measured bit by bit.

    Attributes
    ----------
    index, bits_per_symbol, code_rate_x1024
        As in 3GPP TS 38.214 Table 5.1.3.1-1.
    information_bits, coded_bits
        Of one code block, before and after coding and rate matching (LDPC of TS 38.212).
    beta
        Of the exponential effective SINR mapping, linear.
    eesm_error_db
        What is left between that mapping and the patterns of SNRs it was fitted to.
    snr_db, bler, blocks
        The table: Es/N0, the share of code blocks lost at it, and how many were sent to find out.
    """

    index: int
    bits_per_symbol: int
    code_rate_x1024: int
    information_bits: int
    coded_bits: int
    beta: float
    eesm_error_db: Sequence[float]
    snr_db: Sequence[float]
    bler: Sequence[float]
    blocks: Sequence[int]

    @property
    def num_symbols(self) -> int:
        """Complex channel uses of one code block."""
        return self.coded_bits // self.bits_per_symbol

    def error_rate(self, sinr: Tensor) -> Tensor:
        """Block error rate `[...]` at the SINR `[...]`, linear: log-odds linear in dB; 1 below the table, 0 beyond."""
        sinr_db = 10 * sinr.double().clamp_min(1e-30).log10()
        p = np.asarray(self.bler)
        log_odds = np.interp(sinr_db.numpy(), self.snr_db, np.log(p / (1 - p)), left=math.inf, right=-math.inf)
        return torch.from_numpy(np.atleast_1d(log_odds)).sigmoid().view_as(sinr)


@lru_cache(maxsize=1)
def table() -> dict[int, Mcs]:
    """The schemes on offer by index, the most robust first."""
    path = assets.find("bler.json")
    if path is None:
        raise FedfusionError(
            "channel.packet: bler.json is not there (install the package itself, pip install fedfusion)"
        )
    return {row["index"]: Mcs(**row) for row in json.loads(path.read_text())["mcs"]}


def effective_sinr(sinr: Tensor, beta: float, block: int, length: int, num: int) -> Tensor:
    r"""Exponential effective SINR mapping (EESM) of each of `num` code blocks of `length` symbols.

    .. math:: \mathrm{SINR}_c = -\beta \ln \Bigl( \frac{1}{L} \sum_{i \in c} e^{-\mathrm{SINR}_i / \beta} \Bigr)

    Code blocks follow each other in time: each channel use of a coherence block of `block` uses carries one symbol on
    each of the `s` streams, and a symbol sees the `sinr [B, s]` (linear) of its coherence block and stream. Equal
    SINRs are mapped to themselves; `beta` to infinity is their mean, `beta` to zero the smallest.

    References
    ----------
    Brueninghaus et al., "Link Performance Models for System Level Simulations of Broadband Radio Access Systems",
    IEEE PIMRC 2005, https://doi.org/10.1109/PIMRC.2005.1651855
    """
    decay = torch.exp(sinr.double() / -beta)
    num_blocks, s = decay.shape
    streams = torch.nn.functional.pad(decay.cumsum(1), (1, 0))  # of one channel use, up to a stream
    whole = torch.nn.functional.pad((block * streams[:, -1]).cumsum(0), (1, 0))  # of the coherence blocks before one
    ends = length * torch.arange(num + 1)
    b = (ends // (block * s)).clamp_max(num_blocks - 1)
    use, stream = (ends - b * block * s) // s, ends % s
    total = whole[b] + use * streams[b, -1] + streams[b, stream]
    return -beta * (total.diff() / length).clamp_min(1e-300).log()


@dataclass(frozen=True)
class Delivered:
    """What came out of the decoder.

    Attributes
    ----------
    row : [d]
        The parameters; those of lost code blocks are zero.
    bler
        Mean block error probability that the SINRs predict over the row's code blocks.
    erased_share
        Share of the parameters lost.
    lost : [num]
        Whether each code block was lost.
    bits
        Information bits sent, padding included; the scale of the row, 32 more, is not counted.
    """

    row: Tensor
    bler: float
    erased_share: float
    lost: Tensor
    bits: int


@dataclass(frozen=True)
class Packet:
    r"""Parameters as small integers, in code blocks that are decoded or lost by the SINR of their symbols.

    .. math:: \hat w_i = \Delta \,\bigl\lfloor w_i / \Delta + u_i \bigr\rfloor, \quad u_i \sim \mathcal U[0, 1), \qquad
              \Delta = \min\bigl(\max_i |w_i|,\; c\,\mathrm{rms}(w)\bigr) / (2^{b-1} - 1)

    Stochastic rounding is unbiased between the largest levels, and its expected NMSE is `(step / rms)^2 / 6`. On a
    million Gaussian parameters: -36.4 dB with 8 bit, where `c=6` cuts outliers only, and -16.3 dB with 4 bit and
    `c=2.5`, which are cut. The step is protected side information. Code blocks are lost independently, with the error
    rate of 5G's LDPC code (:class:`Mcs`) at their effective SINR (:func:`effective_sinr`). High SINR leaves the
    quantiser alone, and at low SINR nothing arrives.

    Parameters
    ----------
    bits
        Bits per real parameter, 4 or 8.
    mcs
        Index of the scheme. None adapts the link: the fastest scheme that the reported SINRs promise to lose at most
        `target_bler` of the code blocks, or the most robust one if none does.
    target_bler
        Of the link adaptation, in (0, 1).

    Raises
    ------
    FedfusionError
        If one of these is something else.

    References
    ----------
    Stochastic rounding: Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding",
    NeurIPS 2017, https://arxiv.org/abs/1610.02132. Schemes and code: 3GPP TS 38.214 and 38.212. Table: decoded with
    Sionna, Hoydis et al., "Sionna: An Open-Source Library for Next-Generation Physical Layer Research", 2022,
    https://arxiv.org/abs/2203.11854
    """

    bits: Literal[4, 8] = 8
    mcs: int | None = None
    target_bler: float = 0.1

    def __post_init__(self) -> None:
        if self.bits not in CLIP:
            raise FedfusionError(f"channel.packet.bits={self.bits}: a parameter is sent with 4 or 8 bits")
        if self.mcs is not None and self.mcs not in table():
            raise FedfusionError(
                f"channel.packet.mcs={self.mcs} is not in the table of block error rates, which has "
                f"{', '.join(map(str, table()))} (null adapts the link)"
            )
        if not 0 < self.target_bler < 1:
            raise FedfusionError(
                f"channel.packet.target_bler={self.target_bler} must lie between 0 and 1, both excluded (0.1 is usual)"
            )

    def num_blocks(self, size: int, mcs: int) -> int:
        """Code blocks for `size` parameters, the last one padded."""
        return -(-size * self.bits // table()[mcs].information_bits)

    def num_symbols(self, size: int, mcs: int) -> int:
        """Complex channel uses, summed over streams, for `size` parameters in whole code blocks."""
        return self.num_blocks(size, mcs) * table()[mcs].num_symbols

    def choose(self, reported: Tensor, block: int | None = None) -> int:
        """The scheme for a row whose receiver reports the SINRs `[B, s]`, linear.

        With `block` the mean is over the code blocks as they would follow each other in the coherence blocks; without
        it, all SINRs together are taken for one code block.
        """
        if self.mcs is not None:
            return self.mcs
        symbols = reported.numel() * (block or 1)
        for scheme in sorted(table().values(), key=lambda scheme: scheme.num_symbols):
            length = min(scheme.num_symbols, symbols) if block else symbols
            promised = effective_sinr(reported, scheme.beta, block or 1, length, symbols // length)
            if scheme.error_rate(promised).mean() <= self.target_bler:
                return scheme.index
        return scheme.index

    def quantise(self, row: Tensor, rng: torch.Generator) -> Tensor:
        """What a receiver without errors makes of `row [d]`; zeros stay zeros."""
        top = 2 ** (self.bits - 1) - 1
        largest = float(row.abs().max()) if len(row) else 0.0
        rms = float(torch.linalg.vector_norm(row, dtype=torch.float64)) / math.sqrt(max(len(row), 1))
        step = min(largest, CLIP[self.bits] * rms) / top
        if step < SMALLEST:
            return torch.zeros_like(row)
        rounded = torch.rand(row.shape, generator=rng, dtype=row.dtype)
        return rounded.add_(row, alpha=1 / step).floor_().clamp_(-top, top).mul_(step)

    def __call__(
        self, row: Tensor, sinr: Tensor, mcs: int, block: int, rng: torch.Generator, *, doomed: Tensor | None = None
    ) -> Delivered:
        """Send `row [d]` over `sinr [B, s]` (linear) of coherence blocks of `block` channel uses.

        Code blocks that are `doomed` for other reasons are lost as well.

        Raises
        ------
        ValueError
            If the coherence blocks end before the row does.
        """
        scheme, num = table()[mcs], self.num_blocks(len(row), mcs)
        needed, offered = num * scheme.num_symbols, sinr.numel() * block
        if offered < needed:
            raise ValueError(f"{len(row)} parameters need {needed} symbols with MCS {mcs}, the SINRs cover {offered}")
        bler = scheme.error_rate(effective_sinr(sinr, scheme.beta, block, scheme.num_symbols, num))
        lost = torch.rand(num, generator=rng, dtype=torch.float64) < bler
        if doomed is not None:
            lost |= doomed
        decoded = self.quantise(row, rng)
        gone = lost.repeat_interleave(scheme.information_bits // self.bits)[: len(row)]
        decoded.masked_fill_(gone, 0.0)
        return Delivered(
            row=decoded,
            bler=float(bler.sum()) / max(num, 1),
            erased_share=int(gone.count_nonzero()) / max(len(row), 1),
            lost=lost,
            bits=num * scheme.information_bits,
        )
