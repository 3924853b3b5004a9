"""The folder of a deployment: what is in it, and the devices that it names."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedfusion.types import FedfusionError

DEVICE_KEYS = {
    "data-path": str,
    "partition-id": int,
    "num-partitions": int,
    "tasks": str,
    "max-steps": int,
    "max-memory-mb": int,
    "allowed-targets": str,
}
NODE_TOML = """\
# What this device offers, and what it refuses. Its owner edits this file; `fedfusion deploy up` passes it on to the
# client app as Flower's node configuration, and fedfusion's app checks every message against it on the device itself.
# These rules bind that app alone: Flower sends an app's code with its run, so whoever may submit runs to the SuperLink
# can run code of their own here.

data-path = "data"     # folder of its own data, from this file's folder on; no path outside of it is read
partition-id = {partition}       # which part of the clients live here, of the
num-partitions = {partitions}     # parts that all devices share

# tasks = "sst2,subj"  # tasks it takes part in, separated by commas; without this line all
# max-steps = 100      # local steps a round that it agrees to
# max-memory-mb = 4000 # what a training process may allocate
# allowed-targets = "shipped,mymodels.*"  # whose code a configuration may name; without this line that of fedfusion
"""
DEPLOY_TOML = """\
# Where the SuperLink of this deployment listens. Written by `fedfusion deploy init`.
hosts = {hosts}  # names and addresses in its certificate, besides localhost
port = {port}
"""


@dataclass(frozen=True)
class Device:
    """One device of a deployment: its keys, its settings, its data.

    Attributes
    ----------
    name
        `node-0`, `node-1`, ...
    folder
        `nodes/<name>` of the deployment, or where it was copied on the device itself.
    """

    name: str
    folder: Path

    @property
    def key(self) -> Path:
        """Its private key; the public one is `key.pub`."""
        return self.folder / "key"

    @property
    def public_key(self) -> Path:
        """What the SuperLink knows it by."""
        return self.folder / "key.pub"

    @property
    def settings_file(self) -> Path:
        """What its owner edits."""
        return self.folder / "node.toml"

    @property
    def authority(self) -> Path:
        """The certificate of the authority whose SuperLink it trusts."""
        return self.folder / "ca.crt"

    @property
    def registration(self) -> Path:
        """The id that the SuperLink gave it, and the public key that it was given for."""
        return self.folder / "node-id"

    def missing(self, *files: Path) -> list[str]:
        """A sentence for each of `files` that its folder lacks."""
        return [f"{self.name}: {file} is missing (copy it back)" for file in files if not file.is_file()]

    def settings(self) -> dict[str, Any]:
        """The settings of its owner.

        Raises
        ------
        FedfusionError
            Where a setting is unknown, missing or of the wrong type, or the data folder does not exist.
        """
        file = self.settings_file
        try:
            found = tomllib.loads(file.read_text())
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise FedfusionError(f"{self.name}: {file} cannot be read ({error})") from error
        wrong = [f"'{key}' is no setting (choose from {', '.join(DEVICE_KEYS)})" for key in found.keys() - DEVICE_KEYS]
        for key, kind in DEVICE_KEYS.items():
            if key in found and type(found[key]) is not kind:
                what, hint = ("text", " (separate names by commas)") if kind is str else ("a whole number", "")
                wrong.append(f"'{key}' must be {what}, got {found[key]!r}{hint}")
        for key in ("max-steps", "max-memory-mb"):
            if not wrong and found.get(key, 1) < 1:
                wrong.append(f"'{key}' must be at least 1, got {found[key]}")
        for key in ("data-path", "partition-id", "num-partitions"):
            if found.get(key, "") == "":
                wrong.append(f"'{key}' is missing" + " (name the folder of its own data)" * (key == "data-path"))
        if not wrong and not (self.folder / found["data-path"]).is_dir():
            wrong.append(f"data-path={found['data-path']} is no folder (make {self.folder / found['data-path']})")
        if not wrong and not 0 <= found["partition-id"] < found["num-partitions"]:
            parts = f"partition-id={found['partition-id']}, num-partitions={found['num-partitions']}"
            wrong.append(f"{parts}: a part must be at least 0 and less than their number")
        if wrong:
            raise FedfusionError("\n".join(f"{self.name}: {sentence} in {file}" for sentence in sorted(wrong)))
        return found


@dataclass(frozen=True)
class Deployment:
    """The folder of a deployment.

    Attributes
    ----------
    home
        Its absolute path.
    hosts
        Names and addresses of the SuperLink, besides localhost.
    port
        Of the SuperLink; the SuperNodes on this machine take those after it, one each.
    """

    home: Path
    hosts: tuple[str, ...]
    port: int

    @classmethod
    def at(cls, folder: Path) -> "Deployment":
        """The deployment in a folder.

        Raises
        ------
        FedfusionError
            If there is none, or its settings cannot be read.
        """
        home = folder.resolve()
        file = home / "deploy.toml"
        if not file.is_file():
            raise FedfusionError(f"there is no deployment in {folder} (make one: fedfusion deploy init --dir {folder})")
        try:
            found = tomllib.loads(file.read_text())
            return cls(home, tuple(found["hosts"]), int(found["port"]))
        except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
            raise FedfusionError(f"{file} needs hosts and port ({type(error).__name__}: {error})") from error

    @property
    def address(self) -> str:
        """Of the SuperLink, for the processes of this machine."""
        return f"127.0.0.1:{self.port}"

    @property
    def flower(self) -> Path:
        """What Flower keeps here instead of in the user's home."""
        return self.home / ".flower"

    def device(self, index: int) -> Device:
        """The device of one index."""
        return Device(f"node-{index}", self.home / "nodes" / f"node-{index}")

    def devices(self) -> list[Device]:
        """All devices, in order."""
        names = [re.fullmatch(r"node-(\d+)", folder.name) for folder in (self.home / "nodes").glob("node-*")]
        return [self.device(index) for index in sorted(int(name[1]) for name in names if name)]

    def node_port(self, device: Device) -> int:
        """Where the SuperNode of a device listens for its own processes, on this machine."""
        return self.port + 1 + int(device.name.removeprefix("node-"))

    def write_connection(self) -> None:
        """Tell Flower's command line where the SuperLink is."""
        self.flower.mkdir(mode=0o700, exist_ok=True)
        connection: Mapping[str, str] = {"address": self.address, "root-certificates": str(self.home / "ca.crt")}
        lines = [f'{key} = "{value}"' for key, value in connection.items()]
        (self.flower / "config.toml").write_text("\n".join(["[superlink.ours]", *lines, ""]))
