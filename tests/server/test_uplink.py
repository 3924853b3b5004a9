import json
import math

import pytest
import torch
from command import SMALL
from flwr.app import Context, RecordDict

from fedfusion.apps import client_app, server_app
from fedfusion.channels import Awgn, Ideal, Mimo
from fedfusion.config import resolve, to_json
from fedfusion.federation.inline import InlineGrid
from fedfusion.lora.payload import Payload
from fedfusion.server.uplink import Uplink, decibel, fused_fidelity


def run(folder, *overrides):
    small = [override for override in SMALL if not override.startswith("realign")]
    cfg = resolve([*small, "client.steps=1", "realign=none", f"run_dir='{folder}'", *overrides])
    server_app(InlineGrid(client_app, 4, 60.0), Context(1, 0, {}, RecordDict(), {"config": to_json(cfg)}))
    return json.loads((folder / "results.json").read_text())["metrics"]


def test_the_record_says_what_happened_to_each_client_and_module(layout, updates, rng):
    uplink = Uplink(Awgn(snr_db=0.0), Payload("factors", layout))
    received, report = uplink(updates, rng)
    record = uplink.record(updates, received, report)
    assert list(record["clients"]) == ["0", "1", "2", "3", "4", "5"] and list(record["layers"]) == ["x", "y"]
    nmse = [10 ** (client["nmse_db"] / 10) for client in record["clients"].values()]
    assert nmse == pytest.approx(report.nmse) and record["mean"]["expected_nmse_db"] == pytest.approx(0.0)
    assert record["mean"]["nmse_db"] == pytest.approx(10 * math.log10(sum(nmse) / 6))
    assert 10 ** (record["nmse_median_db"] / 10) == pytest.approx((sorted(nmse)[2] + sorted(nmse)[3]) / 2)
    error, power = (received.vectors - updates.vectors).square(), updates.vectors.square()
    whole = slice(layout.offsets[0], layout.offsets[2])  # the entries of module x
    expected = decibel(float(error[:, whole].sum() / power[:, whole].sum()))
    assert record["layers"]["x"] == pytest.approx(expected, abs=1e-4)
    assert record["product_nmse_db"] > -10 and record["kappa"] > 0


def test_without_errors_there_is_nothing_to_report_in_decibel(layout, updates, rng):
    uplink = Uplink(Ideal(), Payload("factors", layout))
    received, report = uplink(updates, rng)
    record = uplink.record(updates, received, report)
    assert received is updates and record["mean"] == {"nmse_db": None} and record["layers"] == {"x": None, "y": None}


def test_a_fused_vector_is_compared_in_product_space(layout, updates):
    clean = updates.start[0] + updates.vectors[0]
    half = clean.clone()
    for pair in layout.pairs:
        layout.entry(half, pair.b).mul_(0.5)
    seen = fused_fidelity(layout, clean, half)
    assert seen["cosine"] == pytest.approx(1.0) and seen["nmse_db"] == pytest.approx(10 * math.log10(0.25))
    assert fused_fidelity(layout, torch.zeros_like(clean), half) == {"nmse_db": None, "cosine": None}


def test_a_round_of_which_nothing_arrives_keeps_the_last_model(tmp_path):
    lost = run(tmp_path / "lost", "channel=mimo", "channel.deadline_s=1e-6")
    assert [record["believed"] for record in lost["rounds"]] == [0, 0] and lost["clients"] == {}
    for record in lost["rounds"]:
        assert record["mean"]["fused_received"] == record["mean"]["realigned"] == lost["mean"]["base"]
        assert "personal" not in record["mean"] and len(record["dropped"]) == 4
        assert all("channel.deadline_s=1e-06" in reason for reason in record["dropped"].values())


@pytest.mark.parametrize(
    "overrides",
    [
        ["channel=mimo", "channel.level=analog", "client.ranks=[2,4]"],
        ["channel=packet", "channel.snr_db=25", "payload=product"],
        ["channel=aircomp", "method=ffa_lora", "fusion=task_arithmetic"],
        ["channel=cell", "channel.pilots=16", "channel.receiver.knowledge=sample", "channel.receiver.filter=sic"],
    ],
)
def test_every_kind_of_uplink_carries_a_run(overrides, tmp_path):
    metrics = run(tmp_path, *overrides, "rounds=1")
    (record,) = metrics["rounds"]
    uplink = record["uplink"]
    assert record["believed"] > 0 and uplink["duration_s"] > 0 and uplink["mean"]["energy_j"] > 0
    assert len(uplink["clients"]) == 4 and uplink["mean"]["nmse_db"] is not None
    assert uplink["fused"]["cosine"] > 0


def test_what_is_not_sent_costs_no_air_time(tmp_path):
    times = {}
    for ranks in ("null", "[2]"):
        metrics = run(tmp_path / ranks, "channel=mimo", f"client.ranks={ranks}", "rounds=1")
        times[ranks] = metrics["rounds"][0]["uplink"]["mean"]["air_time_s"]
    assert times["[2]"] < 0.6 * times["null"]


def test_symbols_that_are_drowned_are_worse_than_none(tmp_path):
    """Without a guard, so that what a raw receiver lets through is what is fused."""
    guard = ["guard.clip=inf", "guard.refuse=inf", "rounds=1", "channel=mimo", "channel.receiver.erase_above_db=null"]
    jammer = ["channel.jammer.objective=barrage", "channel.jammer.jsr_db=40"]
    metrics = run(tmp_path, *guard, *jammer, "channel.receiver.shrink=false")
    assert metrics["rounds"][0]["nmse_db"] > 20
    assert isinstance(Mimo().receiver.shrink, bool)
