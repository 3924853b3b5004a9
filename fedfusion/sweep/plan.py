"""What a sweep runs: every cell of a grid, checked, and what its run is called."""

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Self

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from fedfusion.composition import ELSEWHERE, SEARCHPATH, grid, options, parse, searched
from fedfusion.config import build, resolve
from fedfusion.server.store import trained_by
from fedfusion.sweep.settings import PREFIX, Settings
from fedfusion.types import FedfusionError
from fedfusion.validation import ConfigErrors, check_option

DIGITS = 12  # of a hash


@dataclass(frozen=True)
class Cell:
    """One cell of a grid.

    Parameters
    ----------
    point
        The swept keys, and their values here.
    overrides
        What `fedfusion run` is given.
    run
        Hash of its configuration, the name of its run's folder.
    training
        Hash of what the local training of the first round depends on.
    byzantine
        Number of Byzantine clients.
    repeats
        Whether an earlier cell has the same run, as those without any Byzantine client have under every attack.
    """

    point: Mapping[str, str]
    overrides: Sequence[str]
    run: str
    training: str
    byzantine: int
    repeats: bool


@dataclass(frozen=True)
class Plan:
    """What is swept.

    Parameters
    ----------
    question
        What the chosen grid of `conf/sweep/` is to answer, if one is chosen.
    fixed
        Overrides of all cells.
    hydra
        Arguments of Hydra's multirun.
    axes
        The swept keys, and all their values.
    attack
        The attack, where it is not swept.
    cells
        Every combination of values, in Hydra's order.
    configs
        The configuration of every run.
    grid
        The text of the chosen grid's file.
    """

    question: str
    fixed: Sequence[str]
    hydra: Sequence[str]
    axes: Mapping[str, Sequence[str]]
    attack: str
    cells: Sequence[Cell]
    configs: Mapping[str, Mapping[str, Any]]
    grid: str = ""

    @property
    def runs(self) -> list[Cell]:
        """A cell for every distinct run, those first that begin with a training that none before them does."""
        distinct = [cell for cell in self.cells if not cell.repeats]
        first: dict[str, Cell] = {}
        for cell in distinct:
            first.setdefault(cell.training, cell)
        return [*first.values(), *(cell for cell in distinct if cell is not first[cell.training])]

    @property
    def trainings(self) -> int:
        """How many different local trainings the runs begin with."""
        return len({cell.training for cell in self.runs})

    @property
    def hash(self) -> str:
        """Of all the runs."""
        return digest(sorted({cell.run for cell in self.cells}))

    def to_dict(self) -> dict[str, Any]:
        """The plan as it is stored."""
        return asdict(self)

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Self:
        """The plan that was stored."""
        return cls(**{**stored, "cells": [Cell(**cell) for cell in stored["cells"]]})


def identity(config: Mapping[str, Any], byzantine: int) -> str:
    """The hash of what distinguishes a run from others; without a Byzantine client the attack does not."""
    without = ELSEWHERE if byzantine else {*ELSEWHERE, "attack"}
    return digest({key: value for key, value in config.items() if key not in without})


def digest(content: Any) -> str:
    """The first digits of the SHA-256 of something that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:DIGITS]


def separate(overrides: Sequence[str]) -> tuple[list[Override], Settings]:
    """Overrides of the runs and of Hydra, and how the sweep is run.

    Raises
    ------
    ConfigErrors
        For everything that can be said of a text without composing anything.
    """
    given, errors = parse(overrides)
    names = [o for o in given if o.key_or_group == "sweep"]
    known = options(searched(given))
    errors += [error for o in names for error in check_option(o, list(known["sweep"]))]
    for key, instead in (
        ("run_dir", "each run has a folder in --out"),
        ("push_to_hub", "push the run that you choose, with fedfusion run"),
        ("trainings", "they are in --out; sweep.share=false shares none"),
        ("hydra.sweep.dir", "give --out instead"),
        ("hydra.sweep.subdir", "two cells could have one folder; each is named after its hash"),
    ):
        errors += [f"{o.input_line}: not in a sweep ({instead})" for o in given if o.key_or_group == key]
    if errors:
        raise ConfigErrors(errors)
    ours = [o for o in given if o.key_or_group.startswith(PREFIX)]
    if launcher := [o for o in given if o.key_or_group == "hydra/launcher"]:
        idle = [o for o in ours if o.key_or_group in (f"{PREFIX}jobs", f"{PREFIX}on", f"{PREFIX}fail_fast")]
        if idle:
            said = (
                f"that is for {launcher[0].input_line} to say (set it there: hydra.launcher, or leave one of both out)"
            )
            raise ConfigErrors([f"{o.input_line}: {said}" for o in idle])
    return [o for o in given if o not in ours], Settings.of(ours)


def plan(given: Sequence[Override], told: Callable[[int, int], None] = lambda done, total: None) -> Plan:
    """The grid, every cell of which is checked as `fedfusion validate` checks a run.

    Parameters
    ----------
    given
        Overrides, of which any may have several values.
    told
        How many cells are checked, and of how many.

    Raises
    ------
    ConfigErrors
        With one sentence per error, and a cell that has it.
    """
    names = [o for o in given if o.key_or_group == "sweep"]
    hydras = [o for o in given if o.key_or_group.startswith(("hydra.", "hydra/"))]
    chosen = [str(o.input_line) for o in given if o in names or o.key_or_group == SEARCHPATH]
    own = [str(o.input_line) for o in given if o not in names and o not in hydras]
    fixed = [str(o.input_line) for o in (*names, *hydras)]
    params, _ = grid(fixed)
    axes = _axes([*(f"{key}={values}" for key, values in params.items()), *own])
    swept = {key: values for key, values in axes.items() if len(values) > 1}
    cells, configs = _cells(chosen, axes, told)
    attack = grid([*chosen, *cells[0].overrides])[1]
    common = [f"{key}={values[0]}" for key, values in axes.items() if len(values) == 1]
    files = options(searched(given))["sweep"]
    text = files[str(names[-1].value())].read_text() if names else ""
    return Plan(_question(text), [*chosen, *common], [*fixed, *own], swept, attack, cells, configs, text)


def _question(text: str) -> str:
    """The last line of comment at the head of a grid's file that says no command."""
    head = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    said = [line.removeprefix("# ") for line in head if not line.startswith(("# @", "# fedfusion"))]
    return said[-1] if said else ""


