"""Choose the task-arithmetic coefficient of `digits8` on held-out training images.

    python experiments/digits8/coefficient.py --out experiments/digits8/coefficient.json

For each seed: sixteen clients train as in `experiment=quickstart` over an ideal uplink, their task vectors are fused
with every coefficient of a grid. The coefficient with the best mean validation accuracy over seeds is chosen; the test
accuracies of all are in the file, and the choice does not look at them. About five minutes on two cores.
"""

import argparse
import json
from pathlib import Path

import torch

from fedfusion.client.train import Job, evaluate
from fedfusion.config import build, resolve
from fedfusion.fusion import TaskArithmetic
from fedfusion.lora.model import LoraModel
from fedfusion.lora.product import CoreSpace
from fedfusion.server.evaluation import Evaluator
from fedfusion.types import Evidence

GRID = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def one_seed(seed: int) -> dict:
    experiment = build(resolve(["experiment=quickstart", f"seed={seed}"]))
    torch.set_num_threads(experiment.client.threads)
    suite, model = experiment.suite, LoraModel(experiment.model, seed)
    wide = LoraModel(experiment.model, seed, rank=len(suite.tasks) * experiment.model.lora["r"])
    evaluator = Evaluator(suite, wide, seed)
    adapters = model.initial.repeat(suite.num_clients, 1)
    for server_round in range(1, experiment.rounds + 1):
        jobs = [
            Job(client, adapters[client], suite.train(client, seed), evaluator.heads[suite.task_of(client)])
            for client in range(suite.num_clients)
        ]
        trained = experiment.client(model, jobs, seed=seed, server_round=server_round)
        adapters += torch.stack([result.update for result in trained])
    single = [score["accuracy"] for score in evaluator.personal(model, adapters, range(suite.num_clients)).values()]
    core = CoreSpace.of(model.layout, adapters, model.initial)
    products = core.project(model.layout, adapters).unflatten(0, (len(suite.tasks), suite.clients_per_task)).mean(1)
    fused = {}
    for coefficient in GRID:
        adapter, _ = core.to_adapter(
            TaskArithmetic(coefficient)(products, core.layout, Evidence(torch.Generator())), wide.layout
        )
        fused[str(coefficient)] = {
            part: mean([evaluate(wide, adapter, data(t), evaluator.heads[t])["accuracy"] for t in suite.tasks])
            for part, data in (("validation", suite.validation), ("test", suite.test))
        }
    base = mean([score["accuracy"] for score in evaluator(evaluator.base).values()])
    return {"seed": seed, "base": base, "single_task": mean(single), "fused": fused}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    seeds = [one_seed(seed) for seed in range(args.seeds)]
    validation = {str(c): mean([s["fused"][str(c)]["validation"] for s in seeds]) for c in GRID}
    chosen = max(validation, key=lambda c: validation[c])
    test = {
        "base": mean([s["base"] for s in seeds]),
        "single_task": mean([s["single_task"] for s in seeds]),
        "fused": mean([s["fused"][chosen]["test"] for s in seeds]),
    }
    results = {"validation": validation, "chosen": float(chosen), "test": test, "seeds": seeds}
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps({k: results[k] for k in ("validation", "chosen", "test")}, indent=1))


if __name__ == "__main__":
    main()
