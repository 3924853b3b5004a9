import json
import sys

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from peft import PeftModel
from peft_folders import base, edit, load_base, products, save, shipped, three
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fedfusion.cli import app
from fedfusion.config import CONF
from fedfusion.fusion import Ties
from fedfusion.lora.product import CoreSpace
from fedfusion.offline.adapters import common, fit, read_all
from fedfusion.offline.merge import merge
from fedfusion.rng import generator
from fedfusion.types import Evidence, FedfusionError, Serving

GLYPHS = shipped("vit-glyphs")
SUITE = ["suite.tasks=[upright-digit,flipped-size]", "suite=digits8"]
BEST = ["fusion._target_=odd_rules.Best", "~fusion.coefficient"]
OPTIONS = sorted(path.stem for path in (CONF / "fusion").glob("*.yaml"))


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return base(tmp_path_factory.mktemp("base"), "vit")


@pytest.fixture(scope="module")
def sources(vit, tmp_path_factory):
    return three(tmp_path_factory.mktemp("adapters"), vit)


@pytest.fixture
def cli(monkeypatch):
    """The command line in this process."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def rule_of(option):
    return instantiate(OmegaConf.load(CONF / "fusion" / f"{option}.yaml"), _convert_="all")


def dense(core, coordinates):
    """The products that coordinates stand for, by module."""
    found = {}
    for i, (u, v) in enumerate(zip(core.left, core.right, strict=True)):
        product = core.layout.entry(coordinates, i)
        product = product if u is None else u @ product
        found[core.layout.names[i]] = product if v is None else product @ v.T
    return found


def refusal(out, *arguments):
    """What is said against a merge that must leave nothing behind."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(FedfusionError) as caught:
        merge(*arguments)
    assert sorted(out.parent.iterdir()) == before
    return str(caught.value)


def check_reloaded(rule, overrides, vit, sources, out):
    """What peft reloads from a merge is what the rule makes of the same vectors, exactly."""
    adapters = read_all(sources)
    layout = common(adapters)
    rows = torch.stack([fit(adapter, layout) for adapter in adapters])
    core = CoreSpace.of(layout, rows, torch.zeros(layout.dim), space=rule.space)
    vectors = core.project(layout, rows)
    expected = dense(core, rule(vectors, core.layout, Evidence(generator(3, "fusion"))))
    facts = merge(sources, [*overrides, "seed=3"], out, per_task=isinstance(rule, Serving))
    folders = {out: expected}
    if isinstance(rule, Serving):
        served = rule.served(vectors, core.layout, Evidence(generator(3, "fusion")))
        folders |= {out / "per_task" / a.name: dense(core, row) for a, row in zip(adapters, served, strict=True)}
    assert (out / "per_task").exists() == isinstance(rule, Serving)
    for folder, by_module in folders.items():
        found = products(folder, vit)
        assert found.keys() == by_module.keys() and len(found) == 8
        for module, product in by_module.items():
            torch.testing.assert_close(found[module], product, rtol=1e-4, atol=1e-5)
    assert facts["merged"]["discarded"] < 1e-6 and any(product.abs().max() > 1e-3 for product in expected.values())


@pytest.mark.parametrize("option", OPTIONS)
def test_peft_reloads_exactly_what_the_rule_makes(option, vit, sources, tmp_path):
    rule, out = rule_of(option), tmp_path / "out"
    if rule.data == "none":
        check_reloaded(rule, [f"fusion={option}"], vit, sources, out)
    else:  # what it needs is not in the files, and that is said
        said = refusal(out, sources, [f"fusion={option}"], out)
        assert f"({rule.data}), and none are given" in said or "statistics of the clients' data" in said


@pytest.mark.parametrize("space", ["left", "dense"])
def test_so_it_does_in_every_space(space, vit, sources, tmp_path):
    check_reloaded(Ties(space=space), ["fusion=ties", f"fusion.space={space}"], vit, sources, tmp_path / "out")


