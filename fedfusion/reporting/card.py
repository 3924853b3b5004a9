"""Model cards, with the scores where the Hugging Face hub looks for them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from fedfusion import assets
from fedfusion.lora.spec import PACKAGED, base_name
from fedfusion.reporting.run_page import count

FEATURE = {
    "first": "the first token of the last hidden state",
    "last": "the last token of the last hidden state",
    "mean": "the mean over the tokens of the last hidden state",
    "pooler": "the output of the model's pooler or projection",
}
KIND = {  # the hub's word for a task, by what makes model inputs of its rows
    "fedfusion.tasks.digits.Digits8": "image-classification",
    "fedfusion.tasks.encode.Image": "image-classification",
    "fedfusion.tasks.encode.Text": "text-classification",
    "fedfusion.tasks.encode.Instruct": "text-generation",
}


def text(
    results: Mapping[str, Any], run_dir: Path, header: Sequence[str], rows: Sequence[Any], notes: Sequence[str]
) -> str:
    """The card of the adapter in a run's folder.

    Parameters
    ----------
    results
        What is in results.json.
    run_dir
        The folder of the run.
    header, rows
        The table: the labels of the stages, and for each task its name and their scores as text.
    notes
        What a reader of the table must know.
    """
    config, metrics = results["config"], results["metrics"]
    model, repo = config["model"], config.get("push_to_hub")
    kind = ["prompt-tuning"] if model["num_virtual_tokens"] else ["lora"]
    data = metadata(model["path"], ["fedfusion", "federated-learning", "model-merging", *kind], datasets(config))
    data.model_name = repo or run_dir.name
    data.eval_results = eval_results(config, metrics["measure"], metrics["tasks"], "realigned")
    facts = {
        "metadata": data.to_yaml(),
        "results": results,
        "metrics": metrics,
        "tasks": count(len(metrics["tasks"]), "task"),
        "devices": count(metrics["num_clients"], "device"),
        "model": model,
        "base": base_name(model["path"]),
        "carried": assets.find(model["path"]) is not None or model["path"] in PACKAGED,
        "made": made(results),
        "header": header,
        "this": "realigned" if "realigned" in header else "fused received",
        "rows": rows,
        "notes": notes,
        "feature": FEATURE[model["pooling"]] if (run_dir / "adapter" / "heads.safetensors").is_file() else None,
        "folder": repo or "adapter",
    }
    return render(Path(__file__).parent / "templates", facts)


def render(templates: Path, facts: Mapping[str, Any]) -> str:
    """`card.md.j2` of a folder, filled."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template("card.md.j2").render(facts) + "\n"


def metadata(base: str, tags: Sequence[str], trained_on: Sequence[str] = ()) -> ModelCardData:
    """What a card says to the hub; a base model or data set that the hub does not know by its name is left out.

    Nor does it name a licence: that is for whoever publishes the adapter.
    """
    name = base_name(base)
    return ModelCardData(
        library_name="peft",
        base_model=name if "/" in name and _nameable(name) else None,  # else it is a folder, or comes with a package
        datasets=[dataset for dataset in dict.fromkeys(trained_on) if _nameable(dataset)] or None,
        tags=list(tags),
    )


def eval_results(config: Mapping[str, Any], measure: str, tasks: Mapping[str, Any], stage: str) -> list[EvalResult]:
    """The test score of each task at `stage`, and their mean."""
    suite = config["suite"]
    hub, encoder = _hub(suite), suite.get("encoder", suite)["_target_"]
    kind = KIND.get(encoder, "text-generation" if measure == "exact match" else "other")
    places = {task: (hub[task]["path"], hub[task].get("name")) if task in hub else (task, None) for task in tasks}
    alike = Counter(places.values())
    places |= {task: (task, None) for task, place in places.items() if alike[place] > 1}  # the hub would merge them
    found = {task: stages[stage]["accuracy"] for task, stages in tasks.items() if stage in stages}
    found[f"mean of {count(len(found), 'task')}"] = sum(found.values()) / len(found)
    return [
        EvalResult(
            task_type=kind,
            dataset_type=places.get(name, (name, None))[0],
            dataset_config=places.get(name, (name, None))[1],
            dataset_name=name,
            dataset_split="test",
            metric_type=measure.replace(" ", "_"),
            metric_name=f"test {measure}",
            metric_value=round(value, 4),
        )
        for name, value in found.items()
    ]


def datasets(config: Mapping[str, Any]) -> list[str]:
    """The data sets of the hub that the tasks of a run come from."""
    hub = _hub(config["suite"])
    return [hub[task]["path"] for task in config["suite"]["tasks"] or hub if task in hub]


def made(results: Mapping[str, Any]) -> str:
    """What became of the uploads, in two sentences."""
    config, num_tasks = results["config"], len(results["metrics"]["tasks"])
    channel, strategy = _class(config["channel"]), config.get("server", {}).get("strategy", {}).get("_target_")
    sent = "uploaded them" if channel == "Ideal" else f"uploaded them over a simulated uplink (`{channel}`)"
    if strategy:
        name = strategy.rpartition(".")[2]
        return (
            f"{sent}. `{name}`, a strategy of Flower's, made one adapter of all of them, whatever their task; nothing "
            "was fused task by task, and nothing realigned."
        )
    if _class(config["coupling"]) == "Stacking":
        did = "added the mean of their products to every device's base in each round; this adapter is the sum"
    else:
        within = "all together" if config["aggregate_within"] == "federation" else "within each task"
        did = f"aggregated them {within} (`{_class(config['aggregator'])}`)"
        if num_tasks > 1:
            did += f" and fused the results across the tasks (`{_class(config['fusion'])}`)"
    if _class(config["realign"]) == "Unaligned":
        return f"{sent}. The server {did}. It was not realigned."
    labels = "unlabelled" if config["realign"].get("loss") == "entropy" else "labelled"
    return f"{sent}. The server {did}, and then realigned it on a few {labels} samples (`{_class(config['realign'])}`)."


def _class(node: Mapping[str, Any]) -> str:
    return node["_target_"].rpartition(".")[2]


def _hub(suite: Mapping[str, Any]) -> Mapping[str, Any]:
    return suite.get("source", {}).get("datasets", {})


def _nameable(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return bool(name)
