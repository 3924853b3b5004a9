"""How long a run takes to recover from a fault: until the round that it hit is on disk."""

import time


def recovered(record_property, run_dir, killed, fault, server_round=1, lost="nothing"):
    """Say so for the table of faults; `killed` is when, on the system's clock."""
    seconds = (run_dir / "checkpoints" / f"round-{server_round:04d}").stat().st_mtime - killed
    assert 0 < seconds < time.time() - killed + 1
    told(record_property, fault, lost, round(seconds))


def told(record_property, fault, lost, recovered_s=None):
    """The same where nothing has to recover."""
    record_property("fault", fault)
    record_property("lost", lost)
    if recovered_s is not None:
        record_property("recovered_s", recovered_s)