def test_per_task_folders_have_the_heads_of_their_adapter(vit, tmp_path):
    sources = three(tmp_path, vit)
    for i, source in enumerate(sources):
        save_file({"a": torch.full((3, 16), float(i))}, f"{source}/heads.safetensors")
    facts = merge(sources, ["fusion=emr"], tmp_path / "out", per_task=True)
    for i in range(3):
        found = load_file(tmp_path / "out" / "per_task" / f"task-{i}" / "heads.safetensors")
        assert found["a"].unique().tolist() == [i]
    assert facts["contradicted_heads"] == ["a"] and list(facts["per_task"]) == ["task-0", "task-1", "task-2"]


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
@pytest.mark.parametrize(
    "overrides, weights", [(["fusion=average"], [1 / 3] * 3), (["fusion.coefficient=0.4"], [0.4] * 3)]
)
def test_linear_rules_are_those_of_dense_weights_merged_by_peft(kind, overrides, weights, tmp_path):
    location = base(tmp_path, kind)
    sources = three(tmp_path, location)
    merge(sources, overrides, tmp_path / "out")

    def moved(folder):
        start = {name: tensor.clone() for name, tensor in load_base(location).state_dict().items()}
        end = PeftModel.from_pretrained(load_base(location), folder).merge_and_unload().state_dict()
        return {name: end[name] - start[name] for name in start}

    found, parts = moved(tmp_path / "out"), [moved(source) for source in sources]
    changed = 0
    for name in found:
        expected = sum(weight * part[name] for weight, part in zip(weights, parts, strict=True))
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-5)
        changed += bool(expected.any())
    assert changed == {"gpt2": 4, "bert": 4}[kind]  # gpt2: two c_attn, and the embedding, which is the output's too


def test_one_coefficient_per_adapter(sources, vit, tmp_path):
    merge(sources, ["fusion=task_arithmetic", "fusion.coefficient=[1.0,0.0,0.5]"], tmp_path / "out")
    first, _, last = (products(source, vit) for source in sources)
    for module, product in products(tmp_path / "out", vit).items():
        torch.testing.assert_close(product, first[module] + 0.5 * last[module], rtol=1e-4, atol=1e-6)


