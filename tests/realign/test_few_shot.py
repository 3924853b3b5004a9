from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F

from fedfusion.realign import FewShot, Unaligned
from fedfusion.realign.few_shot import _scaled
from fedfusion.realign.teachers import Teachers
from fedfusion.types import FedfusionError, Layout, Pair, Repair

LAYOUT = Layout(("low.A", "low.B", "high.A", "high.B"), ((1, 2), (2, 1), (1, 2), (2, 1)), (
    Pair("low", 0, 1, 1.0),
    Pair("high", 2, 3, 1.0),
))  # fmt: skip


@dataclass
class Parabola:
    """Samples whose loss is the squared distance to a known adapter."""

    target: torch.Tensor
    tasks: torch.Tensor

    def __len__(self):
        return len(self.tasks)

    def loss(self, adapter, rows):
        return (adapter - self.target).square().sum()

    entropy = loss


@dataclass
class Linear:
    """Samples `x [n, 2]` of two tasks, whose logits are the product of the adapter at each module, times `x`."""

    x: torch.Tensor
    labels: torch.Tensor
    tasks: torch.Tensor

    def __len__(self):
        return len(self.x)

    def logits(self, adapter, rows):
        found = {}
        for task in self.tasks[rows].unique().tolist():
            mine = rows[self.tasks[rows] == task]
            b, a = (LAYOUT.entry(adapter, 2 * task + i) for i in (1, 0))
            found[task] = self.x[mine] @ (b @ a).T, self.labels[mine]
        return found

    def loss(self, adapter, rows):
        parts = self.logits(adapter, rows).values()
        return sum(F.cross_entropy(z, y, reduction="sum") for z, y in parts) / len(rows)


def repair(probe, rng, **tasks):
    return Repair(rng, probe, LAYOUT, torch.zeros(8), {int(k[1:]): v for k, v in tasks.items()})


@pytest.fixture
def parabola():
    return Parabola(torch.ones(8), torch.tensor([0] * 8 + [1] * 2))


@pytest.fixture
def linear(rng):
    x = torch.randn(40, 2, generator=rng)
    return Linear(x, (x[:, 0] > 0).long(), torch.arange(40) % 2)


def test_it_walks_towards_the_optimum_and_leaves_its_input_alone(parabola, rng):
    fused = torch.zeros(8)
    for loss in ("labels", "entropy", "teachers"):
        tuned = FewShot(steps=200, lr=0.05, loss=loss)(fused, repair(parabola, rng))
        assert (tuned - 1).abs().max() < 0.05 and not fused.any() and not tuned.requires_grad


def test_no_steps_is_no_realignment(parabola, rng):
    fused = torch.randn(8, generator=rng)
    for realign in (FewShot(steps=0), Unaligned()):
        assert torch.equal(realign(fused, repair(parabola, rng)), fused)


@pytest.mark.parametrize(
    ("modules", "share", "moving"), [(["high"], 1.0, [4, 8]), ([], 0.5, [0, 4]), ([], 1.0, [0, 8])]
)
def test_only_what_is_chosen_moves(modules, share, moving, rng):
    probe = Parabola(torch.tensor([9.0] * 4 + [1.0] * 4), torch.zeros(10, dtype=torch.long))
    tuned = FewShot(modules=modules, share=share)(torch.zeros(8), repair(probe, rng))
    moved = torch.zeros(8, dtype=torch.bool)
    moved[slice(*moving)] = True
    assert torch.equal(tuned != 0, moved)


def test_a_module_that_does_not_exist_is_named(parabola, rng):
    with pytest.raises(FedfusionError, match=r"realign.modules=\['layer.9'\].*low, high"):
        FewShot(modules=["layer.9"])(torch.zeros(8), repair(parabola, rng))


def test_an_anchor_holds_it_back(parabola, rng):
    free, held = (FewShot(steps=50, lr=0.05, anchor=a)(torch.zeros(8), repair(parabola, rng)) for a in (0.0, 5.0))
    assert 0 < held.norm() < 0.7 * free.norm()


