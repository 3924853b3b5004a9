"""What the owner of a device allows: which data, which tasks, how much work, and whose code."""

import fnmatch
import importlib.metadata
import json
import re
import resource
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

from fedfusion.config import CONF, Experiment
from fedfusion.lora.model import LoraModel
from fedfusion.tasks.source import Folder
from fedfusion.tasks.suite import Files
from fedfusion.types import FedfusionError, Samples, TaskSuite

DEVICES = "fedfusion.federation.Devices"
LOCATIONS = ("path", "root", "model", "tokenizer", "processor")  # keys whose values may be relative paths
SHIPPED = "shipped"  # in allowed-targets: whatever the options of this installation name


@dataclass(frozen=True)
class Device:
    """A device's own rules, from the configuration of its node; the server cannot change them.

    Parameters
    ----------
    data_path
        The device's data folder. A suite of files is read from here, and no other path outside of it is.
    tasks
        The tasks it takes part in; empty is all.
    max_steps
        Local steps per round that it agrees to; None is any number.
    max_memory_mb
        What a client process may allocate, in MB; None is no limit.
    allowed_targets
        Patterns of the callables that a configuration may name, as `mymodels.*`; `shipped` are those that the options
        of the installed fedfusion name.
    part, parts
        Which device it is, and of how many.
    """

    data_path: str
    tasks: tuple[str, ...] = ()
    max_steps: int | None = None
    max_memory_mb: int | None = None
    allowed_targets: tuple[str, ...] = (SHIPPED,)
    part: int = 0
    parts: int = 1

    @classmethod
    def of(cls, node_config: Mapping[str, Any]) -> "Device | None":
        """The rules in a node's configuration; None where it names no data folder, as in simulation.

        Raises
        ------
        FedfusionError
            If the data folder does not exist, or a limit is not positive.
        """
        if not node_config.get("data-path"):
            return None
        folder = Path(str(node_config["data-path"])).expanduser().resolve()
        if not folder.is_dir():
            raise FedfusionError(f"data-path={folder} in the node's configuration: there is no such folder")
        if missing := [name for name in ("partition-id", "num-partitions") if name not in node_config]:
            raise FedfusionError(
                f"the node's configuration has a data-path but no {missing[0]} (say which device it is, and of how "
                "many, as partition-id=0 num-partitions=2)"
            )
        limits = {name: node_config.get(name) for name in ("max-steps", "max-memory-mb")}
        for name, limit in limits.items():
            if limit is not None and int(limit) < 1:
                raise FedfusionError(f"{name}={limit} in the node's configuration must be at least 1")
        return cls(
            data_path=str(folder),
            tasks=_names(node_config.get("tasks")),
            max_steps=limits["max-steps"] and int(limits["max-steps"]),
            max_memory_mb=limits["max-memory-mb"] and int(limits["max-memory-mb"]),
            allowed_targets=_names(node_config.get("allowed-targets")) or (SHIPPED,),
            part=int(node_config["partition-id"]),
            parts=int(node_config["num-partitions"]),
        )

    def admit(self, experiment_json: str) -> str:
        """The configuration as this device runs it: its own data folder, no run folder, and nothing simulated.

        Raises
        ------
        FedfusionError
            If it names a callable or a path that the device does not allow, or remote code.
        """
        cfg = json.loads(experiment_json)
        cfg |= {"run_dir": None, "min_clients": 1, "federation": {"_target_": DEVICES}}
        if "root" in cfg["suite"]:
            cfg["suite"] |= {"root": self.data_path, "tasks": self.held(cfg["suite"]["tasks"], own_rows=True)}
        cfg["model"]["path"] = self._model(cfg["model"]["path"])
        wrong = [sentence for key, value in _leaves(cfg) if (sentence := self._refusal(key, value))]
        if wrong:
            raise FedfusionError("; ".join(wrong))
        return json.dumps(cfg)

    def place(self, experiment: Experiment, tasks: Sequence[str]) -> Experiment:
        """The experiment with the suite as this device knows it: the server's `tasks`, and the rows that are here.

        Raises
        ------
        FedfusionError
            If it asks for more steps than the device allows.
        """
        suite, client = experiment.suite, experiment.client
        if self.max_steps and (client.epochs is not None or client.steps > self.max_steps):
            asked = f"client.steps={client.steps}" if client.epochs is None else f"client.epochs={client.epochs}"
            raise FedfusionError(
                f"{asked}: this device does at most max-steps={self.max_steps} a round (lower client.steps)"
            )
        if not isinstance(suite, Files):
            return experiment
        return replace(experiment, suite=cast(TaskSuite, OwnRows(tuple(tasks), suite.clients_per_task, suite)))

    def held(self, tasks: Sequence[str], own_rows: bool) -> list[str]:
        """Those of `tasks` that the device takes part in; with `own_rows`, those that its data folder has.

        Raises
        ------
        FedfusionError
            If there are none.
        """
        there = self.tasks or (Folder(self.data_path).tasks if own_rows else tasks)
        if not (mine := [task for task in tasks if task in there]):
            raise FedfusionError(
                f"this device holds {', '.join(there)}, and none of the tasks of the run: {', '.join(tasks)} (see "
                "tasks and data-path in the node's configuration)"
            )
        return mine

    def takes(self, tasks: Iterable[str]) -> None:
        """Refuse work for a task that the device takes no part in."""
        for task in tasks if self.tasks else ():
            if task not in self.tasks:
                raise FedfusionError(f"this device takes part in {', '.join(self.tasks)}, not in {task}")

    def limit_memory(self) -> None:
        """Let this process allocate no more than `max_memory_mb`; more is an error of the client, which is dropped."""
        if self.max_memory_mb and sys.platform == "linux":
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            resource.setrlimit(resource.RLIMIT_DATA, (self.max_memory_mb * 10**6, hard))

    def _model(self, path: str) -> str:
        """A folder of the server by its name in the device's data folder."""
        here = Path(self.data_path) / Path(path).name
        return str(here) if Path(path).is_absolute() and here.is_dir() else path

    def _refusal(self, key: str, value: Any) -> str | None:
        name = key.rpartition(".")[2]
        if name == "_target_" and value is not None and not self._allows(str(value)):
            allowed = ",".join(self.allowed_targets)
            return f"{key}={value}: not on the list of this device (allowed-targets={allowed} in its configuration)"
        if name == "trust_remote_code" and value:
            return f"{key}=true: this device runs no code from elsewhere (set it to false)"
        if not isinstance(value, str) or name == "_target_":
            return None
        if "${" in value:
            return f"{key}={value}: this device resolves nothing (send a resolved configuration)"
        foreign = re.match(r"[/~]|[A-Za-z]:[\\/]|\w+://", value) or ".." in Path(value).parts
        if foreign or (name in LOCATIONS and Path(value).exists()):
            if not Path(value).expanduser().resolve().is_relative_to(self.data_path):
                return f"{key}={value}: outside this device's data folder (data-path={self.data_path})"
        return None

    def _allows(self, target: str) -> bool:
        patterns = [pattern for pattern in self.allowed_targets if pattern != SHIPPED]
        shipped = SHIPPED in self.allowed_targets and target in _shipped()
        return shipped or any(fnmatch.fnmatchcase(target, pattern) for pattern in patterns)


