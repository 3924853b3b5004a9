import math
from importlib.util import find_spec

import pytest
from omegaconf import OmegaConf
from refusals import refused

from fedfusion.config import CONF, Experiment, build, differ, groups, resolve, resume, to_json
from fedfusion.listing import describe, listing
from fedfusion.validation import ConfigErrors

REFUSED = {  # offline, nothing of it in the cache or no deployment; or by itself
    ("suite", "text"): "HF_HUB_OFFLINE",
    ("suite", "vision"): "HF_HUB_OFFLINE",
    ("suite", "instruct"): "HF_HUB_OFFLINE",
    ("model", "clip_vit_b32"): "model.path: no model at 'openai/clip-vit-base-patch32'",
    ("federation", "devices"): "there is no deployment in federation.home=deploy",
    ("head", "class_names"): "model.auto=CLIPVisionModelWithProjection and model.pooling=pooler",
}
REFUSED |= {
    ("tracker", package): f"tracker={package} needs the package {package}, which is not installed"
    for package in ("mlflow", "tensorboard", "trackio", "wandb")
    if find_spec(package) is None
}
ALONG = {
    "adjacency": ["coupling=laplacian"],
    "fading": ["channel=mimo"],
    "aggregator": ["aggregate_within=federation"],  # two clients per task are too few for most rules
    "preaggregator": ["aggregate_within=federation"],
}
OPTIONS = [(group, option) for group, options in groups().items() for option in options]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What options need that name a file: a folder of tasks, and weights between sixteen clients."""
    folder = tmp_path_factory.mktemp("files")
    for task in ("fruit", "trees"):
        (folder / "data" / task).mkdir(parents=True)
        for part in ("train", "test"):
            rows = "".join(f"{task} {part} {i},{i % 2}\n" for i in range(120))
            (folder / "data" / task / f"{part}.csv").write_text(f"text,label\n{rows}")
    (folder / "adjacency.csv").write_text("\n".join([",".join("1" * 16)] * 16))
    return folder


def needs(group, option, files):
    """What must be chosen beside an option so that it makes sense."""
    text, lists = ["suite=files", f"suite.root={files}/data", "model=minilm"], ["suite=lists", "model=gpt2_lists"]
    return {
        ("suite", "files"): text,
        ("suite", "text"): ["model=minilm"],
        ("suite", "lists"): lists,
        ("suite", "instruct"): ["model=gpt2_lists"],
        ("model", "minilm"): text,
        ("model", "gpt2_lists"): lists,
        ("method", "fedptuning"): lists,
        ("experiment", "text8_minilm"): [f"suite.root={files}/data"],
        ("partition", "natural_id"): ["suite.partitioner.partition_by=label"],
        ("adjacency", "file"): ["coupling=laplacian", f"coupling.adjacency.path={files}/adjacency.csv"],
        ("channel", "aircomp"): ["coupling=average", "guard=norm_clip"],
        **{("fusion", rule): ["client.statistics=curvature"] for rule in ("regmean", "fisher", "laplace")},
    }.get((group, option), ALONG.get(group, []))


@pytest.mark.parametrize("group, option", OPTIONS)
def test_every_option_composes_and_builds(group, option, files):
    overrides = [f"{group}={option}", *needs(group, option, files)]
    if (group, option) in REFUSED:
        with pytest.raises(ConfigErrors, match=REFUSED[group, option]):
            resolve(overrides)
    else:
        assert isinstance(build(resolve(overrides)), Experiment)


@pytest.mark.parametrize("group, option", OPTIONS)
def test_every_option_is_documented(group, option):
    (row,) = [row for row in listing(group) if row["name"] == option]
    assert row["summary"].endswith((".", "?"))
    if group in ("attack", "channel", "fusion", "aggregator", "preaggregator", "guard") and option not in (
        "none",
        "ideal",
        "finite",
        "norm_clip",
    ):
        assert "http" in row["reference"]
    if group == "experiment":
        assert f"# fedfusion run experiment={option}" in (CONF / group / f"{option}.yaml").read_text()


def test_json_carries_a_configuration_unchanged():
    cfg = resolve(["channel.snr_db=inf", "channel.jsr_db=-inf", "seed=3"])
    again = build(to_json(cfg))
    assert again.seed == 3 and again.suite.tasks == build(cfg).suite.tasks
    assert again.channel.snr_db == math.inf and again.channel.jsr_db == -math.inf


def test_the_default_is_the_quickstart():
    assert resolve([]) == resolve(["experiment=quickstart"])


@pytest.mark.parametrize(
    "arguments, sentences",
    [
        (["agregator=krum"], ["no key 'agregator' (did you mean 'aggregator'?)"]),
        (["agregator=mean", "rounds=0"], ["(did you mean 'aggregator'?)", "rounds must be at least 1"]),
        (["channel=awgnn", "channel.jsr=3"], ["did you mean 'awgn'?", "did you mean 'channel.jsr_db'?"]),
        (["channel.snr_db=loud"], ["channel.snr_db: expected float, got 'loud'"]),
        (["attack=sign_flipping", "attack.f=17"], ["attack.f=17 makes 17 Byzantine clients, but there are 16 clients"]),
        (["rounds=0", "fraction=2"], ["rounds must be at least 1, got 0", "fraction must be in (0, 1], got 2"]),
        (["model.path=/no/such/model"], ["model.path: no model at '/no/such/model'"]),
        (["seed=???", "channel.snr_db=???"], ["channel.snr_db: ??? stands for a value", "seed: ??? stands"]),
        (["model.lora.r=???", "rounds=["], ["rounds=[", "model.lora.r: ??? stands for a value, which must be given"]),
        (["suite.tasks=???"], ["suite.tasks: ??? stands for a value"]),
        (["channel._target_=???"], ["channel._target_: ??? stands for a value"]),
        (["channel=cell", "seed=???"], ["channel.path_loss.seed: ???", "seed: ??? stands for a value"]),
        (["coupling=laplacian", "coupling.adjacency=null"], ["coupling.adjacency: null builds nothing, the"]),
        (["channel._target_=builtins.dict"], ["channel._target_: 'builtins.dict' cannot be built: no signature found"]),
        (["channel._target_=json"], ["channel._target_: 'json' cannot be built: <module 'json' from"]),
        (["fusion.coeficient=1"], ["did you mean 'fusion.coefficient'?"]),
        (["client.lr=0", "realign.steps=-1"], ["client.lr must be positive", "realign.steps must be at least 0"]),
        (["min_clients=17"], ["min_clients=17 must be between 1 and the 16 clients of a round"]),
        (["client._target_=nowhere.Client"], ["client._target_: cannot import 'nowhere.Client'"]),
        (["model.lora.rank=4"], ["no key 'model.lora.rank'"]),
        (["+model.lora.rank=4"], ["model.lora: peft refuses it"]),
        (["model.lora.r=0"], ["model.lora.r must be at least 1, got 0"]),
        (
            ["suite.tasks=upright-digit"],
            ["suite.tasks: expected Sequence[str], got 'upright-digit' (write suite.tasks=[upright-digit])"],
        ),
        (["rounds=[", "seed=x"], ["rounds=[", "seed: expected int, got 'x'"]),
        (["suite.tasks=[upright-digit,walking]"], ["there is no task 'walking'"]),
        (["rouge_rows=-1"], ["rouge_rows must be at least 0, got -1"]),
        (["model.lora.r=8", "client.ranks=[16]"], ["client.ranks=[16] must not exceed model.lora.r=8"]),
        (["+model.lora.init_lora_weights=pissa"], ["model.lora.init_lora_weights=pissa starts from a product"]),
        (["suite=lists"], ["suite: 'vit-glyphs' has no tokenizer"]),
        (
            ["coupling=laplacian", "coupling.normalise=none", "adjacency=uniform"],
            ["coupling.strength x coupling.server_lr = 0.5 diverges, the 16 clients heard are stable up to 0.125"],
        ),
        (["suite.shots=0"], ["suite.shots must be between 1 and 10"]),
        (["channel=mimo", "channel.group_size=9"], ["send 9 streams at once, but num_rx_ant=8 antennas"]),
        (["channel=mimo", "channel.bandwidth_hz=-1"], ["channel.bandwidth_hz=-1 must be positive"]),
        (["channel=mimo", "channel.jammer.objective=worst"], ["objective: expected one of none, barrage"]),
        (["channel=mimo", "channel.jammer.budget=db"], ["channel.jammer.budget: expected one of rx, tx, got 'db'"]),
        (["channel=mimo", "channel.jammer.budget=tx"], ["channel.jammer.budget=tx needs channel.jammer.num_ant"]),
        (["channel=packet", "channel.packet.mcs=5"], ["channel.packet.mcs=5 is not in the table"]),
        (["channel=mimo", "channel.jsr_db=10"], ["did you mean 'channel.jammer.jsr_db'?"]),
        (
            ["channel=mimo", "channel.bandwidth_hz=-1", "channel.overhead=2", "channel.group_size=9"],
            ["send 9 streams at once", "channel.bandwidth_hz=-1 must be", "channel.overhead=2 must be in [0, 1)"],
        ),
        (["fading=rician"], ["fading=rician: nothing here takes it (fading goes with channel=cell, mimo, packet)"]),
        (["attack=sign_flipping", "attack.clients=[3,16]"], ["attack.clients names client 16, but there are 16"]),
        (["attack=sign_flipping", "attack.tasks=[walking]"], ["attack.tasks: there is no task 'walking'"]),
        (["attack=task_hijack", "attack.upload.task=walking"], ["attack.upload.task: there is no task 'walking'"]),
        (["attack=sign_flipping", "attack.fraction=-0.1"], ["attack.fraction must be in [0, 1], got -0.1"]),
        (["attack=sign_flipping", "attack.f=-1"], ["attack.f must be at least 0, got -1"]),
        (["attack=sign_flipping", "attack.max_norm=-1"], ["attack.max_norm must be at least 0 or null, got -1"]),
        (["attack.f=1"], ["attack=none: Byzantine clients that do nothing are honest"]),
        (["attack=backdoor", "attack.data.size=40"], ["attack.data.size=40 exceeds the images of 32 x 32 pixels"]),
        (
            ["attack=backdoor", "suite=lists", "model=gpt2_lists"],
            ["attack.data: a backdoor wants a class, but the labels of this task are text"],
        ),
        (["suite.unlabelled=140"], ["suite.unlabelled and suite.trusted must be at least 0 and together at most 170"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_sentence_each(arguments, sentences):
    refused(sentences, resolve, arguments)


def test_every_part_of_a_guard_or_attack_is_checked_before_the_run():
    for wrong in ("guard.share=2", "guard.doubt=-1", "guard.energy=0", "guard.clip=0"):
        key, value = wrong.split("=")
        with pytest.raises(ConfigErrors, match=f"{key} .*got {value}"):
            resolve([wrong])


def test_what_an_option_is_built_of_is_documented_with_it():
    text = describe("channel", "mimo")["documentation"]
    for part in (
        "channel.jammer\n",
        "channel.receiver\n",
        "channel.packet\n",
        "duty_cycle",
        "num_silent",
        "target_bler",
    ):
        assert part in text


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (20, 20.0),
        (0.0, -0.0),
        (math.nan, math.nan),
        (math.inf, math.inf),
        ([1, [2.0]], [1.0, [2]]),
        ([{"a": 1, "b": 2}], [{"b": 2.0, "a": 1.0}]),
        (None, None),
        ("x", "x"),
    ],
)
def test_settings_are_compared_by_their_values(ours, theirs):
    assert not differ(ours, theirs) and not differ(theirs, ours)


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (1, True),
        (0.0, False),
        ([1], [True]),
        (20, 20.5),
        (2**60, 2**60 + 1),
        ("20", 20),
        (None, 0),
        (math.inf, -math.inf),
        ([1, 2], [2, 1]),
        ([{"a": 1}], [{"a": 2}]),
    ],
)
def test_other_values_are_other_settings(ours, theirs):
    assert differ(ours, theirs) and differ(theirs, ours)


@pytest.fixture
def begun(tmp_path):
    """The folder of a run that has just begun."""

    def begin(*overrides):
        (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(resolve(overrides)))
        (tmp_path / "overrides.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(list(overrides))))
        return tmp_path

    return begin


@pytest.mark.parametrize(
    "given, again",
    [
        ("channel.jsr_db=20.0", "channel.jsr_db=20"),
        ("client.lr=1", "client.lr=1.0"),
        ("guard.refuse=inf", "guard.refuse=INF"),
        ("attack=garbage attack.f=1 attack.upload.value=nan", "attack.f=1"),
    ],
)
def test_a_run_is_resumed_with_the_same_number_written_otherwise(given, again, begun):
    kept = [text for text in given.split() if text.partition("=")[0] != again.partition("=")[0]]
    assert sorted(resume(begun(*given.split()), [again])[1]) == sorted([*kept, again])


@pytest.mark.parametrize(
    "again, combined",
    [
        (["rounds=4"], ["seed=1", "rounds=4", "+model.lora.bias=none", "deadline_s=9"]),
        (["rounds=2", "deadline_s=8", "rounds=5"], ["seed=1", "rounds=5", "+model.lora.bias=none", "deadline_s=8"]),
        ([], ["seed=1", "rounds=3", "+model.lora.bias=none", "deadline_s=9"]),
    ],
)
def test_of_each_key_the_last_override_is_kept(again, combined, begun):
    folder = begun("seed=1", "rounds=2", "+model.lora.bias=none", "deadline_s=9", "rounds=3")
    cfg, kept = resume(folder, again)
    assert kept == combined and cfg.rounds == int(dict(text.split("=") for text in kept)["rounds"])


@pytest.mark.parametrize("name", ["config.yaml", "overrides.yaml"])
@pytest.mark.parametrize("text", ["rounds: [", "5", "", "- ${", "- a: b: c", "\udcff"])
def test_a_damaged_run_is_not_resumed(name, text, begun):
    folder = begun("rounds=3")
    (folder / name).write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigErrors, match=rf"{name} cannot be read: .* \(restore it from a copy, or begin a new run"):
        resume(folder, [])


@pytest.mark.parametrize(
    "given, again, said",
    [
        ("channel.jsr_db=20.0", "channel.jsr_db=20.5", "'channel.jsr_db' is 20.5 here and 20.0 in the run"),
        ("guard.refuse=inf", "guard.refuse=30", "'guard.refuse' is 30 here and inf in the run"),
        ("model.freeze_a=false", "model.freeze_a=true payload=frozen_a", "'model.freeze_a' is True here and False"),
    ],
)
def test_a_run_is_not_resumed_with_another_setting(given, again, said, begun):
    with pytest.raises(ConfigErrors, match=said):
        resume(begun(given), again.split())
