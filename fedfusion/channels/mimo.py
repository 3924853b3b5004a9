"""A multi-antenna uplink: many clients, one base station, and a jammer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, inf, log10
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedfusion.channels.fading import Fading, Flat
from fedfusion.channels.fidelity import fidelity
from fedfusion.channels.jammer import Jammer, Jamming, Scene
from fedfusion.channels.levels import SIDE_BITS, Link, analog, equivalent, packets
from fedfusion.channels.packet import Packet
from fedfusion.channels.path_loss import UMi
from fedfusion.channels.receiver import Receiver, complex_normal
from fedfusion.types import ChannelReport, FedfusionError, Updates

NOISE = 1.0  # powers are in units of the thermal noise at one receive antenna
SOUNDED = 64  # coherence blocks from which a packet's modulation and coding scheme is chosen


@dataclass(frozen=True)
class Mimo:
    r"""Block-fading uplink of users with `num_tx_ant` antennas to a base station with `num_rx_ant`.

    Scheduled groups of `group_size` clients transmit at once, one group after the other. In each coherence block

    .. math:: y = \sum_k \sqrt{p_k / n_s}\, H_k V_k x_k + G z + n, \qquad n \sim \mathcal{CN}(0, I),

    with the :math:`n_s` = `num_streams` strongest eigen-beams :math:`V_k` of each client, unit-power symbols, and
    jamming of covariance :math:`R_J = G Z G^H`. A task vector is divided by its RMS, which is protected side
    information; two real parameters make one complex symbol. Every level draws :math:`\{H_k, G\}`, lets the jammer
    choose :math:`Z` and filters; they differ in the last step:

    - `mse`: each stream's gain and the equivalent white noise of its filter, exact to second moments;
    - `analog`: the symbols themselves, through :math:`H_k`, jamming, noise and filter;
    - `packet`: quantised, coded and modulated; code blocks are lost as the block error table says of their SINR.

    SNR is received power of one client over thermal noise, per receive antenna and before any combining
    (:math:`p_k`, with :math:`E|h_{ij}|^2 = 1`). JSR counts against one client too; where clients differ, against the
    mean in dB over those of the round. Noise and jamming are total powers of complex symbols, half of them in each
    real parameter. Clients that have less to send than others of their group fill the time with padding.

    Parameters
    ----------
    level
        `mse`, `analog` or `packet`.
    snr_db
        One value, or a list that is repeated over the clients; null where `path_loss` decides.
    num_rx_ant, num_tx_ant
        Antennas of the base station and of each client.
    num_streams
        Parallel streams of each client, its power shared equally. As many as `num_tx_ant` is no beam forming.
    group_size
        Clients that transmit at once; null is as many as `num_rx_ant // num_streams`.
    coherence_block
        Symbols per coherence block and stream, pilots included; null is one draw of the channel for the whole upload.
    pilots
        Pilot symbols in each coherence block, at the power of data; `0` is a receiver that knows the channel without.
        They and the silent symbols of `receiver.knowledge=sample` cost air time.
    fading, jammer, receiver
        The parts.
    packet
        What `level=packet` sends.
    path_loss
        Places of the clients, from which their SNR follows.
    tx_power_dbm, bandwidth_hz, overhead
        Power of a client; bandwidth, of which the share `overhead` carries no data (guards, control). They give
        energy and virtual time.
    deadline_s
        Uploads that end later, in virtual time from the start of the round's uplink, are lost.
    outage_rate
        Bits per channel use of a client below which a coherence block counts as outage.

    Raises
    ------
    FedfusionError
        If more streams are scheduled than the base station has antennas, SNR is given twice or not at all, there are
        fewer pilots than streams, or a value has no meaning.

    References
    ----------
    System model and worst-case jamming: R-MTLLMF, Djuhera et al., 2024, https://arxiv.org/abs/2411.18220, and
    R-SFLLM, IEEE TIFS 2025, https://arxiv.org/abs/2407.11654; estimation from pilots: Hassibi, Hochwald, "How Much
    Training is Needed in Multiple-Antenna Wireless Links?", IEEE Trans. IT 2003.
    """

    superposes: ClassVar[bool] = False
    level: Literal["mse", "analog", "packet"] = "mse"
    snr_db: float | Sequence[float] | None = 10.0
    num_rx_ant: int = 8
    num_tx_ant: int = 1
    num_streams: int = 1
    group_size: int | None = None
    coherence_block: int | None = 168
    pilots: int = 0
    fading: Fading = field(default_factory=Flat)
    jammer: Jammer = field(default_factory=Jammer)
    receiver: Receiver = field(default_factory=Receiver)
    packet: Packet = field(default_factory=Packet)
    path_loss: UMi | None = None
    tx_power_dbm: float = 23.0
    bandwidth_hz: float = 18.72e6
    overhead: float = 0.2
    deadline_s: float | None = None
    outage_rate: float = 1.0

    def __post_init__(self) -> None:
        streams = self._together * self.num_streams
        loudest = max(self._snrs, default=0.0) + self.jammer.jsr_db
        checks = {
            f"channel.num_rx_ant={self.num_rx_ant}, num_tx_ant={self.num_tx_ant}, num_streams={self.num_streams}: "
            "all must be at least 1":
                min(self.num_rx_ant, self.num_tx_ant, self.num_streams) >= 1,
            f"channel.num_streams={self.num_streams} needs as many antennas, but channel.num_tx_ant={self.num_tx_ant} "
            "(lower one or raise the other)":
                self.num_streams <= self.num_tx_ant,
            f"channel.group_size={self.group_size}: groups of {self._together} clients with num_streams="
            f"{self.num_streams} send {streams} streams at once, but num_rx_ant={self.num_rx_ant} antennas separate "
            "1 to that many (lower group_size or num_streams, or raise num_rx_ant)":
                1 <= streams <= self.num_rx_ant,
            f"channel.snr_db={self.snr_db} and channel.path_loss: exactly one of them says how strong clients are "
            "received (set the other to null)":
                (self.snr_db is None) != (self.path_loss is None),
            f"channel.snr_db={self.snr_db} must lie within -100 and 100 dB (it is in dB, not linear)":
                self.snr_db is None or (bool(self._snrs) and all(abs(snr) <= 100 for snr in self._snrs)),
            f"channel.coherence_block={self.coherence_block} leaves no room for data beside channel.pilots="
            f"{self.pilots} and the silence of channel.receiver.knowledge={self.receiver.knowledge}, {self._reserved} "
            "symbols together (raise coherence_block, or lower pilots or receiver.num_silent)":
                self.pilots >= 0 and (self.coherence_block is None or self.coherence_block > self._reserved),
            f"channel.pilots={self.pilots} are too few to tell {streams} streams apart (raise pilots to {streams}, or "
            "set it to 0 for a receiver that knows the channel)":
                self.pilots == 0 or self.pilots >= streams,
            f"channel.jammer.objective=pilot needs pilots to jam, but channel.pilots={self.pilots} (raise it to "
            f"{streams} or more)":
                self.jammer.objective != "pilot" or self.pilots > 0,
            f"channel.receiver.num_silent={self.receiver.num_silent} silent symbols do not give an invertible "
            f"covariance of channel.num_rx_ant={self.num_rx_ant} antennas (it must exceed num_rx_ant)":
                self.receiver.knowledge != "sample" or self.receiver.num_silent > self.num_rx_ant,
            "channel.receiver.rescale=false adds absolute noise, but channel.level=packet has none (set it to true, "
            "or choose another level)":
                self.receiver.rescale or self.level != "packet",
            f"channel.receiver.filter=sic takes whole clients off the signal once their packets are decoded, but "
            f"channel.num_streams={self.num_streams} (set it to 1, or choose mmse)":
                self.level != "packet" or self.receiver.filter != "sic" or self.num_streams == 1,
            f"channel.snr_db={self.snr_db} and channel.jammer.jsr_db={self.jammer.jsr_db} are {loudest:.0f} dB of "
            "jamming over thermal noise: no double tells them apart beyond 120 dB (lower one of them)":
                self.jammer.objective == "none" or not loudest > 120,
            f"channel.bandwidth_hz={self.bandwidth_hz} must be positive and finite":
                0 < self.bandwidth_hz < inf,
            f"channel.overhead={self.overhead} must be in [0, 1)":
                0 <= self.overhead < 1,
            f"channel.tx_power_dbm={self.tx_power_dbm} must lie within -100 and 100 dBm":
                abs(self.tx_power_dbm) <= 100,
            f"channel.deadline_s={self.deadline_s} must be positive, or null":
                self.deadline_s is None or self.deadline_s > 0,
            f"channel.outage_rate={self.outage_rate} must not be negative":
                self.outage_rate >= 0,
        }  # fmt: skip
        if violated := [sentence for sentence, holds in checks.items() if not holds]:
            raise FedfusionError("\n".join(violated))

    @property
    def _together(self) -> int:
        return self.num_rx_ant // max(1, self.num_streams) if self.group_size is None else self.group_size

    @property
    def _snrs(self) -> list[float]:
        return [self.snr_db] if isinstance(self.snr_db, (int, float)) else list(self.snr_db or [])

    def __call__(self, updates: Updates, rng: torch.Generator) -> tuple[Updates, ChannelReport]:
        """Send `updates.vectors [n, d]`, one group after the other; what is erased is left out of the result."""
        sent, n = updates.vectors, len(updates)
        if not n:
            return updates, ChannelReport()
        powers = self.powers(updates.clients)
        reference = float(powers.log().mean().exp())
        received = torch.empty_like(sent)
        sizes = list(updates.sizes) or [sent.shape[1]] * n
        send = self._packets if self.level == "packet" else self._symbols
        groups, gaps, energies, start_s = [], [], [], 0.0
        for first in range(0, n, self._together):
            rows = slice(first, min(first + self._together, n))
            figures, jamming = send(sent[rows], received[rows], sizes[rows], powers[rows], reference, rng)
            figures["latency_s"] = start_s + figures["air_time_s"]
            start_s = float(figures["latency_s"].max())
            groups.append(figures)
            gaps.append(jamming.gap)
            energies.append(jamming.energy)
        columns = {name: torch.cat([figures[name] for figures in groups]).tolist() for name in groups[0]}
        columns["snr"] = powers.tolist()
        columns["energy_j"] = [10 ** (self.tx_power_dbm / 10 - 3) * time_s for time_s in columns["air_time_s"]]
        fates = zip(columns["reported_nmse"], columns["latency_s"], columns["erased_share"], strict=True)
        reasons = [self._lost(*fate) for fate in fates]
        columns["erased_share"] = [1.0 if why else s for why, s in zip(reasons, columns["erased_share"], strict=True)]
        report = ChannelReport(
            per_client=fidelity(sent, received, sizes) | {name: tuple(values) for name, values in columns.items()},
            erased={client: why for client, why in zip(updates.clients, reasons, strict=True) if why},
            jamming={"gap": max(gaps), "power": sum(energies) / len(energies)},
        )
        kept = [row for row, why in enumerate(reasons) if not why]
        return updates.with_vectors(received).keep(kept), report

    def powers(self, clients: Sequence[int]) -> Tensor:
        """Received power `[n]` of each client per antenna, over thermal noise."""
        if self.path_loss is not None:
            snr_db = self.tx_power_dbm + self.path_loss.gains_db(clients) - self.path_loss.noise_dbm(self.bandwidth_hz)
        else:
            snr_db = torch.tensor([self._snrs[client % len(self._snrs)] for client in clients])
        return 10 ** (snr_db.double() / 10)

    def link(
        self, powers: Tensor, reference: float, streams: Tensor, data: int, rng: torch.Generator
    ) -> tuple[Link, Jamming]:
        """Jam and filter `streams [B, N_r, L]` of users with `powers [K]`, in coherence blocks of `data` symbols.

        `reference` is the power against which the JSR counts.
        """
        thermal = NOISE * torch.eye(self.num_rx_ant, dtype=streams.dtype).expand(len(streams), -1, -1)
        users = torch.arange(len(powers)).repeat_interleave(self.num_streams)
        # packets are decoded in an order that holds for all of them, symbols need none but the present
        order = powers.argsort(descending=True, stable=True) if self.level == "packet" else None
        fixed = self.jammer.objective == "fixed_filter"
        unjammed = self.receiver.design(streams, thermal, order)[0] if fixed else None
        scene = Scene(streams, users, NOISE, reference, unjammed, data + self._reserved, self.pilots)
        jamming = self.jammer(scene, rng)
        covariance = thermal + jamming.covariance
        believed_covariance = self.receiver.covariance(covariance, NOISE, rng)
        believed = streams
        if self.pilots:
            believed, error = self._estimate(streams, jamming, covariance, rng)
            believed_covariance = believed_covariance + error * thermal
        filtered = self.receiver(streams, covariance, believed, believed_covariance, order)
        return Link(streams, covariance, filtered, data, self.num_streams), jamming

    def streams(self, powers: Tensor, blocks: int, rng: torch.Generator) -> Tensor:
        """Draw effective channels `F [B, N_r, K * num_streams]` of users with `powers [K]`."""
        h = self.fading.draw(blocks, len(powers), self.num_rx_ant, self.num_tx_ant, rng)
        if self.num_streams < self.num_tx_ant:  # the strongest eigen-beams; using all of them is a mere rotation
            beams = torch.linalg.eigh(h.mH @ h)[1][..., -self.num_streams :]
            h = h @ beams
        h = h * (powers / self.num_streams).sqrt()[:, None, None]
        return h.permute(0, 2, 1, 3).flatten(2)

    def _estimate(
        self, streams: Tensor, jamming: Jamming, covariance: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        r"""LMMSE estimate of `streams` from orthogonal pilots, and the sum over streams of its error per entry.

        .. math:: \hat f = \frac{\beta}{\beta + \nu/\tau}\Bigl(f + \frac{w}{\sqrt\tau}\Bigr), \qquad
                  \epsilon = \frac{\beta}{1 + \tau\beta/\nu}

        with :math:`\tau` pilots, the mean power :math:`\beta` of an entry and :math:`\nu` that of noise and jamming as
        the receiver believes it: a receiver that is not unaware knows the power of jamming on pilots, if not its
        directions. Jamming of pilots alone is white.
        """
        n = self.num_rx_ant
        spread = jamming.covariance.diagonal(dim1=-2, dim2=-1).real.mean(-1)
        extra = (jamming.pilot_power - spread).clamp_min(0.0)[:, None, None] * torch.eye(n)
        noise = torch.linalg.cholesky(covariance + extra) @ complex_normal(streams.shape, rng)
        beta = streams.abs().square().mean((0, 1))
        nu = NOISE + (self.receiver.knowledge != "unaware") * jamming.pilot_power[:, None]
        shrink = beta / (beta + nu / self.pilots)
        observed = streams + noise / self.pilots**0.5
        return shrink[:, None, :] * observed, ((1 - shrink) * beta).sum(-1)[:, None, None]

    def _symbols(
        self, sent: Tensor, received: Tensor, sizes: list[int], powers: Tensor, reference: float, rng: torch.Generator
    ) -> tuple[dict[str, Tensor], Jamming]:
        """Fill `received [K, d]` with what arrives of one group that sends `sent [K, d]` unquantised."""
        uses = [ceil(size / (2 * self.num_streams)) for size in sizes]
        data = self._data(uses)
        streams = self.streams(powers, ceil(max(uses) / data), rng)
        link, jamming = self.link(powers, reference, streams, data, rng)
        step = equivalent if self.level == "mse" else analog
        step(sent, received, sizes, link, self.receiver.rescale, rng)
        filtered = link.filtered
        errors = {
            "expected_nmse": link.mean(link.by_user(filtered.nmse), uses),
            "reported_nmse": link.mean(link.by_user(1 / (filtered.reported + self.receiver.shrink)), uses),
            "bits": torch.full((len(sizes),), SIDE_BITS),
            "erased_share": torch.zeros(len(sizes)),
        }
        if not self.receiver.rescale:
            power = torch.stack([row[:size].double().square().mean() for row, size in zip(sent, sizes, strict=True)])
            errors |= {name: errors[name] / power for name in ("expected_nmse", "reported_nmse")}
        return self._figures(link, uses) | errors, jamming

    def _packets(
        self, sent: Tensor, received: Tensor, sizes: list[int], powers: Tensor, reference: float, rng: torch.Generator
    ) -> tuple[dict[str, Tensor], Jamming]:
        """The same in packets. How each user codes is chosen from the coherence blocks that go before.

        With one draw for the whole upload there are none before, and it is that one.
        """
        sounding, blocks, enough = (0 if self.coherence_block is None else SOUNDED), 1, False
        while not enough:  # how many blocks the upload takes depends on the codes, and they on the draw
            streams = self.streams(powers, sounding + blocks, rng)
            sounded, _ = self.link(powers, reference, streams[: max(1, sounding)], self._data([1]), rng)
            codes = [self.packet.choose(one, sounded.data) for one in sounded.by_user(sounded.filtered.reported)]
            uses = [
                ceil(self.packet.num_symbols(size, mcs) / self.num_streams)
                for size, mcs in zip(sizes, codes, strict=True)
            ]
            data = self._data(uses)
            needed, offered = ceil(max(uses) / data), blocks
            enough, blocks = needed <= offered, max(needed, offered)
        link, jamming = self.link(powers, reference, streams[sounding : sounding + needed], data, rng)
        delivered = packets(sent, received, sizes, link, self.packet, codes, rng)
        packed = {
            "reported_nmse": torch.zeros(len(sizes)),  # what is lost of a packet is known
            "bler": torch.tensor([one.bler for one in delivered]),
            "erased_share": torch.tensor([one.erased_share for one in delivered]),
            "bits": torch.tensor([one.bits + SIDE_BITS for one in delivered]),
            "mcs": torch.tensor(codes),
            "goodput": torch.tensor(
                [one.bits * (1 - float(one.lost.double().mean())) / n for one, n in zip(delivered, uses, strict=True)]
            ),
        }
        return self._figures(link, uses) | packed, jamming

    @property
    def _reserved(self) -> int:
        """Symbols of a coherence block that carry no data: pilots, and silence from which to learn of the jammer."""
        return self.pilots + (self.receiver.num_silent if self.receiver.knowledge == "sample" else 0)

    def _data(self, uses: Sequence[int]) -> int:
        """Data symbols of a coherence block."""
        return max(uses) if self.coherence_block is None else self.coherence_block - self._reserved

    def _figures(self, link: Link, uses: list[int]) -> dict[str, Tensor]:
        """What can be said of each user of a group, whatever the level."""
        sinr = link.by_user(link.filtered.sinr)
        rate = (1 + sinr).log2().sum(-1, keepdim=True)
        symbol_rate = self.bandwidth_hz * (1 - self.overhead) * link.data / (link.data + self._reserved)
        return {
            "sinr": link.mean(sinr.log(), uses).exp(),
            "rate": link.mean(rate, uses),
            "outage": link.mean((rate < self.outage_rate).double(), uses),
            "air_time_s": torch.tensor(uses) / symbol_rate,
        }

    def _lost(self, reported_nmse: float, latency_s: float, erased_share: float) -> str | None:
        """Why nothing of an upload is used, if so."""
        limit_db = self.receiver.erase_above_db
        if self.deadline_s is not None and latency_s > self.deadline_s:
            return f"arrived {latency_s:.3g} s into the uplink, channel.deadline_s={self.deadline_s:g}"
        if erased_share == 1.0:
            return "lost all of its code blocks on the air"
        if limit_db is not None and reported_nmse > 10 ** (limit_db / 10):
            reported_db = 10 * log10(reported_nmse)
            return f"arrived with an NMSE of {reported_db:.1f} dB, channel.receiver.erase_above_db={limit_db:g}"
        return None