@pytest.mark.parametrize(
    ("schedule", "counts"), [("balanced", [{0: 2, 1: 2}] * 2), ("per_task", [{0: 4}, {1: 2}]), ("pooled", None)]
)
def test_a_batch_is_drawn_as_the_schedule_says(schedule, counts, parabola, rng):
    realign = FewShot(batch_size=4, schedule=schedule)
    drawn = [parabola.tasks[realign._rows(step, parabola, rng)].tolist() for step in range(2)]
    if counts is None:
        assert [len(tasks) for tasks in drawn] == [4, 4]
    else:
        assert [{task: tasks.count(task) for task in sorted(set(tasks))} for tasks in drawn] == counts


def test_a_good_teacher_is_followed_and_a_bad_one_is_not(linear, rng):
    good = torch.tensor([1.0, 0.0, -3.0, 3.0, 1.0, 0.0, -3.0, 3.0])  # B A x = (-3 x_0, 3 x_0): right on every sample
    bad = -good * torch.tensor([1.0, 1, -1, -1, 1, 1, -1, -1])
    teachers = Teachers.of(linear, {0: good, 1: bad}, doubt=3.0)
    assert teachers.weights == {0: 1.0, 1: 0.0}
    linear.labels[:4:2] = 1 - linear.labels[:4:2]  # of the 20 samples of task 0, the teacher is wrong on two now
    assert Teachers.of(linear, {0: good}, doubt=1.0).weights == {0: pytest.approx(0.8)}
    assert Teachers.of(linear, {0: good}, doubt=3.0).weights == {0: pytest.approx(0.8**3)}
    teachers = replace(teachers, weights={0: 0.5, 1: 0.0})
    rows = torch.arange(40)
    by_hand = torch.zeros(())
    student = torch.randn(8, generator=rng)
    for task, (logits, labels) in linear.logits(student, rows).items():
        target = F.one_hot(labels, 2).float()
        if task == 0:
            target = 0.5 * target + 0.5 * linear.logits(good, rows)[0][0].softmax(-1)
        by_hand -= (target * logits.log_softmax(-1)).sum()
    torch.testing.assert_close(teachers.loss(student, rows), by_hand / 40)
    assert FewShot(loss="teachers").needs_tasks and not FewShot().needs_tasks


def test_of_several_scales_the_largest_that_is_nearly_as_right_as_the_best_is_taken(rng):
    right = torch.tensor([1.0, 0.0, -3.0, 3.0] * 2)
    x = torch.tensor([[1.0, 0.0]] * 20)
    probe = Linear(x, torch.ones(20, dtype=torch.long), torch.arange(20) % 2)
    scaled = replace(FewShot(steps=0), scales=(0.0, 0.5, 1.0))
    assert torch.equal(scaled(right, repair(probe, rng)), right)
    wrong = right * torch.tensor([1.0, 1, -1, -1] * 2)
    base = torch.tensor([1.0, 0.0, -1.0, 1.0] * 2)
    chosen = scaled(wrong, replace(repair(probe, rng), base=base))
    assert torch.equal(chosen, base)
    half = replace(scaled, scales=(1.0, 0.5))(right, repair(probe, rng))
    assert torch.equal(half, right)


def test_scaling_acts_on_products_and_on_what_is_outside_of_them():
    layout = Layout((*LAYOUT.names, "bias"), (*LAYOUT.shapes, (2,)), LAYOUT.pairs)
    adapter, base = torch.arange(10.0), torch.ones(10)
    scaled = _scaled(adapter, base, layout, 0.5)
    for pair in layout.pairs:
        before, after = (layout.entry(v, pair.b) @ layout.entry(v, pair.a) for v in (adapter, scaled))
        torch.testing.assert_close(after, 0.5 * before)
    torch.testing.assert_close(scaled[8:], torch.tensor([4.5, 5.0]))
    assert torch.equal(_scaled(adapter, base, layout, 0.0), base)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", -1),
        ("lr", 0),
        ("doubt", -1),
        ("share", 1.5),
        ("keep", 0),
        ("scales", []),
        ("scales", [-1]),
        ("anchor", -1),
    ],
)
def test_meaningless_settings_are_refused(key, value):
    with pytest.raises(FedfusionError, match=f"realign.{key}"):
        FewShot(**{key: value})
