"""A client app that does what the message says, and tells where and with what it did."""

import os
import time
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

client_app = ClientApp()
seen = []  # the shared records of this process, kept so that no two have the same id


@client_app.train()
def act(message, context):
    facts = message.content.config_records["config"]
    marker = Path(str(facts.get("once", "")))
    if "once" not in facts or not marker.exists():
        if "once" in facts:
            marker.write_text(str(os.getpid()))
        time.sleep(float(facts.get("sleep", 0)))
        if facts.get("die"):
            os._exit(1)
        if facts.get("raise"):
            raise ValueError("no")
    done = {
        "pid": os.getpid(),
        "partition": context.node_config["partition-id"],
        "threads": os.environ["OMP_NUM_THREADS"],
    }
    shared = message.content.array_records.get("shared")
    if shared is not None:
        seen.append(shared)
        done |= {"shared": float(shared["x"].numpy().sum()), "object": str(id(shared))}
    return Message(RecordDict({"done": ConfigRecord(done)}), reply_to=message)
