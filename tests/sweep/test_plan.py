import json

import pytest
from cells import TINY, value
from refusals import refused

from fedfusion.composition import search
from fedfusion.sweep import Plan, plan, separate
from fedfusion.sweep.plan import identity
from fedfusion.sweep.settings import Settings
from fedfusion.validation import ConfigErrors


def planned(*overrides):
    return plan(separate(overrides)[0])


def test_cells_are_all_combinations_in_the_order_of_hydra():
    grid = planned(*TINY, "seed=range(1,3)", "attack=sign_flipping", "attack.f=1,2")
    assert [dict(cell.point) for cell in grid.cells] == [
        {"seed": seed, "attack.f": f} for seed in ("1", "2") for f in ("1", "2")
    ]
    assert grid.axes == {"seed": ["1", "2"], "attack.f": ["1", "2"]} and grid.attack == "sign_flipping"
    assert len(grid.runs) == 4 == len(grid.configs) and grid.question == grid.grid == ""
    assert set(TINY) <= set(grid.cells[0].overrides) and value(grid.cells[2].overrides, "seed") == "2"
    assert set(TINY) <= set(grid.fixed) and not any(text.startswith("seed") for text in grid.fixed)
    for cell in grid.cells:
        config = grid.configs[cell.run]
        assert str(config["seed"]) == cell.point["seed"] and identity(config, cell.byzantine) == cell.run


def test_an_attack_without_byzantine_clients_is_run_once():
    grid = planned(*TINY, "attack=sign_flipping,ipm", "attack.f=0,1", "seed=0")
    clean = [cell for cell in grid.cells if cell.point["attack.f"] == "0"]
    assert [(cell.point["attack"], cell.repeats, cell.byzantine) for cell in clean] == [
        ("sign_flipping", False, 0),
        ("ipm", True, 0),
    ]
    assert clean[0].run == clean[1].run and len({cell.run for cell in grid.cells}) == 3 == len(grid.runs)


def test_cells_that_differ_only_behind_the_upload_have_one_training_and_it_comes_first():
    behind = ["fusion=task_arithmetic,ties", "channel=awgn,ideal", "attack=sign_flipping", "attack.f=0,1"]
    grid = planned(*TINY, *behind, "seed=0,1")
    assert len(grid.cells) == 16 and grid.trainings == 2
    assert [cell.point["seed"] for cell in grid.runs[:3]] == ["0", "1", "0"]
    assert len({cell.training for cell in grid.runs[:2]}) == 2
    assert sorted(cell.run for cell in grid.runs) == sorted({cell.run for cell in grid.cells})


CLIENTS = ["client.lr=1e-3,2e-3", "seed=0,1", "suite.shots=2,3", "model.lora.r=2,4", "fraction=0.5,1"]


@pytest.mark.parametrize("axis", [*CLIENTS, "method=fedit,flora"])
def test_what_clients_read_makes_another_training(axis):
    assert planned(*TINY, axis).trainings == 2


@pytest.mark.parametrize("axis", ["keep=last,best", "min_clients=1,2", "fused_rank=2,3", "evaluation=server,clients"])
def test_what_only_the_server_reads_does_not(axis):
    assert planned(*TINY, "suite.trusted=16", axis).trainings == 1


def test_an_attack_that_nobody_makes_trains_nothing_else():
    assert planned(*TINY, "attack=ipm,label_flip", "attack.f=0,1").trainings == 2


def test_an_attack_of_ones_own_says_by_itself_that_it_poisons(tmp_path):
    (tmp_path / "attack").mkdir()
    (tmp_path / "attack" / "swapped.yaml").write_text("# Swaps.\n_target_: odd_rules.Swapped\nlevel: 1\n")
    assert planned(*TINY, search(tmp_path), "attack=swapped", "attack.level=1,2").trainings == 2


def test_the_attack_of_an_experiment_is_named():
    assert planned("experiment=quickstart", *TINY, "attack=alie", "attack.f=1", "seed=0,1").attack == "alie"


def test_poisoned_data_makes_another_training():
    assert planned(*TINY, "attack=label_flip", "attack.f=0,1").trainings == 2
    assert planned(*TINY, "attack=alie", "attack.f=0,1").trainings == 1


def test_a_plan_is_stored_and_read():
    grid = planned(*TINY, "seed=0,1")
    again = Plan.of(json.loads(json.dumps(grid.to_dict())))
    assert again.hash == grid.hash and again.runs == [
        type(cell)(**{**vars(cell), "overrides": list(cell.overrides)}) for cell in grid.runs
    ]
    assert planned(*TINY, "seed=0,2").hash != grid.hash


def test_where_something_is_computed_names_no_run():
    one, other = (planned(*TINY, *more).cells[0].run for more in ([], ["federation=ray", "tracker=none"]))
    assert one == other != planned(*TINY, "rounds=2").cells[0].run


