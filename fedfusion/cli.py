"""The command line. Everything heavy is imported inside the verbs, so that `--help` is quick."""

import datetime
import json
import logging
import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Federated multi-task LoRA fine-tuning, and fusion of what the devices learned, over a jammed uplink.",
)
Overrides = Annotated[list[str] | None, typer.Argument(help="Hydra overrides, e.g. channel.jsr_db=10 seed=1")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.command()
def run(
    overrides: Overrides = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the run in this folder; only rounds, federation, "
                                                "deadline_s and min_clients may be changed.")] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Run one federation and write its adapters, metrics, plots and report into a run folder."""
    from fedfusion import config
    from fedfusion.types import FedfusionError

    given = list(overrides or [])
    with _people_errors():
        if resume:
            cfg, given = config.resume(resume, given)
        else:
            cfg = config.resolve(given)
            cfg.run_dir = cfg.run_dir or f"runs/{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
            if Path(cfg.run_dir).exists():
                raise FedfusionError(
                    f"run_dir={cfg.run_dir} exists already and is never overwritten "
                    f"(choose another, or continue it with --resume {cfg.run_dir})"
                )
        cfg.run_dir = str(Path(cfg.run_dir).resolve())
    run_dir = Path(cfg.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    config.save(cfg, given, run_dir)
    _quiet(run_dir / "run.log")
    with _people_errors(code=1):
        config.build(cfg).federation.launch(cfg)
        _conclude(run_dir, shlex.join(["fedfusion", *sys.argv[1:]]), as_json)


@app.command()
def validate(overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check a configuration and report everything that is wrong with it, without loading a model."""
    from fedfusion import config

    with _people_errors(as_json=as_json):
        config.resolve(list(overrides or []))
        typer.echo(json.dumps({"valid": True, "errors": []}) if as_json else "the configuration is valid")


@app.command()
def ls(
    what: Annotated[str | None, typer.Argument(help="A group, or group/option.")] = None, as_json: AsJson = False
) -> None:
    """List what can be chosen, with the reference of each method."""
    from fedfusion.listing import describe, listing

    with _people_errors():
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
            typer.echo(f"  {row['name']:<18} {row['summary']}")
            if row["reference"] and what:
                typer.echo(f"  {'':<18} {row['reference']}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show versions, threads, GPU, Ray, ports, caches and Docker, and what is missing."""
    from fedfusion.doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps(findings, indent=1))
    else:
        for name, value in findings.items():
            typer.echo(f"{name:<22} {value}")


class _people_errors:  # noqa: N801 - reads as a statement
    """Print a FedfusionError as plain sentences and exit with `code`; let everything else through."""

    def __init__(self, code: int = 2, as_json: bool = False) -> None:
        self.code = code
        self.as_json = as_json

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from fedfusion.types import FedfusionError

        if isinstance(error, FedfusionError):
            lines = str(error).splitlines()
            if self.as_json:
                typer.echo(json.dumps({"valid": False, "errors": lines}))
            for line in lines:
                typer.echo(f"error: {line}", err=True)
            raise SystemExit(self.code)


def _quiet(log: Path) -> None:
    """Send what third-party libraries say to run.log."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.captureWarnings(True)
    handler = logging.FileHandler(log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.INFO)
    warnings.simplefilter("default")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    for name in ("flwr", "transformers", "huggingface_hub", "datasets"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True


def _conclude(run_dir: Path, command: str, as_json: bool) -> None:
    """Add the command to results.json, make card, plots and report from it, and show the table."""
    from fedfusion.reporting import report
    from fedfusion.server.checkpoint import write_atomically

    results = json.loads((run_dir / "results.json").read_text())
    results["command"] = command
    write_atomically(run_dir / "results.json", json.dumps(results, indent=1) + "\n")
    report.make(run_dir)
    if as_json:
        typer.echo(json.dumps(results))
        return
    report.show(results)
    typer.echo(f"\n{run_dir}: adapter/ personal/ results.json metrics.jsonl plots/ report.html")


if __name__ == "__main__":
    app()
