"""Who jams the uplink, how hard, and what they know."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fedfusion.channels.awgn import LIMIT_DB
from fedfusion.channels.mirror_descent import exponentiated_gradient
from fedfusion.channels.worst_case import (
    Objective,
    duality_gap,
    fixed_filter,
    mse_levels,
    single_target,
    sum_rate_levels,
)
from fedfusion.types import FedfusionError

CHUNK = 1024  # blocks at a time: the covariances of an antenna array of 64 in 64 MiB


@dataclass(frozen=True)
class Scene:
    """What there is to know of one group of users that transmit together, over `B` coherence blocks.

    Attributes
    ----------
    streams : [B, N_r, L]
        `F`, complex128: received is `F` times unit-power symbols, plus noise and jamming.
    users : [L]
        The user of each stream.
    noise
        Power of the thermal noise per receive antenna, above zero.
    power
        Mean received power per antenna of one user, the reference of the JSR.
    filters : [B, L, N_r]
        `W`: the receive filters, designed as if nobody jammed; None where no jammer asks for them.
    block, pilots
        Symbols per coherence block, and how many of them are pilots; 0: the receiver knows the channel.
    """

    streams: Tensor
    users: Tensor
    noise: float
    power: float
    filters: Tensor | None
    block: int
    pilots: int


@dataclass(frozen=True)
class Jamming:
    """What a jammer does to a :class:`Scene`.

    Attributes
    ----------
    covariance : [B, N_r, N_r]
        `R_J = G Z G^H`, as it is received during data symbols.
    pilot_power : [B]
        Mean received power per antenna during pilot symbols: `tr(R_J) / N_r` unless the pilots are the objective.
    gap
        By how much at most the worst block misses the jammer's optimum, in nat or in the unit of the MSE; zero where
        there is nothing to optimise. With `knowledge=statistics` the optimum is that against the mean covariance.
    energy
        Spent budget per symbol, over all blocks: received power per antenna (`rx`), or `tr Z` (`tx`).
    """

    covariance: Tensor
    pilot_power: Tensor
    gap: float
    energy: float


@dataclass(frozen=True)
class Jammer:
    r"""A jammer of limited energy, who minimises what is received by choosing the covariance `Z` of what it sends.

    .. math:: \operatorname{tr} R_J = N_r P\, 10^{\mathrm{JSR}/10} \;\text{(rx)}, \qquad
              \operatorname{tr} Z = P\, 10^{\mathrm{JSR}/10} \;\text{(tx)}, \qquad R_J = G Z G^H

    with `P` the received power of *one* user per antenna. Equal settings spend equal energy, whatever the objective:
    barrage is the control of all others, and no objective is milder than it by its own measure. With `N_r = 1` and
    budget `rx` all that jam data are barrage; `jsr_db=-inf` is nobody.

    Parameters
    ----------
    objective
        `barrage`: white over space. `sum_rate`: the rate of all users together. `strongest_user`: in each block, the
        rate of the user with the most of it were nobody jammed. `mse`: the total MSE of the best linear receiver that
        knows the jammer. `fixed_filter`: the total MSE of the receiver that does not. `pilot`: barrage of the pilots
        with all the energy, so that the channel is estimated wrongly. `none`: nobody.
    jsr_db
        Jammer-to-signal ratio in dB, mean over all symbols and blocks.
    budget
        `rx`: power as it is received, `G = I`, whatever the way there. `tx`: power as it is sent, with `G` of
        independent CN(0, 1) entries in each block: more antennas have an array gain, fewer than `N_r` can be nulled.
    num_ant
        Antennas `N_J` of the jammer under budget `tx`.
    duty_cycle
        Share of the blocks that it jams, with the power raised so that the energy stays.
    knowledge
        `statistics`: the mean covariance of each user, not the blocks, nor `G` under budget `tx`, where every direction
        is then as good as any other: barrage. `channel`: `F` and `G` of each block. `filter`: `W` too.

    Raises
    ------
    FedfusionError
        If a value is out of range, or two of them contradict each other.

    References
    ----------
    Gao, Vorobyov, Jiang, "Efficient Strategies for Single/Multi-Target Jamming on MIMO Gaussian Channels", 2014,
    https://arxiv.org/abs/1401.3569; pilots: Pezeshki, Zhou, Maham, "Jamming Energy Allocation in Training-Based
    Multiple Access Systems", IEEE Communications Letters 2013, https://arxiv.org/abs/1210.0086
    """

    objective: Literal["none", "barrage", "sum_rate", "strongest_user", "mse", "fixed_filter", "pilot"] = "none"
    jsr_db: float = 0.0
    budget: Literal["rx", "tx"] = "rx"
    num_ant: int | None = None
    duty_cycle: float = 1.0
    knowledge: Literal["statistics", "channel", "filter"] = "filter"

    def __post_init__(self) -> None:
        if not self.jsr_db <= LIMIT_DB:
            raise FedfusionError(
                f"channel.jammer.jsr_db must be at most {LIMIT_DB:g}, got {self.jsr_db} (-inf: nobody)"
            )
        if not 0 < self.duty_cycle <= 1:
            raise FedfusionError(
                f"channel.jammer.duty_cycle must be above 0 and at most 1, got {self.duty_cycle} "
                "(1 jams every block; set channel.jammer.objective=none for nobody)"
            )
        if self.budget == "rx" and self.num_ant is not None:
            raise FedfusionError(
                f"channel.jammer.num_ant={self.num_ant} has no meaning with channel.jammer.budget=rx, which counts "
                "power at the receiver's antennas (leave out num_ant, or set budget=tx)"
            )
        if self.budget == "tx" and (self.num_ant is None or self.num_ant < 1):
            raise FedfusionError(
                f"channel.jammer.budget=tx needs channel.jammer.num_ant of at least 1, got {self.num_ant} "
                "(set num_ant, or budget=rx)"
            )
        if self.objective == "fixed_filter" and self.knowledge != "filter":
            raise FedfusionError(
                "channel.jammer.objective=fixed_filter needs channel.jammer.knowledge=filter, got "
                f"{self.knowledge} (set knowledge=filter, or objective=mse)"
            )

    def __call__(self, scene: Scene, rng: torch.Generator) -> Jamming:
        """Jam `scene`; `rng` draws the blocks and `G`, alike for all objectives.

        Raises
        ------
        FedfusionError
            If the pilots are the objective and there are none.
        """
        blocks, num_rx = scene.streams.shape[:2]
        if self.objective == "pilot" and not scene.pilots:
            raise FedfusionError(
                f"channel.jammer.objective=pilot needs channel.pilots of at least 1, got {scene.pilots} "
                "(raise channel.pilots, or choose another objective)"
            )
        received = torch.zeros(blocks, num_rx, num_rx, dtype=scene.streams.dtype)
        power = scene.power * 10 ** (self.jsr_db / 10) * (num_rx if self.budget == "rx" else 1)
        if self.objective == "none" or power == 0:
            return Jamming(received, torch.zeros(blocks, dtype=torch.float64), 0.0, 0.0)
        jammed = torch.randperm(blocks, generator=rng)[: max(1, round(self.duty_cycle * blocks))].sort().values
        power *= blocks / len(jammed)
        if self.objective == "pilot":
            power *= scene.block / scene.pilots
        mean = _mean(scene) if self.knowledge == "statistics" else None
        spent, gap = 0.0, 0.0
        for rows in jammed.split(CHUNK):
            path = None
            if self.num_ant is not None:
                path = torch.randn(len(rows), num_rx, self.num_ant, dtype=received.dtype, generator=rng)
            filters = None if scene.filters is None else scene.filters[rows]
            known = mean or replace(scene, streams=scene.streams[rows], filters=filters)
            z, missed = self._choose(known, power, path)
            received[rows] = z if path is None else path @ z @ path.mH
            spent += float(z.diagonal(dim1=1, dim2=2).real.sum(1).expand(len(rows)).sum())
            gap = max(gap, missed)
        energy = spent / blocks / (num_rx if self.budget == "rx" else 1)
        pilot_power = received.diagonal(dim1=1, dim2=2).real.mean(1)
        if self.objective == "pilot":
            return Jamming(torch.zeros_like(received), pilot_power, gap, energy * scene.pilots / scene.block)
        return Jamming(received, pilot_power, gap, energy)

    def _choose(self, scene: Scene, power: float, path: Tensor | None) -> tuple[Tensor, float]:
        """`Z [B, N_J, N_J]` of `tr Z = power` for the blocks of `scene`, and the largest gap."""
        f = scene.streams
        blocks, num_rx, _ = f.shape
        one = torch.eye(num_rx, dtype=f.dtype)
        if self.objective in ("barrage", "pilot") or (self.knowledge == "statistics" and path is not None):
            num_ant = num_rx if path is None else path.shape[2]
            return (torch.eye(num_ant, dtype=f.dtype) * (power / num_ant)).expand(blocks, -1, -1), 0.0
        budget = torch.full((blocks,), power, dtype=torch.float64)
        if self.objective == "fixed_filter":
            assert scene.filters is not None
            z, m = fixed_filter(scene.filters, budget, path)
            return z, float(duality_gap(m, z, budget).max())
        if self.objective == "strongest_user":
            own = _strongest(scene)
            signal, others = (f * mask[:, None, :] for mask in (own, ~own))
            background = scene.noise * one + others @ others.mH
            target = Objective(signal @ signal.mH, background, budget, path)
            alone = len(scene.users.unique()) == len(scene.users)
            z = single_target(signal.sum(2), background, budget, path) if alone else exponentiated_gradient(target)
            return z, float(target.gap(z).max())
        criterion: Literal["rate", "mse"] = "mse" if self.objective == "mse" else "rate"
        target = Objective(f @ f.mH, (scene.noise * one).expand(blocks, -1, -1), budget, path, criterion)
        if path is None:
            s, u = torch.linalg.eigh(target.signal)
            levels = (mse_levels if criterion == "mse" else sum_rate_levels)(s, scene.noise, budget)
            z = (u * levels[:, None, :]) @ u.mH
        else:
            z = exponentiated_gradient(target)
        return z, float(target.gap(z).max())


def _strongest(scene: Scene) -> Tensor:
    """Which streams `[B, L]` belong to the user with the largest `log det(I + S_k / noise)` of the block."""
    gram = scene.streams.mH @ scene.streams / scene.noise + torch.eye(len(scene.users))
    users = scene.users.unique()
    rates = [torch.linalg.slogdet(gram[:, own][:, :, own])[1] for own in (scene.users == user for user in users)]
    return scene.users == users[torch.stack(rates, 1).argmax(1)][:, None]


def _mean(scene: Scene) -> Scene:
    """One block in which each user's covariance is the mean of its covariances in `scene`."""
    streams, users = [], []
    for user in scene.users.unique():
        rows = scene.streams[:, :, scene.users == user].mH.flatten(0, 1)
        root = torch.linalg.qr(rows, mode="r")[1].mH / len(scene.streams) ** 0.5
        streams.append(root)
        users.append(user.expand(root.shape[1]))
    return replace(scene, streams=torch.cat(streams, 1)[None], users=torch.cat(users), filters=None)
