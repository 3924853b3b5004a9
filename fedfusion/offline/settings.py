"""Hydra overrides of the verbs that need no federation, with the same sentences as for a run."""

import re
from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedfusion import config
from fedfusion.validation import ConfigErrors, check_key, check_option, check_values, first_line, nearest

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


def of_root(root: str, schema: type, overrides: Sequence[str]) -> DictConfig:
    """`conf/<root>.yaml` with `overrides`, checked against `schema`.

    Raises
    ------
    ConfigErrors
        With one sentence per error.
    """
    read: list[Override] = []
    errors: list[str] = []
    for text in overrides:
        try:
            read.append(OverridesParser.create().parse_override(text))
        except HydraException as error:
            errors.append(f"{text}: cannot be read as key=value ({first_line(error)})")
    chosen = _compose(root, [])
    options = {group: names for group, names in config.groups().items() if group in chosen}
    checked = [(o, check_option(o, options[o.key_or_group])) for o in read if o.key_or_group in options]
    chosen = _compose(root, [o for o, wrong in checked if not wrong])
    checked += [(o, check_key(o, chosen, options)) for o in read if o.key_or_group not in options]
    errors += [error for _, wrong in checked for error in wrong]
    cfg = _compose(root, [o for o, wrong in checked if not wrong])
    errors += check_values(cfg, schema)
    if errors:
        raise ConfigErrors(errors)
    return cfg


def _compose(root: str, overrides: Sequence[Override]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        try:
            cfg = compose(root, [str(override.input_line) for override in overrides])
            OmegaConf.resolve(cfg)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigErrors([first_line(error)]) from error
    return cfg
