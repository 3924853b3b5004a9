"""Block error rates of 5G's LDPC code against Es/N0, and the effective SINR mapping, bit by bit.

    pip install "fedfusion[phy]"
    OMP_NUM_THREADS=1 python -m experiments.wireless.bler --out fedfusion/assets/bler.json

For a few modulation and coding schemes (MCS) of 3GPP TS 38.214, Table 5.1.3.1-1, random blocks of 1,920 bits are
encoded (TS 38.212: LDPC, rate matching, interleaving), mapped, sent through white noise, demapped and decoded. First
over one SNR for all symbols, in steps of 0.25 dB: the table. Then over blocks whose symbols see several SNRs at once:
each such pattern is moved up and down until one block in ten is lost, and the `beta` of the exponential effective
SINR mapping is the one that makes all patterns agree best with the table. Schemes already in the file are kept.
"""

import argparse
import json
import math
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from sionna.phy.fec.ldpc import LDPC5GDecoder, LDPC5GEncoder
from sionna.phy.mapping import Demapper, Mapper
from torch import Tensor

INFORMATION_BITS = 1920  # 240 parameters of 8 bit, 480 of 4 bit; ten times a lifting size: base graph 2 needs no filler
SCHEMES = {  # index in TS 38.214 Table 5.1.3.1-1: bits per symbol, code rate x 1024
    0: (2, 120),
    4: (2, 308),
    7: (2, 526),
    10: (4, 340),
    13: (4, 490),
    16: (4, 658),
    20: (6, 567),
    24: (6, 772),
    28: (6, 948),
}
DECODER, ITERATIONS = "boxplus-phi", 20  # sionna's own defaults
BATCH = 10  # blocks decoded at once: more do not fit into the cache
STEP_DB = 0.25
TARGET = 0.1  # block error rate at which beta is fitted
FADES_DB = tuple(10 * math.log10(-math.log(1 - (i + 0.5) / 8)) for i in range(8))  # Rayleigh, eight quantiles
PATTERNS: tuple[tuple[tuple[float, ...], bool], ...] = (  # levels in dB; alternating by symbol, or one after the other
    ((0, -6), False),
    ((0, -10), True),
    ((0, -10), False),
    ((0, -10, -10, -10), True),
    (FADES_DB, False),
    (FADES_DB, True),
)


