from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import samples, vit

from fedfusion.fusion import Learned, TaskArithmetic
from fedfusion.fusion.groups import Groups
from fedfusion.lora.model import LoraModel
from fedfusion.lora.product import CoreSpace, factors
from fedfusion.server.evaluation import Evaluator
from fedfusion.types import Evidence, FedfusionError, Layout

LAYOUT = Layout(("x", "bias", "y"), ((5, 4), (3,), (2, 6)))
EACH = 6  # samples of a task
METHODS = {
    "adamerging": {},
    "adamerging_task": {"granularity": "task"},
    "atlas": {"granularity": "block", "blocks": 2, "weights": "free", "loss": "labels", "weight_decay": 0.3},
    "scalearn": {"granularity": "row", "weights": "free", "loss": "labels", "dropout": 0.3},
    "concrete": {"granularity": "element", "weights": "concrete", "shared": True},
    "concrete_of_each": {"granularity": "row", "weights": "concrete"},
    "mhr": {"granularity": "block", "weights": "normalised", "loss": "labels", "coefficient": None},
}
methods = pytest.mark.parametrize("settings", METHODS.values(), ids=METHODS)


@dataclass
class Parabola:
    """Samples whose loss is half the squared distance to a point of the sample; the entropy is twice that."""

    points: torch.Tensor
    tasks: torch.Tensor
    asked: list = field(default_factory=list)
    wall: float = float("inf")

    def __len__(self):
        return len(self.points)

    def loss(self, vector, rows):
        return self._ask("loss", vector, rows)

    def entropy(self, vector, rows):
        return 2 * self._ask("entropy", vector, rows)

    def _ask(self, which, vector, rows):
        self.asked.append((which, rows.clone(), vector.detach().clone()))
        loss = (vector - self.points[rows]).square().sum(1).mean() / 2
        return loss * float("nan") if vector.norm() > self.wall else loss


def problem(seed=0, tasks=3):
    """Task vectors, and points around a sum of them with different coefficients."""
    rng = torch.Generator().manual_seed(seed)
    vectors = torch.randn(tasks, LAYOUT.dim, generator=rng, dtype=torch.float64)
    points = torch.randn(tasks * EACH, LAYOUT.dim, generator=rng, dtype=torch.float64) / 2
    points += torch.tensor([0.9, 0.1, 0.4, 0.6, 0.2], dtype=torch.float64)[:tasks] @ vectors
    return vectors, Parabola(points, torch.arange(tasks).repeat_interleave(EACH))


def evidence(probe, seed=0):
    return Evidence(torch.Generator().manual_seed(seed), probe=probe)


def learned(vectors, probe, seed=0, **settings):
    return Learned(**settings).coefficients(vectors, LAYOUT, evidence(probe, seed))


def whole_graph(rule, vectors, probe):
    """The same by autograd through every coefficient of every coordinate and all tasks at once."""
    rng, groups = torch.Generator().manual_seed(0), Groups.split(LAYOUT, rule.granularity, rule.blocks)
    start = 1 / len(vectors) if rule.coefficient is None else rule.coefficient
    shift = torch.zeros(1 if rule.shared else len(vectors), groups.count, dtype=vectors.dtype, requires_grad=True)
    optimizer = torch.optim.AdamW([shift], weight_decay=rule.weight_decay)

    def coefficients(noise):
        if rule.weights == "normalised":
            return start * len(vectors) * torch.sigmoid(shift) / torch.sigmoid(shift).sum(0)
        if rule.weights == "concrete":
            odds = shift if noise is None else (shift + torch.log(noise / (1 - noise))) / rule.temperature
            mask = torch.sigmoid(odds)
            return start * mask / mask[:, groups.of].mean(1, keepdim=True)
        return start + shift

    for step in range(rule.steps):
        optimizer.param_groups[0]["lr"] = rule.lr * (1 - step / rule.steps)
        noise = torch.rand(shift.shape, generator=rng, dtype=shift.dtype) if rule.weights == "concrete" else None
        chosen = coefficients(noise)
        if rule.dropout:
            chosen = chosen * (torch.rand(shift.shape, generator=rng) >= rule.dropout) / (1 - rule.dropout)
        fused = (chosen.expand(len(vectors), -1)[:, groups.of] * vectors).sum(0)
        batches = [torch.arange(EACH) + EACH * t for t in range(len(vectors))]
        batches = [rows[torch.randperm(EACH, generator=rng)[: rule.batch_size]] for rows in batches]
        measure = probe.loss if rule.loss == "labels" else probe.entropy
        optimizer.zero_grad()
        sum(measure(fused, rows) for rows in batches).backward()
        optimizer.step()
        if rule.weights == "clamped":
            shift.data = (start + shift.data).clamp(0, 1) - start
    return coefficients(None).detach().expand(len(vectors), -1)


