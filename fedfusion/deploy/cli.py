"""`fedfusion deploy`: its verbs. Everything heavy is imported inside them, so that `--help` is quick."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fedfusion.console import Verbs
from fedfusion.strict_json import dumps

app = typer.Typer(
    cls=Verbs, no_args_is_help=True, help="Run on real devices: keys and certificates, SuperLink and SuperNodes."
)
HOME = Path("deploy")
NODES = 2
PORT = 8000  # of the SuperLink
NODE_PORT = 9094
Dir = Annotated[Path, typer.Option("--dir", help="Folder of the deployment.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


@app.command()
def init(
    folder: Dir = HOME,
    nodes: Annotated[int | None, typer.Option(help="Number of devices.", show_default=str(NODES))] = None,
    host: Annotated[
        list[str] | None, typer.Option(help="Name or address by which devices reach the SuperLink; may be repeated.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Of the SuperLink.", show_default=str(PORT))] = None,
    rotate: Annotated[
        bool,
        typer.Option("--rotate", help="In a deployment that exists, make a new certificate and new keys; add hosts."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make the folder of a deployment: an authority of its own, a certificate, and a key for each device."""
    from fedfusion.deploy import init
    from fedfusion.types import FedfusionError

    if rotate:
        if nodes is not None or port is not None:
            raise FedfusionError(
                "--rotate changes neither --nodes nor --port (for more devices make another deployment with --dir; the "
                f"port is in {folder / 'deploy.toml'})"
            )
        deployment = init.rotate(folder, host, _say(as_json))
    else:
        deployment = init.create(folder, NODES if nodes is None else nodes, host or [], PORT if port is None else port)
    if as_json:
        facts = {"folder": str(deployment.home), "hosts": list(deployment.hosts), "port": deployment.port}
        typer.echo(dumps(facts | {"devices": [str(device.folder) for device in deployment.devices()]}))
        return
    if rotate:
        typer.echo(f"{folder}: new certificate, new keys of {len(deployment.devices())} devices; carry them there")
        return
    for device in deployment.devices():
        typer.echo(f"{device.name}: edit {folder / 'nodes' / device.name / 'node.toml'}, put its data beside it")
    typer.echo(f"next: fedfusion deploy up --dir {folder}")


@app.command()
def up(
    folder: Dir = HOME,
    nodes: Annotated[
        int | None, typer.Option(help="How many of the devices run on this machine; 0 is the server alone, else all.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Processes, even where there is Docker.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start the SuperLink and devices, in Docker where there is one, and wait until they are online."""
    from fedfusion.deploy import docker
    from fedfusion.deploy.folder import Deployment
    from fedfusion.deploy.status import examine
    from fedfusion.deploy.up import up

    deployment, say = Deployment.at(folder), _say(as_json)
    contained = not plain and docker.available()
    if contained:
        docker.up(deployment, nodes, say)
    else:
        if not plain:
            say("no Docker engine answers here: plain processes")
        up(deployment, nodes, say)
    if as_json:
        typer.echo(dumps(examine(deployment)))
    elif not contained:
        typer.echo(f"logs       {folder / 'logs'}\nnext       fedfusion deploy run --dir {folder}")


@app.command()
def node(
    folder: Annotated[Path, typer.Argument(help="The device's folder, nodes/node-K of the deployment.")],
    superlink: Annotated[str, typer.Option(help="HOST:PORT of the SuperLink.")],
    port: Annotated[int, typer.Option(help="Of the SuperNode, on the device itself.")] = NODE_PORT,
    as_json: AsJson = False,
) -> None:
    """Run one device, on the device itself, until this process is ended: its folder is all that it needs."""
    from fedfusion.deploy.node import serve

    try:
        serve(folder, superlink, port, _say(as_json))
    except SystemExit as ended:
        if as_json:
            typer.echo(dumps({"folder": str(folder.resolve()), "superlink": superlink, "exit_code": ended.code}))
        raise


@app.command()
def status(folder: Dir = HOME, as_json: AsJson = False) -> None:
    """Show SuperLink, certificate, devices and runs; the exit code is 1 where the SuperLink is not there."""
    from fedfusion.deploy.folder import Deployment
    from fedfusion.deploy.status import examine, show

    facts = examine(Deployment.at(folder))
    typer.echo(dumps(facts) if as_json else "\n".join(show(facts)))
    if not facts["superlink"]["healthy"]:
        raise SystemExit(1)


@app.command()
def down(folder: Dir = HOME, as_json: AsJson = False) -> None:
    """Stop runs, devices and the SuperLink, and everything they have started."""
    from fedfusion.deploy import docker
    from fedfusion.deploy.folder import Deployment
    from fedfusion.deploy.up import down

    deployment, say = Deployment.at(folder), _say(as_json)
    down(deployment, say)
    containers = docker.down(deployment)
    if as_json:
        typer.echo(dumps({"folder": str(deployment.home), "containers_removed": containers}))
    elif containers:
        typer.echo("containers removed")


def _say(as_json: bool) -> Callable[[str], None]:
    """How what happens is told: on stdout, unless that is for JSON."""
    return partial(typer.echo, err=as_json)


def on_devices(overrides: list[str], folder: Path, resumed: bool) -> list[str]:
    """The overrides of a run on devices: nothing is simulated but what the user asks for."""
    given = {override.partition("=")[0] for override in overrides}
    chosen = {"federation": ["federation=devices", f"federation.home={_quoted(folder.resolve())}"]}
    if not resumed:
        chosen |= {"attack": ["attack=none"], "channel": ["channel=ideal"]}
    return [text for group, texts in chosen.items() if group not in given for text in texts] + overrides


def _quoted(path: Path) -> str:
    """A path as Hydra reads it."""
    return str(path) if re.fullmatch(r"[\w./-]+", str(path)) else f"'{path}'"
