"""Rewrite the tables of README.md and experiments/README.md from the committed result files.

python experiments/tables.py
"""

import io
import json
import re
import statistics
import textwrap
from pathlib import Path

from claims import claims
from rich.console import Console

from fedfusion.reporting import report, sweep

ROOT = Path(__file__).parent.parent


def prose(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120)


def quickstart(results: dict) -> str:
    console = Console(width=80, highlight=False, file=io.StringIO(), record=True)
    report.show(results, console)
    printed = "\n".join(line.rstrip() for line in console.export_text().rstrip().splitlines())
    seconds, gigabytes = results["wall_time_s"], results["peak_memory_mb"] / 1000
    took = f"Measured on two cores, once installed: {seconds:.0f} s, {gigabytes:.2f} GB."
    return f"```\n{printed}\n```\n\n{took}"


def overhead(results: dict) -> str:
    rows = ["| clients | inline | ray | Flower's own simulation engine |", "|---|---:|---:|---:|"]
    for clients, row in results["ms_per_message"].items():
        rows.append(f"| {clients.split()[0]} | " + " | ".join(f"{ms:.2f} ms" for ms in row.values()) + " |")
    return "\n".join(rows)


def scale(results: dict) -> str:
    """Rounds of very many clients on Ray."""
    rows = ["| | s per round | peak of the server's process | limit |", "|---|---:|---:|---:|"]
    for name, row in results.items():
        rows.append(f"| {name} | {row['seconds']:.1f} | {row['peak_mb']:,} MB | {row['limit_mb']:,} MB |")
    return "\n".join(rows)


def faults(rows: list) -> str:
    """What is lost when something breaks."""
    lines = ["| fault | what is lost | recovered in | test |", "|---|---|---:|---|"]
    for row in sorted(rows, key=lambda row: "recovered_s" not in row):
        seconds = f"{row['recovered_s']} s" if "recovered_s" in row else ""
        name = textwrap.shorten(row["test"].partition("::")[2].removeprefix("test_").replace("_", " "), 60)
        lines.append(f"| {row['fault']} | {row['lost']} | {seconds} | `{row['test'].partition('::')[0]}`: {name} |")
    return "\n".join(lines)


STAGES = {"fused_received": "fused received", "realigned": "realigned", "control": "control"}


def knobs(results: dict) -> str:
    rows = ["| changed | " + " | ".join(STAGES.values()) + " |", "|---|" + "---:|" * len(STAGES)]
    for knob, row in results.items():
        rows.append(f"| `{knob}` | " + " | ".join(f"{row['mean'][stage]:.3f}" for stage in STAGES) + " |")
    return "\n".join(rows)


def turned(results: dict) -> str:
    """The knobs of the tutorial, beside the demo as it is."""
    turns = {
        "channel.jsr_db=22": "the demo as it is",
        "channel=ideal": "nobody jams",
        "channel.jsr_db=26": "a stronger jammer",
        "channel=ideal attack=sign_flipping attack.f=4": "nobody jams, four clients attack",
    }
    rows = ["| mean accuracy | " + " | ".join(STAGES.values()) + " |", "|---|" + "---:|" * len(STAGES)]
    for knob, words in turns.items():
        scores = results[knob]["mean"]
        rows.append(f"| {words} | " + " | ".join(f"{scores[stage]:.3f}" for stage in STAGES) + " |")
    without = results["channel.jsr_db=22"]["mean"]["fused_received"]
    rows.append(
        f"| the demo, not realigned | {without:.3f} | | {results['channel.jsr_db=22']['mean']['control']:.3f} |"
    )
    gap = results["channel.jsr_db=26"]["mean"]["realigned"] - results["channel.jsr_db=26"]["mean"]["control"]
    said = f"With the stronger jammer even the realigned model is {-gap:.3f} below the control: fuse nothing then."
    assert gap < 0, "the sentence is no longer true"
    said += " The default guard meets the attackers: it tests every upload on a few trusted samples of its task."
    said += " One seed each (`python experiments/quickstart/knobs.py --out experiments/quickstart/knobs.json`)."
    return "\n".join([*rows, "", prose(said)])


