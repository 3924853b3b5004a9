"""Frequency-selective fading of 3GPP TR 38.901 over OFDM, as Sionna draws it (the optional extra `phy`)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fedfusion.types import FedfusionError

Model = Literal["TDL-A", "TDL-B", "TDL-C", "TDL-D", "TDL-E", "CDL-A", "CDL-B", "CDL-C", "CDL-D", "CDL-E", "UMi"]
Link = Callable[[int, float], tuple[Tensor, Tensor]]  # (slots, slots per second) -> (path coefficients, path delays)
STRETCH = 500  # slots that are drawn together: some 6 MB per pair of antennas
CPU = {"precision": "single", "device": "cpu"}


@dataclass(frozen=True)
class Tr38901:
    r"""One channel per physical resource block and slot: neighbours in frequency and time are alike, users are not.

    .. math:: H_{b, k} = \sum_p A_{k, p}(t_b)\, e^{-j 2 \pi f_b \tau_{k, p}}

    A coherence block `b` is 12 subcarriers of one slot of 14 symbols, 168 resource elements, and has the channel of its
    middle one (subcarrier 6, symbol 7, from zero). Blocks run over the `num_prb` resource blocks first, then over
    slots, 0.5 ms each at 30 kHz. Every draw starts afresh. One of more than 500 slots (0.25 s at 30 kHz) is made of
    independent stretches of 500: users keep their place, not their paths, and the channel jumps in between.

    `TDL` has independent antennas, but the specular path of TDL-D and TDL-E is the same at all of them and for all
    users. `CDL` and `UMi` have lines of vertical, omnidirectional antennas at half a wavelength; each user is somewhere
    in a sector of 120 degrees, turned anyhow, and walks in any direction. `UMi` is the small-scale part alone, without
    path loss and shadowing: users are outdoors, 10 to 150 m from the base station and uniform over the area, with or
    without a line of sight as drawn anew for each draw, whatever `channel.path_loss` says. Leaving out clusters 25 dB
    below the strongest, as the standard has it, costs 0.01 % of the mean power.

    Parameters
    ----------
    model
        Delay profile, or scenario.
    delay_spread_s
        Root mean square, in seconds; 0 is flat over all resource blocks. `UMi` does not use it, it draws its own.
    carrier_frequency_hz
        0.5 to 100 GHz.
    subcarrier_spacing_hz
        A slot lasts `15 / subcarrier_spacing_hz` seconds.
    num_prb
        Resource blocks side by side; 52 of 30 kHz are 18.72 MHz.
    speed_m_s
        Of each user; 0 holds the channel still within a stretch.

    Raises
    ------
    FedfusionError
        If a value is outside its range, or Sionna is not installed.

    References
    ----------
    3GPP TR 38.901 version 19.2, sections 7.5 and 7.7, https://www.3gpp.org/dynareport/38901.htm; Hoydis et al.,
    "Sionna: An Open-Source Library for Next-Generation Physical Layer Research", 2022, https://arxiv.org/abs/2203.11854
    """

    model: Model
    delay_spread_s: float = 100e-9
    carrier_frequency_hz: float = 3.5e9
    subcarrier_spacing_hz: float = 30e3
    num_prb: int = 52
    speed_m_s: float = 0.83

    def __post_init__(self) -> None:
        if self.model not in get_args(Model):
            raise FedfusionError(f"channel.fading.model={self.model} is unknown (one of {', '.join(get_args(Model))})")
        for name, low, high in (
            ("delay_spread_s", 0, 1e-4),
            ("carrier_frequency_hz", 0.5e9, 100e9),
            ("subcarrier_spacing_hz", 15e3, 960e3),
            ("num_prb", 1, 275),
            ("speed_m_s", 0, 300),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise FedfusionError(f"channel.fading.{name}={value:g} is outside [{low:g}, {high:g}] (choose within)")
        if find_spec("sionna") is None:
            raise FedfusionError(
                f"channel.fading: {self.model} needs sionna-no-rt, which is not installed: "
                "pip install 'fedfusion[phy]' (or choose fading=rayleigh)"
            )

    def draw(self, blocks: int, users: int, num_rx_ant: int, num_tx_ant: int, rng: torch.Generator) -> Tensor:
        """Channels `[blocks, users, num_rx_ant, num_tx_ant]`, complex128, computed in single precision on the CPU.

        Users are drawn one after the other. Torch's and Sionna's own generators are left as they were.
        """
        with torch.random.fork_rng(devices=[]):  # the first import reseeds torch's own generator
            from sionna.phy import config

        slots = max(1, math.ceil(blocks / self.num_prb))
        stretches = [min(STRETCH, slots - start) for start in range(0, slots, STRETCH)]
        places = torch.rand(users, 4, generator=rng).tolist()
        theirs = config.torch_rng("cpu")  # all their draws come from it
        state = theirs.get_state()
        theirs.manual_seed(int(torch.randint(2**62, (), generator=rng)))
        try:
            links = [self._link(*place, num_rx_ant=num_rx_ant, num_tx_ant=num_tx_ant) for place in places]
            h = [torch.cat([self._response(link, stretch) for stretch in stretches])[:blocks] for link in links]
        finally:
            theirs.set_state(state)
        return torch.stack(h, dim=1)

    def _response(self, link: Link, slots: int) -> Tensor:
        """Channels `[slots * num_prb, num_rx_ant, num_tx_ant]` of one user."""
        from sionna.phy.channel import cir_to_ofdm_channel

        prb = 12 * self.subcarrier_spacing_hz
        frequencies = (torch.arange(self.num_prb) + 0.5 - self.num_prb / 2) * prb
        h = cir_to_ofdm_channel(frequencies, *link(slots, self.subcarrier_spacing_hz / 15))
        return h[0, 0, :, 0].permute(2, 3, 0, 1).flatten(0, 1).to(torch.complex128)

    def _link(
        self, bearing: float, turn: float, heading: float, place: float, *, num_rx_ant: int, num_tx_ant: int
    ) -> Link:
        """The impulse responses of one user, whose four coordinates are uniform in [0, 1]."""
        from sionna.phy.channel.tr38901 import CDL, TDL, PanelArray, UMi

        family, _, profile = self.model.partition("-")
        common: dict[str, Any] = {"carrier_frequency": self.carrier_frequency_hz, "spec_version": "19.2", **CPU}
        if family == "TDL":
            antennas = {"num_rx_ant": num_rx_ant, "num_tx_ant": num_tx_ant}
            return partial(TDL(profile, self.delay_spread_s, min_speed=self.speed_m_s, **antennas, **common), 1)
        frequency, speed = self.carrier_frequency_hz, self.speed_m_s
        bs, ut = (PanelArray(1, n, "single", "V", "omni", frequency, **CPU) for n in (num_rx_ant, num_tx_ant))
        common |= {"bs_array": bs, "ut_array": ut, "direction": "uplink"}
        beta, phi = (bearing - 0.5) * math.tau / 3, heading * math.tau
        turned = torch.tensor([turn * math.tau, 0.0, 0.0])
        velocity = torch.tensor([speed * math.cos(phi), speed * math.sin(phi), 0.0])
        if family == "CDL":  # fixes where paths come from: the base station turns instead of the user going round it
            seen = {"ut_orientation": turned, "bs_orientation": torch.tensor([-beta, 0.0, 0.0])}
            return partial(CDL(profile, self.delay_spread_s, ut_velocity=velocity, **seen, **common), 1)
        umi = UMi(o2i_model="low", enable_pathloss=False, enable_shadow_fading=False, **common)
        distance = math.sqrt(10.0**2 + place * (150.0**2 - 10.0**2))
        at = torch.tensor([[[distance * math.cos(beta), distance * math.sin(beta), 1.5]]])
        base, ahead, outdoors = torch.tensor([[[0.0, 0.0, 10.0]]]), torch.zeros(1, 1, 3), torch.zeros(1, 1).bool()
        umi.set_topology(at, base, turned[None, None], ahead, velocity[None, None], outdoors, "random")
        return umi
