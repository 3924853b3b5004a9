"""Ray actors that run the client app: one machine, or a cluster."""

import importlib
import importlib.util
import os
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from omegaconf import DictConfig

from fedfusion.federation.grid import VirtualGrid, python_path
from fedfusion.types import FedfusionError, RunFailed

CLIENT_APP = "fedfusion.apps:client_app"
STARTUP_S = 300.0
TRIES = 2  # a message whose actor dies is tried once more, on another actor


@dataclass(frozen=True)
class Ray:
    """Run the clients on Ray actors, each holding the base model once.

    Parameters
    ----------
    address
        Of a running cluster (`auto` or `host:port`); null starts Ray on this machine.
    actors
        Number of actors.
    cpus, gpus
        What Ray reserves for each actor. Set `client.threads` to match `cpus`.
    """

    address: str | None = None
    actors: int = 2
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.actors < 1 or self.cpus <= 0 or self.gpus < 0:
            raise FedfusionError(
                "federation.actors must be at least 1, federation.cpus positive and federation.gpus at least 0, "
                f"got {self.actors}, {self.cpus}, {self.gpus}"
            )

    simulated: ClassVar = True  # every node hosts all clients

    def check(self) -> None:
        """Refuse to start where Ray is not installed."""
        if importlib.util.find_spec("ray") is None:
            raise FedfusionError(
                "federation=ray needs Ray, which is not installed: pip install 'fedfusion[simulation]'"
            )

    def launch(self, cfg: DictConfig) -> None:
        """Start or join Ray, run the experiment, and stop what was started."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        from fedfusion.apps import server_app
        from fedfusion.config import build, to_json

        experiment = build(cfg)
        started = not ray.is_initialized()
        if started:
            here: dict[str, Any] = {} if self.address else {"include_dashboard": False}
            environment = {"env_vars": {"PYTHONPATH": python_path(), "RAY_DEDUP_LOGS": "0"}}
            try:
                ray.init(self.address, log_to_driver=False, logging_level="ERROR", runtime_env=environment, **here)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise FedfusionError(
                    f"federation.address={self.address}: Ray cannot be reached or started "
                    f"({str(error).splitlines()[0]})"
                ) from error
        try:
            self._fits(ray.cluster_resources())
            grid = RayGrid(CLIENT_APP, self.actors, experiment.deadline_s, self)
            server_app(grid, Context(1, 0, {}, RecordDict(), {"config": to_json(cfg)}))
        finally:
            if started:
                ray.shutdown()

    def _fits(self, resources: dict[str, float]) -> None:
        for kind, each in (("CPU", self.cpus), ("GPU", self.gpus)):
            if self.actors * each > resources.get(kind, 0.0):
                raise FedfusionError(
                    f"federation.actors={self.actors} x federation.{kind.lower()}s={each:g} need "
                    f"{self.actors * each:g} {kind}s, the Ray cluster has {resources.get(kind, 0.0):g} "
                    "(lower one of the two)"
                )


class Worker:
    """What an actor runs: the client app, loaded once."""

    def __init__(self, app: str) -> None:
        module, _, name = app.partition(":")
        self.app: ClientApp = getattr(importlib.import_module(module), name)

    def ready(self) -> bool:
        """Answer once the imports are done."""
        return True

    def handle(self, message: Message, context: Context) -> Message:
        """Run the client app on one message."""
        return self.app(message, context)


class RayGrid(VirtualGrid):
    """Virtual nodes whose messages are handled by a pool of actors.

    A client that raises is an error reply. An actor that dies is replaced, and its message tried once more on
    another. An actor that passes the deadline is killed and replaced, and its message answered with an error.

    Parameters
    ----------
    app
        The client app, as `module:name`.
    num_nodes, deadline_s
        As in :class:`VirtualGrid`; the deadline counts from when an actor gets the message.
    pool
        Number and resources of the actors.
    """

    def __init__(self, app: str, num_nodes: int, deadline_s: float, pool: Ray) -> None:
        import ray

        super().__init__(num_nodes, deadline_s)
        self.ray = ray
        self.actor = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus)(Worker)
        self.client_app_name = app
        self.idle: deque[Any] = deque(self.actor.remote(app) for _ in range(pool.actors))
        self._ready(self.idle)
        self.running: dict[Any, tuple[Message, Any, float]] = {}
        self.tries: dict[str, int] = {}

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand waiting messages to idle actors and return the replies that are ready."""
        for message_id in list(message_ids):
            if self.idle and message_id in self.waiting:
                message, actor = self.waiting.pop(message_id), self.idle.popleft()
                context = self.contexts[message.metadata.dst_node_id]
                self.running[actor.handle.remote(message, context)] = message, actor, time.monotonic()
        ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=0.1) if self.running else ([], [])
        replies = [self._reply(reference) for reference in ready] + self._overdue()
        return [reply for reply in replies if reply is not None]

    def _reply(self, reference: Any) -> Message | None:
        message, actor, _ = self.running.pop(reference)
        try:
            reply = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            self.idle.append(actor)
            return self.failure(message, str(error))
        except self.ray.exceptions.RayError:
            self._replace(actor)
            tries = self.tries[message.metadata.message_id] = self.tries.get(message.metadata.message_id, 1) + 1
            if tries > TRIES:
                return self.failure(message, f"its process died {TRIES} times")
            self.waiting[message.metadata.message_id] = message
            return None
        self.idle.append(actor)
        return reply

    def _overdue(self) -> list[Message]:
        now = time.monotonic()
        replies = []
        for reference, (message, actor, started) in list(self.running.items()):
            if now - started > self.deadline_s and not self.ray.wait([reference], timeout=0)[0]:
                del self.running[reference]
                self._replace(actor)
                replies.append(self.failure(message, f"did not answer within {self.deadline_s:g} s"))
        return replies

    def _replace(self, actor: Any) -> None:
        self.ray.kill(actor)
        fresh = self.actor.remote(self.client_app_name)
        self._ready([fresh])  # its start-up is not the next client's delay
        self.idle.append(fresh)

    def _ready(self, actors: Iterable[Any]) -> None:
        try:
            self.ray.get([actor.ready.remote() for actor in actors], timeout=STARTUP_S)
        except self.ray.exceptions.RayError as error:
            raise RunFailed(
                f"an actor did not start within {STARTUP_S:g} s (is the Ray cluster busy? lower federation.actors): "
                f"{str(error).strip().splitlines()[0]}"
            ) from error
