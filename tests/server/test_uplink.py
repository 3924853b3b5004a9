import math
from dataclasses import replace

import pytest
import torch
from inline import run

from fedfusion.channels import Awgn, Ideal
from fedfusion.lora.payload import Payload
from fedfusion.server.uplink import Uplink, decibel, fused_fidelity
from fedfusion.types import RunFailed


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
    assert record["layers"]["x"]["nmse_db"] == pytest.approx(expected, abs=1e-4)
    assert 0.3 < record["layers"]["y"]["cosine"] < 0.9 and 0.5 < record["layers"]["y"]["sign_agreement"] < 0.9
    assert record["product_nmse_db"] > -10 and record["kappa"] > 0


def test_what_mods_changed_at_the_clients_is_a_figure_of_its_own(layout, updates, rng):
    uplink = Uplink(Ideal(), Payload("factors", layout))
    figures = ({"privacy_nmse": 0.1}, {"privacy_nmse": 10.0}, {"privacy_nmse": 0.0}, {}, {}, {})
    sent = replace(updates, metrics=figures)
    record = uplink.record(sent, *uplink(sent, rng))
    shown = [client["privacy_nmse_db"] for client in record["clients"].values()]
    assert shown == [pytest.approx(-10.0), pytest.approx(10.0), None, None, None, None]
    assert record["mean"]["privacy_nmse_db"] == pytest.approx(10 * math.log10(10.1 / 3))  # over those that say it
    assert record["mean"]["nmse_db"] is None  # and no part of what the uplink did


def test_without_errors_there_is_nothing_to_report_in_decibel(layout, updates, rng):
    uplink = Uplink(Ideal(), Payload("factors", layout))
    received, report = uplink(updates, rng)
    record = uplink.record(updates, received, report)
    assert received is updates and record["mean"] == {"nmse_db": None}
    assert [module["nmse_db"] for module in record["layers"].values()] == [None, None]


def test_a_fused_vector_is_compared_in_product_space(layout, updates):
    clean = updates.start[0] + updates.vectors[0]
    half = clean.clone()
    for pair in layout.pairs:
        layout.entry(half, pair.b).mul_(0.5)
    seen = fused_fidelity(layout, clean, half)
    assert seen["cosine"] == pytest.approx(1.0) and seen["nmse_db"] == pytest.approx(10 * math.log10(0.25))
    assert fused_fidelity(layout, torch.zeros_like(clean), half) == {"nmse_db": None, "cosine": None}


@pytest.mark.parametrize(("realign", "kept"), [("none", "base"), ("few_shot", "control")])
def test_a_round_of_which_nothing_arrives_keeps_the_last_model(realign, kept, tmp_path):
    lost = run(tmp_path, "channel=mimo", "channel.deadline_s=1e-6", f"realign={realign}")
    assert [record["believed"] for record in lost["rounds"]] == [0, 0] and lost["clients"] == {}
    for record in lost["rounds"]:
        assert record["mean"]["fused_received"] == lost["mean"]["base"]
        assert record["mean"]["realigned"] == lost["mean"][kept]  # the server's few samples are there all the same
        assert "personal" not in record["mean"] and len(record["dropped"]) == 4
        assert all("channel.deadline_s=1e-06" in reason for reason in record["dropped"].values())


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(["channel=mimo", "channel.level=analog", "client.ranks=[2,4]"], marks=pytest.mark.slow),
        pytest.param(["channel=packet", "channel.snr_db=25", "payload=product"], marks=pytest.mark.slow),
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


@pytest.mark.slow
def test_what_is_not_sent_costs_no_air_time(tmp_path):
    times = {}
    for ranks in ("null", "[2]"):
        metrics = run(tmp_path / ranks, "channel=mimo", f"client.ranks={ranks}", "rounds=1")
        times[ranks] = metrics["rounds"][0]["uplink"]["mean"]["air_time_s"]
    assert times["[2]"] < 0.6 * times["null"]


@pytest.mark.slow
def test_without_errors_the_product_is_what_the_factors_are(tmp_path):
    """Through the default guard, with ranks of their own, round after round: only the gauge of the factors differs."""
    seen = {}
    for payload in ("factors", "product"):
        metrics = run(tmp_path / payload, "channel=ideal", f"payload={payload}", "client.ranks=[2,4]", "rounds=1")
        seen[payload] = metrics["rounds"][-1]
    assert seen["product"]["clipped"] == seen["factors"]["clipped"]
    assert seen["product"]["uplink"]["product_nmse_db"] < -60
    assert {m["nmse_db"] for m in seen["product"]["uplink"]["layers"].values()} == {None}
    for stage, mean in seen["factors"]["mean"].items():
        assert seen["product"]["mean"][stage] == pytest.approx(mean, abs=0.02), stage


def test_sums_over_the_air_are_compared_with_the_means_that_were_meant(tmp_path):
    clear = ["channel=aircomp", "channel.snr_db=inf", "channel.truncation_threshold=1e-9", "method=ffa_lora"]
    uplink = run(tmp_path, *clear, "fusion=task_arithmetic", "rounds=1")["rounds"][0]["uplink"]
    assert uplink["product_nmse_db"] < -60 and all(
        (module["nmse_db"] or -math.inf) < -60 for module in uplink["layers"].values()
    )


@pytest.mark.parametrize(
    "how",
    [["channel=mimo", "channel.deadline_s=1e-6"], ["channel=aircomp", "payload=product", "guard=norm_clip"]],
)
def test_an_upload_that_is_no_number_does_not_end_the_run(how, tmp_path):
    faults = ["client._target_=faulty.Faulty", "+client.faults={0:huge}", "rounds=1", "suite.clients_per_task=3"]
    metrics = run(tmp_path, *faults, *how)
    assert "0" in metrics["rounds"][0]["dropped"]


def test_a_lost_round_that_clients_measure_has_no_personal_score(tmp_path):
    lost = run(tmp_path, "channel=mimo", "channel.deadline_s=1e-6", "evaluation=clients", "rounds=1")
    assert "personal" not in lost["rounds"][0]["mean"] and lost["clients"] == {}


def test_losing_or_distrusting_too_many_keeps_the_model_and_refusing_them_ends_the_run(tmp_path):
    one_group = "channel.deadline_s=0.003"  # the second pair is late
    late = ["channel=mimo", "channel.group_size=2", one_group, "min_clients=3", "rounds=1"]
    (record,) = run(tmp_path / "late", *late)["rounds"]
    assert record["believed"] == 2 and not record["learnt"] and record["mean"]["fused_received"] is not None
    refused = ["client._target_=faulty.Faulty", "+client.faults={0:huge,1:huge}", "min_clients=4", "rounds=1"]
    (record,) = run(tmp_path / "distrusted", "channel=mimo", *refused)["rounds"]
    assert record["believed"] == 2 and record["refused"] == [0, 1] and not record["learnt"]
    with pytest.raises(RunFailed, match="min_clients=4"):
        run(tmp_path / "refused", "channel=mimo", "guard=norm_clip", *refused)


@pytest.mark.parametrize(
    "coupling", ["laplacian", *(pytest.param(name, marks=pytest.mark.slow) for name in ("stacking", "average"))]
)
def test_any_coupling_survives_a_lost_round(coupling, tmp_path):
    lost = run(tmp_path, "channel=mimo", "channel.deadline_s=1e-6", f"coupling={coupling}")
    assert [record["learnt"] for record in lost["rounds"]] == [False, False]
