import json
import math
import shlex
import shutil
import subprocess
import sys

import pytest
from command import SMALL, fedfusion, results
from hydra.errors import HydraException
from omegaconf import OmegaConf

from fedfusion import config
from fedfusion.composition import CONF, compose, groups, options, parse, search, searched
from fedfusion.listing import describe, listing
from fedfusion.validation import ConfigErrors

CHANNEL = '''
"""A channel of one's own."""

from dataclasses import dataclass
from typing import ClassVar

from fedfusion.channels.fidelity import fidelity
from fedfusion.types import ChannelReport


@dataclass(frozen=True)
class Shorter:
    """Everything arrives shorter than it was sent."""

    superposes: ClassVar[bool] = False
    factor: float = 0.5

    def __call__(self, updates, rng):
        received = updates.with_vectors(self.factor * updates.vectors)
        return received, ChannelReport(fidelity(updates.vectors, received.vectors))
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder with one channel in it, whose class is in a file of the current folder."""
    folder = tmp_path / "o'wn and" / "my"
    (folder / "channel").mkdir(parents=True)
    (folder / "channel" / "mine.yaml").write_text("# Mine.\n_target_: mine.Shorter\nfactor: 0.25\n")
    (tmp_path / "mine.py").write_text(CHANNEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    sys.modules.pop("mine", None)


def test_without_a_folder_of_ones_own_there_is_what_is_in_conf():
    assert groups() == {
        folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in CONF.iterdir() if folder.is_dir()
    }
    assert all(path.is_file() for files in options().values() for path in files.values())


def test_a_folder_of_ones_own_adds_options(mine):
    assert groups([mine])["channel"] == sorted([*groups()["channel"], "mine"])
    assert options([mine])["channel"]["mine"] == mine / "channel" / "mine.yaml"
    assert {g: n for g, n in groups([mine]).items() if g != "channel"} == {
        g: n for g, n in groups().items() if g != "channel"
    }


def test_the_override_of_a_folder_is_one_that_hydra_and_we_read(mine):
    (override,), errors = parse([search(mine)])
    assert not errors and searched([override]) == [mine.resolve()]
    assert compose(parse([search(mine), "channel=mine", "channel.factor=0.75"])[0]).channel.factor == 0.75


def test_it_is_checked_like_those_of_the_package(mine):
    cfg = config.resolve([search(mine), "channel=mine"])
    assert type(config.build(cfg).channel).__name__ == "Shorter" and "hydra" not in cfg
    with pytest.raises(ConfigErrors) as refused:
        config.resolve([search(mine), "channel=min", "channel.factr=1", "rounds=0", "seed=loud"])
    assert len(refused.value.errors) >= 3
    assert "channel=min: no 'min' in channel/ (did you mean 'mine'?)" in refused.value.errors
    assert "seed: expected int, got 'loud'" in refused.value.errors
    with pytest.raises(ConfigErrors, match="no key 'channel.factr' .did you mean 'channel.factor'"):
        config.resolve([search(mine), "channel=mine", "channel.factr=1"])
    with pytest.raises(ConfigErrors, match="channel.factor: expected float, got 'much'"):
        config.resolve([search(mine), "channel=mine", "channel.factor=much"])


def test_a_class_that_lacks_what_its_stage_must_have_is_refused(mine):
    (mine.parent.parent / "mine.py").write_text(CHANNEL.replace("    superposes: ClassVar[bool] = False\n", ""))
    with pytest.raises(ConfigErrors, match=r"channel: Shorter has no superposes \(see fedfusion.types.Channel"):
        config.resolve([search(mine), "channel=mine"])


def test_what_only_goes_with_an_option_of_ones_own_is_told(mine):
    (mine / "channel" / "faded.yaml").write_text(
        "# @package _global_\ndefaults:\n  - /fading: rayleigh\n  - _self_\nchannel:\n  _target_: mine.Shorter\n"
    )
    with pytest.raises(
        ConfigErrors, match=r"fading=tdl_a: nothing here takes it \(fading goes with channel=cell, faded, mimo"
    ):
        config.resolve([search(mine), "fading=tdl_a"])


def test_a_folder_that_is_none_or_has_nothing_or_what_is_there_already_is_refused(mine, tmp_path):
    with pytest.raises(ConfigErrors, match="nowhere is no folder .an option is a file GROUP/NAME.yaml"):
        config.resolve([search(tmp_path / "nowhere")])
    with pytest.raises(ConfigErrors, match="channel holds no option of any group"):
        config.resolve([search(mine / "channel")])
    (mine / "channel" / "awgn.yaml").write_text("_target_: mine.Shorter\n")
    with pytest.raises(ConfigErrors, match="channel=awgn is there already .rename the file"):
        config.resolve([search(mine), "channel=awgn"])


@pytest.mark.parametrize(
    "text, why",
    [
        ("factor: [\n", "while parsing a flow node"),
        ("5\n", "Invalid loaded object type: int"),
        ("- 5\n", "it holds a list, not a dict"),
        ("_target_: ${\n", "no viable alternative at input"),
        ("\udcff", "codec can't decode byte 0xff"),
    ],
)
def test_an_option_of_ones_own_that_cannot_be_read_is_refused_by_every_verb(text, why, mine):
    (mine / "channel" / "damaged.yaml").write_text(text, errors="surrogateescape")
    for ask in (
        lambda: config.resolve([search(mine)]),
        lambda: listing("guard", [mine]),
        lambda: describe("channel", "mine", [mine]),
    ):
        with pytest.raises(ConfigErrors, match=rf"damaged.yaml cannot be read: .*{why}.* \(mend it\)$"):
            ask()


@pytest.mark.parametrize("text", ["factor: 0.25\n", "_target_: null\nfactor: 0.25\n", "# Mine.\n"])
def test_an_option_that_names_no_class_is_refused(text, mine):
    (mine / "channel" / "mine.yaml").write_text(text)
    with pytest.raises(ConfigErrors) as refused:
        config.resolve([search(mine), "channel=mine"])
    said = "channel._target_: missing, it says which class is built (as channel._target_=module.Class)"
    assert refused.value.errors == [said]


def test_so_is_a_part_of_one_and_what_has_no_protocol(mine):
    shutil.copy(CONF / "channel" / "mimo.yaml", mine / "channel" / "faded.yaml")
    (mine / "fading").mkdir()
    (mine / "fading" / "bare.yaml").write_text("# @package channel.fading\nfactor: 1\n")
    with pytest.raises(ConfigErrors, match=r"^channel.fading._target_: missing, it says which class is built"):
        config.resolve([search(mine), "channel=mimo", "fading=bare"])
    with pytest.raises(ConfigErrors, match="^server: null builds nothing, the .* .leave out server=null.$"):
        config.resolve(["server=null"])


@pytest.mark.parametrize(
    "call, why",
    [
        ("self, updates", "channel: Shorter.__call__ cannot be called with updates, rng: too many positional"),
        ("self, updates, rng, extra", "channel: Shorter.__call__ cannot be called with updates, rng: missing a req"),
        ("self, updates, *, rng", "channel: Shorter.__call__ cannot be called with updates, rng: too many positional"),
    ],
)
def test_a_class_that_is_called_otherwise_than_its_stage_is_refused(call, why, mine):
    (mine.parent.parent / "mine.py").write_text(CHANNEL.replace("self, updates, rng", call))
    with pytest.raises(ConfigErrors) as refused:
        config.resolve([search(mine), "channel=mine"])
    (sentence,) = refused.value.errors
    assert sentence.startswith(why) and sentence.endswith("(see fedfusion.types.Channel, which says what it must have)")


@pytest.mark.parametrize(
    "overrides, key, protocol",
    [
        (["attack=ipm", "attack.f=1", "attack.upload._target_=mine.Idle"], "attack.upload", "attacks.adversary.Upload"),
        (["attack=label_flip", "attack.f=1", "attack.data._target_=mine.Idle"], "attack.data", "adversary.Poison"),
        (["coupling=laplacian", "coupling.adjacency._target_=mine.Idle"], "coupling.adjacency", "adjacency.Adjacency"),
    ],
)
def test_so_is_the_class_of_a_part(overrides, key, protocol, mine):
    idle = """
class Idle:
    def triggered(self, *_):
        pass

    def __init__(self, **values):
        pass

    def __call__(self):
        pass
"""
    (mine.parent.parent / "mine.py").write_text(idle)
    with pytest.raises(ConfigErrors) as refused:
        config.resolve(overrides)
    (sentence,) = refused.value.errors
    assert sentence.startswith(f"{key}: Idle.__call__ cannot be called with ") and f"{protocol}, which" in sentence
    (mine.parent.parent / "mine.py").write_text(idle.replace("def __call__", "def call"))
    sys.modules.pop("mine")
    with pytest.raises(ConfigErrors, match=f"^{key}: Idle has no __call__ .see "):
        config.resolve(overrides)


def test_so_is_one_that_is_called_by_a_built_in_whose_arguments_are_unknown(mine):
    method = CHANNEL.index("    def __call__")
    (mine.parent.parent / "mine.py").write_text(CHANNEL[:method] + "    __call__ = max\n")
    with pytest.raises(
        ConfigErrors, match="^channel: Shorter.__call__ cannot be called with updates, rng: no signature"
    ):
        config.resolve([search(mine), "channel=mine"])


def test_an_option_of_ones_own_may_hold_only_comments(mine):
    (mine / "defence").mkdir()
    (mine / "defence" / "trust.yaml").write_text("# @package _global_\n# Change nothing.\n")
    assert config.resolve([search(mine), "defence=trust"]) == config.resolve([])
    assert describe("defence", "trust", [mine])["summary"] == "Change nothing."


def test_an_option_may_leave_a_value_open_that_must_be_given(mine):
    (mine / "channel" / "mine.yaml").write_text("_target_: mine.Shorter\nfactor: ???\n")
    assert config.resolve([search(mine), "channel=mine", "channel.factor=0.75"]).channel.factor == 0.75
    with pytest.raises(ConfigErrors) as refused:
        config.resolve([search(mine), "channel=mine", "rounds=["])
    assert refused.value.errors[1] == "channel.factor: ??? stands for a value, which must be given"
    with pytest.raises(ConfigErrors) as refused:
        config.resolve([search(mine), "channel=mine", "channel.factor=0.75", "sed=1"])
    assert refused.value.errors == ["sed=1: no key 'sed' (did you mean 'seed'?)"]


@pytest.mark.parametrize(
    "made, said",
    [
        ("adapters / 0", "makes entries that are not finite"),
        ("adapters[heard[:-1]]", r"returns shape \[15, 1\], expected a tensor of shape \[16, 1\] .mend it.$"),
        ("None", r"returns NoneType, expected a tensor of shape \[16, 1\]"),
    ],
)
def test_a_coupling_that_makes_something_else_is_refused_by_name(made, said, mine):
    coupling = """
from fedfusion.coupling import Isolated


class Odd(Isolated):
    def __call__(self, adapters, heard, weights, clients, rng):
        return RETURNED
"""
    (mine.parent.parent / "mine.py").write_text(coupling.replace("RETURNED", f"{made}, {{}}"))
    with pytest.raises(ConfigErrors, match=f"^coupling=Odd {said}"):
        config.resolve(["coupling._target_=mine.Odd"])
    (mine.parent.parent / "mine.py").write_text(coupling.replace("RETURNED", "adapters"))
    sys.modules.pop("mine")
    with pytest.raises(ConfigErrors, match=r"^coupling=Odd returns Tensor, expected adapters and a report .mend it.$"):
        config.resolve(["coupling._target_=mine.Odd"])
    directions = "adapters / adapters.norm(dim=1, keepdim=True) / (adapters.std() > 0), {}"
    (mine.parent.parent / "mine.py").write_text(coupling.replace("RETURNED", directions))
    sys.modules.pop("mine")
    config.resolve(["coupling._target_=mine.Odd"])


@pytest.mark.parametrize("call", ["self, updates, rng, extra=1", "self, sent, of", "self, *all, **more"])
def test_arguments_may_have_other_names_and_there_may_be_more(call, mine):
    (mine.parent.parent / "mine.py").write_text(CHANNEL.replace("self, updates, rng", call))
    config.resolve([search(mine), "channel=mine"])


def test_a_module_that_cannot_be_imported_is_named_with_its_line(mine):
    (mine.parent.parent / "broken.py").write_text("def f(:\n")
    (mine.parent.parent / "raising.py").write_text("1 / 0\n")
    with pytest.raises(ConfigErrors, match=r"cannot import 'broken.X' \(invalid syntax \(broken.py, line 1\)\)$"):
        config.resolve(["aggregator._target_=broken.X"])
    with pytest.raises(ConfigErrors, match=r"cannot import 'raising.X' \(division by zero\)$"):
        config.resolve(["aggregator._target_=raising.X"])


def test_what_cannot_be_read_is_told_beside_the_rest():
    parsed, errors = parse(["seed=1", "a b c", "rounds=2"])
    assert [str(override.input_line) for override in parsed] == ["seed=1", "rounds=2"]
    assert len(errors) == 1 and errors[0].startswith("a b c: cannot be read as key=value")
    with pytest.raises(ConfigErrors) as refused:
        compose(parse(["fusion=tiles"])[0])
    assert isinstance(refused.value.__cause__, HydraException)


@pytest.mark.slow
def test_a_run_with_an_option_of_ones_own_and_its_resumption_from_anywhere(mine, tmp_path):
    run = tmp_path / "run"
    given = ["--config-dir", str(mine.relative_to(tmp_path)), "channel=mine", *SMALL]
    fedfusion("run", *given, "rounds=1", f"run_dir={run}", cwd=tmp_path, check=True)
    found = results(run)
    (record,) = found["metrics"]["rounds"]
    assert record["nmse_db"] == pytest.approx(20 * math.log10(0.75), abs=0.01)  # a quarter of it arrives
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.py").write_text(CHANNEL)
    resumed = fedfusion("run", "--resume", str(run), "rounds=2", "--json", cwd=elsewhere, check=True)
    facts = json.loads(resumed.stdout)  # and nothing else on stdout
    assert len(facts["metrics"]["rounds"]) == 2 and facts == results(run)
    assert "round 2/2" in resumed.stderr
    assert search(mine) in shlex.split(facts["command"])


@pytest.mark.slow
def test_the_configuration_of_a_run_is_printed_and_nothing_is_run(mine, tmp_path):
    code = [sys.executable, "-m", "fedfusion", "run", "--config-dir", str(mine), "channel=mine", "--cfg", "job"]
    done = subprocess.run(code, capture_output=True, text=True, cwd=tmp_path)
    assert OmegaConf.create(done.stdout).channel == {"_target_": "mine.Shorter", "factor": 0.25}
    assert max(map(len, done.stdout.splitlines())) <= 80
    as_json = subprocess.run([*code, "--json"], capture_output=True, text=True, cwd=tmp_path)
    assert json.loads(as_json.stdout) == OmegaConf.to_container(OmegaConf.create(done.stdout))
    assert not (tmp_path / "runs").exists()
    wrong = subprocess.run([*code, "rounds=0"], capture_output=True, text=True, cwd=tmp_path)
    assert wrong.returncode == 2 and wrong.stdout == "" and "rounds must be at least 1" in wrong.stderr
