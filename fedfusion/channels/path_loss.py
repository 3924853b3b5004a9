"""Large-scale gain: where the clients are, and how much of their power arrives."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedfusion.rng import generator
from fedfusion.types import FedfusionError

THERMAL_NOISE_DBM_PER_HZ = -174.0
SHADOWING_DB = {True: 4.0, False: 7.82}  # standard deviation, with and without line of sight


@dataclass(frozen=True, kw_only=True)
class UMi:
    r"""Urban microcell, street canyon: one base station, and clients outdoors, uniform over the area of a ring.

    With the distance `d` on the ground, `d_3D` between the antennas, `h_BS` and `h_UT` their heights (in m) and `f`
    the carrier frequency in GHz, a client has a line of sight with probability

    .. math:: P = 1 \;\text{up to 18 m, beyond}\quad \tfrac{18}{d} + e^{-d/36} \bigl(1 - \tfrac{18}{d}\bigr)

    and its path loss in dB is

    .. math::
        \begin{aligned}
        L_{LOS} &= 32.4 + 21 \log_{10} d_{3D} + 20 \log_{10} f \quad (d \le d_{BP}), \text{ beyond} \\
        L_{LOS} &= 32.4 + 40 \log_{10} d_{3D} + 20 \log_{10} f
                   - 9.5 \log_{10}\bigl(d_{BP}^2 + (h_{BS} - h_{UT})^2\bigr), \\
        L_{NLOS} &= \max\bigl(L_{LOS},\; 22.4 + 35.3 \log_{10} d_{3D} + 21.3 \log_{10} f - 0.3 (h_{UT} - 1.5)\bigr)
        \end{aligned}

    with the breakpoint `d_BP = 4 (h_BS - 1) (h_UT - 1) f / c`, and log-normal shadowing of 4 dB with a line of sight
    and 7.82 dB without, independent among clients. Antennas have 0 dBi. Place, line of sight and shadowing of a client
    follow from `seed` and its id alone: they are the same in every round and whoever else is scheduled.

    Parameters
    ----------
    carrier_frequency_hz
        0.5 to 100 GHz, as the model holds.
    min_distance_m, max_distance_m
        Radii of the ring on the ground, 10 m to 5 km, as the model holds; equal radii put all clients at that distance.
    bs_height_m, user_height_m
        Antenna heights. The model is for 10 m, 5 to 30 m are let pass, and for users at 1.5 to 22.5 m.
    shadowing
        False for the median path loss.
    line_of_sight
        Drawn for each client, or the same for all.
    noise_figure_db
        Of the base station's receiver.
    seed
        Names the placement.

    Raises
    ------
    FedfusionError
        If a value is outside its range.

    References
    ----------
    3GPP TR 38.901, "Study on channel model for frequencies from 0.5 to 100 GHz", Tables 7.4.1-1 and 7.4.2-1,
    https://www.3gpp.org/dynareport/38901.htm
    """

    carrier_frequency_hz: float = 3.5e9
    min_distance_m: float = 10.0
    max_distance_m: float = 150.0
    bs_height_m: float = 10.0
    user_height_m: float = 1.5
    shadowing: bool = True
    line_of_sight: Literal["random", "always", "never"] = "random"
    noise_figure_db: float = 5.0
    seed: int

    def __post_init__(self) -> None:
        for name, low, high in (
            ("carrier_frequency_hz", 0.5e9, 100e9),
            ("min_distance_m", 10.0, 5000.0),
            ("max_distance_m", self.min_distance_m, 5000.0),
            ("bs_height_m", 5.0, 30.0),
            ("user_height_m", 1.5, 22.5),
            ("noise_figure_db", 0.0, 60.0),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise FedfusionError(
                    f"channel.path_loss.{name}={value:g} is outside [{low:g}, {high:g}] (choose within)"
                )
        if self.line_of_sight not in ("random", "always", "never"):
            raise FedfusionError(
                f"channel.path_loss.line_of_sight={self.line_of_sight}: drawn for each client or the same for all "
                "(random, always or never)"
            )

    def gains_db(self, clients: Sequence[int]) -> Tensor:
        """Path gain `[n]` of each client in dB, negative; received minus sent power, in the mean over fading."""
        return torch.tensor([self._gain_db(client) for client in clients], dtype=torch.float64)

    def noise_dbm(self, bandwidth_hz: float) -> float:
        """Power of thermal and receiver noise in the band, `-174 + 10 log10(B / Hz) + NF` dBm."""
        return THERMAL_NOISE_DBM_PER_HZ + 10 * math.log10(bandwidth_hz) + self.noise_figure_db

    def path_loss_db(self, distance_m: float, line_of_sight: bool) -> float:
        """Median path loss in dB at a distance on the ground."""
        frequency = self.carrier_frequency_hz
        drop = self.bs_height_m - self.user_height_m
        d_3d = math.hypot(distance_m, drop)
        breakpoint_m = 4 * (self.bs_height_m - 1) * (self.user_height_m - 1) * frequency / 3e8  # the table's c
        loss = 32.4 + 20 * math.log10(frequency / 1e9)
        if distance_m <= breakpoint_m:
            loss += 21 * math.log10(d_3d)
        else:
            loss += 40 * math.log10(d_3d) - 9.5 * math.log10(breakpoint_m**2 + drop**2)
        if line_of_sight:
            return loss
        beyond = 22.4 + 35.3 * math.log10(d_3d) + 21.3 * math.log10(frequency / 1e9) - 0.3 * (self.user_height_m - 1.5)
        return max(loss, beyond)

    def _gain_db(self, client: int) -> float:
        rng = generator(self.seed, "placement", client)
        # all three are always drawn: an option that needs one of them less moves no client
        place, sight = torch.rand(2, generator=rng, dtype=torch.float64).tolist()
        shadow = torch.randn((), generator=rng, dtype=torch.float64).item()
        inner, outer = self.min_distance_m**2, self.max_distance_m**2
        distance = math.sqrt(inner + place * (outer - inner))
        chance = {"random": los_probability(distance), "always": 1.0, "never": 0.0}[self.line_of_sight]
        line_of_sight = sight < chance
        return -self.path_loss_db(distance, line_of_sight) - shadow * SHADOWING_DB[line_of_sight] * self.shadowing


def los_probability(distance_m: float) -> float:
    """Probability that a client outdoors at this distance on the ground has a line of sight (Table 7.4.2-1)."""
    near = min(1.0, 18 / distance_m)
    return near + math.exp(-distance_m / 36) * (1 - near)
