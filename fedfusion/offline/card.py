"""What a person looks at after a merge or an evaluation: the model card, and a short table."""

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from omegaconf import OmegaConf
from rich.console import Console

from fedfusion.lora.spec import base_name
from fedfusion.offline.adapters import PREFIX
from fedfusion.reporting import tables
from fedfusion.reporting.card import eval_results, metadata, render
from fedfusion.types import Fusion

SHOWN = 8  # modules in the card's table of losses
LOST = 0.0005  # of a module's energy: what is less is not worth a word
NAMES = ("base", "adapter")  # of what an evaluation compares


def text(facts: Mapping[str, Any], rule: Fusion) -> str:
    """The model card of a merge, with the metadata that the Hugging Face hub reads."""
    description, reference = documented(rule)
    discarded = facts["merged"]["discarded_by_module"]
    lossy = sorted(((share, module) for module, share in discarded.items() if share >= LOST), reverse=True)
    more = {
        "metadata": metadata(facts["base"], ["fedfusion", "model-merging", "merge", "lora"]).to_yaml(),
        "base": base_name(facts["base"]),
        "description": description,
        "reference": reference,
        "notes": notes(facts),
        "lossy": [(module.removeprefix(PREFIX), share) for share, module in lossy[:SHOWN]],
        "config_yaml": OmegaConf.to_yaml(OmegaConf.create(facts["config"])).rstrip(),
    }
    return render(Path(__file__).parent / "templates", dict(facts) | more)


def add_scores(folder: Path, results: Mapping[str, Any]) -> None:
    """Put the scores of an evaluation where the hub looks for them in the model card of `folder`.

    What the card says besides stays as it is, and so do scores on other tasks.
    """
    path = folder / "README.md"
    if path.is_file():
        card = ModelCard.load(path)
    else:
        data = metadata(results["config"]["model"]["path"], ["fedfusion", "lora"])
        card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {folder.resolve().name}\n")
    found = eval_results(results["config"], results["measure"], results["tasks"], "adapter")
    others = [old for old in card.data.eval_results or [] if not any(map(old.is_equal_except_value, found))]
    card.data.model_name = card.data.model_name or folder.resolve().name
    card.data.eval_results = others + found
    card.save(path)


def documented(rule: Fusion) -> tuple[str, str]:
    """The first sentence and the formula of a rule's documentation, and its references, as Markdown."""
    parts = re.split(r"\n+(\w+)\n-+\n", inspect.getdoc(type(rule)) or "")
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    first, *rest = re.sub(r":\w+:`", "`", parts[0]).strip().split("\n\n")
    formula = [part.replace(".. math:: ", "    ") for part in rest[:1] if part.startswith(".. math::")]
    return "\n\n".join([first, *formula]), " ".join(sections.get("References", "").split())


def notes(facts: Mapping[str, Any]) -> list[str]:
    """What a reader of the table must know."""
    merged, said = facts["merged"], []
    if merged["discarded"] >= LOST:
        said.append(
            f"rank {merged['rank']} discards up to {merged['discarded']:.1%} of a module's energy, most in "
            f"{merged['discarded_most_in'].removeprefix(PREFIX)} (rank=null loses nothing)"
        )
    else:
        said.append(f"rank {merged['rank']} loses nothing of the fused products")
    if facts["heads"]:
        said.append(f"heads.safetensors holds the heads of {', '.join(facts['heads'])}")
    for task in facts["contradicted_heads"]:
        said.append(f"the adapters have different heads for {task}: it has none here")
    if facts["per_task"]:
        lost = max(part["discarded"] for part in facts["per_task"].values())
        then = f", whose ranks discard up to {lost:.1%} of a module's energy" if lost >= LOST else ""
        said.append(f"per_task/ holds what the rule has for each task alone{then}")
    return said


def show_merge(facts: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the adapters, what they became, and what a reader must know."""
    console = console or Console(highlight=False)
    rows = [[row["name"], str(row["rank"]), f"{row['norm']:.4g}", f"{row['cosine']:.3f}"] for row in facts["adapters"]]
    merged = ["merged", str(facts["merged"]["rank"]), f"{facts['merged']['norm']:.4g}", ""]
    tables.show(console, ["adapter", "rank", "norm", "cosine"], [*rows, merged], totals=1)
    for line in ["", *notes(facts)]:
        console.print(line, markup=False)


def show_evaluation(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the scores of the adapter beside those of its base."""
    console = console or Console(highlight=False)
    rows = [
        [task, *(f"{scores[name][what]:.3f}" for what in ("accuracy", "loss") for name in NAMES)]
        for task, scores in results["tasks"].items()
    ]
    overall = [
        [name, *(f"{results[key][which]:.3f}" for which in NAMES), "", ""]
        for name, key in (("mean", "mean"), ("worst task", "worst"))
    ]
    console.print(f"test {results['measure']}", style="italic")
    tables.show(console, ["task", *NAMES, *(f"{name} loss" for name in NAMES)], [*rows, *overall], totals=len(overall))
