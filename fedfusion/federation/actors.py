"""Ray actors that run a client app: started, watched, and replaced when they die."""

import importlib
import os
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from logging import INFO, WARNING
from typing import Any

from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.common import log

from fedfusion.federation.grid import failure, python_path
from fedfusion.server.lost import remaining_s
from fedfusion.types import RunFailed

STARTUP_S = 300.0  # without an actor for so long the run ends
PATIENCE_S = 60.0  # an actor that has not started by then is reported, and the run goes on without it
BACKOFF_S = 32.0  # the longest pause before an actor is started again


def environment(threads: int) -> dict[str, Any]:
    """The runtime environment of actors: where modules are found, and `threads` for every numerical library."""
    counts = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")}
    return {"env_vars": {"PYTHONPATH": python_path(), "RAY_DEDUP_LOGS": "0", **counts}}


class Worker:
    """What an actor runs: the client app, loaded once."""

    def __init__(self, app: str) -> None:
        module, _, name = app.partition(":")
        self.app: ClientApp = getattr(importlib.import_module(module), name)
        self.key = ""
        self.shared = ArrayRecord()

    def where(self) -> tuple[int, str]:
        """Its process and its node; answered once the imports are done."""
        import ray

        return os.getpid(), ray.get_runtime_context().get_node_id()

    def handle(self, message: Message, context: Context, shared: list[Any]) -> tuple[Message | None, float]:
        """Run the client app on a message; returns the reply, none if it has expired, and the seconds it took.

        `shared` holds a reference to the record that all messages of a round share, or nothing. It is fetched once.
        """
        import ray

        if remaining_s(message) <= 0:
            return None, 0.0
        for reference in shared:
            if reference.hex() != self.key:
                self.shared = ArrayRecord()  # the old one goes before the new one comes
                self.key, self.shared = reference.hex(), ray.get(reference)
            message.content["shared"] = self.shared
        started = time.monotonic()
        try:
            reply = self.app(message, context)
        except Exception:
            reply = failure(message, traceback.format_exc())
        return reply, time.monotonic() - started


@dataclass(eq=False)
class Call:
    """A message that an actor was given.

    Attributes
    ----------
    began
        When the actor got to it, in seconds of the monotonic clock; None as long as another is before it.
    dead
        Whether the actor died before it answered.
    """

    message: Message
    began: float | None = None
    dead: bool = False


@dataclass(eq=False)
class Seat:
    """The place of one actor, whichever process has it at present.

    Attributes
    ----------
    actor
        Ray's handle; None between a death and the next start.
    starting
        Ray's reference to where it is, until that is known.
    calls
        By Ray's reference to the answer, what it was given: the first is at work, the others wait for it.
    since
        When it was started, or may be started again.
    failures
        How often it died in a row.
    cause
        Of the last death.
    unfit
        Whether the client app could not be loaded.
    """

    number: int
    actor: Any = None
    starting: Any = None
    calls: dict[Any, Call] = field(default_factory=dict)
    since: float = 0.0
    failures: int = 0
    cause: str = ""
    unfit: bool = False
    reported: bool = False

    @property
    def up(self) -> bool:
        """Whether its actor takes messages."""
        alive = not any(call.dead for call in self.calls.values())
        return self.actor is not None and self.starting is None and alive


