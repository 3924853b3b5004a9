"""Hydra overrides of the verbs that need no federation: those of `fedfusion run`, of which they take a part."""

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig

from fedfusion import config
from fedfusion.validation import ConfigErrors, first_line, nearest

DATA = ("suite", "partition", "model", "head")  # what knows samples, and turns them into scores


def resolve(verb: str, overrides: Sequence[str], takes: Sequence[str]) -> tuple[DictConfig, list[Override]]:
    """The configuration with `overrides`, each of one of the keys that the verb `takes`, and the overrides as read.

    Raises
    ------
    ConfigErrors
        With one sentence per error, as for a run.
    """
    read, errors = [], []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            errors.append(f"{text}: cannot be read as key=value ({first_line(error)})")
            continue
        key = override.key_or_group.partition(".")[0]
        if key not in takes:
            errors.append(f"{text}: {verb} takes no '{key}' ({nearest(key, list(takes))})")
        else:
            read.append(override)
    try:
        cfg = config.resolve([str(o.input_line) for o in read if o.key_or_group != "rank"])
    except ConfigErrors as error:
        errors += error.errors
    if errors:
        raise ConfigErrors(errors)
    return cfg, read
