"""From the facts of a sweep to what a person looks at: report.html, plots, README.md, and what is printed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from fedfusion.reporting import heat_maps, page, plots, sweep_plots
from fedfusion.reporting.figures import figures
from fedfusion.reporting.findings import answer, failures, question
from fedfusion.reporting.kept import in_short, measured, row
from fedfusion.reporting.sweep_tables import Grid, legend, over_seeds, reading, tables
from fedfusion.reporting.sweep_warnings import warnings
from fedfusion.reporting.tables import show as show_table
from fedfusion.types import FedfusionError

__all__ = ["answer", "figures", "in_short", "load", "make", "measured", "row", "show", "tables"]


def load(folder: Path) -> dict[str, Any]:
    """The facts of a sweep that has ended, with its figures, which older files have without intervals.

    Raises
    ------
    FedfusionError
        If they cannot be read.
    """
    path = folder / "sweep.json"
    try:
        facts = json.loads(path.read_text())
        return facts | figures(facts)
    except Exception as error:  # whatever a damaged file holds
        raise FedfusionError(
            f"{path} is not what a sweep writes ({type(error).__name__}: {error}; run the sweep's command again with "
            f"--out {folder}: what is finished is kept)"
        ) from error


def make(facts: Mapping[str, Any], out: Path) -> None:
    """Write plots/, report.html and README.md."""
    drawn = [*sweep_plots.pictures(facts), *heat_maps.pictures(facts)] if facts["points"] else []
    for plot in drawn:
        plots.save(plot.figure, out / "plots" / plot.name)
    page.render(
        "sweep.html.j2",
        out / "report.html",
        question=question(facts),
        answer=answer(facts),
        command=facts["command"],
        axes=[[key, ", ".join(values)] for key, values in facts["axes"].items()],
        fixed=fixed(facts),
        grid=facts.get("grid", ""),
        warnings=warnings(facts),
        failed=failures(facts),
        plots=drawn,
        tables=tables(facts),
        over_seeds=over_seeds(facts),
        reading=reading(facts),
        environment=environment(facts),
    )
    with page.writing(out / "README.md"):
        (out / "README.md").write_text(_markdown(facts, drawn))


def show(facts: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the answer, the tables, in as many parts as the width needs, and how they are to be read."""
    console = console or Console(highlight=False)
    console.print(answer(facts), markup=False)
    for title, header, rows in tables(facts):
        console.print(f"\n{title}", markup=False, style="italic")
        show_table(console, header, rows)
    for line in ["", *legend(facts), *warnings(facts)]:
        console.print(line, markup=False)


def fixed(facts: Mapping[str, Any]) -> list[str]:
    """The overrides that are the same in every cell."""
    given = [cell["overrides"] for cell in facts["cells"]]
    return list(facts.get("fixed", [text for text in given[0] if all(text in own for own in given)]))


def environment(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where it ran, with what, and for how long."""
    runs = {cell["run"]: cell.get("wall_time_s") or 0.0 for cell in facts["cells"]}
    pairs = [("cells", str(len(facts["cells"]))), ("runs", str(len(runs)))]
    if facts.get("trainings") is not None:
        pairs.append(("local trainings", str(facts["trainings"])))
    if facts.get("wall_time_s") is not None:
        pairs.append(("wall time", f"{facts['wall_time_s']:.0f} s"))
    pairs.append(("wall time of all runs", f"{sum(runs.values()):.0f} s"))
    pairs += [(name, str(value)) for name, value in facts.get("machine", {}).items()]
    return pairs + [(name, version) for name, version in facts.get("versions", {}).items() if version]


def _markdown(facts: Mapping[str, Any], drawn: list[plots.Plot]) -> str:
    swept = "\n".join(f"- `{key}`: {', '.join(values)}" for key, values in facts["axes"].items())
    parts = [f"# {question(facts)}", answer(facts), f"    {facts['command']}", swept]
    several = any(point["runs"] > 1 for point in facts["points"])
    parts += [_table(grid) for grid in (*tables(facts), *(over_seeds(facts) if several else ()))]
    parts += [*legend(facts), *warnings(facts)]
    parts += [f"![{plot.title}. {plot.finding}](plots/{plot.name}.png)" for plot in drawn]
    return "\n\n".join(parts) + "\n"


def _table(grid: Grid) -> str:
    title, header, rows = grid
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return f"## {title}\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