def test_no_base_model_is_needed(sources, vit, tmp_path):
    moved = [tmp_path / name for name in "abc"]
    for source, folder in zip(sources, moved, strict=True):
        folder.mkdir()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / file).write_bytes((vit.parent / source / file).read_bytes())
        edit(folder, base_model_name_or_path="/nowhere/vit")
    merge([str(folder) for folder in moved], ["fusion=average"], tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "/nowhere/vit"
    found, expected = products(tmp_path / "out", vit), [products(source, vit) for source in sources]
    for module, product in found.items():
        torch.testing.assert_close(product, sum(part[module] for part in expected) / 3, rtol=1e-4, atol=1e-6)


def test_the_rank_is_a_number_a_share_of_the_energy_or_what_loses_nothing(sources, vit, tmp_path):
    ranks = {"null": None, "2": 2, "64": 64, "0.9": 0.9, "1": 1, "1.0": 1.0}
    facts = {text: merge(sources, ["fusion=average", f"rank={text}"], tmp_path / text)["merged"] for text in ranks}
    assert [facts[text]["rank"] for text in ("null", "2", "64", "1")] == [9, 2, 64, 1]
    assert facts["null"]["discarded"] < 1e-9 and facts["64"]["discarded"] < 1e-9
    assert facts["1"]["discarded"] > facts["2"]["discarded"] > 0.1 >= facts["0.9"]["discarded"] > 0
    assert 2 < facts["0.9"]["rank"] < facts["1.0"]["rank"] <= 9
    whole = products(tmp_path / "null", vit)
    cut = products(tmp_path / "2", vit)
    for module, share in facts["2"]["discarded_by_module"].items():
        u, s, vt = torch.linalg.svd(whole[module])
        torch.testing.assert_close(cut[module], (u[:, :2] * s[:2]) @ vt[:2], rtol=1e-4, atol=1e-5)
        assert share == pytest.approx(float(s[2:].square().sum() / s.square().sum()), rel=1e-3)
    assert facts["2"]["discarded"] == max(facts["2"]["discarded_by_module"].values())
    assert facts["2"]["discarded_by_module"][facts["2"]["discarded_most_in"]] == facts["2"]["discarded"]
    total = sum(float(product.square().sum()) for product in cut.values()) ** 0.5
    assert facts["2"]["norm"] == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("rank", ["0", "-3", "1.5", "0.0", "true", "half", "[1]"])
def test_other_ranks_are_refused(rank, sources, tmp_path):
    out = tmp_path / "out"
    said = refusal(out, sources, [f"rank={rank}"], out)
    assert said.startswith(("rank must be a number of directions (16), the share of the energy", "rank: expected int"))


def test_facts_say_norm_and_cosine_of_each_adapter(sources, vit, tmp_path):
    facts = merge(sources, ["fusion=average"], tmp_path / "out")
    fused = torch.cat([product.flatten() for product in products(tmp_path / "out", vit).values()])
    for source, row in zip(sources, facts["adapters"], strict=True):
        vector = torch.cat([product.flatten() for product in products(source, vit).values()])
        assert row["norm"] == pytest.approx(float(vector.norm()), rel=1e-4)
        assert row["cosine"] == pytest.approx(float(vector @ fused / vector.norm() / fused.norm()), abs=1e-4)
    assert [row["name"] for row in facts["adapters"]] == ["task-0", "task-1", "task-2"]
    assert [row["rank"] for row in facts["adapters"]] == [2, 3, 4]


def test_the_same_command_writes_the_same_bytes(sources, tmp_path):
    for name, rank in (("one", ["rank=3"]), ("two", ["rank=2", "rank=3"])):  # the last one counts, as always
        merge(sources, ["fusion=average", *rank], tmp_path / name)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_heads_are_united_and_those_that_contradict_are_named(vit, tmp_path):
    sources = three(tmp_path, vit)
    held = [{"a": 1.0, "b": 2.0}, {"b": 2.0, "c": 3.0}, {"a": 4.0}]
    for source, heads in zip(sources, held, strict=True):
        save_file({task: torch.full((3, 16), v) for task, v in heads.items()}, f"{source}/heads.safetensors")
    facts = merge(sources, ["fusion=average"], tmp_path / "out")
    found = load_file(tmp_path / "out" / "heads.safetensors")
    assert facts["heads"] == ["b", "c"] == sorted(found) and facts["contradicted_heads"] == ["a"]
    torch.testing.assert_close(found["c"], torch.full((3, 16), 3.0))
    assert "different heads for a" in (tmp_path / "out" / "README.md").read_text()


def test_without_heads_there_is_no_file_of_heads(sources, tmp_path):
    merge(sources, ["fusion=average"], tmp_path / "out")
    names = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


def test_an_existing_folder_is_never_touched(sources, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    assert f"--out {out} exists already and is never overwritten" in refusal(out, sources, [], out)
    assert not list(out.iterdir())


def test_nothing_is_left_behind_where_writing_fails(sources, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("fedfusion.offline.card.text", full)
    assert refusal(out, sources, [], out) == f"--out {out} cannot be written (no space left on device)"


def test_nothing_is_written_where_a_rule_makes_nan(sources, tmp_path):
    out = tmp_path / "out"
    assert "makes entries of these adapters that are not finite" in refusal(
        out, sources, ["fusion._target_=odd_rules.Infinite", "~fusion.coefficient"], out
    )


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["fusion=tiess"], "fusion=tiess: no 'tiess' in fusion/"),
        (["rounds=3"], "rounds=3: no key 'rounds'"),
        (["channel=awgn"], "channel=awgn: no key 'channel'"),
        (["+fusion.more=1"], "fusion.more: TaskArithmetic has no parameter 'more'"),
        (["fusoin=average"], "fusoin=average: no key 'fusoin' (did you mean 'fusion'?)"),
        (["fusion=average", "fusion.coeficient=1"], "no key 'fusion.coeficient' (did you mean 'fusion.coefficient'?)"),
        (["seed=x"], "seed: expected int, got 'x'"),
        (["suite=digits8"], "suite would change nothing: fusion=TaskArithmetic needs no data (drop it)"),
        (["model.pooling=mean"], "model would change nothing"),
        (["fusion.coefficient=-x-["], "cannot be read as key=value"),
    ],
)
def test_overrides_are_checked_as_those_of_a_run(overrides, said, sources, tmp_path):
    out = tmp_path / "out"
    assert said in refusal(out, sources, overrides, out)


