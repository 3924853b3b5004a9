"""Small-scale fading: how the channel between each pair of antennas varies around its mean gain."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedfusion.types import FedfusionError


class Fading(Protocol):
    """The channel in each coherence block. Path loss is not part of it: `E|h_ij|^2 = 1`."""

    def draw(self, blocks: int, users: int, num_rx_ant: int, num_tx_ant: int, rng: torch.Generator) -> Tensor:
        """Channels `[blocks, users, num_rx_ant, num_tx_ant]`, complex128, in the order in which blocks are sent."""
        ...


@dataclass(frozen=True)
class Flat:
    r"""Flat block fading, independent from block to block and from user to user: Rayleigh or Rician, correlated arrays.

    .. math:: H = \sqrt{\tfrac{K}{K+1}}\; e^{j\psi}\, a(\theta)\, a(\varphi)^{\mathsf H}
              + \sqrt{\tfrac{1}{K+1}}\; R_r^{1/2} H_w R_t^{\mathsf T/2}, \qquad
              [R]_{ij} = \rho^{|i-j|}, \quad [a(\theta)]_m = e^{j\pi m \sin\theta}

    `H_w` has independent entries CN(0, 1). Both arrays are uniform lines at half a wavelength. A user keeps its two
    directions for the whole draw, they are uniform in their sine, so that over users `E a a^H = I`; the phase `psi`
    is uniform and new in each block. The phases of the arrays count from their first antenna.

    Parameters
    ----------
    k_factor_db
        Power of the line of sight over that of the scattered part, in dB. `-inf` is Rayleigh fading, `inf` a pure line
        of sight, of rank one.
    rx_correlation, tx_correlation
        Correlation of neighbouring antennas of the base station and of a user, in [0, 1); 0 is none. It concerns the
        scattered part.

    Raises
    ------
    FedfusionError
        If a correlation is outside [0, 1), or the K-factor is no number.

    References
    ----------
    Kermoal et al., "A Stochastic MIMO Radio Channel Model with Experimental Validation", IEEE JSAC 2002,
    https://doi.org/10.1109/JSAC.2002.801223 (Kronecker model); Loyka, "Channel Capacity of MIMO Architecture Using the
    Exponential Correlation Matrix", IEEE Communications Letters 2001, https://doi.org/10.1109/4234.951380
    """

    k_factor_db: float = -math.inf
    rx_correlation: float = 0.0
    tx_correlation: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rx_correlation", "tx_correlation"):
            if not 0 <= getattr(self, name) < 1:
                raise FedfusionError(
                    f"channel.fading.{name}={getattr(self, name)}: the correlation of neighbouring antennas must be in "
                    "[0, 1), 0 being independent antennas"
                )
        if math.isnan(self.k_factor_db):
            raise FedfusionError(
                f"channel.fading.k_factor_db={self.k_factor_db} is no number "
                "(a ratio in dB; -inf is Rayleigh fading, inf a pure line of sight)"
            )

    def draw(self, blocks: int, users: int, num_rx_ant: int, num_tx_ant: int, rng: torch.Generator) -> Tensor:
        """Channels `[blocks, users, num_rx_ant, num_tx_ant]`; drawn in single precision, complex128 for what follows.

        The scattered part is drawn first: `k_factor_db` scales it and nothing else.
        """
        h = torch.randn(blocks, users, num_rx_ant, num_tx_ant, 2, generator=rng)
        if self.rx_correlation:
            h = torch.einsum("ri,buitc->burtc", _root(self.rx_correlation, num_rx_ant), h)
        if self.tx_correlation:
            h = torch.einsum("ti,buric->burtc", _root(self.tx_correlation, num_tx_ant), h)
        h = torch.view_as_complex(h.contiguous())
        k = self.k_factor_db * math.log(10) / 10
        sight, scattered = torch.tensor([k, -k], dtype=torch.float64).sigmoid().sqrt().tolist()  # K/(K+1), 1/(K+1)
        h = h.to(torch.complex128).mul_(scattered * math.sqrt(0.5))
        if sight:
            theta, phi = torch.rand(2, users, 1, generator=rng, dtype=torch.float64).mul(2).sub(1)
            a_r, a_t = _steering(theta, num_rx_ant), _steering(phi, num_tx_ant)
            psi = torch.rand(blocks, users, 1, 1, generator=rng, dtype=torch.float64).mul(2 * math.pi)
            h += torch.polar(torch.full_like(psi, sight), psi) * (a_r[:, :, None] * a_t[:, None, :].conj())
        return h


def _root(correlation: float, n: int) -> Tensor:
    """Lower triangular `L [n, n]` with `L L^T = correlation^|i-j|`: its Cholesky factor, in closed form."""
    i = torch.arange(n)
    lower = torch.tensor(correlation, dtype=torch.float64).pow((i[:, None] - i).clamp_min(0)).tril()
    lower[:, 1:] *= math.sqrt(1 - correlation**2)
    return lower.float()


def _steering(sine: Tensor, n: int) -> Tensor:
    """Response `[users, n]` of half-wavelength lines of `n` antennas to the directions `sine [users, 1]`."""
    phase = math.pi * sine * torch.arange(n)
    return torch.polar(torch.ones_like(phase), phase)