class Actors:
    """A fixed number of seats for actors.

    The constructor returns once all actors are up, or some are and the others have had time enough.

    Parameters
    ----------
    app
        The client app, as `module:name`.
    number
        Of actors.
    needs
        By name of the resource, what each of them reserves.
    threads
        Of each actor's numerical libraries.

    Raises
    ------
    RunFailed
        If none can be started.
    """

    def __init__(self, app: str, number: int, needs: Mapping[str, float], threads: int) -> None:
        import ray

        self.ray, self.app = ray, app
        others = {name: amount for name, amount in needs.items() if name not in ("CPU", "GPU")}
        self.remote = ray.remote(Worker).options(
            num_cpus=needs.get("CPU", 0),
            num_gpus=needs.get("GPU", 0),
            resources=others,
            scheduling_strategy="SPREAD",
            runtime_env=environment(threads),
        )
        self.seats = [Seat(number) for number in range(1, number + 1)]
        self.last_up = self.tended = started = time.monotonic()
        self.tend()
        while not all(seat.up for seat in self.seats):
            if any(seat.up for seat in self.seats) and time.monotonic() - started > PATIENCE_S:
                break
            self.wait(0.1)
            self.tend()

    def wait(self, timeout_s: float) -> set[Any]:
        """The answers that are there; if none is, what comes first: an answer or the start of an actor."""
        calls = [reference for seat in self.seats for reference, call in seat.calls.items() if not call.dead]
        starting = [seat.starting for seat in self.seats if seat.starting is not None]
        if not calls and not starting:
            time.sleep(timeout_s)
            return set()
        ready = self.ray.wait(calls, num_returns=len(calls), timeout=0)[0] if calls else []
        return set(ready or self.ray.wait([*calls, *starting], timeout=timeout_s)[0])

    def tend(self) -> None:
        """Start actors that are due, see which have come up, and report those that have not."""
        now = time.monotonic()
        if now - self.tended > PATIENCE_S:  # the server had other things to do, and nobody started any
            self.last_up = now
        self.tended = now
        for seat in self.seats:
            if seat.actor is None and now >= seat.since:
                seat.actor, seat.since = self.remote.remote(self.app), now
                seat.starting = seat.actor.where.remote()
            elif seat.starting is not None:
                self._look(seat)
        if up := sum(seat.up for seat in self.seats):
            self.last_up = now
            for seat in self.seats:
                self._report(seat, up)
            return
        causes = [seat.cause for seat in self.seats if seat.cause][:1]
        if all(seat.unfit for seat in self.seats):
            raise RunFailed(
                f"no Ray actor can load the clients: {causes[0]} (install the same fedfusion, with the same "
                "dependencies, on all nodes of the cluster)"
            )
        if now - self.last_up > STARTUP_S:
            raise RunFailed(
                f"no Ray actor could be started for {STARTUP_S:g} s: {', '.join(causes) or 'they have no place'} (is "
                "the cluster busy, or are its nodes gone? look at `ray status`, lower federation.actors, and continue "
                "with --resume)"
            )

    def replace(self, seat: Seat, cause: str, *, crashed: bool = True) -> list[Call]:
        """Kill the actor of a seat, have another started, after a pause if it crashed, and return what it held."""
        self.ray.kill(seat.actor)
        seat.failures += crashed
        pause_s = min(2.0 ** (seat.failures - 1), BACKOFF_S) if crashed else 0.0
        seat.actor, seat.starting, seat.since = None, None, time.monotonic() + pause_s
        seat.cause, calls, seat.calls = cause, list(seat.calls.values()), {}
        log(WARNING, "Ray actor %d of %d: %s; another starts in %g s", seat.number, len(self.seats), cause, pause_s)
        return calls

    def _look(self, seat: Seat) -> None:
        """See whether an actor has started."""
        if self.ray.wait([seat.starting], timeout=0)[0]:
            try:
                pid, node = self.ray.get(seat.starting)
            except self.ray.exceptions.RayError as error:
                seat.unfit = getattr(error, "actor_init_failed", False)
                self.replace(seat, str(error).strip().splitlines()[-1])
                return
            seat.starting, seat.unfit, seat.reported = None, False, False
            log(INFO, "Ray actor %d of %d: process %d on node %s", seat.number, len(self.seats), pid, node)

    def _report(self, seat: Seat, up: int) -> None:
        """Say once that an actor does not start, while `up` others do."""
        if seat.starting is not None and time.monotonic() - seat.since > PATIENCE_S and not seat.reported:
            seat.reported = True
            log(
                WARNING,
                "Ray actor %d of %d has not started for %g s, has its node left the cluster? The run goes on with %d.",
                seat.number,
                len(self.seats),
                PATIENCE_S,
                up,
            )
