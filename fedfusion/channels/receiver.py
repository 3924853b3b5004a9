"""What the base station makes of its antennas' signals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedfusion.types import FedfusionError


@dataclass(frozen=True)
class Filtered:
    """One receive filter per coherence block, and what it does to unit-power symbols.

    Attributes
    ----------
    filters : [B, L, N_r]
        `W`: stream `l` is estimated as `W_l (y - what was cancelled)`.
    through : [B, L, L]
        `T = W F`, without the streams that were cancelled before: estimate `= T symbols + W noise`.
    noise : [B, L]
        Power `(W R W^H)_ll` of noise and jamming at the filter's output.
    reported : [B, L]
        SINR that the receiver believes to have, linear; it rests on what it knows.
    cancelled : [B, L, L]
        True where stream `j` is off the signal when stream `l` is estimated; None where nothing ever is.
    """

    filters: Tensor
    through: Tensor
    noise: Tensor
    reported: Tensor
    cancelled: Tensor | None = None

    @property
    def gain(self) -> Tensor:
        """Complex gain `[B, L]` of each stream's own symbols."""
        return self.through.diagonal(dim1=-2, dim2=-1)

    @property
    def disturbance(self) -> Tensor:
        """Power `[B, L]` of other streams, noise and jamming at the output."""
        return (self.through.abs().square().sum(-1) - self.gain.abs().square()).clamp_min(0.0) + self.noise

    @property
    def sinr(self) -> Tensor:
        """True SINR `[B, L]`, linear."""
        return self.gain.abs().square() / self.disturbance

    @property
    def nmse(self) -> Tensor:
        """True mean squared error `[B, L]` of unit-power symbols."""
        return (self.gain - 1).abs().square() + self.disturbance


