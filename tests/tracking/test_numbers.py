import math

from fedfusion.tracking import numbers

RECORD = {
    "round": 3,
    "clients": [4, 5, 6],
    "refused": [4],
    "dropped": {"4": "was refused", "5": "was erased on its way"},
    "learnt": True,
    "train_loss": math.inf,
    "nmse_db": None,
    "attack_success": {"trees": {"realigned": 0.25}},
    "uplink": {"clients": {"4": {"energy_j": 1.0}}, "layers": {"q": {"cosine": 1.0}}, "mean": {"energy_j": 2.0}},
    "discarded_by_module": {"q": 0.1},
    "strategy": {"train": {"note": "text", "beta": 1}},
    "tasks": {"trees": {"realigned": {"accuracy": 0.5, "loss": 2}}},
}


def test_a_round_is_numbers_by_path_and_clients_are_counted():
    assert numbers.of_round(RECORD) == {
        "clients": 3.0,
        "refused": 1.0,
        "dropped": 2.0,
        "learnt": 1.0,
        "train_loss": math.inf,
        "attack_success/trees/realigned": 0.25,
        "uplink/mean/energy_j": 2.0,
        "strategy/train/beta": 1.0,
        "tasks/trees/realigned/accuracy": 0.5,
        "tasks/trees/realigned/loss": 2.0,
    }


def test_results_are_the_final_table_and_what_was_spent():
    metrics = {
        "mean": {"base": 0.5},
        "worst": {"base": 0.25},
        "tasks": {"trees": {"base": {"accuracy": 0.5}}},
        "attack": {"byzantine": [1], "accepted_honest": 1.0, "refused_byzantine": None, "success": {}},
        "clients": {"0": {"accuracy": 1.0}},
        "rounds": [RECORD],
    }
    assert numbers.of_results({"metrics": metrics, "wall_time_s": 1.5, "peak_memory_mb": 7, "seed": 3}) == {
        "final/mean/base": 0.5,
        "final/worst/base": 0.25,
        "final/tasks/trees/base/accuracy": 0.5,
        "final/attack/accepted_honest": 1.0,
        "final/wall_time_s": 1.5,
        "final/peak_memory_mb": 7.0,
    }
