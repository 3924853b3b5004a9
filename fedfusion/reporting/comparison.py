"""What is put side by side, whether runs or sweeps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from fedfusion.reporting import page, plots
from fedfusion.reporting.findings import BySeed, spread, text
from fedfusion.reporting.interval import mean, paired
from fedfusion.reporting.sweep_tables import Grid

MOST = len(ascii_uppercase)


@dataclass(frozen=True)
class Comparison:
    """The parts of compare.html.

    Parameters
    ----------
    kind
        `runs` or `sweeps`.
    answer
        In which they differ most, in a sentence.
    members
        Letter, and what it stands for.
    differences
        Settings in which they differ: key, and the value of each.
    tables
        Scores of each, and differences from the first.
    plots
        All of them in one.
    """

    kind: str
    answer: str
    members: Sequence[tuple[str, str]]
    differences: Sequence[Sequence[str]]
    tables: Sequence[Grid]
    plots: Sequence[plots.Plot]

    def write(self, out: Path) -> None:
        """Write the page."""
        letters = [letter for letter, _ in self.members]
        page.render(
            "compare.html.j2",
            out,
            question=f"What is different between {', '.join(letters[:-1])} and {letters[-1]}?",
            comparison=self,
            letters=letters,
        )

    def facts(self) -> dict[str, Any]:
        """The same for machines."""
        tables = [{"title": title, "header": header, "rows": rows} for title, header, rows in self.tables]
        differences = [dict(zip(("key", *dict(self.members)), row, strict=True)) for row in self.differences]
        members = dict(self.members)
        return {
            "kind": self.kind, "answer": self.answer, "members": members, "differences": differences, "tables": tables,
        }  # fmt: skip


def header(letters: Sequence[str], over_seeds: bool) -> list[str]:
    """Of a table of scores: each, and how far it is from the first."""
    found = list(letters)
    for letter in letters[1:]:
        found += [f"{letter} − {letters[0]}"] + [f"{letter} − {letters[0]}: 95 % interval"] * over_seeds
    return found


def scored(scores: Sequence[BySeed | None], over_seeds: bool, say: Callable[[float | None], str] = text) -> list[str]:
    """One row of it, from the scores of each by seed, or from costs, which `amount` says."""
    first = scores[0] or {}
    found = [say(mean((by_seed or {}).values())) for by_seed in scores]
    for by_seed in scores[1:]:
        differences, sure = paired(by_seed or {}, first)
        found += [say(mean(differences))] + [spread(sure, say)] * over_seeds
    return found