@dataclass(frozen=True)
class Receiver:
    r"""A linear or successive receiver, with what it knows of the jammer and how it scales its estimates.

    Of :math:`y = \sum_l f_l x_l + z`, with :math:`z \sim \mathcal{CN}(0, R)` and unit-power symbols, it believes
    :math:`\hat f_l` and :math:`\hat R` and estimates :math:`\hat x = c\, W y` by

    - `mmse`: :math:`W_l \propto \hat f_l^H (\hat R + \sum_j \hat f_j \hat f_j^H)^{-1}`, with the largest SINR
      :math:`1/e_l - 1`, :math:`e_l = 1 - \hat f_l^H (\hat R + \hat F \hat F^H)^{-1} \hat f_l`;
    - `zf`: :math:`W = \hat F^+`, which removes the other streams whatever noise that lets through;
    - `sic`: MMSE stream by stream, each taken off the signal before the next; the strongest is the first, on
      average over the upload, or as its power is known for long where packets are decoded. Cancellation is perfect,
      as if each stream had been decoded: an upper bound for analog symbols, while packets that are lost take those
      behind them along. Rates add up to the sum capacity
      :math:`\log_2\det(I + R^{-1} F F^H)` in any order.

    All are scaled to be unbiased, :math:`W_l \hat f_l = 1`, so that the NMSE of a receiver that knows everything is
    1/SINR. `shrink` multiplies by SINR/(1 + SINR), the LMMSE estimate with NMSE 1/(1 + SINR): never worse than zero
    for a receiver that knows the jammer, and only then.

    Parameters
    ----------
    filter
        `mmse`, `zf` or `sic`.
    knowledge
        Of the jammer: `unaware` believes in thermal noise alone, `sample` estimates the covariance from silent
        symbols in each block, `genie` is told.
    num_silent
        Silent symbols per block of `knowledge=sample`. The sample covariance is scaled by
        `num_silent / (num_silent - N_r)`, so that its inverse is unbiased.
    shrink
        LMMSE scaling by the reported SINR: the smallest error, but the task vectors get smaller with it. False is the
        raw unbiased estimate.
    rescale
        Multiply the noise, like the signal, by the RMS of the task vector (sent as side information); false adds
        the error of unit-power symbols as it is, as R-SFLLM does to activations.
    erase_above_db
        An upload whose reported NMSE is above is not used at all; null uses all. Fusion has a use for vectors whose
        noise is far above the signal: this default and that of `shrink` had the best accuracy on held-out data.

    References
    ----------
    Tse, Viswanath, "Fundamentals of Wireless Communication", Cambridge 2005, chapter 8; the inverse of a sample
    covariance: Maiwald, Kraus, "Calculation of Moments of Complex Wishart and Complex Inverse Wishart Distributed
    Matrices", IEE Proc. Radar, Sonar and Navigation 2000; R-SFLLM: Djuhera et al., IEEE TIFS 2025,
    https://arxiv.org/abs/2407.11654
    """

    filter: Literal["mmse", "zf", "sic"] = "mmse"
    knowledge: Literal["unaware", "sample", "genie"] = "genie"
    num_silent: int = 32
    shrink: bool = False
    rescale: bool = True
    erase_above_db: float | None = 20.0

    def __post_init__(self) -> None:
        if self.erase_above_db is not None and math.isnan(self.erase_above_db):
            raise FedfusionError(
                f"channel.receiver.erase_above_db={self.erase_above_db} is no number (give dB, or null to keep all)"
            )

    def covariance(self, true: Tensor, noise: float, rng: torch.Generator) -> Tensor:
        """What the receiver takes for the covariance `true [B, N_r, N_r]` of noise and jamming."""
        if self.knowledge == "genie":
            return true
        n = true.shape[-1]
        if self.knowledge == "unaware":
            return noise * torch.eye(n, dtype=true.dtype).expand_as(true)
        samples = torch.linalg.cholesky(true) @ complex_normal((len(true), n, self.num_silent), rng)
        return samples @ samples.mH / (self.num_silent - n)

    def design(
        self, believed: Tensor, covariance: Tensor, order: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Filters `[B, L, N_r]` for the streams `believed [B, N_r, L]` in noise of `covariance [B, N_r, N_r]`.

        Streams are decoded in the `order [L]`, the strongest of those that are believed first if there is none.

        Returns
        -------
        filters, reported
            Unbiased or shrunk, and the SINR that is believed, `[B, L]`.
        cancelled : [B, L, L] or None
            True where stream `j` is off the signal when stream `l` is estimated.
        """
        if self.filter == "sic":
            unbiased, sinr, cancelled = _successive(believed, covariance, order)
        else:
            unbiased, sinr, cancelled = *(_zero_forcing if self.filter == "zf" else _mmse)(believed, covariance), None
        filters = unbiased * (sinr / (1 + sinr))[..., None] if self.shrink else unbiased
        return filters, sinr, cancelled

    def __call__(
        self,
        streams: Tensor,
        covariance: Tensor,
        believed: Tensor,
        believed_covariance: Tensor,
        order: Tensor | None = None,
    ) -> Filtered:
        """Filter `streams [B, N_r, L]` in noise of `covariance [B, N_r, N_r]`, going by what is believed of both."""
        filters, reported, cancelled = self.design(believed, believed_covariance, order)
        through = filters @ streams
        if cancelled is not None:
            through = through.masked_fill(cancelled, 0.0)
        noise = ((filters @ covariance) * filters.conj()).sum(-1).real.clamp_min(0.0)
        return Filtered(filters, through, noise, reported, cancelled)


def complex_normal(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Circular complex Gaussians of unit variance, drawn in single precision, complex128 for what follows."""
    return torch.randn(*shape, generator=rng, dtype=torch.complex64).to(torch.complex128)


def _mmse(streams: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Unbiased MMSE filters `[B, L, N_r]` and their SINR `[B, L]`."""
    whole = torch.linalg.solve(covariance + streams @ streams.mH, streams).mH
    captured = (whole * streams.mT).sum(-1).real.clamp(1e-300, 1 - 1e-15)  # 1 - e
    return whole / captured[..., None], captured / (1 - captured)


def _zero_forcing(streams: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The pseudo-inverse `[B, L, N_r]` and its SINR `[B, L]`."""
    filters = torch.linalg.solve(streams.mH @ streams, streams.mH)
    return filters, 1 / ((filters @ covariance) * filters.conj()).sum(-1).real


def _successive(streams: Tensor, covariance: Tensor, order: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """MMSE filters, SINR and what is cancelled before."""
    if order is None:
        order = streams.abs().square().sum((0, 1)).argsort(descending=True, stable=True)
    rank = order.argsort()
    cancelled = (rank[None, :] < rank[:, None]).expand(len(streams), -1, -1)
    filters, sinr = torch.empty_like(streams.mT), streams.new_empty(streams.shape[0], streams.shape[2]).real.clone()
    interference = covariance
    for stream in reversed(order.tolist()):  # the last one decoded is alone with the noise
        f = streams[:, :, stream]
        solved = torch.linalg.solve(interference, f)
        power = (f.conj() * solved).sum(-1).real.clamp_min(1e-300)
        filters[:, stream], sinr[:, stream] = solved.conj() / power[:, None], power
        interference = interference + f[:, :, None] * f[:, None, :].conj()
    return filters, sinr, cancelled