@methods
@pytest.mark.parametrize("batch_size", [4, 99])
def test_what_is_learnt_is_what_autograd_through_the_sum_learns(settings, batch_size):
    rule = Learned(**settings, steps=7, batch_size=batch_size)
    vectors, probe = problem()
    before = vectors.clone()
    found = rule.coefficients(vectors, LAYOUT, evidence(probe))
    expected = whole_graph(rule, vectors, probe)
    torch.testing.assert_close(found, expected)
    assert (expected - expected.mean()).abs().max() > 0.01 and not found.requires_grad
    fused = rule(vectors, LAYOUT, evidence(probe))
    groups = Groups.split(LAYOUT, rule.granularity, rule.blocks)
    torch.testing.assert_close(fused, (expected[:, groups.of] * vectors).sum(0))
    assert torch.equal(vectors, before)


@pytest.mark.parametrize("granularity", ["task", "layer", "block", "row"])
def test_free_coefficients_reach_the_least_squares_solution(granularity):
    vectors, probe = problem()
    groups = Groups.split(LAYOUT, granularity, 2)
    design = torch.zeros(LAYOUT.dim, 3, groups.count, dtype=vectors.dtype)
    design[torch.arange(LAYOUT.dim), :, groups.of] = vectors.T
    expected = torch.linalg.lstsq(design.flatten(1), probe.points.mean(0)[:, None], driver="gelsd").solution
    found = learned(
        vectors, probe, granularity=granularity, blocks=2, weights="free", steps=1500, lr=0.05, batch_size=EACH
    )
    fitted = [design.flatten(1) @ c.reshape(-1) for c in (expected, found)]
    torch.testing.assert_close(*fitted, atol=2e-3, rtol=0)


def test_clamped_coefficients_stop_at_zero_and_at_one():
    vectors = torch.eye(3, LAYOUT.dim)
    probe = Parabola(torch.tensor([2.0, -1.0, 0.4]) @ vectors[None], torch.zeros(1, dtype=torch.long))
    found = learned(vectors, probe, granularity="task", steps=300)
    assert found[0] == 1 and found[1] == 0 and found[2] == pytest.approx(0.4, abs=1e-3)
    free = learned(vectors, probe, granularity="task", weights="free", steps=300)
    assert free.flatten().tolist() == pytest.approx([2.0, -1.0, 0.4], abs=0.01)


@given(st.integers(0, 9), st.integers(2, 5), st.sampled_from([0.3, 1.7, None]))
def test_normalised_weights_have_one_sum_over_tasks(seed, tasks, coefficient):
    vectors, probe = problem(seed, tasks)
    found = learned(vectors, probe, weights="normalised", coefficient=coefficient, steps=5, lr=1.0)
    total = 1 if coefficient is None else coefficient * tasks
    torch.testing.assert_close(found.sum(0), torch.full((3,), total, dtype=found.dtype))
    assert found.min() > 0 and found.std() > 0.01


