"""The command line. Everything heavy is imported inside the verbs, so that `--help` is quick."""

import contextlib
import shlex
import signal
import sys
import warnings
import webbrowser
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from fedfusion import __version__, completion
from fedfusion.console import Verbs, plain_errors, refuse
from fedfusion.deploy import cli as deploy
from fedfusion.strict_json import dumps, worded

app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Federated multi-task LoRA fine-tuning, and fusion of what the devices learned, over a jammed uplink.",
)
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Hydra overrides, e.g. channel.jsr_db=10 seed=1", autocompletion=completion.overrides),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        help="Continue the run in this folder; rounds, federation, deadline_s, min_clients, rouge_rows may change."
    ),
]
ConfigDir = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="A folder of your own options beside those of conf/, as DIR/channel/mine.yaml."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
app.add_typer(deploy.app, name="deploy")


def _version(asked: bool) -> None:
    """Print the version, and no more."""
    if asked:
        typer.echo(f"fedfusion {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Make modules of the current folder importable, as `python -m` does: a method of one's own is one file."""
    sys.path.insert(0, "")


@app.command()
def run(
    overrides: Overrides = None,
    resume: Resume = None,
    config_dir: ConfigDir = None,
    shown: Annotated[
        str | None,
        typer.Option(
            "--cfg", metavar="job", click_type=click.Choice(["job"]), help="Print the configuration and run nothing."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run one federation and write its adapters, metrics, plots and report into a run folder."""
    overrides = [*_searched(config_dir), *(overrides or [])]
    if shown:
        _show_configuration(overrides, resume, as_json)
        return
    from fedfusion import api
    from fedfusion.reporting import report

    prepared = api.prepare(overrides, resume)
    with _interruptible(f"fedfusion run --resume {prepared[-1]}"), _progress(as_json):
        results = api.launch(*prepared)
    if as_json:
        typer.echo(dumps(results.facts))
    else:
        report.show(results.facts)
        served = "served/ " if (results.folder / "served").exists() else ""
        there = f"adapter/ personal/ {served}results.json metrics.jsonl plots/ report.html run.log"
        typer.echo(f"\n{results.folder}: {there}")
    if repo := prepared[0].push_to_hub:
        _push(results.folder / "adapter", repo)


@deploy.app.command("run")
def run_on_devices(
    overrides: Overrides = None,
    folder: deploy.Dir = Path("deploy"),
    resume: Resume = None,
    config_dir: ConfigDir = None,
    as_json: AsJson = False,
) -> None:
    """Run one federation on the devices of a deployment, attacked and jammed only where overrides say so."""
    given = deploy.on_devices(list(overrides or []), folder, resume is not None)
    run(given, resume, config_dir, as_json=as_json)


@app.command()
def sweep(
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The folder; what is finished in it is not run again. Else sweeps/ and the grid's name."),
    ] = None,
    config_dir: ConfigDir = None,
    as_json: AsJson = False,
) -> None:
    """Run a grid of runs, and write tables, plots and a report of what became of them.

    As in `fedfusion sweep sweep=attack_budget`, or `fedfusion sweep attack=min_max,alie seed=0,1,2`. The same command
    again continues. sweep.dry_run=true shows the cells; sweep.jobs, sweep.on, sweep.share, sweep.fail_fast and
    hydra/launcher say how it is run.
    """
    overrides = [*_searched(config_dir), *(overrides or [])]
    words = ["fedfusion", "sweep", *overrides, *(["--out", str(out)] if out else [])]
    with _interruptible(shlex.join(words)):
        from fedfusion.reporting import sweep as report
        from fedfusion.sweep import sweep

        facts = sweep(overrides, out)
    if as_json:
        typer.echo(dumps(facts))
    elif facts["points"] and "estimate_s" not in facts:
        report.show(facts)
    if any(cell["error"] for cell in facts["cells"]) and "estimate_s" not in facts:
        raise SystemExit(1)


@app.command("report")
def rebuild(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders of runs or of sweeps, ended or not.")
    ],
    compare: Annotated[
        bool, typer.Option("--compare", help="Put them side by side in one page instead: runs, or sweeps of a grid.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The page of --compare, which must not exist; else compare.html here.")
    ] = None,
    in_browser: Annotated[bool, typer.Option("--open", help="Open what is written in the browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the reports of runs and sweeps anew, or compare them.

    As in `fedfusion report runs/A`, or `fedfusion report runs/A runs/B --compare`. Runs that differ in their seed alone
    count as one, with intervals.
    """
    from fedfusion.errors import FedfusionError
    from fedfusion.reporting import rebuild
    from fedfusion.sweep import facts

    if out and not compare:
        raise FedfusionError(f"--out {out} names the page of --compare (give --compare, or drop --out)")
    if compare:
        pages = [out or Path("compare.html")]
        found = rebuild.compare(folders, pages[0], facts)
        told, lines = {"page": str(pages[0]), **found.facts()}, [found.answer, str(pages[0])]
    else:
        pages = rebuild.rebuild(folders, facts)
        lines = [str(page) for page in pages]
        told = {"reports": lines}
    typer.echo(dumps(told) if as_json else "\n".join(lines))
    if in_browser:
        for page in pages:
            if not webbrowser.open(page.resolve().as_uri()):
                typer.echo(f"there is no browser here (open {page} in yours)", err=True)


@app.command()
def merge(
    arguments: Annotated[
        list[str], typer.Argument(metavar="ADAPTERS... [OVERRIDES]...", help="PEFT folders or hub ids, and overrides")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write, which must not exist.")],
    per_task: Annotated[
        bool, typer.Option("--per-task", help="Also write what the rule has for devices that know their task.")
    ] = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="USER/NAME", help="Upload it to the Hugging Face hub, too; a new repository is private."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fuse LoRA adapters that exist already into one, without their base model and without a federation.

    As in `fedfusion merge A B fusion=ties rank=16 --out DIR`, where A and B are PEFT folders or hub ids; rank may also
    be the share of the energy to keep (0.95), or null, which loses nothing.
    """
    from fedfusion import hub
    from fedfusion.offline import card
    from fedfusion.offline.merge import merge

    if push_to_hub:
        hub.check(push_to_hub)
    _without_bars()
    sources = [text for text in arguments if "=" not in text or Path(text).is_dir()]
    facts = merge(sources, [text for text in arguments if text not in sources], out, per_task)
    if as_json:
        typer.echo(dumps(facts))
    else:
        card.show_merge(facts)
        typer.echo(f"\n{out}: {' '.join(sorted(path.name + '/' * path.is_dir() for path in out.iterdir()))}")
    if push_to_hub:
        _push(out, push_to_hub)


@app.command()
def evaluate(
    adapter: Annotated[str, typer.Argument(help="A PEFT folder with a LoRA, or a hub id.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Write the results as JSON into this file, too.")] = None,
    to_card: Annotated[
        bool, typer.Option("--card", help="Write the scores into the adapter's model card, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a LoRA adapter on the test sets of a suite, beside its base model.

    As in `fedfusion evaluate DIR suite=digits8`; overrides are those of a run: suite, model, head and seed.
    """
    from fedfusion.offline import card
    from fedfusion.offline.evaluate import evaluate
    from fedfusion.server.checkpoint import write_atomically
    from fedfusion.types import FedfusionError

    if out and (out.exists() or not out.parent.is_dir()):
        why = "exists already and is never overwritten" if out.exists() else "is in a folder that does not exist"
        raise FedfusionError(f"--out {out} {why} (choose another)")
    if to_card and not Path(adapter).is_dir():
        raise FedfusionError(f"--card: {adapter} is no folder of this machine (give one, or drop --card)")
    _without_bars()
    results = evaluate(adapter, list(overrides or []))
    if to_card:
        card.add_scores(Path(adapter), results)
    if out:
        write_atomically(out, dumps(results, indent=1) + "\n")
    if as_json:
        typer.echo(dumps(results))
        return
    card.show_evaluation(results)


@app.command()
def validate(overrides: Overrides = None, config_dir: ConfigDir = None, as_json: AsJson = False) -> None:
    """Check a configuration and report everything that is wrong with it, without loading a model."""
    from fedfusion import config
    from fedfusion.errors import FedfusionError

    try:
        config.fresh_run_dir(config.resolve([*_searched(config_dir), *(overrides or [])]))
    except FedfusionError as error:
        if not as_json:
            raise
        sentences = str(error).splitlines()
        typer.echo(dumps({"valid": False, "errors": sentences}))
        refuse(sentences, error.exit_code, as_json=False)
    typer.echo(dumps({"valid": True, "errors": []}) if as_json else "the configuration is valid")


@app.command()
def ls(
    what: Annotated[
        str | None, typer.Argument(help="A group, or group/option.", autocompletion=completion.choices)
    ] = None,
    config_dir: ConfigDir = None,
    as_json: AsJson = False,
) -> None:
    """List what can be chosen, with the reference of each method; of GROUP/OPTION, YAML and documentation."""
    from fedfusion.listing import describe, listing, reflowed, show

    own = [config_dir] if config_dir else []
    if what and "/" in what:
        group, _, name = what.partition("/")
        facts = describe(group, name, own)
        typer.echo(dumps(facts) if as_json else f"{facts['yaml']}\n{reflowed(facts['documentation'])}".rstrip())
        return
    rows = listing(what, own)
    typer.echo(dumps(rows, indent=1) if as_json else show(rows, in_full=what is not None))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show what this machine has, and how to mend what is missing; the exit code is 1 where no run could work."""
    from fedfusion.doctor import examine, show

    findings = examine()
    typer.echo(dumps([asdict(finding) for finding in findings], indent=1) if as_json else show(findings))
    if any(finding.needed and not finding.ok for finding in findings):
        raise SystemExit(1)


@contextlib.contextmanager
def _interruptible(command: str) -> Iterator[None]:
    """Say how to continue when it is stopped by hand, and clean up when it is terminated."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"interrupted; continue with: {command}", err=True)
        raise SystemExit(130) from None


def _progress(as_json: bool) -> contextlib.AbstractContextManager[Any]:
    """Show on stderr what happens meanwhile, where stdout is for JSON."""
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


def _push(folder: Path, repo: str) -> None:
    """Upload a finished folder, and say on stderr where it is."""
    from fedfusion import hub

    with plain_errors(as_json=False):  # the results have been printed
        typer.echo(f"{folder} is on the hub: {hub.push(folder, repo)}", err=True)


def _show_configuration(overrides: list[str], resume: Path | None, as_json: bool) -> None:
    """Print what a run would be made of, resolved and checked."""
    from omegaconf import OmegaConf

    from fedfusion import config

    cfg = config.resume(resume, overrides)[0] if resume else config.resolve(overrides)
    typer.echo(dumps(worded(OmegaConf.to_container(cfg))) if as_json else OmegaConf.to_yaml(cfg).rstrip())


def _searched(config_dir: Path | None) -> list[str]:
    """The override by which options are also looked for in a folder of one's own."""
    from fedfusion.composition import search

    return [search(config_dir)] if config_dir else []


def _without_bars() -> None:
    """Let nothing but results and errors appear: models load quickly enough without a progress bar."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")


for verb in (*app.registered_commands, *deploy.app.registered_commands):
    assert verb.callback is not None
    verb.callback = plain_errors()(verb.callback)

if __name__ == "__main__":
    app()
