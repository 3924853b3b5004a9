"""Hydra overrides of the verbs that need no federation, with the same sentences as for a run."""

import re
from collections.abc import Sequence

from omegaconf import DictConfig

from fedfusion import config
from fedfusion.composition import composed
from fedfusion.validation import ConfigErrors, nearest

DATA = ("suite", "partition", "model", "head")  # what knows samples, and turns them into scores


def key_of(override: str) -> str:
    """The first part of the key of `key.more=value`."""
    return re.split(r"[.=@:]", override.lstrip("+~"))[0]


def of_run(verb: str, overrides: Sequence[str], takes: Sequence[str]) -> DictConfig:
    """The configuration of a run with `overrides`, each of which is of a key that the verb takes.

    Raises
    ------
    ConfigErrors
        With one sentence per error.
    """
    errors = [
        f"{override}: {verb} takes no '{key_of(override)}' ({nearest(key_of(override), list(takes))})"
        for override in overrides
        if key_of(override) not in takes
    ]
    try:
        cfg = config.resolve([override for override in overrides if key_of(override) in takes])
    except ConfigErrors as error:
        errors += error.errors
    if errors:
        raise ConfigErrors(errors)
    return cfg


def of_root(root: str, schema: type, overrides: Sequence[str], takes: Sequence[str]) -> DictConfig:
    """`conf/<root>.yaml` with `overrides`, checked against `schema`; of the groups it `takes` these.

    Raises
    ------
    ConfigErrors
        With one sentence per error.
    """
    cfg, errors, unfit = composed(overrides, root, schema, takes)
    if errors or unfit:
        raise ConfigErrors([*errors, *unfit])
    return cfg
