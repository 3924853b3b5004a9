"""What a shell offers for overrides: groups, their options, and the keys of the configuration with their values."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

PLAIN = re.compile(r"[\w./+-]+")  # what needs no quotes in a shell


def overrides(ctx: click.Context, incomplete: str) -> list[str]:
    """The overrides that `incomplete` could become, after those that are given already.

    Bash cuts words at `=`: key and sign are then words before `incomplete`, and only the rest is to be offered.
    """
    given = _glued(ctx.params.get("overrides") or [])
    key = ""
    if given and given[-1].partition("=")[2] == "":
        key = given.pop().removesuffix("=") + "="
    text = key + incomplete
    offers = _Offers(given, _own(ctx))
    found = [offer for offer in offers(text) if offer.startswith(text)]
    while len(found) == 1 and found[0].endswith((".", "=")) and (deeper := list(offers(found[0]))):
        found = deeper  # a shell would end the word here
    return [offer.removeprefix(key) for offer in found]


def choices(ctx: click.Context, incomplete: str) -> list[str]:
    """The groups, or `GROUP/OPTION` of one."""
    from fedfusion.composition import groups

    found, (group, slash, _) = groups(_own(ctx)), incomplete.partition("/")
    offers = [f"{group}/{name}" for name in found.get(group, [])] if slash else list(found)
    return [offer for offer in offers if offer.startswith(incomplete)]


class _Offers:
    """What a text may go on with, where some overrides are given."""

    def __init__(self, given: Sequence[str], own: Sequence[Path]) -> None:
        from fedfusion.composition import compose, groups, parse, search
        from fedfusion.validation import ConfigErrors

        self.groups = groups(own)
        folders = [search(folder) for folder in own]
        try:
            self.cfg = compose(parse([*folders, *given])[0])
        except ConfigErrors:  # what is there does not fit together yet
            self.cfg = compose(parse(folders)[0])

    def __call__(self, text: str) -> Iterator[str]:
        """Whole overrides, and beginnings that end with a dot or the sign."""
        key, sign, value = text.partition("=")
        sign_and_begun = f"={value.rpartition(',')[0]}," if "," in value else "="
        if sign and key in self.groups:
            yield from (f"{key}{sign_and_begun}{name}" for name in self.groups[key])
        elif sign:
            yield from _values(key, self._node(key)) if key in self else []
        else:
            yield from self._keys(key.rpartition(".")[0])

    def _keys(self, parent: str) -> Iterator[str]:
        node = self._node(parent) if parent else self.cfg
        if not parent:
            yield from (f"{group}=" for group in self.groups)
        for name in map(str, node if _is_mapping(node) else ()):
            path = f"{parent}.{name}".lstrip(".")
            if _is_mapping(self._node(path)):
                yield f"{path}."
            elif not name.startswith("_"):
                yield from _values(path, self._node(path)) or [f"{path}="]

    def __contains__(self, path: str) -> bool:
        parent, _, name = path.rpartition(".")
        node = self._node(parent) if parent else self.cfg
        return _is_mapping(node) and name in node

    def _node(self, path: str) -> Any:
        from omegaconf import OmegaConf

        return OmegaConf.select(self.cfg, path)


def _values(key: str, value: Any) -> list[str]:
    """The key with its present value, or both of a switch; nothing where a shell would read the value otherwise."""
    if isinstance(value, bool):
        return [f"{key}=true", f"{key}=false"]
    text = "null" if value is None else str(value)
    return [f"{key}={text}"] if PLAIN.fullmatch(text) else []


def _is_mapping(node: Any) -> bool:
    from omegaconf import DictConfig

    return isinstance(node, DictConfig) and not node._is_none() and len(node) > 0


def _own(ctx: click.Context) -> list[Path]:
    """The folder of one's own that is given, where it holds options."""
    from fedfusion.composition import options
    from fedfusion.validation import ConfigErrors

    own = [Path(ctx.params["config_dir"])] if ctx.params.get("config_dir") else []
    try:
        options(own)
    except ConfigErrors:
        return []
    return own


def _glued(words: Sequence[str]) -> list[str]:
    """Overrides, put together again where a shell has cut them at their signs."""
    found: list[str] = []
    for word in words:
        if found and (word == "=" or found[-1].endswith("=")):
            found[-1] += word
        else:
            found.append(word)
    return found