@dataclass(frozen=True)
class OwnRows:
    """A suite on a device that has rows of its own: those of a client are all the rows of its task that are here.

    Parameters
    ----------
    tasks, clients_per_task
        As the server counts them.
    here
        The rows, of those tasks that the device holds.
    """

    tasks: tuple[str, ...]
    clients_per_task: int
    here: Files

    @property
    def num_clients(self) -> int:
        """Number of tasks times `clients_per_task`."""
        return len(self.tasks) * self.clients_per_task

    def task_of(self, client: int) -> str:
        """The task of a client."""
        return self.tasks[client // self.clients_per_task]

    def num_classes(self, task: str) -> int:
        """Number of labels of a task."""
        return self.here.num_classes(task)

    def train(self, client: int, seed: int) -> Samples:
        """All training rows of the client's task."""
        return self.here.everything(self._held(self.task_of(client)))

    def test(self, task: str) -> Samples:
        """The test rows of a task."""
        return self.here.test(self._held(task))

    def _held(self, task: str) -> str:
        if task not in self.here.tasks:
            raise FedfusionError(f"this device holds rows of {', '.join(self.here.tasks)}, not of {task}")
        return task


def facts(suite: TaskSuite, model: LoraModel) -> dict[str, str]:
    """What server and device must have alike: version, base model, tasks and their classes."""
    held = suite.here if isinstance(suite, OwnRows) else suite
    classes = {task: list(getattr(held, "class_names", lambda _: ())(task)) for task in held.tasks}
    return {
        "version": importlib.metadata.version("fedfusion"),
        "base": model.fingerprint,
        "classes": json.dumps(classes),
    }


def compare(server: Mapping[str, Any], suite: TaskSuite, model: LoraModel) -> None:
    """Refuse to take part where the server has another version, base model or other classes.

    Raises
    ------
    FedfusionError
        With the values of both.
    """
    own = facts(suite, model)
    theirs, ours = server["version"], own["version"]
    if theirs != ours:
        raise FedfusionError(f"the server has fedfusion {theirs}, this device {ours} (install the same on both)")
    if server["base"] != own["base"]:
        raise FedfusionError(
            f"model.path: the base model of the server has the hash {str(server['base'])[:12]}, that of this device "
            f"{own['base'][:12]} (put the same weights on both)"
        )
    known = json.loads(str(server["classes"]))
    for task, names in json.loads(own["classes"]).items():
        if names != known.get(task):
            raise FedfusionError(
                f"the classes of task '{task}' are {known.get(task)} at the server and {names} on this device (give "
                "both the same labels)"
            )


def _names(text: Any) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(name.strip() for name in str(text or "").split(",") if name.strip())


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All values of nested mappings and lists by dotted key."""
    if isinstance(node, Mapping):
        for name, child in node.items():
            yield from _leaves(child, f"{key}.{name}".lstrip("."))
    elif isinstance(node, list):
        for i, child in enumerate(node):
            yield from _leaves(child, f"{key}.{i}")
    else:
        yield key, node


@cache
def _shipped() -> frozenset[str]:
    """The callables that the options of the installed package name."""
    found = (re.findall(r"_target_: ([\w.]+)", path.read_text()) for path in CONF.rglob("*.yaml"))
    return frozenset(target for targets in found for target in targets)
