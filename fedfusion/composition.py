"""`conf/`, and a folder of one's own beside it, composed by Hydra. No torch is loaded for it."""

import contextlib
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TypeVar

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fedfusion.validation import ConfigErrors, check_key, check_option, check_values, first_line

T = TypeVar("T")
CONF = next(p for p in (Path(__file__).parent / "conf", Path(__file__).parent.parent / "conf") if p.is_dir())
SEARCHPATH = "hydra.searchpath"
ELSEWHERE = frozenset({"run_dir", "trainings", "tracker", "federation", "push_to_hub"})  # keys that change no result
REFUSALS = (HydraException, OmegaConfBaseException, ValueError)  # what Hydra raises against overrides
PATHS = ("model.path", "suite.root", "coupling.adjacency.path")


def options(own: Sequence[Path] = ()) -> dict[str, dict[str, Path]]:
    """The config groups, and the file of each of their options, in `conf/` and in folders of one's own.

    Raises
    ------
    ConfigErrors
        If a folder of one's own does not exist, holds no option of any group, or has one that cannot be read or by a
        name that is taken.
    """
    found = {
        folder.name: {path.stem: path for path in folder.glob("*.yaml")}
        for folder in sorted(CONF.iterdir())
        if folder.is_dir()
    }
    for folder in own:
        files = [path for group in found for path in sorted((folder / group).glob("*.yaml"))]
        if not files:
            why = "holds no option of any group" if folder.is_dir() else "is no folder"
            raise ConfigErrors([f"{folder} {why} (an option is a file GROUP/NAME.yaml in it, as channel/mine.yaml)"])
        for path in files:
            if path.stem in found[path.parent.name]:
                raise ConfigErrors([f"{path}: {path.parent.name}={path.stem} is there already (rename the file)"])
            loaded(path, dict, "mend it")
            found[path.parent.name][path.stem] = path
    return {group: dict(sorted(files.items())) for group, files in found.items()}


def groups(own: Sequence[Path] = ()) -> dict[str, list[str]]:
    """The config groups and their options, see :func:`options`."""
    return {group: list(files) for group, files in options(own).items()}


def loaded(path: Path, kind: type[T], way_out: str) -> T:
    """What a YAML file holds, unresolved.

    Raises
    ------
    ConfigErrors
        If it cannot be read, or holds something else.
    """
    try:
        found = OmegaConf.to_container(OmegaConf.load(path))
        if not isinstance(found, kind):
            raise ValueError(f"it holds a {type(found).__name__}, not a {kind.__name__}")
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigErrors([f"{path} cannot be read: {' '.join(str(error).split())} ({way_out})"]) from error
    return found


def search(folder: Path) -> str:
    """The override by which options are also looked for in `folder`."""
    quoted = str(folder.resolve()).replace("'", r"\'")
    return f"{SEARCHPATH}=['file://{quoted}']"


def searched(overrides: Sequence[Override]) -> list[Path]:
    """The folders of one's own in which options are looked for."""
    values = [o.value() for o in overrides if o.key_or_group == SEARCHPATH]
    given = [text for value in values if isinstance(value, list) for text in value]
    return [Path(str(text).removeprefix("file://")) for text in dict.fromkeys(given)]


def parse(overrides: Sequence[str]) -> tuple[list[Override], list[str]]:
    """The overrides that can be read, and a sentence for each that cannot."""
    parsed, errors = [], []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            why = f" ({first_line(error).partition(' expecting ')[0]})" if "=" in text else ""
            errors.append(f"{text or repr(text)}: cannot be read as key=value{why}")
            continue
        if override.key_or_group:
            parsed.append(override)
        else:
            errors.append(f"{text}: cannot be read as key=value (the key is missing)")
    return parsed, errors


def composed(
    overrides: Sequence[str], root: str, schema: type, takes: Collection[str] | None = None
) -> tuple[DictConfig, list[str], list[str]]:
    """`conf/<root>.yaml` with the overrides that can be read, and with options for the groups it `takes`, else for all.

    Returns
    -------
    cfg, errors, unfit
        The configuration, what is wrong with overrides, and in what its values do not fit `schema`: a sentence each.
    """
    parsed, errors = parse(overrides)
    offered = {g: names for g, names in groups(searched(parsed)).items() if takes is None or g in takes}
    chosen = [(o, check_option(o, offered[o.key_or_group])) for o in parsed if o.key_or_group in offered]
    if not errors and not any(wrong for _, wrong in chosen):
        with contextlib.suppress(ConfigErrors):  # Hydra refuses what does not exist; what follows says all of it
            cfg = compose(parsed, root)
            return cfg, [], _unfit(cfg, schema)
    search = [o for o in parsed if o.key_or_group == SEARCHPATH]
    skeleton = compose([*search, *(o for o, wrong in chosen if not wrong)], root)
    values = [o for o in parsed if o.key_or_group not in (SEARCHPATH, *offered)]
    checked = [*chosen, *((o, check_key(o, skeleton, offered)) for o in values)]
    errors += [error for _, wrong in checked for error in wrong]
    cfg = compose([*search, *(o for o, wrong in checked if not wrong)], root)
    return cfg, errors, _unfit(cfg, schema)


def _unfit(cfg: DictConfig, schema: type) -> list[str]:
    """What does not fit `schema`; where keys wait for a value, only which."""
    open_keys = sorted(OmegaConf.missing_keys(cfg))
    return [f"{key}: ??? stands for a value, which must be given" for key in open_keys] or check_values(cfg, schema)


def compose(overrides: Sequence[Override], root: str = "config") -> DictConfig:
    """`conf/<root>.yaml` with overrides, resolved, its paths absolute.

    Raises
    ------
    ConfigErrors
        With what Hydra says against it.
    """
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            cfg = hydra.compose(root, [str(o.input_line) for o in overrides])
            for key in PATHS:  # processes of other grids have other working folders
                path = OmegaConf.select(cfg, key)
                if isinstance(path, str) and Path(path).exists():
                    OmegaConf.update(cfg, key, str(Path(path).resolve()))
            OmegaConf.resolve(cfg)
        except REFUSALS as error:
            lonely = re.match(r"Could not override '(\w+)'", first_line(error))
            raise ConfigErrors([_homeless(lonely[1], overrides) if lonely else first_line(error)]) from error
    return cfg


def grid(overrides: Sequence[str]) -> tuple[dict[str, str], str]:
    """What the chosen option of `conf/sweep/` sweeps, each key with its values as text, and the attack.

    Raises
    ------
    ConfigErrors
        With what Hydra says against the overrides.
    """
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            settings = hydra.compose("config", list(overrides), return_hydra_config=True).hydra
        except REFUSALS as error:
            raise ConfigErrors([first_line(error)]) from error
    params = settings.sweeper.get("params") or {}
    return {str(key): str(values) for key, values in params.items()}, settings.runtime.choices["attack"]


def _homeless(group: str, overrides: Sequence[Override]) -> str:
    """An option of a group that only goes with some options of another one was chosen without any of them."""
    chosen = next(override.input_line for override in overrides if override.key_or_group == group)
    hosts: dict[str, list[str]] = {}
    for host, files in options(searched(overrides)).items():
        texts = {name: path.read_text() for name, path in files.items()}
        if names := [name for name, text in texts.items() if f"/{group}:" in text]:
            builders = [name for name, text in texts.items() if any(f"- {base}\n" in text for base in names)]
            hosts[host] = [*names, *builders]
    homes = "; or ".join(f"{host}={', '.join(sorted(names))}" for host, names in hosts.items())
    return f"{chosen}: nothing here takes it ({group} goes with {homes})"