def test_all_wrong_overrides_are_said_at_once(sources, tmp_path):
    out = tmp_path / "out"
    lines = refusal(out, sources, ["rounds=3", "fusion=nope", "seed=x"], out).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["fusion=nope", "rounds=3", "seed"]


def test_one_adapter_is_no_merge(sources, tmp_path):
    out = tmp_path / "out"
    assert "merge needs two adapters or more, got 1" in refusal(out, sources[:1], [], out)


def test_a_rule_with_one_vector_for_all_has_none_per_task(sources, tmp_path):
    out = tmp_path / "out"
    assert "--per-task: fusion=TaskArithmetic has one vector for all" in refusal(out, sources, [], out, True)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """An adapter that hardly changes the shipped base, and one that destroys it; their order is not that."""
    folder = tmp_path_factory.mktemp("glyphs")
    return [str(save(folder / f"{alpha}", GLYPHS, 0, r=r, lora_alpha=alpha)) for r, alpha in ((2, 60.0), (3, 0.01))]


@pytest.mark.parametrize("data, chosen", [("few labels", 1), ("unlabelled", None)])
def test_the_rule_sees_the_samples_at_each_vector(data, chosen, pair, tmp_path):
    facts = merge(pair, [*BEST, f"+fusion.data='{data}'", "rank=5", *SUITE], tmp_path / "out")
    found, parts = products(tmp_path / "out", GLYPHS), [products(folder, GLYPHS) for folder in pair]
    same = [i for i, part in enumerate(parts) if all(torch.allclose(found[m], part[m], atol=1e-6) for m in part)]
    assert same == [chosen] if chosen is not None else len(same) == 1
    assert facts["config"]["suite"]["tasks"] == ["upright-digit", "flipped-size"]
    assert facts["config"]["model"]["path"] == "vit-glyphs" and facts["config"]["rank"] == 5


def test_tasks_are_as_many_as_adapters(pair, tmp_path):
    out = tmp_path / "out"
    assert "suite.tasks names 8 tasks, but there are 2 adapters" in refusal(out, pair, [*BEST, "suite=digits8"], out)


def test_data_is_never_a_default(pair, tmp_path):
    out = tmp_path / "out"
    assert "learns from samples of every task (few labels), and none are given (add suite=" in refusal(
        out, pair, BEST, out
    )


def test_the_model_is_the_base_of_the_adapters(sources, tmp_path):
    out = tmp_path / "out"
    assert "but model.path is 'vit-glyphs' (choose the model it was fine-tuned on)" in refusal(
        out, sources, [*BEST, "suite=digits8"], out
    )


def test_a_person_sees_a_table_that_fits_80_columns(cli, sources, tmp_path):
    done = cli("merge", *sources, "fusion=average", "rank=3", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert [line.split()[0] for line in lines if line.startswith(("task-", "merged"))] == [
        "task-0",
        "task-1",
        "task-2",
        "merged",
    ]
    assert "rank 3 discards up to" in done.output and max(map(len, lines[:-1])) <= 80
    assert lines[-1].endswith("out: README.md adapter_config.json adapter_model.safetensors")


def test_json_parses(cli, sources, tmp_path):
    done = cli("merge", *sources, "fusion=average", "--out", tmp_path / "out", "--json")
    facts = json.loads(done.stdout)
    assert facts["merged"]["rank"] == 9 and facts["config"]["fusion"]["coefficient"] is None


def test_what_is_wrong_is_one_sentence_and_exit_code_2(cli, sources, tmp_path):
    done = cli("merge", *sources, "fusion=averag", "--out", tmp_path / "out")
    assert done.exit_code == 2 and done.stdout == "" and not list(tmp_path.iterdir())
    assert done.stderr == "error: fusion=averag: no 'averag' in fusion/ (did you mean 'average'?)\n"


def test_a_folder_with_an_equals_sign_is_a_folder(cli, vit, tmp_path):
    folders = [save(tmp_path / f"lr={i}", vit, i) for i in (0, 1)]
    done = cli("merge", *folders, "fusion=average", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
