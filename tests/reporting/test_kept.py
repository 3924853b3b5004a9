import pytest

from fedfusion.reporting import kept

CELL = {"run": "0", "repeats": False, "attack": "ipm", "point": {"attack.f": "2"}, "error": None}


def test_what_is_kept_of_a_run():
    scores = {
        "heard": {"single_task": {"accuracy": 0.8}, "fused_received": {"accuracy": 0.4}},
        "better": {"single_task": {"accuracy": 0.5}, "fused_received": {"accuracy": 0.6}},
        "silent": {"fused_received": {"accuracy": 0.9}},
    }
    metrics = {
        "measure": "exact match",
        "num_clients": 8,
        "tasks": scores,
        "mean": {"base": 0.3, "control": 0.35, "fused_received": 0.63, "single_task": 0.65},
        "worst": {"base": 0.1, "fused_received": 0.4, "single_task": 0.5},
        "attack": {
            "byzantine": [2, 5],
            "accepted_honest": 1.0,
            "refused_byzantine": 0.5,
            "success": {"heard": {"fused_received": 0.2}, "better": {"fused_received": 0.4}},
        },
    }
    found = kept.measured({"metrics": metrics, "wall_time_s": 3.0})
    assert found["over_single_task"]["fused_received"] == pytest.approx((0.5 + 1.2) / 2)
    assert found["success"]["fused_received"] == pytest.approx(0.3)
    assert found["measure"] == "exact match" and found["byzantine"] == [2, 5]
    assert found["worst"] == {"base": 0.1, "fused_received": 0.4}
    assert found["mean"] == {"base": 0.3, "control": 0.35, "fused_received": 0.63}
    assert (found["accepted_honest"], found["refused_byzantine"]) == (1.0, 0.5)
    row = kept.row(CELL | found)
    assert row["num_byzantine"] == 2 and row["worst_fused_received"] == 0.4
    assert row["worst_base"] == 0.1 and row["mean_control"] == 0.35


def record(nmse_db, clients, bler=None, duration_s=None):
    mean = {} if bler is None else {"bler": bler}
    return {"nmse_db": nmse_db, "uplink": {"clients": clients, "mean": mean, "duration_s": duration_s}}


def results(*rounds):
    attack = {"byzantine": [], "accepted_honest": 1.0, "refused_byzantine": None, "success": {}}
    metrics = {
        "measure": "accuracy",
        "num_clients": 2,
        "tasks": {},
        "mean": {},
        "worst": {},
        "attack": attack,
        "rounds": list(rounds),
    }
    return {"metrics": metrics, "wall_time_s": 1.0}


def test_costs_of_the_uplink_are_sums_and_its_nmse_is_a_mean_of_powers():
    found = kept.measured(
        results(
            record(-10.0, {"0": {"energy_j": 1.0, "bits": 1e6}, "1": {"energy_j": 2.0, "bits": 3e6}}, 0.1, 0.5),
            record(-20.0, {"1": {"energy_j": 4.0, "bits": 5e5}}, 0.0, 0.25),
        )
    )
    assert found["nmse_db"] == pytest.approx(-12.5964, abs=1e-4)  # of (0.1 + 0.01) / 2
    assert (found["energy_j"], found["duration_s"], found["mbit"]) == (7.0, 0.75, 4.5)


def test_a_channel_without_a_radio_costs_nothing_that_is_known():
    found = kept.measured(results(record(None, {"0": {}, "1": {}})))
    assert [found[name] for name in kept.UPLINK] == [None] * 4
    row = kept.row(CELL | found | {"nmse_db": -3.0})
    assert row["nmse_db"] == -3.0 and row["energy_j"] is None and row["mbit"] is None


def test_rounds_that_taught_nothing_are_counted_and_older_runs_do_not_say_so():
    records = [record(None, {}) | {"learnt": learnt} for learnt in (False, True, False)]
    found = kept.measured(results(*records, record(None, {})))
    assert (found["rounds"], found["rounds_not_learnt"]) == (4, 2)
    assert kept.row(CELL | found)["rounds_not_learnt"] == 2
    del found["rounds_not_learnt"]
    assert kept.row(CELL | found)["rounds_not_learnt"] is None
