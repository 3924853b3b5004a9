"""What a tracking library has kept of a run, as the library itself reads it: `python tracked.py LIBRARY RUN_DIR`."""

import json
import os
import struct
import sys
from pathlib import Path


def tensorboard(run_dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    series = {tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    status = events.Tensors("status/text_summary")[-1].tensor_proto.string_val[0].decode()
    return {"series": series, "seed": json.loads(text.strip("`json\n"))["seed"], "status": status}


def trackio(run_dir):
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = trackio.Api().runs("fedfusion")
    assert run.name.startswith(f"{run_dir.name}-")
    series, status = {}, None
    for row in SQLiteStorage.get_logs("fedfusion", run.name, run_id=run.id):
        status = row.pop("status", status)
        step, _ = row.pop("step"), row.pop("timestamp")
        for name, value in row.items():
            series.setdefault(name, []).append([step, value])
    return {"series": series, "seed": run.config["seed"], "status": status}


def mlflow(run_dir):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run_dir / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("fedfusion").experiment_id])
    assert run.info.run_name == run_dir.name
    series = {
        name: [[m.step, m.value] for m in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics
    }
    return {"series": series, "seed": json.loads(run.data.params["seed"]), "status": run.info.status.lower()}


def wandb(run_dir):
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    from wandb.proto.wandb_internal_pb2 import Record

    series, facts, runs = {}, {}, set()
    for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        for content in _leveldb(path.read_bytes()):
            record = Record.FromString(content)
            if record.HasField("run"):
                runs.add((record.run.run_id, record.run.display_name))
                facts |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            row = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            for name, value in row.items():
                if not name.startswith("_"):
                    series.setdefault(name, []).append([record.history.step.num, json.loads(value)])
            for item in record.summary.update:
                facts["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
            if record.HasField("exit"):
                facts["exit"] = record.exit.exit_code
    assert len(runs) == 1 and runs.pop()[1] == run_dir.name
    assert facts["exit"] == (facts["status"] != "finished")
    last = max(step for step, _ in series["train_loss"])
    series |= {name: [[last, value]] for name, value in facts.items() if name.startswith("final/")}
    return {"series": series, "seed": facts["seed"], "status": facts["status"]}


def _leveldb(content):
    """The records of a log as LevelDB writes it: blocks of 32 KiB, headers of 7 bytes, records in parts."""
    at, whole = 7, b""  # behind the header of the file
    while at + 7 <= len(content):
        if (rest := 32768 - at % 32768) < 7:
            at += rest
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))))