class Link:
    """One scheme: from information bits to decoded bits. The code's rate is at least 1/5; below, bits are repeated."""

    def __init__(self, index: int):
        m, rate = SCHEMES[index]
        self.num_symbols = math.ceil(INFORMATION_BITS * 1024 / (rate * m))
        self.bits_per_symbol, self.rate_x1024, self.coded_bits = m, rate, m * self.num_symbols
        buffer = min(self.coded_bits, 5 * INFORMATION_BITS)
        read = torch.arange(self.coded_bits) % buffer  # the circular buffer, then the interleaver of TS 38.212 5.4.2
        self._read = read.unflatten(0, (m, -1)).T.flatten()
        self._encoder = LDPC5GEncoder(INFORMATION_BITS, buffer)
        self._decoder = LDPC5GDecoder(self._encoder, cn_update=DECODER, num_iter=ITERATIONS)
        self._mapper, self._demapper = Mapper("qam", m), Demapper("app", "qam", m)

    def send(self, bits: Tensor, sinr: Tensor, rng: torch.Generator) -> Tensor:
        """What is decoded of `bits [n, INFORMATION_BITS]` when the symbols see `sinr [n, num_symbols]`, linear."""
        symbols = self._mapper(self._encoder(bits)[:, self._read])
        noise = torch.view_as_complex(torch.randn(*symbols.shape, 2, generator=rng) * math.sqrt(0.5))
        llr = self._demapper(symbols + noise * sinr.rsqrt(), 1 / sinr)
        combined = torch.zeros(len(bits), self._encoder.n).index_add_(1, self._read, llr)
        return self._decoder(combined)

    def errors(self, levels: Tensor, blocks: int, rng: torch.Generator) -> int:
        """How many of `blocks` are wrong when their symbols see `levels [num_symbols]`, begun anywhere, cyclically."""
        bits = torch.randint(0, 2, (blocks, INFORMATION_BITS), generator=rng).float()
        begin = torch.randint(self.num_symbols, (blocks, 1), generator=rng)
        sinr = levels[(begin + torch.arange(self.num_symbols)) % self.num_symbols]
        return int((self.send(bits, sinr, rng) != bits).any(1).sum())

    def spread(self, levels_db: tuple[float, ...], alternating: bool) -> Tensor:
        """The SNR in dB of each symbol, `[num_symbols]`."""
        i = torch.arange(self.num_symbols)
        return torch.tensor(levels_db)[i % len(levels_db) if alternating else i * len(levels_db) // self.num_symbols]

    def bler(self, levels_db: Tensor, few: int, many: int, rng: torch.Generator) -> tuple[float, int]:
        """The block error rate (Jeffreys' estimate, never 0 or 1) of `many` blocks, or `few` if nearly all are lost."""
        lost = sent = 0
        while sent < few or (sent < many and lost < 0.95 * sent):
            lost, sent = lost + self.errors(10 ** (levels_db / 10), BATCH, rng), sent + BATCH
        return (lost + 0.5) / (sent + 1), sent


def log_odds(p: float) -> float:
    return math.log(p / (1 - p))


def crossing(x: list[float], bler: list[float]) -> float:
    """Where the log-odds of `bler`, which falls with `x`, pass those of the target."""
    return float(np.interp(-log_odds(TARGET), [-log_odds(p) for p in bler], x))


def waterfall(link: Link, few: int, many: int, rng: torch.Generator) -> dict[str, list]:
    """The table of one scheme: from the last point where all blocks are lost to the first below one in a thousand."""
    capacity_db = 10 * math.log10(2 ** (INFORMATION_BITS / link.num_symbols) - 1)
    snr_db, bler, blocks = [STEP_DB * math.floor(capacity_db / STEP_DB)], [], []
    while True:
        p, sent = link.bler(torch.full((link.num_symbols,), snr_db[-1]), few, many, rng)
        if 1 - p < 1 / (sent + 1):
            snr_db, bler, blocks = snr_db[-1:], [], []
        bler, blocks = [*bler, round(p, 6)], [*blocks, sent]
        print(f"    {snr_db[-1]:6.2f} dB  {p:.4f}  ({sent} blocks)", flush=True)
        if p < max(1e-3, 1 / sent):  # or none at all was lost
            return {"snr_db": snr_db, "bler": bler, "blocks": blocks}
        snr_db.append(snr_db[-1] + STEP_DB)


def eesm_db(levels_db: Tensor, beta: float) -> float:
    """The effective SINR of all symbols together, in dB."""
    sinr = 10 ** (levels_db.double() / 10)
    return 10 * math.log10(beta * -float(torch.logsumexp(-sinr / beta, 0) - math.log(len(sinr))))


def fit(thresholds: list[Tensor], threshold_db: float) -> tuple[float, list[float]]:
    """The `beta` with which all patterns, each at its threshold, agree best with the table; and their errors in dB."""

    def error(beta: float) -> list[float]:
        return [eesm_db(levels_db, beta) - threshold_db for levels_db in thresholds]

    beta = min(np.geomspace(0.1, 200, 2000), key=lambda beta: sum(e * e for e in error(beta)))
    return float(beta), error(beta)


def calibrate(link: Link, threshold_db: float, blocks: int, rng: torch.Generator) -> dict[str, float | list[float]]:
    """`beta` of one scheme."""
    thresholds: list[Tensor] = []
    beta, errors = 10 ** (0.08 * threshold_db), [0.0]  # a first guess
    for levels_db, alternating in PATTERNS:
        pattern = link.spread(levels_db, alternating)
        shift = next(
            x for x in threshold_db - 10 + STEP_DB * np.arange(200) if eesm_db(pattern + x, beta) > threshold_db
        )
        seen: dict[float, float] = {}
        while not seen or (max(seen.values()) > TARGET) == (min(seen.values()) > TARGET):
            if seen:
                shift = max(seen) + STEP_DB if min(seen.values()) > TARGET else min(seen) - STEP_DB
            seen[shift], _ = link.bler(pattern + shift, blocks, blocks, rng)
        ordered = sorted(seen)
        thresholds.append(pattern + crossing(ordered, [seen[shift] for shift in ordered]))
        beta, errors = fit(thresholds, threshold_db)
        print(f"    {len(seen)} points, beta {beta:.2f}, errors {[round(e, 2) for e in errors]} dB", flush=True)
    return {"beta": round(beta, 4), "eesm_error_db": [round(e, 3) for e in errors]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--mcs", type=int, nargs="*", default=list(SCHEMES))
    parser.add_argument(
        "--few", type=int, default=150, help="blocks per pattern, and per point where nearly all are lost"
    )
    parser.add_argument("--many", type=int, default=1500, help="blocks per other point of the table")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    provenance = {
        "made_by": "experiments/wireless/bler.py",
        "sionna": version("sionna-no-rt"),
        "code": "5G NR LDPC (3GPP TS 38.212), QAM of TS 38.211, exact (APP) demapping, AWGN of Es/N0 snr_db",
        "schemes": "3GPP TS 38.214 Table 5.1.3.1-1",
        "decoder": DECODER,
        "iterations": ITERATIONS,
        "estimate": "(lost + 1/2) / (blocks + 1)",
        "beta": f"least squares in dB over {len(PATTERNS)} patterns of SNRs, {args.few} blocks each, "
        f"at block error rate {TARGET}",
        "seed": args.seed,
    }
    mcs = json.loads(args.out.read_text())["mcs"] if args.out.exists() else []
    for index in args.mcs:
        if any(row["index"] == index for row in mcs):
            continue
        started, rng = time.process_time(), torch.Generator().manual_seed(1000 * args.seed + index)
        link = Link(index)
        print(f"MCS {index}: {link.num_symbols} symbols", flush=True)
        table = waterfall(link, args.few, args.many, rng)
        calibration = calibrate(link, crossing(table["snr_db"], table["bler"]), args.few, rng)
        row = {"index": index, "bits_per_symbol": link.bits_per_symbol, "code_rate_x1024": link.rate_x1024}
        row |= {"information_bits": INFORMATION_BITS, "coded_bits": link.coded_bits}
        mcs.append(row | calibration | table)
        mcs.sort(key=lambda row: row["index"])
        lines = ",\n  ".join(json.dumps(row) for row in mcs)
        head = json.dumps({"provenance": provenance}, indent=1)
        args.out.write_text(f'{head[:-2]},\n "mcs": [\n  {lines}\n ]\n}}\n')
        print(f"  {time.process_time() - started:.0f} CPU-s", flush=True)


if __name__ == "__main__":
    main()