def test_rules_for_the_whole_federation_assume_the_most_byzantine_clients_of_the_sweep():
    federated = ["aggregate_within=federation", "preaggregator=nnm", "attack=sign_flipping", "attack.f=0,1"]
    for cell in planned(*TINY, *federated, "aggregator=trimmed_mean").cells:
        assert value(cell.overrides, "aggregator.f") == value(cell.overrides, "preaggregator.f") == "1"
    for cell in planned(*TINY, *federated, "aggregator=mean,median", "preaggregator.f=0").cells:
        assert cell.overrides.count("preaggregator.f=0") == 1
        assert not any(text.startswith(("aggregator.f=", "preaggregator.f=1")) for text in cell.overrides)
    within = ["suite.clients_per_task=3", "aggregator=trimmed_mean", "attack=sign_flipping", "attack.f=0,2"]
    assert not any("aggregator.f" in text for cell in planned(*TINY, *within).cells for text in cell.overrides)


def test_a_rule_may_be_told_how_many_attack():
    chosen = ["aggregate_within=federation", "aggregator=trimmed_mean", "attack=sign_flipping"]
    for cell in planned(*TINY, *chosen, "attack.f=0,1", "aggregator.f=${attack.f}").cells:
        assert [text for text in cell.overrides if "aggregator.f" in text] == ["aggregator.f=${attack.f}"]


def test_the_attack_budget_sweep():
    few = ["attack=min_max", "attack.fraction=0.3", "defence=mean,nnm_trimmed_mean", "seed=0"]
    grid = planned("sweep=attack_budget", *few)
    assert list(grid.axes) == ["defence"] and grid.attack == "min_max"
    assert grid.question.startswith("How much of the worst task does each defence keep")
    assert "suite: digits8" in grid.grid
    f = {cell.point["defence"]: [text for text in cell.overrides if ".f=" in text] for cell in grid.cells}
    assert f == {"mean": [], "nnm_trimmed_mean": ["preaggregator.f=6", "aggregator.f=6"]}


@pytest.mark.parametrize(
    "arguments, sentences",
    [
        (["agregator=mean", "seed=0,1"], ["no key 'agregator' (did you mean 'aggregator'?"]),
        (["sweep=atack_budget"], ["sweep=atack_budget: no 'atack_budget' in sweep/ (did you mean 'attack_budget'?)"]),
        (["seed=["], ["seed=[: cannot be read as key=value"]),
        (["seed=interval(0,1)"], ["seed=interval(0,1): a grid needs single values (write a,b,c"]),
        (["run_dir=x", "hydra.sweep.dir=y"], ["run_dir=x: not in a sweep", "hydra.sweep.dir=y: not in a sweep"]),
        (["hydra.sweep.subdir=same"], ["hydra.sweep.subdir=same: not in a sweep (two cells could have one folder"]),
        (["trainings=x"], ["trainings=x: not in a sweep (they are in --out; sweep.share=false shares none)"]),
        (["hydra/launcher=nowhere"], ["Could not find 'hydra/launcher/nowhere'"]),
        (["suite.clints_per_task=2,3"], ["no key 'suite.clints_per_task' (did you mean 'suite.clients_per_task'?"]),
        (
            ["attack=sign_flipping", "attack.f=0,9", "rounds=0,1"],
            [
                "rounds must be at least 1, got 0 [as in rounds=0 attack.f=0]",
                "attack.f=9 makes 9 Byzantine clients, but there are 4 clients",
            ],
        ),
        (["attack=sign_flipping,fastest", "seed=1,2"], ["attack=fastest: no 'fastest' in attack/"]),
    ],
)
def test_what_is_wrong_with_any_cell_is_said(arguments, sentences):
    refused(sentences, planned, *TINY, *arguments)


def test_what_is_wrong_everywhere_names_no_cell():
    with pytest.raises(ConfigErrors) as caught:
        planned(*TINY, "rounds=0", "seed=0,1")
    assert caught.value.errors == ["rounds must be at least 1, got 0"]


def test_cells_that_only_fail_together_are_found():
    """No value is wrong alone: four clients are too few for one of four combinations."""
    chosen = ["aggregate_within=federation", "attack=sign_flipping", "attack.f=1", "aggregator=mean,krum"]
    with pytest.raises(ConfigErrors, match=r"Krum needs .* \[as in suite.clients_per_task=2 aggregator=krum\]"):
        planned(*TINY, "suite.clients_per_task=2,4", *chosen)


def test_settings():
    rest, settings = separate(["sweep.jobs=3", "seed=1", "sweep.fail_fast=true", "sweep.on=ray", "sweep=attack_budget"])
    assert [str(o.input_line) for o in rest] == ["seed=1", "sweep=attack_budget"]
    assert settings == Settings(jobs=3, fail_fast=True, on="ray") and settings.at_once(9) == 3
    assert separate([])[1].at_once(1) >= separate([])[1].at_once(10**6) == 1


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("sweep.job=3", "sweep.job=3: a sweep has no 'sweep.job' (did you mean 'sweep.jobs'?)"),
        ("sweep.jobs=0", "sweep.jobs must be at least 1 or null, got 0"),
        ("sweep.jobs=many", "sweep.jobs=many: input should be a valid integer"),
        ("sweep.on=mars", "sweep.on=mars: input should be 'processes' or 'ray'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(text, sentence):
    with pytest.raises(ConfigErrors) as caught:
        separate([text])
    assert sentence in str(caught.value)


def test_a_launcher_of_hydras_says_itself_how_many_run_at_once():
    with pytest.raises(ConfigErrors, match="sweep.jobs=2: that is for hydra/launcher=joblib to say"):
        separate(["sweep.jobs=2", "hydra/launcher=joblib"])
