"""The command line. Everything heavy is imported inside the verbs, so that `--help` is quick."""

import contextlib
import functools
import json
import logging
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from fedfusion.deploy import cli as deploy

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Federated multi-task LoRA fine-tuning, and fusion of what the devices learned, over a jammed uplink.",
)
Overrides = Annotated[list[str] | None, typer.Argument(help="Hydra overrides, e.g. channel.jsr_db=10 seed=1")]
Resume = Annotated[
    Path | None,
    typer.Option(
        help="Continue the run in this folder; rounds, federation, deadline_s, min_clients, rouge_rows may change."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
app.add_typer(deploy.app, name="deploy")


@app.callback()
def main() -> None:
    """Make modules of the current folder importable, as `python -m` does: a method of one's own is one file."""
    sys.path.insert(0, "")


@app.command()
def run(overrides: Overrides = None, resume: Resume = None, as_json: AsJson = False) -> None:
    """Run one federation and write its adapters, metrics, plots and report into a run folder."""
    from omegaconf import OmegaConf

    from fedfusion import config
    from fedfusion.server.checkpoint import Checkpoints, write_atomically

    given = list(overrides or [])
    with _plain_errors():
        if resume:
            cfg, given = config.resume(resume, given)
        else:
            cfg = config.resolve(given)
        run_dir = (resume or config.fresh_run_dir(cfg)).resolve()
        cfg.run_dir = str(run_dir)
        with Checkpoints(run_dir).writing(run_dir):
            run_dir.mkdir(parents=True, exist_ok=resume is not None)
            write_atomically(run_dir / "config.yaml", OmegaConf.to_yaml(cfg))
            write_atomically(run_dir / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(given)))
            _quiet(run_dir / "run.log")
    with _plain_errors(), _interruptible(run_dir):
        with (run_dir / "run.log").open("a") as log, contextlib.redirect_stderr(log):
            config.build(cfg).federation.launch(cfg)
        with Checkpoints(run_dir).writing(run_dir):
            _conclude(run_dir, given, as_json)


@deploy.app.command("run")
def run_on_devices(
    overrides: Overrides = None, folder: deploy.Dir = Path("deploy"), resume: Resume = None, as_json: AsJson = False
) -> None:
    """Run one federation on the devices of a deployment, attacked and jammed only where overrides say so."""
    run(deploy.on_devices(list(overrides or []), folder, resume is not None), resume, as_json)


@app.command()
def sweep(
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write, which must not exist; else sweeps/ and the time.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a grid of runs, and write tables and plots of what became of them.

    As in `fedfusion sweep sweep=attack_budget`, or `fedfusion sweep attack=min_max,alie seed=0,1,2`; hydra/launcher=
    says where the runs go.
    """
    with _plain_errors():
        from fedfusion.reporting import sweep as report
        from fedfusion.sweep import sweep

        facts = sweep(list(overrides or []), functools.partial(run, as_json=True), out)
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        report.show(facts)
    if any(cell["error"] for cell in facts["cells"]):
        raise SystemExit(1)


@app.command()
def merge(
    arguments: Annotated[
        list[str], typer.Argument(metavar="ADAPTERS... [OVERRIDES]...", help="PEFT folders or hub ids, and overrides")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write, which must not exist.")],
    per_task: Annotated[
        bool, typer.Option("--per-task", help="Also write what the rule has for devices that know their task.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fuse LoRA adapters that exist already into one, without their base model and without a federation.

    As in `fedfusion merge A B fusion=ties rank=16 --out DIR`, where A and B are PEFT folders or hub ids; rank may also
    be the share of the energy to keep (0.95), or null, which loses nothing.
    """
    with _plain_errors():
        from fedfusion.offline import card
        from fedfusion.offline.merge import merge

        _without_bars()
        sources = [text for text in arguments if "=" not in text or Path(text).is_dir()]
        facts = merge(sources, [text for text in arguments if text not in sources], out, per_task)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    card.show_merge(facts)
    typer.echo(f"\n{out}: {' '.join(sorted(path.name + '/' * path.is_dir() for path in out.iterdir()))}")


@app.command()
def evaluate(
    adapter: Annotated[str, typer.Argument(help="A PEFT folder with a LoRA, or a hub id.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Write the results as JSON into this file, too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a LoRA adapter on the test sets of a suite, beside its base model.

    As in `fedfusion evaluate DIR suite=digits8`; overrides are those of a run: suite, model, head and seed.
    """
    with _plain_errors():
        from fedfusion.offline import card
        from fedfusion.offline.evaluate import evaluate
        from fedfusion.server.checkpoint import write_atomically
        from fedfusion.types import FedfusionError

        if out and (out.exists() or not out.parent.is_dir()):
            why = "exists already and is never overwritten" if out.exists() else "is in a folder that does not exist"
            raise FedfusionError(f"--out {out} {why} (choose another)")
        _without_bars()
        results = evaluate(adapter, list(overrides or []))
    if out:
        write_atomically(out, json.dumps(results, indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(results))
        return
    card.show_evaluation(results)


@app.command()
def validate(overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check a configuration and report everything that is wrong with it, without loading a model."""
    from fedfusion import config

    with _plain_errors(as_json):
        config.resolve(list(overrides or []))
    typer.echo(json.dumps({"valid": True, "errors": []}) if as_json else "the configuration is valid")


@app.command()
def ls(
    what: Annotated[str | None, typer.Argument(help="A group, or group/option.")] = None, as_json: AsJson = False
) -> None:
    """List what can be chosen, with the reference of each method."""
    from fedfusion.listing import describe, listing

    with _plain_errors():
        if what and "/" in what:
            typer.echo(describe(*what.split("/", 1)))
            return
        rows = listing(what)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    for group in dict.fromkeys(row["group"] for row in rows):
        typer.secho(group, bold=True)
        for row in (row for row in rows if row["group"] == group):
            typer.echo(f"  {row['name']:<22} {row['summary']}")
            if row.get("data", "none") != "none":
                typer.echo(f"  {'':<22} needs {row['data']}")
            if row["reference"] and what:
                typer.echo(f"  {'':<22} {row['reference']}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show versions, threads, GPU, Ray, ports, caches and Docker."""
    from fedfusion.doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps(findings, indent=1))
    else:
        for name, value in findings.items():
            typer.echo(f"{name:<22} {value}")


@contextlib.contextmanager
def _plain_errors(as_json: bool = False) -> Iterator[None]:
    """Print a FedfusionError as plain sentences and exit; let everything else through."""
    from fedfusion.types import FedfusionError

    try:
        yield
    except FedfusionError as error:
        lines = str(error).splitlines()
        if as_json:
            typer.echo(json.dumps({"valid": False, "errors": lines}))
        for line in lines:
            typer.echo(f"error: {line}", err=True)
        raise SystemExit(error.exit_code) from None


@contextlib.contextmanager
def _interruptible(run_dir: Path) -> Iterator[None]:
    """Say how to continue when the run is stopped by hand, and clean up when it is terminated."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"interrupted; continue with: fedfusion run --resume {run_dir}", err=True)
        raise SystemExit(130) from None


def _quiet(log: Path) -> None:
    """Send what third-party libraries say to run.log."""
    logging.captureWarnings(True)
    warnings.simplefilter("default")
    handler = logging.FileHandler(log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.INFO)
    import transformers

    transformers.utils.logging.disable_progress_bar()
    for name in ("flwr", "transformers", "huggingface_hub", "datasets"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True


def _without_bars() -> None:
    """Let nothing but results and errors appear: models load quickly enough without a progress bar."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")


def _conclude(run_dir: Path, overrides: list[str], as_json: bool) -> None:
    """Add the command to results.json, make card, plots and report from it, and show the table."""
    from fedfusion.reporting import report
    from fedfusion.server.checkpoint import write_atomically

    results = json.loads((run_dir / "results.json").read_text())
    results["command"] = shlex.join(["fedfusion", "run", *overrides])
    write_atomically(run_dir / "results.json", json.dumps(results, indent=1) + "\n")
    report.make(run_dir)
    if as_json:
        typer.echo(json.dumps(results))
        return
    report.show(results)
    served = "served/ " if (run_dir / "served").exists() else ""
    typer.echo(f"\n{run_dir}: adapter/ personal/ {served}results.json metrics.jsonl plots/ report.html run.log")


for verb in deploy.app.registered_commands:
    assert verb.callback is not None
    verb.callback = _plain_errors()(verb.callback)

if __name__ == "__main__":
    app()
