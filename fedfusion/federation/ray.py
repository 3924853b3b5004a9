"""The clients on Ray: one machine, or a cluster."""

import importlib.util
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import floor
from typing import Any, ClassVar

from flwr.app import Context, RecordDict
from omegaconf import DictConfig

from fedfusion.federation.actors import environment
from fedfusion.federation.raygrid import RayGrid
from fedfusion.federation.recorded import remembering
from fedfusion.types import FedfusionError

CLIENT_APP = "fedfusion.apps:client_app"
CONNECT_S = 10.0


@dataclass(frozen=True)
class Ray:
    """Run the clients on Ray actors, each holding the base model once.

    Parameters
    ----------
    address
        Of a running cluster (`auto` or `host:port`); null starts Ray on this machine.
    actors
        Number of actors, spread over the nodes of the cluster.
    cpus, gpus
        What Ray reserves for each actor: at least `client.threads` CPUs if more than one, and a share of one GPU or
        whole ones.
    resources
        The same for custom resources, by name, of nodes started with `ray start --resources`.
    speculate
        A quantile: a message that takes longer than twice that quantile of the durations so far is handled a second
        time by an idle actor, and the first answer counts. Null is never. Results are the same.
    """

    address: str | None = None
    actors: int = 2
    cpus: float = 1.0
    gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    speculate: float | None = None

    def __post_init__(self) -> None:
        if self.actors < 1 or self.cpus <= 0 or self.gpus < 0:
            raise FedfusionError(
                "federation.actors must be at least 1, federation.cpus positive and federation.gpus at least 0, "
                f"got {self.actors}, {self.cpus}, {self.gpus}"
            )
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise FedfusionError(
                f"federation.gpus={self.gpus:g} must be at most 1 or whole: an actor has a share of one GPU, or whole "
                f"ones (set it to {floor(self.gpus)} or {floor(self.gpus) + 1})"
            )
        for name, amount in self.resources.items():
            if name in ("CPU", "GPU", "memory", "object_store_memory") or not amount > 0:
                raise FedfusionError(
                    f"federation.resources.{name}={amount}: custom resources of Ray with a positive amount are asked "
                    "for here (use federation.cpus and federation.gpus for CPUs and GPUs)"
                )
        if self.speculate is not None and not 0 < self.speculate < 1:
            raise FedfusionError(f"federation.speculate must be between 0 and 1 or null, got {self.speculate}")

    simulated: ClassVar = True  # every node hosts all clients

    @property
    def needs(self) -> dict[str, float]:
        """What an actor reserves, by Ray's name of it."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {}), **self.resources}

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
        threads = experiment.client.threads
        if threads > max(1.0, self.cpus):
            raise FedfusionError(
                f"client.threads={threads} exceeds federation.cpus={self.cpus:g}, the CPUs of an actor "
                f"(set federation.cpus={threads}, or lower client.threads)"
            )
        started = connect(self.address, threads)
        try:
            self.fits([node["Resources"] for node in ray.nodes() if node["Alive"]])
            nodes = experiment.suite.num_clients if experiment.server.stock else self.actors
            grid = remembering(RayGrid(CLIENT_APP, nodes, experiment.deadline_s, self, threads), cfg, experiment)
            server_app(grid, Context(1, 0, {}, RecordDict(), {"config": to_json(cfg)}))
        finally:
            if started:
                ray.shutdown()

    def fits(self, nodes: Sequence[Mapping[str, float]]) -> None:
        """Check that all actors find a place on `nodes`, given by what they have; an actor never spans two.

        Raises
        ------
        FedfusionError
            If they do not.
        """
        for name, amount in self.needs.items():
            held = [node.get(name, 0.0) for node in nodes]
            if (room := sum(_times(name, have, amount) for have in held)) < self.actors:
                key = {"CPU": "cpus", "GPU": "gpus"}.get(name, f"resources.{name}")
                raise FedfusionError(
                    f"federation.actors={self.actors} x federation.{key}={amount:g} do not fit: the Ray cluster has "
                    f"room for {room}, its nodes have {', '.join(f'{have:g}' for have in held)} {name} "
                    "(lower one of the two, or add nodes)"
                )
        room = sum(min(_times(name, node.get(name, 0.0), n) for name, n in self.needs.items()) for node in nodes)
        if room < self.actors:
            each = ", ".join(f"{amount:g} {name}" for name, amount in self.needs.items())
            raise FedfusionError(
                f"federation.actors={self.actors} do not fit: each needs {each} on one node, and the nodes of the Ray "
                f"cluster have room for {room} (lower federation.actors, or add nodes)"
            )


def connect(address: str | None, threads: int) -> bool:
    """Join the cluster at `address`, or start Ray on this machine; says whether that is new.

    Raises
    ------
    FedfusionError
        If Ray cannot be reached or started.
    """
    import ray

    if ray.is_initialized():
        return False
    if address is not None:
        _reach(address)
    here: dict[str, Any] = {} if address else {"include_dashboard": False}
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init(address or "local", runtime_env=environment(threads), **quiet, **here)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise FedfusionError(
            f"federation.address={address}: Ray cannot be reached or started "
            f"({str(error).splitlines()[0]}; start a cluster with `ray start --head`, or set it to null)"
        ) from error
    return True


def _reach(address: str) -> None:
    """Refuse an address where nobody listens; Ray itself would try for many minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return  # "auto"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise FedfusionError(
            f"federation.address={address}: Ray cannot be reached ({error}; start it there with "
            f"`ray start --head --port={port}`, or give the address that it names)"
        ) from error


def _times(name: str, have: float, need: float) -> int:
    """How often a node has what an actor needs; a share of a GPU is a share of one."""
    if name == "GPU" and need < 1:
        return int(have) * floor(1 / need + 1e-9)
    return floor(have / need + 1e-9)
