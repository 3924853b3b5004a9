"""The compose file of a deployment: SuperLink, SuperExec for server apps, and one SuperNode per device."""

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import jinja2

TEMPLATES = Path(__file__).parent


def render(
    nodes: int,
    *,
    name: str = "fedfusion",
    tls: bool = True,
    port: int = 8000,
    public: bool = False,
    folder: str = ".",
    names: Sequence[str] = (),
    data: Sequence[str] = (),
    runs: str | None = None,
    image: str | None = None,
    context: str | None = None,
    file: str = "compose.yaml",
) -> str:
    """The compose file of `nodes` devices.

    Parameters
    ----------
    nodes
        Number of devices; `0` is the server alone.
    name
        Of the project, which is a part of the names of its containers and volumes.
    tls
        With the certificates and keys of a deployment folder, and state that outlives the SuperLink; else without any,
        for this machine alone.
    port
        Of the SuperLink, on the host.
    public
        Whether other machines reach the SuperLink; without `tls` they never do.
    folder
        The deployment folder, from the compose file on.
    names
        Of the devices, as their folders have them; where they are not given, `node-0` and on.
    data
        `data-path` of each device, as its node.toml has it; where it is not given, `data`.
    runs
        The host's folder of run folders, which has the same path in the container, so that a run folder is the same
        for both. It has to exist. Null is a volume, seen as `/work/runs`.
    image
        Null is `fedfusion` of this version.
    context
        A checkout to build it from, from the compose file on; null where the image is there.
    file
        How the comment at its top calls the file.
    """
    names = names or [f"node-{index}" for index in range(nodes)]
    paths = [*data, *["data"] * nodes][:nodes]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template("compose.yaml.j2").render(
        devices=[_device(folder, name, path) for name, path in zip(names, paths, strict=True)],
        name=name,
        tls=tls,
        port=port,
        public=public,
        folder=folder,
        runs=runs,
        image=image or f"fedfusion:{importlib.metadata.version('fedfusion')}",
        context=context,
        file=file,
        volumes=["state"] * tls + ["runs"] * (runs is None),
    )


def _device(folder: str, name: str, data_path: str) -> dict[str, str]:
    """A device's name, where its data is on the host, and where its settings look for it in the container."""
    target = PurePosixPath("/node") / data_path  # an absolute path stays what it is
    source = f"{folder}/nodes/{name}/{data_path}" if not PurePosixPath(data_path).is_absolute() else data_path
    return {"name": name, "source": source, "target": str(target)}
