"""Runs from Python: `fedfusion.run(["channel=mimo", "seed=1"]).to_frame()`."""

import contextlib
import json
import logging
import shlex
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from omegaconf import DictConfig, OmegaConf

from fedfusion import config, hub
from fedfusion.composition import SEARCHPATH, grid
from fedfusion.server.checkpoint import Checkpoints, round_of, write_atomically
from fedfusion.strict_json import dumps
from fedfusion.types import FedfusionError
from fedfusion.validation import ConfigErrors

if TYPE_CHECKING:
    import pandas

THIRD_PARTIES = ("flwr", "transformers", "huggingface_hub", "datasets")


@dataclass(frozen=True)
class Results:
    """What a run found.

    Parameters
    ----------
    folder
        The folder of the run.
    facts
        What was in its results.json.
    """

    folder: Path
    facts: dict[str, Any] = field(repr=False)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The results of the run in `folder`.

        Raises
        ------
        FedfusionError
            If there is no results.json in it that can be read, or it is of a sweep.
        """
        from fedfusion.reporting import rebuild, report

        folder = Path(folder)
        if rebuild.kind(folder) == "sweep":
            raise FedfusionError(
                f"{folder} holds a sweep (read its table, {folder / 'sweep.csv'}, with pandas.read_csv; or load one of "
                f"its runs, from {folder / 'runs'})"
            )
        return cls(folder, report.load(folder))

    @property
    def metrics(self) -> dict[str, Any]:
        """Scores by task and stage, their means, and the record of every round."""
        return self.facts["metrics"]

    def to_frame(self) -> "pandas.DataFrame":
        """One row per task and stage, with its scores."""
        import pandas

        rows = [
            {"task": task, "stage": stage, **scores}
            for task, stages in self.metrics["tasks"].items()
            for stage, scores in stages.items()
        ]
        return pandas.DataFrame(rows)

    def rounds(self) -> "pandas.DataFrame":
        """One row per round: the mean score of each stage, and what came of the uploads, with errors in dB."""
        import pandas

        counts, values = ("clients", "heard", "refused", "dropped"), ("train_loss", "nmse_db", "discarded_energy")
        rows = [
            {"round": record["round"]}
            | record["mean"]
            | {name: len(record[name]) for name in counts}
            | {name: record[name] for name in values}
            for record in self.metrics["rounds"]
        ]
        return pandas.DataFrame(rows).set_index("round")


def run(overrides: Sequence[str] = (), resume: str | Path | None = None) -> Results:
    """Run one federation as `fedfusion run` does, and write its adapters, metrics, plots and report into a run folder.

    Parameters
    ----------
    overrides
        Hydra overrides, as `["channel.jsr_db=10", "seed=1"]`.
    resume
        The folder of an earlier run to continue.

    Raises
    ------
    TypeError
        If `overrides` is no list of texts.
    ConfigErrors
        Before anything is loaded: everything that is wrong with the configuration.
    FedfusionError
        If the run folder exists already.
    RunFailed
        If the run had to end; what is finished can be continued.
    """
    prepared = cfg, _, _ = prepare(overrides, resume)
    results = launch(*prepared)
    if cfg.push_to_hub is not None:
        hub.push(results.folder / "adapter", cfg.push_to_hub)
    return results


def prepare(overrides: Sequence[str], resume: str | Path | None = None) -> tuple[DictConfig, list[str], Path]:
    """The configuration of a run, checked; the overrides that it is made of; and its folder."""
    if isinstance(overrides, str) or not all(isinstance(text, str) for text in overrides):
        raise TypeError(f'overrides must be a list of texts, as ["rounds=1", "seed=2"], got {overrides!r}')
    if resume is None:
        cfg, combined = config.resolve(overrides), list(overrides)
    else:
        cfg, combined = config.resume(Path(resume), overrides)
        _not_fewer(cfg.rounds, Path(resume))
    _one_cell(overrides)
    return cfg, combined, (config.fresh_run_dir(cfg) if resume is None else Path(resume)).resolve()


def _not_fewer(rounds: int, run_dir: Path) -> None:
    """Refuse to continue a run for fewer rounds than it has."""
    last = Checkpoints(run_dir).latest()
    done = round_of(last) if last else 0
    if rounds < done:
        raise ConfigErrors([f"--resume {run_dir}: rounds={rounds}, but {done} are done (give rounds={done} or more)"])


def _one_cell(overrides: Sequence[str]) -> None:
    """Refuse the settings of a grid, unless every key that it sweeps has one value: then that is one of its cells."""
    named = [text for text in overrides if text.startswith(("sweep=", SEARCHPATH))]
    chosen = [text for text in named if text.startswith("sweep=")]
    given = {text.partition("=")[0] for text in overrides}
    if chosen and (left := [key for key in grid(named)[0] if key not in given]):
        raise ConfigErrors(
            [f"{chosen[0]}: that is many runs (use fedfusion sweep {chosen[0]}, or say which: {'=, '.join(left)}=)"]
        )


def launch(cfg: DictConfig, overrides: Sequence[str], run_dir: Path, report: bool = True) -> Results:
    """Run a checked configuration in `run_dir`; where that holds rounds already, they are continued.

    With `report` plots, model card and report.html are made in the end.
    """
    from fedfusion.reporting import report as reporting

    checkpoints = Checkpoints(run_dir)
    cfg.run_dir = str(run_dir)
    with checkpoints.writing(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(run_dir / "config.yaml", OmegaConf.to_yaml(cfg))
        write_atomically(run_dir / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(list(overrides))))
        log = (run_dir / "run.log").open("a")
    with log, logged(log):
        config.build(cfg).federation.launch(cfg)
    with checkpoints.writing(run_dir):
        facts = json.loads((run_dir / "results.json").read_text())
        facts["command"] = shlex.join(["fedfusion", "run", *overrides])
        write_atomically(run_dir / "results.json", dumps(facts, indent=1) + "\n")
        if report:
            reporting.make(run_dir)
    return Results(run_dir, facts)


@contextlib.contextmanager
def logged(log: Any) -> Iterator[None]:
    """Send what libraries say to the file `log`, and nothing else; afterwards all is as it was."""
    import transformers

    handler = logging.StreamHandler(log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, others = logging.getLogger(), [logging.getLogger(name) for name in THIRD_PARTIES]
    before = [(logger, logger.handlers, logger.level, logger.propagate) for logger in (root, *others)]
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    for logger in others:
        logger.handlers, logger.propagate = [], True
    transformers.utils.logging.disable_progress_bar()
    logging.captureWarnings(True)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(log):
            warnings.simplefilter("default")
            yield
    finally:
        logging.captureWarnings(False)
        for logger, handlers, level, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
