"""What can be chosen: the options of the config groups, described by the code behind them."""

import inspect
import re

from hydra.utils import get_object
from omegaconf import OmegaConf

from fedfusion.config import CONF, groups
from fedfusion.validation import ConfigErrors, nearest


def listing(group: str | None = None) -> list[dict[str, str]]:
    """One row per option: group, name, summary and reference."""
    found = groups()
    if group is not None and group not in found:
        raise ConfigErrors([f"no group '{group}' ({nearest(group, list(found))})"])
    return [_row(g, name) for g in found if group in (None, g) for name in found[g]]


def describe(group: str, name: str) -> str:
    """The YAML of an option and the documentation of what it builds."""
    found = groups()
    if group not in found:
        raise ConfigErrors([f"no group '{group}' ({nearest(group, list(found))})"])
    if name not in found[group]:
        raise ConfigErrors([f"no '{name}' in {group}/ ({nearest(name, found[group])})"])
    text = (CONF / group / f"{name}.yaml").read_text()
    return "\n\n".join([f"{text}\n{_documentation(group, name)}".rstrip(), *_parts(group, name)])


def _row(group: str, name: str) -> dict[str, str]:
    comments = [line for line in (CONF / group / f"{name}.yaml").read_text().splitlines() if line.startswith("# ")]
    summary = next(line for line in reversed(comments) if not line.startswith(("# @", "# fedfusion")))
    reference = re.search(r"References\n-+\n(.+?)(?:\n\n|\Z)", _documentation(group, name), re.S)
    return {
        "group": group,
        "name": name,
        "summary": summary.removeprefix("# "),
        "reference": " ".join(reference[1].split()) if reference else "",
    }


def _documentation(group: str, name: str) -> str:
    node = OmegaConf.load(CONF / group / f"{name}.yaml")
    nested = OmegaConf.select(node, f"{group}._target_")  # where the package is global
    target = nested or OmegaConf.select(node, "_target_")
    return inspect.getdoc(get_object(target)) or "" if target else ""


def _parts(group: str, name: str) -> list[str]:
    """The documentation of what an option is built of, each under its key."""
    node = OmegaConf.load(CONF / group / f"{name}.yaml")
    parts = {} if "_target_" in node else OmegaConf.select(node, group) or {}
    targets = {key: part["_target_"] for key, part in parts.items() if OmegaConf.is_dict(part) and "_target_" in part}
    return [f"{group}.{key}\n\n{inspect.getdoc(get_object(target))}" for key, target in targets.items()]
