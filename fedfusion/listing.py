"""What can be chosen: the options of the config groups, described by the code behind them, which is not imported."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fedfusion.composition import options
from fedfusion.console import columns, entry, room, wrapped
from fedfusion.docstrings import docstring
from fedfusion.validation import ConfigErrors, nearest

REFERENCE = "# Reference: "
NEEDS = "# Needs: "


def listing(group: str | None = None, own: Sequence[Path] = ()) -> list[dict[str, str]]:
    """One row per option: group, name, summary, reference, and for fusion the data that it needs.

    Options in the folders `own` are listed with those of `conf/`.
    """
    found = options(own)
    if group is not None and group not in found:
        raise ConfigErrors([f"no group '{group}' ({nearest(group, list(found))})"])
    return [_row(g, name, path) for g in found if group in (None, g) for name, path in found[g].items()]


def describe(group: str, name: str, own: Sequence[Path] = ()) -> dict[str, str]:
    """The YAML of an option, and the documentation of what it builds."""
    found = options(own)
    if group not in found:
        raise ConfigErrors([f"no group '{group}' ({nearest(group, list(found))})"])
    if name not in found[group]:
        raise ConfigErrors([f"no '{name}' in {group}/ ({nearest(name, list(found[group]))})"])
    path = found[group][name]
    documented = {key: text for key, text in _documentation(group, path).items() if text}
    texts = [text if key == group else f"{key}\n\n{text}" for key, text in documented.items()]
    return _row(group, name, path) | {"yaml": path.read_text(), "documentation": "\n\n".join(texts)}


def _row(group: str, name: str, path: Path) -> dict[str, str]:
    comments = [line for line in path.read_text().splitlines() if line.startswith("# ")]
    own = _after(REFERENCE, comments)  # of several in a class
    notes = ("# @", "# fedfusion", REFERENCE, NEEDS)
    summary = next((line for line in reversed(comments) if not line.startswith(notes)), "")
    documented = {key: _references(text) for key, text in _documentation(group, path).items()}
    found = documented.pop(group, []) or [reference for texts in documented.values() for reference in texts]
    row = {
        "group": group,
        "name": name,
        "summary": summary.removeprefix("# "),
        "reference": " ".join(own) or "; ".join(dict.fromkeys(found)),
    }
    return row | {"data": " ".join(_after(NEEDS, comments)) or "none"} if group == "fusion" else row


def _after(label: str, comments: Sequence[str]) -> list[str]:
    return [line.removeprefix(label) for line in comments if line.startswith(label)]


def _references(documentation: str) -> list[str]:
    found = re.search(r"References\n-+\n(.+?)(?:\n\n|\Z)", documentation, re.S)
    return [" ".join(str(found[1]).split())] if found else []


def _documentation(group: str, path: Path) -> dict[str, str]:
    """What is written about the classes of an option: the group's own, and those of its parts under their keys."""
    node: Any = OmegaConf.to_container(OmegaConf.load(path))
    stage = node.get(group, node)  # where the package is global
    parts = {f"{group}.{key}": part for key, part in stage.items() if isinstance(part, Mapping)}
    targets = {key: str(part["_target_"]) for key, part in {group: stage, **parts}.items() if part.get("_target_")}
    return {key: docstring(target) for key, target in targets.items()}


def show(rows: Sequence[Mapping[str, str]], in_full: bool) -> str:
    """What a person reads: the groups and their options, references in one line or `in_full`."""
    lines = []
    for group, rows_of_group in groupby(rows, key=itemgetter("group")):
        lines.append(group)
        members = list(rows_of_group)
        width = max(len(row["name"]) for row in members) + 1
        for row in members:
            notes = [f"needs {row['data']}"] if row.get("data", "none") != "none" else []
            if row["reference"]:
                notes.append(row["reference"] if in_full else _short(row["reference"], room(width, 2)))
            lines += [entry(row["name"], row["summary"], width, 2), *(entry("", note, width, 2) for note in notes)]
    return "\n".join(lines)


def _short(reference: str, width: int) -> str:
    """The reference in one line: its beginning, and its first address."""
    address = re.search(r"https?://[^\s;,]+", reference)
    if address is None or len(reference) <= width:
        return textwrap.shorten(reference, width, placeholder=" ...")
    left = width - len(address[0]) - 1
    before = textwrap.shorten(reference[: address.start()], left, placeholder=" ...") if left > len(" ...") else ""
    return f"{before} {address[0]}".removeprefix("... ").strip()


def reflowed(text: str) -> str:
    """A docstring in the width of the terminal; formulas, tables, examples and headings stay as they are."""
    blocks: list[tuple[str, bool]] = []  # of prose, or a line that stays as it is
    indent, verbatim = -1, False
    for line in text.splitlines():
        stripped = line.strip()
        own, bullet = len(line) - len(line.lstrip()), stripped.startswith("- ")
        verbatim = bool(stripped) and (verbatim or stripped.startswith((".. ", ">>>")))
        prose = not verbatim and not re.search(r"-{3}|={3}|\S {2,}\S|^$", stripped)
        if prose and not bullet and own == indent:
            blocks[-1] = f"{blocks[-1][0]} {stripped}", True
        else:
            blocks.append((line, prose))
        indent = own + 2 * bullet if prose else -1
    return "\n".join(_filled(block) if prose else block for block, prose in blocks)


def _filled(block: str) -> str:
    text = block.strip()
    start = block[: len(block) - len(block.lstrip())]
    return wrapped(text, columns(), start, start + "  " * text.startswith("- "))
