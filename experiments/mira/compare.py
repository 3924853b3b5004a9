"""Does it help to be pulled towards relatives, and must they be the right ones? MIRA and its baselines on `lists`.

python experiments/mira/compare.py --out experiments/mira/compare.json

Every row is `fedfusion run experiment=mira_lists` with the overrides named; personal is the exact match of what each
client would use after the last round, on its own task. Written anew after every run, and continued where it stopped.
"""

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path

from fedfusion import config

ROWS = {
    "local": "method=local",
    "FedIT": "method=fedit",
    "FlexLoRA": "method=flexlora",
    "FLoRA": "method=flora fused_rank=null",
    "FedPTuning": "method=fedptuning",
    "MIRA, related tasks, 0.3": "adjacency=task coupling.strength=0.3",
    "MIRA, all alike, 0.3": "adjacency=uniform coupling.strength=0.3",
    "MIRA, random, 0.3": "adjacency=random coupling.strength=0.3",
    "MIRA, wrong relatives, 0.3": "adjacency=shuffled coupling.strength=0.3",
    "MIRA, similar adapters, 0.3": "adjacency=similarity coupling.strength=0.3",
}
SEEDS = (0, 1, 2)


def run(overrides: str, seed: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        cfg = config.resolve(
            ["experiment=mira_lists", "fused_rank=8", *overrides.split(), f"seed={seed}", f"run_dir={folder}/run"]
        )
        with contextlib.redirect_stdout(io.StringIO()):
            config.build(cfg).federation.launch(cfg)
        metrics = json.loads(Path(folder, "run", "results.json").read_text())["metrics"]
    last = metrics["rounds"][-1]
    return {
        "single_task": last["mean"]["single_task"],
        "personal": last["mean"]["personal"],
        "personal_loss": sum(score["loss"] for score in metrics["clients"].values()) / len(metrics["clients"]),
        "personal_by_round": [record["mean"]["personal"] for record in metrics["rounds"]],
        "clients": len(metrics["clients"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    results = json.loads(out.read_text()) if out.exists() else {}
    for seed in SEEDS:
        for name, overrides in ROWS.items():
            row = results.setdefault(name, {"overrides": overrides, "seeds": {}})
            if str(seed) not in row["seeds"]:
                row["seeds"][str(seed)] = run(overrides, seed)
                out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