@given(st.integers(0, 9), st.sampled_from(["layer", "row", "element"]), st.booleans())
def test_a_mask_has_the_coefficient_for_its_mean_over_coordinates(seed, granularity, shared):
    vectors, probe = problem(seed)
    settings = {"weights": "concrete", "granularity": granularity, "shared": shared, "coefficient": 0.6}
    found = learned(vectors, probe, **settings, steps=5, lr=1.0)
    each = found[:, Groups.split(LAYOUT, granularity).of]
    torch.testing.assert_close(each.mean(1), torch.full((3,), 0.6, dtype=each.dtype))
    assert found.min() > 0 and each.std() > 0.01 and bool(found.std(0).max() < 1e-12) is shared


@methods
def test_no_steps_are_task_arithmetic_with_the_start(settings):
    vectors, probe = problem()
    rule = Learned(**settings, steps=0)
    expected = TaskArithmetic(rule.coefficient)(vectors, LAYOUT, evidence(None))
    torch.testing.assert_close(rule(vectors, LAYOUT, evidence(probe)), expected)


@methods
def test_the_generator_alone_decides_what_is_drawn(settings):
    vectors, probe = problem()
    first, again, other = (learned(vectors, probe, seed, **settings, batch_size=2, steps=5) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.allclose(first, other)


@pytest.mark.parametrize("name", ["adamerging", "adamerging_task", "atlas", "mhr"])
def test_tasks_in_another_order_get_the_same_coefficients(name):
    vectors, probe = problem()
    order = torch.tensor([2, 0, 1])
    settings = METHODS[name] | {"batch_size": EACH}
    first, other = (learned(rows, probe, **settings) for rows in (vectors, vectors[order]))
    torch.testing.assert_close(first[order], other)


@pytest.mark.parametrize("loss, needed", [("entropy", "unlabelled"), ("labels", "few labels")])
def test_each_step_asks_for_the_loss_of_a_batch_of_one_task_after_another(loss, needed):
    vectors, probe = problem()
    rule = Learned(loss=loss, batch_size=4, steps=2)
    rule(vectors, LAYOUT, evidence(probe))
    assert rule.data == needed and {which for which, _, _ in probe.asked} == {loss.replace("labels", "loss")}
    assert [probe.tasks[rows].unique().tolist() for _, rows, _ in probe.asked] == [[0], [1], [2]] * 2
    assert all(len(rows.unique()) == len(rows) == 4 for _, rows, _ in probe.asked)


def test_dropped_coefficients_are_zero_in_a_step_and_the_others_larger():
    vectors, points = torch.ones(1, LAYOUT.dim), torch.zeros(1, LAYOUT.dim)
    probe = Parabola(points, torch.zeros(1, dtype=torch.long))
    learned(vectors, probe, granularity="element", weights="free", dropout=0.6, coefficient=0.8, steps=1)
    seen = probe.asked[0][2]
    assert 10 <= int((seen == 0).sum()) <= 30 and seen[seen != 0].tolist() == pytest.approx(
        [2.0] * int((seen != 0).sum())
    )


def test_a_decay_keeps_coefficients_near_their_start():
    vectors, probe = problem()
    free, held = (learned(vectors, probe, weights="free", weight_decay=decay) for decay in (0.0, 10.0))
    assert (held - 0.3).norm() < 0.7 * (free - 0.3).norm()


@pytest.mark.parametrize("wall", [0.0, 3.0])
def test_a_loss_that_is_not_finite_ends_it_with_the_last_that_was(wall):
    vectors, probe = problem()
    probe.points, probe.wall = 9 * vectors.sum(0).expand_as(probe.points), wall
    rule = Learned(weights="free", coefficient=0.1, steps=200, lr=0.1)
    fused = rule(vectors, LAYOUT, evidence(probe))
    sound = [vector for _, _, vector in probe.asked if vector.norm() <= wall] or [0.1 * vectors.sum(0)]
    torch.testing.assert_close(fused, sound[-1])
    assert len(probe.asked) < 200 * 3


def test_scaled_outputs_are_an_exact_lora_pair(layout, rng):
    vectors = torch.randn(2, layout.dim, generator=rng)
    core = CoreSpace.of(layout, vectors, vectors[0], "right")
    coordinates = core.project(layout, vectors)
    points = torch.randn(2, core.layout.dim, generator=rng)
    rule = Learned(granularity="row", weights="free", space="right")
    probe = Parabola(points, torch.tensor([0, 1]))
    omega = rule.coefficients(coordinates, core.layout, evidence(probe)).split([7, 4], 1)
    wide = Layout(layout.names, ((4, 5), (7, 4), (6, 6), (4, 6)), layout.pairs)
    adapter = core.embed(rule(coordinates, core.layout, evidence(probe)), wide)
    assert omega[0].std() > 0.1
    for pair, scales in zip(layout.pairs, omega, strict=True):
        b, a = factors(layout, pair, vectors)
        right, left = factors(wide, pair, adapter)
        torch.testing.assert_close(right @ left, (scales[:, :, None] * b @ a).sum(0), atol=1e-4, rtol=1e-4)


class Two:
    """Two tasks on the same picoscopic images."""

    tasks = ("a", "b")

    def __init__(self, rng):
        self.data = {task: samples("vit", 24, rng) for task in self.tasks}

    def root(self, task, seed):
        return self.data[task]

    def num_classes(self, task):
        return 3


@methods
def test_on_a_model_learning_lowers_the_loss(tmp_path, rng, settings):
    model = LoraModel(vit(tmp_path, lora={"r": 2}), 0)
    evaluator = Evaluator(Two(rng), LoraModel(vit(tmp_path), 0, rank=2), 0)
    adapters = model.initial + 0.3 * torch.randn(3, model.layout.dim, generator=rng)
    core = CoreSpace.of(model.layout, adapters, model.initial, Learned(**settings).space)
    probe = evaluator.probe(core)
    vectors = core.project(model.layout, adapters)
    measure = probe.entropy if Learned(**settings).loss == "entropy" else probe.loss
    rates = {"steps": 40, "lr": 0.3 if settings.get("weights") in ("concrete", "normalised") else 0.05}
    start, end = (Learned(**settings | steps)(vectors, core.layout, evidence(probe)) for steps in ({"steps": 0}, rates))
    rows = torch.arange(len(probe))
    assert measure(end, rows) < 0.99 * measure(start, rows)


def test_without_samples_it_is_refused(rng):
    with pytest.raises(FedfusionError, match="fusion.loss=labels learns from the server's samples: there are none"):
        Learned(loss="labels")(torch.ones(2, 35), LAYOUT, Evidence(rng))


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"coefficient": -0.1}, "fusion.coefficient must be finite and at least 0, or null, got -0.1"),
        ({"coefficient": 0, "weights": "concrete"}, "fusion.coefficient=0 leaves nothing to learn with weights=conc"),
        ({"coefficient": 0, "weights": "normalised"}, "fusion.coefficient=0 leaves nothing to learn"),
        ({"coefficient": 1.5}, r"fusion.coefficient=1.5 is outside \[0, 1\], where weights=clamped keeps it"),
        ({"weights": "normalised", "shared": True}, "fusion.weights=normalised divides by the sum over tasks"),
        ({"weights": "concrete", "granularity": "task"}, "fusion.weights=concrete divides by the mean"),
        ({"steps": -1}, "fusion.steps must be at least 0, got -1"),
        ({"dropout": 1.0}, r"fusion.dropout must be in \[0, 1\), got 1.0"),
        ({"weight_decay": -1.0}, "fusion.weight_decay must be finite and at least 0, got -1.0"),
        ({"blocks": 0}, "fusion.blocks must be positive and finite, got 0"),
        ({"batch_size": 0}, "fusion.batch_size must be positive and finite, got 0"),
        ({"lr": 0.0}, "fusion.lr must be positive and finite, got 0.0"),
        ({"temperature": 0.0}, "fusion.temperature must be positive and finite, got 0.0"),
    ],
)
def test_meaningless_settings_are_refused(settings, sentence):
    with pytest.raises(FedfusionError, match=sentence):
        Learned(**settings)
