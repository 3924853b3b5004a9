"""Runs of a sweep that take no time."""

import json
from concurrent.futures import ThreadPoolExecutor

from omegaconf import OmegaConf

TINY = [
    "suite.tasks=[upright-digit,flipped-size]",
    "suite.clients_per_task=2",
    "client.steps=2",
    "rounds=1",
    "realign=none",
    "guard=finite",
]


def value(overrides, key):
    """What a key is set to at last."""
    return [text.partition("=")[2] for text in overrides if text.partition("=")[0] == key][-1]


def fake(work):
    """A run whose worst task is 0.8 less a tenth per Byzantine client, and the seed in 1/1000."""
    f, seed = work.config["attack"].get("f") or 0, work.config["seed"]
    worst = round(0.8 - 0.1 * f + 0.001 * seed, 4)
    metrics = {
        "measure": "accuracy",
        "num_clients": 4,
        "tasks": {"upright-digit": {"single_task": {"accuracy": 0.8}, "fused_received": {"accuracy": worst}}},
        "mean": {"fused_received": 0.9},
        "worst": {"fused_received": worst},
        "attack": {"byzantine": list(range(f)), "accepted_honest": 1.0, "refused_byzantine": None, "success": {}},
        "rounds": [{"nmse_db": None, "uplink": {"mean": {}}}],
    }
    work.folder.mkdir(parents=True)
    (work.folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(dict(work.config))))
    results = {"metrics": metrics, "wall_time_s": 3.0, "training_s": 2.0, "given": list(work.overrides)}
    (work.folder / "results.json").write_text(json.dumps(results))
    return ""


def here():
    """One at a time, in this process."""
    return ThreadPoolExecutor(1)
