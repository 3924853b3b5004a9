import math

import pytest
from omegaconf import OmegaConf

from fedfusion.config import CONF, Experiment, build, groups, resolve, to_json
from fedfusion.listing import listing
from fedfusion.validation import ConfigErrors, check_target

OPTIONS = [(group, option) for group, options in groups().items() for option in options]


@pytest.mark.parametrize("group, option", OPTIONS)
def test_every_option_composes_and_builds(group, option):
    experiment = build(resolve([f"{group}={option}"]))
    assert isinstance(experiment, Experiment)


@pytest.mark.parametrize("group, option", OPTIONS)
def test_every_option_is_documented(group, option):
    (row,) = [row for row in listing(group) if row["name"] == option]
    assert row["summary"].endswith(".")
    node = OmegaConf.load(CONF / group / f"{option}.yaml")
    if group in ("attack", "channel", "fusion", "aggregator") and option not in ("none", "ideal"):
        assert "http" in row["reference"]
    if group == "experiment":
        assert f"# fedfusion run experiment={option}" in (CONF / group / f"{option}.yaml").read_text()
    else:
        assert check_target(group, node) == []


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
        (["agregator=krum"], ["no key 'agregator' (did you mean 'aggregator'? it offers mean)"]),
        (["agregator=mean", "rounds=0"], ["(did you mean 'aggregator'?)", "rounds must be at least 1"]),
        (["channel=awgnn", "channel.jsr=3"], ["did you mean 'awgn'?", "did you mean 'channel.jsr_db'?"]),
        (["channel.snr_db=loud"], ["channel.snr_db: expected float, got 'loud'"]),
        (["attack=sign_flipping", "attack.f=17"], ["attack.f=17 Byzantine clients, but there are 16 clients"]),
        (["rounds=0", "fraction=2"], ["rounds must be at least 1, got 0", "fraction must be in (0, 1], got 2"]),
        (["model.path=/no/such/model"], ["model.path: no model at '/no/such/model'"]),
        (["fusion.coeficient=1"], ["did you mean 'fusion.coefficient'?"]),
        (["client.lr=0", "realign.steps=-1"], ["client.lr must be positive", "realign.steps must be at least 0"]),
        (["min_clients=17"], ["min_clients=17 must be between 1 and the 16 clients of a round"]),
        (["client._target_=nowhere.Client"], ["client._target_: cannot import 'nowhere.Client'"]),
        (["model.lora.rank=4"], ["no key 'model.lora.rank'"]),
        (["+model.lora.rank=4"], ["model.lora: peft refuses it"]),
        (["model.lora.r=0"], ["model.lora.r must be at least 1, got 0"]),
        (["rounds=[", "seed=x"], ["rounds=[", "seed: expected int, got 'x'"]),
        (["suite.tasks=[upright-digit,walking]"], ["there is no task 'walking'"]),
        (["suite.shots=0"], ["suite.shots must be between 1 and 10"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_sentence_each(arguments, sentences):
    with pytest.raises(ConfigErrors) as caught:
        resolve(arguments)
    assert len(caught.value.errors) == len(sentences)
    for sentence, error in zip(sentences, caught.value.errors, strict=True):
        assert sentence in error
