"""From results.json to what a person looks at: table, plots, model card, report.html."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fedfusion.reporting import card, page, plots, run_page, run_plots, run_warnings
from fedfusion.reporting.run_page import count, known_mean
from fedfusion.reporting.tables import fitting
from fedfusion.types import FedfusionError


def make(run_dir: Path) -> None:
    """Write plots/, adapter/README.md and report.html of a finished run.

    Raises
    ------
    FedfusionError
        If the folder holds no results, or cannot be written.
    """
    results = load(run_dir)
    metrics = results["metrics"]
    drawn = run_plots.drawn(metrics)
    for plot in drawn:
        plots.save(plot.figure, run_dir / "plots" / plot.name)
    table = rows(metrics)
    labels = [label for label, _ in run_plots.stages(metrics).values()]
    if (run_dir / "adapter").is_dir():
        with page.writing(run_dir / "adapter" / "README.md"):
            (run_dir / "adapter" / "README.md").write_text(card.text(results, run_dir, labels, table, notes(results)))
    page.render(
        "report.html.j2",
        run_dir / "report.html",
        results=results,
        metrics=metrics,
        strategy=run_page.strategy(results["config"]),
        answer=run_page.answer(results),
        header=["task", *labels],
        rows=[[name, *cells] for name, cells in table],
        by_round=run_page.by_round(metrics),
        notes=facts(results),
        warnings=run_warnings.sentences(metrics["rounds"], run_dir / "run.log"),
        differences=run_page.differences(results),
        environment=run_page.environment(results),
        config_yaml=run_page.as_yaml(results["config"]),
        plots=drawn,
    )


def load(run_dir: Path) -> dict[str, Any]:
    """What is in the results.json of a run's folder.

    Raises
    ------
    FedfusionError
        If there is none that can be read, with what to do.
    """
    path = run_dir / "results.json"
    try:
        results = json.loads(path.read_text())
        if not (isinstance(results, dict) and results.get("metrics") and results.get("config")):
            raise ValueError("it holds no metrics, or no config")
        return results
    except FileNotFoundError:
        if not run_dir.is_dir():
            raise FedfusionError(f"{run_dir} is no folder (give the folder of a finished run)") from None
        missing = [name for name in ("config.yaml", "overrides.yaml") if not (run_dir / name).is_file()]
        if missing:
            raise FedfusionError(
                f"{run_dir} is not the folder of a run: results.json, {' and '.join(missing)} are missing from it "
                "(give the folder that fedfusion run has named)"
            ) from None
        raise FedfusionError(
            f"{run_dir} holds a run that has not ended: results.json is missing from it (end it with: fedfusion run "
            f"--resume {run_dir})"
        ) from None
    except (OSError, ValueError) as error:
        raise FedfusionError(
            f"{path} cannot be read: {error} (write it anew with: fedfusion run --resume {run_dir})"
        ) from error


def rows(metrics: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Task, and its accuracy in each stage as text; then mean, worst task, and mean over that of the single tasks."""
    table = [(task, {n: s["accuracy"] for n, s in scores.items()}) for task, scores in metrics["tasks"].items()]
    single = {task: scores.get("single_task") for task, scores in table}
    shown = run_plots.stages(metrics)
    normalised = {
        stage: known_mean([scores[stage] / single[task] for task, scores in table if single[task] and stage in scores])
        for stage in shown
    }
    table += [("mean", metrics["mean"]), ("worst task", metrics["worst"]), ("over single task", normalised)]
    if metrics["measure"] == "exact match":
        losses = {
            stage: known_mean([s[stage]["loss"] for s in metrics["tasks"].values() if stage in s]) for stage in shown
        }
        table.append(("mean loss", losses))
    return [(name, [run_page.text(scores.get(stage)) for stage in shown]) for name, scores in table]


def notes(results: Mapping[str, Any]) -> list[str]:
    """What a reader of the table must know: what the uplink did, who attacked, who was dropped and why."""
    said, rounds = facts(results), results["metrics"]["rounds"]
    for fate, own in run_warnings.uploads(rounds).items():
        said.append(f"{count(len(own), 'upload')} {fate}:")
        said += [f"  round {upload.round}, client {upload.client}: {upload.why}" for upload in own]
    return said + run_warnings.shortfalls(rounds)


