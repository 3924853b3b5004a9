"""A small run in this process."""

import json

from command import SMALL
from flwr.app import Context, RecordDict

from fedfusion.apps import client_app, server_app
from fedfusion.config import resolve, to_json
from fedfusion.federation.inline import InlineGrid


def run(folder, *overrides):
    """The metrics of a run without realignment, unless `overrides` say otherwise."""
    small = [override for override in SMALL if not override.startswith("realign")]
    cfg = resolve([*small, "client.steps=1", "realign=none", f"run_dir='{folder}'", *overrides])
    server_app(InlineGrid(client_app, 4, 60.0), Context(1, 0, {}, RecordDict(), {"config": to_json(cfg)}))
    return json.loads((folder / "results.json").read_text())["metrics"]