def _axes(overrides: Sequence[str]) -> dict[str, list[str]]:
    """The values of every key, as Hydra's basic sweeper expands them; a later override replaces an earlier one."""
    axes: dict[str, list[str]] = {}
    parsed, errors = parse(overrides)
    for o in parsed:
        if o.is_sweep_override() and not o.is_discrete_sweep():
            errors.append(f"{o.input_line}: a grid needs single values (write a,b,c or range(start,stop,step))")
        else:
            values = list(o.sweep_string_iterator()) if o.is_sweep_override() else [str(o.input_line).partition("=")[2]]
            axes[o.get_key_element()] = values
    if errors:
        raise ConfigErrors(errors)
    return axes


def _cells(
    chosen: Sequence[str], axes: Mapping[str, Sequence[str]], told: Callable[[int, int], None]
) -> tuple[list[Cell], dict[str, Mapping[str, Any]]]:
    """All combinations of the values of `axes`, checked, and the configurations of their runs."""

    def arguments(point: Sequence[str]) -> tuple[str, ...]:
        return (*chosen, *(f"{key}={value}" for key, value in zip(axes, point, strict=True)))

    known = cache(_resolved)
    longest = max(map(len, axes.values()), default=1)
    # all values in as few cells as possible: what is misspelt is said within seconds
    _all(known, [arguments([v[min(i, len(v) - 1)] for v in axes.values()]) for i in range(longest)])
    points = list(itertools.product(*axes.values()))
    given = [arguments(point) for point in points]
    configs = _all(known, given, told)
    most = max(one.byzantine for one in configs)
    given = [own + _assumed(own, one.config, most) for own, one in zip(given, configs, strict=True)]
    cells: list[Cell] = []
    runs: dict[str, Mapping[str, Any]] = {}
    for point, own, one in zip(points, given, _all(known, given), strict=True):
        run = identity(one.config, one.byzantine)
        swept = {key: value for key, value in zip(axes, point, strict=True) if len(axes[key]) > 1}
        cells.append(Cell(swept, own, run, one.training, one.byzantine, run in runs))
        runs.setdefault(run, one.config)
    return cells, runs


@dataclass(frozen=True)
class _Resolved:
    """A configuration, checked, its number of Byzantine clients, and the hash of its first training."""

    config: dict[str, Any]
    byzantine: int
    training: str


def _resolved(overrides: tuple[str, ...]) -> _Resolved:
    cfg = resolve(overrides)
    experiment, config = build(cfg), OmegaConf.to_container(cfg)
    assert isinstance(config, dict)
    named = {str(key): value for key, value in config.items()}
    # who is drawn changes with whom one trains, and so does a base that all share
    sent = [experiment.fraction, experiment.coupling.into_base and [named["coupling"], experiment.fused_rank]]
    return _Resolved(named, len(experiment.byzantine()), digest([trained_by(named, experiment), sent]))


def _all(
    known: Callable[[tuple[str, ...]], _Resolved],
    cells: Sequence[tuple[str, ...]],
    told: Callable[[int, int], None] = lambda done, total: None,
) -> list[_Resolved]:
    """What is known of all cells, or everything that is wrong with any of them."""
    found, wrong = [], dict[str, list[tuple[str, ...]]]()
    for done, own in enumerate(cells):
        told(done, len(cells))
        try:
            found.append(known(own))
        except FedfusionError as error:
            for sentence in str(error).splitlines():
                missing = sentence.partition(": no key ")[2]  # is so with each of its values
                wrong.setdefault(f"no key {missing}" if missing else sentence, []).append(own)
    if wrong:
        common = set(cells[0]).intersection(*cells)
        names = {said: " ".join(text for text in where[0] if text not in common) for said, where in wrong.items()}
        raise ConfigErrors(
            [said + f" [as in {names[said]}]" * (len(where) < len(cells)) for said, where in wrong.items()]
        )
    return found


def _assumed(overrides: Sequence[str], config: Mapping[str, Any], f: int) -> tuple[str, ...]:
    """What rules for the whole federation assume of the number of Byzantine clients, unless it is given.

    It is the largest of the sweep: a defender fixes it without knowing how many attack, or whether anybody does.
    """
    keys = [f"{stage}.f" for stage in ("preaggregator", "aggregator") if "f" in config[stage]]
    given = [text.partition("=")[0] for text in overrides]
    return tuple(f"{key}={f}" for key in keys if config["aggregate_within"] == "federation" and key not in given)
