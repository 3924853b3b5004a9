"""The packet level against the bits themselves: LDPC of 5G, encoded, sent and decoded."""

import importlib
import warnings
from pathlib import Path

import pytest
import torch

from fedfusion.channels.packet import Packet, table

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bler(monkeypatch):
    """The script that made the table."""
    pytest.importorskip("sionna")
    monkeypatch.syspath_prepend(ROOT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("experiments.wireless.bler")


def threshold_db(sending, sinr, mcs, block, target):
    """By how many dB `sinr` must be raised for the packet level to predict the target, to 0.01 dB."""
    row, rng = torch.zeros(240), torch.Generator()
    low, high = -60.0, 60.0
    while high - low > 0.01:
        middle = (low + high) / 2
        predicted = sending(row, sinr * 10 ** (middle / 10), mcs, block, rng).bler
        low, high = (middle, high) if predicted > target else (low, middle)
    return high


def to_bits(row):
    """Code blocks `[num, 1920]` of the levels of `row`, the last one padded."""
    step = float(row.abs().max()) / 127
    levels = (row / step).round().to(torch.int16) + 128
    bits = (levels[:, None] >> torch.arange(8, dtype=torch.int16)) & 1
    padding = torch.zeros(-bits.numel() % 1920)
    return torch.cat([bits.flatten().float(), padding]).view(-1, 1920), step


def from_bits(blocks, step, d):
    levels = (blocks.flatten()[: 8 * d].view(d, 8) * 2.0 ** torch.arange(8)).sum(1)
    return (levels - 128) * step


def test_bits_deliver_what_packets_deliver(bler, rng):
    sending, link, scheme = Packet(), bler.Link(28), table()[28]
    row = torch.randn(10_000, generator=rng)
    assert link.num_symbols == scheme.num_symbols and len(to_bits(row)[0]) == sending.num_blocks(len(row), 28)
    for shift_db, arrives in ((1.0, True), (-3.0, False)):
        sinr = torch.full((1, 1), 10 ** ((threshold_db(sending, torch.ones(1, 1), 28, 10**6, 0.1) + shift_db) / 10))
        delivered = sending(row, sinr, 28, 10**6, rng)
        blocks, step = to_bits(sending.quantise(row, rng))
        received = link.send(blocks, sinr.expand(len(blocks), link.num_symbols), rng)
        assert bool((received == blocks).all()) == arrives
        error, expected = ((x - row).square().mean() for x in (from_bits(received, step, len(row)), delivered.row))
        assert float(error) == pytest.approx(float(expected), rel=0.05) if arrives else float(expected) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("mcs", [13, 28])
def test_blocks_are_lost_as_often_as_the_table_says(bler, mcs):
    sending, link = Packet(), bler.Link(mcs)
    row = torch.zeros(10_000)
    threshold = threshold_db(sending, torch.ones(1, 1), mcs, 10**6, 0.1)
    for shift_db in (-0.6, -0.4, -0.2, 0.0, 0.3):
        sinr = torch.full((1, 1), 10 ** ((threshold + shift_db) / 10))
        predicted = sending(row, sinr, mcs, 10**6, torch.Generator()).bler
        wrong = sent = 0
        for seed in range(24):  # 42 code blocks each: a standard deviation of 0.016 at most, and 0.013 in the table
            generator = torch.Generator().manual_seed(seed)
            wrong += link.errors(sinr[0].expand(link.num_symbols), sending.num_blocks(len(row), mcs), generator)
            sent += sending.num_blocks(len(row), mcs)
        assert wrong / sent == pytest.approx(predicted, abs=0.05), (shift_db, wrong, sent)


@pytest.mark.parametrize("levels_db", [(0.0, -10.0), (0.0, -4.0)])
def test_two_streams_of_different_sinr_are_worth_their_effective_one(bler, levels_db, rng):
    sending, link = Packet(), bler.Link(28)
    sinr = 10 ** (torch.tensor([levels_db]) / 10)
    threshold = threshold_db(sending, sinr, 28, 10**6, 0.1)
    symbols = sinr.expand(link.num_symbols // 2, 2).flatten()
    lost = [link.errors(symbols * 10 ** ((threshold + shift_db) / 10), 100, rng) / 100 for shift_db in (-0.5, 0.5)]
    assert lost[0] > 0.25 and lost[1] < 0.05