def coefficient(results: dict) -> str:
    test = results["test"]
    made_by = "python experiments/digits8/coefficient.py --out experiments/digits8/coefficient.json"
    return "\n".join(
        [
            prose(f"Over an ideal uplink, mean of {len(results['seeds'])} seeds (`{made_by}`):"),
            "",
            f"| base | single task | fused, coefficient {results['chosen']} |",
            "|---:|---:|---:|",
            f"| {test['base']:.3f} | {test['single_task']:.3f} | {test['fused']:.3f} |",
        ]
    )


def cohort(results: dict) -> str:
    """One row per case and baseline: how many times less CPU time."""
    rows = [
        prose(
            """How many times less CPU time than ..., one thread, all in one process (`python -m
            experiments.benchmarks.cohort --out experiments/benchmarks/cohort.json`); MiniLM (22M), LoRA of rank 8 on
            query and value, unless said otherwise:"""
        ),
        "",
        "| | ... | float32 | bfloat16 |",
        "|---|---|---:|---:|",
    ]
    baselines = {"swap": "one base, peft's state dicts swapped", "reload": "the base loaded for every client"}
    for case in ("small batches", "large batches"):
        row = results[case]
        for baseline, words in baselines.items():
            exact, coarse = (
                row["times_faster_than"][f"cohort {precision}"][baseline] for precision in ("fp32", "bf16")
            )
            size = f"{row['clients']} clients, {row['batch']} x {row['tokens']} tokens each"
            rows.append(f"| {size} | {words} | {exact:.1f} | {coarse:.1f} |")
    lengths = results["lengths"]["times_faster_than"]["cohort in buckets"]
    mixed = f"texts of {results['lengths']['mean_length']:.0f} tokens in the mean, at most 64"
    causal = results["causal"]["times_faster_than"]["cohort fp32"]["swap"]
    others = [
        (mixed, "the same cohort, all padded to 64", lengths["cohort padded to 64"]),
        (mixed, "swapping, each batch padded to its longest", lengths["swap padded to each batch"]),
        ("GPT-2, 8 clients, vocabulary 8,192", "swapping", causal),
        ("adapters on the upper two of six layers", "the same without reusing the layers below",
         results["prefix"]["times_faster_than"]["cohort with cache"]["cohort without"]),
        ("MIRA's step, 1,000 clients x 75,268", "a loop over related pairs",
         results["coupling"]["times_faster_than"]["coupling"]["loop"]),
    ]  # fmt: skip
    rows += [f"| {case} | {baseline} | {times:.1f} | |" for case, baseline, times in others]
    small, large = (results[case]["fp32_share_of_gemm_floor"] for case in ("small batches", "large batches"))
    machine = results["machine"]
    rows += [
        "",
        prose(
            f"""The frozen products alone would take {small:.0%} and {large:.0%} of a cohort's time in float32. Measured
            on {machine["processor"]} ({machine["capability"]}), where part of the gain in float32 is that of oneDNN's
            product over MKL's, which any code could have. Where a single client's batch fills the processor already,
            a cohort gains little else. No GPU was at hand."""
        ),
    ]
    return "\n".join(rows)


def text8(results: dict) -> str:
    rows = [
        prose(
            """Eight text tasks on MiniLM, one device each, 100 steps of 16, frozen prototypes of 8 samples per class
            (`python experiments/text8/run.py --root DIR --out experiments/text8/results.json`; the data are not
            part of this repository):"""
        ),
        "",
        "| task | base | single task |",
        "|---|---:|---:|",
    ]
    for task, scores in results["tasks"].items():
        rows.append(f"| {task} | {scores['base']:.3f} | {scores['single_task']:.3f} |")
    mean = results["mean"]
    rows.append(f"| **mean** | **{mean['base']:.3f}** | **{mean['single_task']:.3f}** |")
    return "\n".join(rows)


