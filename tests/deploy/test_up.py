import datetime
from pathlib import Path

import pytest

from fedfusion.deploy.folder import Deployment
from fedfusion.deploy.up import fresh, warn

START = datetime.datetime(2030, 1, 2, 3, 4, 5, 600_000, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    "node, expected",
    [
        ({}, False),
        ({"status": "registered", "online-at": "N/A"}, False),
        ({"status": "offline", "online-at": "2030-01-02 03:04:09Z"}, False),
        ({"status": "online", "online-at": "2030-01-02 03:04:04Z"}, False),  # the memory of a former connection
        ({"status": "online", "online-at": "2030-01-02 03:04:05Z"}, True),
        ({"status": "online", "online-at": "2030-01-02 04:04:04Z"}, True),
    ],
)
def test_a_device_is_there_once_it_was_activated_after_the_start(node, expected):
    assert fresh(node, START) is expected


def test_who_can_do_what_is_said_where_other_machines_reach_the_superlink():
    said = []
    warn(Deployment(Path("deploy"), (), 8000), said.append)
    assert said == []
    warn(Deployment(Path("deploy"), ("10.0.0.1",), 8000), said.append)
    assert "reaches port 8000 may submit runs, and so run code of their own on the devices" in "".join(said)
