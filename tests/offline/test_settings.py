import pytest

from fedfusion.offline.merge import Merge
from fedfusion.offline.settings import key_of, of_root, of_run
from fedfusion.validation import ConfigErrors


@pytest.mark.parametrize(
    "override", ["suite=x", "suite.tasks=[a=b]", "+suite.more=1", "++suite.more=1", "~suite", "suite@x=y", "~suite.z=1"]
)
def test_the_first_part_of_a_key_is_found_whatever_hydra_adds_to_it(override):
    assert key_of(override) == "suite"


def test_a_root_is_composed_with_its_groups():
    cfg = of_root("merge", Merge, ["fusion=average", "seed=4"], ["fusion"])
    assert (cfg.seed, cfg.rank, cfg.fusion.coefficient) == (4, None, None)


def test_what_is_wrong_with_a_root_is_said_at_once():
    with pytest.raises(ConfigErrors) as caught:
        of_root("merge", Merge, ["fusion=averag", "sed=1", "rank=x", "[["], ["fusion"])
    assert len(caught.value.errors) == 4
    for said in ("[[: cannot be read", "did you mean 'average'?", "did you mean 'seed'?", "rank: expected int | float"):
        assert any(said in error for error in caught.value.errors), said


def test_a_run_is_asked_only_what_the_verb_takes():
    with pytest.raises(ConfigErrors) as caught:
        of_run("evaluate", ["sute=digits8", "seed=x"], ("suite", "seed"))
    assert caught.value.errors == [
        "sute=digits8: evaluate takes no 'sute' (did you mean 'suite'?)",
        "seed: expected int, got 'x'",
    ]