def mira(results: dict) -> str:
    rows = [
        prose(
            """Sixteen programs on lists, one device of 32 examples each, half of them drawn in each of ten rounds;
            exact match of what each device would use after the last round, mean and standard deviation over the seeds
            (`python experiments/mira/compare.py --out experiments/mira/compare.json`):"""
        ),
        "",
        "| method | seeds | own adapter, just trained | personal | loss of personal |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in results.items():
        cells = [
            list(column)
            for column in zip(
                *([s["single_task"], s["personal"], s["personal_loss"]] for s in row["seeds"].values()), strict=True
            )
        ]
        shown = [f"{statistics.mean(c):.3f}" + (f" ± {statistics.stdev(c):.3f}" if len(c) > 1 else "") for c in cells]
        rows.append(f"| {name} | {len(row['seeds'])} | {' | '.join(shown)} |")
    return "\n".join(rows)


def wireless(results: dict) -> str:
    """Ours, and the reference in brackets, by JSR."""
    jsrs = [None, -10.0, -5.0, 0.0, 5.0, 10.0, 15.0, 20.0]
    rows = [
        prose(
            f"""Eight users on eight antennas at 10 dB SNR: sum capacity in bit per channel use, and NMSE of a parameter
            in dB, by JSR; {results["draws"]:,} draws of the channel, in brackets the reference from 400
            (`python -m experiments.wireless.table`):"""
        ),
        "",
        "| | none | " + " | ".join(f"{jsr:+.0f} dB" for jsr in jsrs[1:]) + " |",
        "|---|" + "---:|" * len(jsrs),
    ]
    for name, cells in results["rows"].items():
        by_jsr = {cell["jsr_db"]: cell for cell in cells}
        shown = []
        for jsr in jsrs:
            cell = by_jsr.get(jsr)
            known = f" ({cell['reference']:.1f})" if cell and "reference" in cell else ""
            shown.append(f"{cell['value']:.1f}{known}" if cell else "")
        rows.append(f"| {name} | " + " | ".join(shown) + " |")
    worst, compared = results["largest_deviation"], results["compared"]
    rows += ["", f"The largest of {compared} deviations is {worst:.1f} standard errors."]
    return "\n".join(rows)


def rules(results: dict) -> str:
    n, jsrs = results["seeds"], len({cell["jsr_db"] for cell in results["cells"]})
    rows = [
        prose(
            f"""Mean accuracy of the fused model, without realignment, over three receivers, {jsrs} strengths of the
            jammer and {n} seeds (`python -m experiments.wireless.rules`):"""
        ),
        "",
        "| what the receiver does | validation | test |",
        "|---|---:|---:|",
    ]
    for rule, score in results["validation"].items():
        chosen = " (chosen)" if rule == results["chosen"] else ""
        rows.append(f"| {rule}{chosen} | {score:.3f} | {results['test'][rule]:.3f} |")
    return "\n".join(rows)


def uplink(results: dict) -> str:
    rows = [
        "CPU seconds of one thread per million parameters and client (`python -m experiments.benchmarks.uplink`):",
        "",
        "| level | CPU s |",
        "|---|---:|",
    ]
    for name, cost in results["cpu_s_per_million_and_client"].items():
        rows.append(f"| {name} | {cost:.3f} |")
    rows += [
        "",
        prose(
            f"""A round of 1,000 clients with 75,268 parameters each takes {results["cpu_s_of_1000_clients"]:.1f} CPU
            seconds at the first level, and {results["copies_of_the_matrix"]:.1f} copies of the matrix of uploads."""
        ),
    ]
    return "\n".join(rows)


def fusion(results: dict) -> str:
    mean, seeds = results["mean"], len(results["seeds"])
    rows = [
        prose(
            f"""Eight text tasks on MiniLM, no noise, mean test accuracy over tasks and {seeds} seeds, each rule with
            the coefficient that is best on held-out training rows (`python -m experiments.text8.fusion --root DIR`);
            base {mean["base"]:.3f}, single task {mean["single_task"]:.3f}:"""
        ),
        "",
        "| rule | coefficient | accuracy | over task arithmetic |",
        "|---|---:|---:|---:|",
    ]
    plain = mean["rules"]["task arithmetic"]["test"]
    for name, row in sorted(mean["rules"].items(), key=lambda item: -item[1]["test"]):
        rows.append(f"| {name} | {row['coefficient']} | {row['test']:.3f} | {row['test'] - plain:+.3f} |")
    rows += ["", "With eight shots per class:", "", "| start, loss | accuracy | of single task |", "|---|---:|---:|"]
    for name, accuracy in mean["realigned"].items():
        rows.append(f"| {name} | {accuracy:.3f} | {accuracy / mean['single_task']:.1%} |")
    return "\n".join(rows)


def dominance(results: dict) -> str:
    models = ("unprotected", "control", "R-MTLLMF", "ours")
    rows = [
        prose(
            f"""Mean test accuracy on `digits8` over {results["seeds"]} seeds, and by how much ours beats the better of
            unprotected fusion and control, with 95 % intervals (`python -m experiments.rmtllmf.dominance`); the level
            is the NMSE of white noise, or the JSR of a jammer, in dB:"""
        ),
        "",
        "| channel | level | " + " | ".join(models) + " | ours over the better part |",
        "|---|---:|" + "---:|" * (len(models) + 1),
    ]
    for row in results["rows"]:
        level = "" if row["level_db"] is None else f"{row['level_db']:+.0f}"
        margin, half = row["margin"]["ours"]
        shown = " | ".join(f"{row[model][0]:.3f}" for model in models)
        rows.append(f"| {row['channel'].replace('_', ' ')} | {level} | {shown} | {margin:+.3f} ± {half:.3f} |")
    return "\n".join(rows)


def disentanglement(results: dict) -> str:
    """Rise of both errors by NMSE, with what the tests say."""
    settings, rows = results["settings"], []
    rows = [
        prose(
            f"""Rise over the clean value ({results["xi_01"]["clean"]:.2f} and {results["xi_L2"]["clean"]:.1f}) with its
            95 % interval, p of the one-sided t test after Holm's correction, and the share of single draws that fall
            below the clean value; {len(results["seeds"])} seeds, {settings["pairs"]} mirrored pairs of draws for each
            (`python -m experiments.disentanglement.run`):"""
        ),
        "",
        "| NMSE in dB | rise of `xi_01` | p | below | rise of `xi_L2` | p | below |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for level, *pair in zip(settings["nmse_db"], results["xi_01"]["levels"], results["xi_L2"]["levels"], strict=True):
        cells = [
            f"{one['increment']:.3f} ({one['low']:.3f}, {one['high']:.3f}) | {one['p_t_holm']:.1g} | "
            f"{one['draws_below_clean']:.0%}"
            for one in pair
        ]
        rows.append(f"| {level:+.0f} | " + " | ".join(cells) + " |")
    trends = ", ".join(f"`{name}` {results[name]['page']['p']:.1g}" for name in ("xi_01", "xi_L2"))
    return "\n".join([*rows, "", f"Page's test of a rising trend, seeds as blocks: {trends}."])


def fusion_cost(results: dict) -> str:
    dense, lora = results["dense"], results["lora"]
    rows = [
        prose(
            f"""{dense["tasks"]} dense task vectors of {dense["parameters"] / 1e6:.0f} million parameters, one thread
            (`python -m experiments.benchmarks.fusion`); the floor, {dense["floor_s"]:.3f} s, reads them once and writes
            the result at the {dense["copy_gb_per_s"]:.0f} GB/s of a copy on this machine:"""
        ),
        "",
        "| | CPU s | times the floor | extra memory, in inputs |",
        "|---|---:|---:|---:|",
    ]
    for name, cost in dense["rules"].items():
        rows.append(f"| {name} | {cost['cpu_s']:.3f} | {cost['times_floor']:.1f} | {cost['extra_memory']:.2f} |")
    plain = {name: cost["cpu_s"] for name, cost in dense["rules"].items()}
    times = [plain[f"{name}, peft"] / plain[name] for name in ("task arithmetic", "ties, by tensor", "dare")]
    rows += ["", f"The rules are {min(times):.1f} to {max(times):.1f} times as fast as those of peft beside them."]
    scaled = lora["cpu_s_scaled_from_one_layer_of_each_shape"]
    rows += ["", f"{lora['adapters']}, from factors to factors:", "", "| | CPU s |", "|---|---:|"]
    rows += [f"| {name} | {cost:.2f} |" for name, cost in lora["cpu_s"].items()]
    rows += [f"| {name} (scaled from a layer of each shape) | {cost:.1f} |" for name, cost in scaled.items()]
    return "\n".join(rows)


def resilience(results: dict) -> str:
    """A table for each number of clients per task: a row per defence, a column per attack."""
    seeds = sorted({row["seed"] for row in results["rows"]})
    attacks = list(results["table"][0]["worst_under"])
    said = [
        prose(
            f"""Eight text tasks on MiniLM, no noise, one round, task arithmetic with coefficient 0.4,
            {"seed" if len(seeds) == 1 else "seeds"} {", ".join(map(str, seeds))}: test accuracy on the worst task,
            under no attack and under each of nine, when Byzantine clients, a quarter of the number of the honest ones,
            join them (`python -m experiments.resilience.text8 --root DIR --out experiments/resilience/text8.json`).
            Cost is what the mean over tasks loses by the defence when nobody attacks:"""
        )
    ]
    for per_task in sorted({row["clients_per_task"] for row in results["table"]}):
        noun = "client" if per_task == 1 else "clients"
        said += [
            "",
            f"{per_task} honest {noun} per task:",
            "",
            "| defence | cost | no attack | " + " | ".join(attacks) + " | Byzantine refused |",
            "|---|---:|---:|" + "---:|" * (len(attacks) + 1),
        ]
        for row in (row for row in results["table"] if row["clients_per_task"] == per_task):
            under = " | ".join(_score(row["worst_under"][attack]) for attack in attacks)
            gate = f"{row['refused_byzantine']:.0%}" if row["defence"] == "task-aware" else ""
            said.append(f"| {row['defence']} | {row['cost']:+.3f} | {row['worst']:.3f} | {under} | {gate} |")
    return "\n".join(said)


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def budget(facts: dict) -> str:
    """The tables of a sweep, one for each attack, and what it took."""
    said = []
    for title, header, rows in sweep.tables(facts):
        lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
        said += [f"{title}:", "", *(f"| {' | '.join(cells)} |" for cells in lines), ""]
    runs = [cell["wall_time_s"] for cell in facts["cells"] if not cell["repeats"]]
    return "\n".join([*said, f"{len(runs)} runs, which took {sum(runs) / 60:.0f} minutes together."])


def answered(facts: dict) -> str:
    """What a sweep answers."""
    runs = sum(not cell["repeats"] for cell in facts["cells"])
    said = sweep.answer(facts | sweep.figures(facts))
    return textwrap.fill(f"The plot is of {runs} runs (`{facts['command']}`), whose report begins: {said}", 120)


def backdoor(facts: dict) -> str:
    """Success of the trigger and mean accuracy by clients per task."""
    points = {(p["attack"], p["line"], p["budget"]): p for p in facts["points"]}
    sizes = sorted({size for _, _, size in points})
    shown = [f"{size:g} per task" for size in sizes]
    rows = [
        prose(
            f"""`digits8`, a quarter of the clients Byzantine, seed 0 (`{facts["command"]}`): how often the trigger
            works on the tasks that they hold, and mean accuracy over all tasks:"""
        ),
        "",
        f"| attack, defence | success, {' | '.join(shown)} | accuracy, {' | '.join(shown)} |",
        "|---|" + "---:|" * (2 * len(sizes)),
    ]
    for attack, line in dict.fromkeys((attack, line) for attack, line, _ in points):
        mine = [points[attack, line, size] for size in sizes]
        cells = [point[name]["fused_received"] for name in ("success", "mean") for point in mine]
        rows.append(f"| {attack}, {line} | " + " | ".join(f"{value:.3f}" for value in cells) + " |")
    return "\n".join(rows)


def aggregators(results: dict) -> str:
    """What each rule costs in units of its floor, and beside others."""
    cases = results["cases"]
    rows = [
        prose(
            f"""CPU seconds of one thread for the largest case; how many times its floor a rule takes, which is the
            products of all pairs of rows and one weighted sum, for NNM as many sums as rows, and for the rules by
            coordinate one read of all rows; and how many times faster it is than byzfl {results["machine"]["byzfl"]}
            and Flower {results["machine"]["flwr"]} in the same run (`python -m experiments.benchmarks.aggregators`).
            Ranges are over 20 and 100 clients with 0.3 and 3 million entries:"""
        ),
        "",
        "| rule | CPU s | times the floor | goal | faster than byzfl | than Flower |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for rule in dict.fromkeys(rule for case in cases for rule in case["rules"]):
        mine = [case["rules"][rule] for case in cases if rule in case["rules"]]
        floor = [m["times"]["is"] for m in mine if "times" in m]
        goals = sorted({m["times"]["goal"] for m in mine if "times" in m})
        others = [_range([m[other]["times"] for m in mine if isinstance(m.get(other), dict)]) for other in OTHERS]
        goal = ", ".join(f"{goal:g}" for goal in goals)
        rows.append(f"| {rule} | {mine[-1]['cpu_s']:.3f} | {_range(floor)} | {goal} | {others[0]} | {others[1]} |")
    return "\n".join(rows)


OTHERS = ("byzfl", "flower")


def _range(values: list[float]) -> str:
    if not values:
        return ""
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


TUTORIAL = {
    "experiments/quickstart/results.json": quickstart,
    "experiments/quickstart/knobs.json": turned,
    "experiments/resilience/attack_budget.json": answered,
}
EVIDENCE = {
    "experiments/quickstart/knobs.json": knobs,
    "experiments/digits8/coefficient.json": coefficient,
    "experiments/text8/results.json": text8,
    "experiments/mira/compare.json": mira,
    "experiments/text8/fusion.json": fusion,
    "experiments/rmtllmf/dominance.json": dominance,
    "experiments/disentanglement/results.json": disentanglement,
    "experiments/benchmarks/fusion.json": fusion_cost,
    "experiments/wireless/table.json": wireless,
    "experiments/wireless/rules.json": rules,
    "experiments/benchmarks/uplink.json": uplink,
    "experiments/resilience/text8.json": resilience,
    "experiments/resilience/budget.json": budget,
    "experiments/resilience/backdoor.json": backdoor,
    "experiments/benchmarks/aggregators.json": aggregators,
    "experiments/benchmarks/cohort.json": cohort,
    "experiments/benchmarks/overhead.json": overhead,
    "experiments/benchmarks/scale.json": scale,
    "experiments/faults/faults.json": faults,
}


def made() -> dict[str, dict[str, str]]:
    """The text of every table, by README and by what its markers name."""

    def all_of(tables: dict) -> dict[str, str]:
        return {source: table(json.loads((ROOT / source).read_text())) for source, table in tables.items()}

    return {
        "README.md": all_of(TUTORIAL) | {"experiments/claims.py": claims()},
        "experiments/README.md": all_of(EVIDENCE),
    }


def filled(readme: str, tables: dict[str, str]) -> str:
    """A README with every table between its two markers made anew."""
    for source, table in tables.items():
        marker, end = f"<!-- table: {source} -->\n", f"<!-- end of {source} -->"
        pattern = re.compile(re.escape(marker) + r".*?" + re.escape(end), re.S)
        readme = pattern.sub(lambda _, text=f"{marker}\n{table}\n\n{end}": text, readme)
    return readme


if __name__ == "__main__":
    for name, tables in made().items():
        path = ROOT / name
        path.write_text(filled(path.read_text(), tables))
