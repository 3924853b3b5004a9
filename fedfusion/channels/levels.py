"""The last step of an uplink, at three levels of fidelity: equivalent noise, symbols, packets."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from fedfusion.channels.packet import Delivered, Packet
from fedfusion.channels.receiver import Filtered

SIDE_BITS = 32  # the RMS of a task vector, one float32
CHUNK = 10_000  # symbols of a stream that are held at once
Step = Callable[[Tensor, slice], Tensor]


@dataclass(frozen=True)
class Link:
    """What one scheduled group of `K` users meets on the air.

    Attributes
    ----------
    streams : [B, N_r, L]
        Effective channels of the streams, `L / K` of each user in turn.
    covariance : [B, N_r, N_r]
        Of noise and jamming.
    filtered
        The receive filters and what they do.
    data
        Data symbols per coherence block and stream.
    num_streams
        Streams of each user.
    """

    streams: Tensor
    covariance: Tensor
    filtered: Filtered
    data: int
    num_streams: int

    def by_user(self, values: Tensor) -> Tensor:
        """`values [B, L]` as `[K, B, num_streams]`."""
        return values.unflatten(1, (-1, self.num_streams)).movedim(1, 0)

    def mean(self, values: Tensor, uses: Sequence[int]) -> Tensor:
        """Mean `[K]` of `values [K, B, num_streams]` over the first `uses [K]` channel uses of each user."""
        filled = torch.tensor(uses)[:, None] - self.data * torch.arange(values.shape[1])
        weights = filled.clamp(0, self.data).double()
        return (values.double().mean(-1) * weights).sum(1) / weights.sum(1)


def equivalent(
    sent: Tensor, received: Tensor, sizes: Sequence[int], link: Link, rescale: bool, rng: torch.Generator
) -> None:
    r"""Each stream as a gain and white noise: exact to second moments, whatever the filter believes.

    .. math:: \hat u = \Re(g)\, u + \sqrt{v + \Im(g)^2}\; n, \qquad n \sim \mathcal N(0, 1)

    for unit-power real parameters `u`, with :math:`g = w^H f` and the power `v` of all that is not the stream itself.
    Fills `received [K, d]` from `sent [K, d]`, of which the first `sizes [K]` entries count.
    """
    gain = link.by_user(link.filtered.gain)
    spread = (link.by_user(link.filtered.disturbance) + gain.imag.square()).sqrt().float()
    gain = gain.real.float()

    def step(unit: Tensor, blocks: slice) -> Tensor:
        noise = torch.randn(unit.shape, generator=rng).mul_(spread[:, blocks, None, :, None])
        return noise.addcmul_(unit, gain[:, blocks, None, :, None])

    _through(step, sent, received, sizes, link, rescale, rng)


def analog(
    sent: Tensor, received: Tensor, sizes: Sequence[int], link: Link, rescale: bool, rng: torch.Generator
) -> None:
    """The symbols themselves: superposed by the channel, jammed, filtered.

    Fills `received [K, d]` from `sent [K, d]`, of which the first `sizes [K]` entries count.
    """
    filters, streams = link.filtered.filters.to(torch.complex64), link.streams.to(torch.complex64)
    root = torch.linalg.cholesky(link.covariance).to(torch.complex64)
    cancelled = link.filtered.cancelled
    before = None if cancelled is None else (filters @ streams).masked_fill(~cancelled, 0.0)

    def step(unit: Tensor, blocks: slice) -> Tensor:
        k, b, t, s, _ = unit.shape
        symbols = torch.view_as_complex(unit * 0.5**0.5).permute(1, 0, 3, 2).reshape(b, k * s, t)
        white = torch.view_as_complex(torch.randn(b, root.shape[-1], t, 2, generator=rng) * 0.5**0.5)
        estimate = filters[blocks] @ (streams[blocks] @ symbols + root[blocks] @ white)
        if before is not None:
            estimate -= before[blocks] @ symbols
        return torch.view_as_real(estimate.view(b, k, s, t).permute(1, 0, 3, 2)) * 2**0.5

    _through(step, sent, received, sizes, link, rescale, rng)


def packets(
    sent: Tensor,
    received: Tensor,
    sizes: Sequence[int],
    link: Link,
    packet: Packet,
    codes: Sequence[int],
    rng: torch.Generator,
) -> list[Delivered]:
    """Quantised and coded; where streams are cancelled, a lost code block spoils those that are decoded after it.

    Fills `received [K, d]` from `sent [K, d]`, of which the first `sizes [K]` entries count; `codes [K]` is each
    user's modulation and coding scheme.
    """
    sinr = link.by_user(link.filtered.sinr)
    cancelled = link.filtered.cancelled  # one stream per user, then
    order = range(len(sizes)) if cancelled is None else cancelled[0].sum(-1).argsort().tolist()
    spoilt = torch.zeros(link.data * len(link.streams), dtype=torch.bool)  # by channel use
    delivered: dict[int, Delivered] = {}
    received.copy_(sent)  # what is not finite stays so: it cannot be quantised, and the guard wants to see it
    for user in order:
        row = sent[user, : sizes[user]]
        num, symbols = packet.num_blocks(len(row), codes[user]), packet.num_symbols(len(row), codes[user])
        doomed = spoilt[:symbols].view(num, -1).any(1) if cancelled is not None else None
        finite = bool(row.isfinite().all())
        sent_row = row if finite else torch.zeros_like(row)
        delivered[user] = packet(sent_row, sinr[user], codes[user], link.data, rng, doomed=doomed)
        if cancelled is not None:
            spoilt[:symbols] |= delivered[user].lost.repeat_interleave(symbols // num)
        if finite:
            received[user, : sizes[user]] = delivered[user].row
    return [delivered[user] for user in range(len(sizes))]


def _through(
    step: Step, sent: Tensor, received: Tensor, sizes: Sequence[int], link: Link, rescale: bool, rng: torch.Generator
) -> None:
    """Take the rows of `sent` to unit power, piece by piece through `step`, and back.

    A row that is silent, at its end, or not finite is padded with noise: its user goes on transmitting.
    """
    received.copy_(sent)  # what is not finite stays so: it cannot be modulated, and the guard wants to see it
    rms = [row[:size].double().square().mean().sqrt() for row, size in zip(sent, sizes, strict=True)]
    scales = [float(s) if s.isfinite() else 0.0 for s in rms]
    for blocks, symbols, lo in _pieces(len(link.streams), link.data, 2 * link.num_streams):
        shape = (len(sent), blocks.stop - blocks.start, symbols, link.num_streams, 2)
        unit = torch.empty(len(sent), prod(shape[1:]))
        spans = [max(0, min(size - lo, unit.shape[1])) if s else 0 for s, size in zip(scales, sizes, strict=True)]
        for row, span in enumerate(spans):
            torch.mul(sent[row, lo : lo + span], 1 / (scales[row] or 1.0), out=unit[row, :span])
            unit[row, span:].normal_(generator=rng)
        estimate = step(unit.view(shape), blocks).reshape(unit.shape)
        for row, span in enumerate(spans):
            if rescale:
                torch.mul(estimate[row, :span], scales[row], out=received[row, lo : lo + span])
            else:
                received[row, lo : lo + span] += estimate[row, :span] - unit[row, :span]


def _pieces(blocks: int, data: int, reals: int) -> Iterator[tuple[slice, int, int]]:
    """Whole coherence blocks, or parts of a long one: which, how many symbols of each, and the first parameter."""
    many = max(1, CHUNK // data)
    for first in range(0, blocks, many):
        last = min(first + many, blocks)
        for symbol in range(0, data, CHUNK):
            yield slice(first, last), min(CHUNK, data - symbol), (first * data + symbol) * reals