def facts(results: Mapping[str, Any]) -> list[str]:
    """Who took part, what the uplink did to what they sent, and who attacked."""
    rounds = results["metrics"]["rounds"]
    last = rounds[-1]
    drawn, total = {client for record in rounds for client in record["clients"]}, results["metrics"]["num_clients"]
    per_round = f" ({len(last['clients'])} per round, {len(drawn)} of them drawn)" if len(drawn) < total else ""
    per_round = per_round or (f" ({len(last['clients'])} per round)" if len(last["clients"]) < total else "")
    said = [f"{count(total, 'client')}{per_round}, {count(len(rounds), 'round')}, seed {results['seed']}"]
    if unheard := [task for task, scores in results["metrics"]["tasks"].items() if "single_task" not in scores]:
        said.append(
            f"no honest client of {', '.join(unheard)} was drawn: means of single task and personal are without it"
        )
    if (kept := results["metrics"].get("kept_round", len(rounds))) < len(rounds):
        said.append(f"adapter/ and the scores are of round {kept}, the best on the server's own samples (keep=best)")
    if last["nmse_db"] is not None:
        said.append(f"uplink NMSE in the last round {last['nmse_db']:.1f} dB")
    said += _uplink(last["uplink"])
    if generated := results["metrics"].get("rouge_l"):
        stages = dict.fromkeys(stage for scores in generated.values() for stage in scores)
        means = {stage: known_mean([s[stage] for s in generated.values() if stage in s]) for stage in stages}
        said.append("ROUGE-L of generated responses: " + ", ".join(f"{s} {value:.2f}" for s, value in means.items()))
    return said + _attack(results)


def _attack(results: Mapping[str, Any]) -> list[str]:
    """Who attacked and with what, how well they were told from the others, and what their trigger did."""
    attack = results["metrics"]["attack"]
    byzantine = attack["byzantine"]
    if not byzantine:
        return []
    does = ", ".join(run_page.attacks(results["config"]))
    said = [f"{count(len(byzantine), 'Byzantine client')} ({does}): {', '.join(map(str, byzantine))}"]
    shares = {"honest uploads believed": "accepted_honest", "Byzantine ones refused": "refused_byzantine"}
    judged = [f"{attack[key]:.0%} of the {what}" for what, key in shares.items() if attack[key] is not None]
    said += ["by the guard " + ", ".join(judged)] if judged else []
    if success := list(attack["success"].values()):
        of = {stage: known_mean([scores[stage] for scores in success]) for stage in success[0]}
        said.append(
            f"attack success {of['fused_received']:.3f} once fused, {of['realigned']:.3f} realigned "
            f"(base {of['base']:.3f})"
        )
    return said


def _uplink(uplink: Mapping[str, Any]) -> list[str]:
    """What the radio cost, where the channel has one, and what its errors became."""
    means, said = uplink["mean"], []
    if "sinr_db" in means:
        said.append(
            f"uplink SINR {means['sinr_db']:.1f} dB, {means['rate']:.2f} bit per channel use, "
            f"{means['outage']:.0%} of the coherence blocks in outage"
        )
    if "bler" in means:
        said.append(f"block error rate {means['bler']:.3f}, {means['erased_share']:.1%} of the parameters lost")
    if "energy_j" in means:
        said.append(f"uplink {uplink['duration_s']:.3g} s in virtual time, {means['energy_j']:.3g} J per client")
    if means.get("privacy_nmse_db") is not None:
        said.append(f"what clients changed for privacy, before they sent it: NMSE {means['privacy_nmse_db']:.1f} dB")
    if uplink["product_nmse_db"] is not None:
        fused = uplink["fused"]["nmse_db"]
        then = "" if fused is None else f", of the fused products {fused:.1f} dB"
        said.append(f"NMSE of the changes of the products {uplink['product_nmse_db']:.1f} dB{then}")
    return said


def show(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the table, in as many parts as its columns need, and the notes."""
    console = console or Console(highlight=False)
    metrics = results["metrics"]
    labels = [label.replace("realigned", "re- aligned") for label, _ in run_plots.stages(metrics).values()]
    table = [[name, *cells] for name, cells in rows(metrics)]
    console.print(f"test {metrics['measure']}")
    for header, cells in fitting(["task", *labels], table, console.width):
        grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for i, label in enumerate(header):
            grid.add_column(label.replace(" ", "\n"), justify="right" if i else "left", no_wrap=i > 0, overflow="fold")
        for i, row in enumerate(cells):
            grid.add_row(*row, end_section=i == len(metrics["tasks"]) - 1)
        console.print(grid)
    for line in notes(results):
        console.print(line, markup=False)
