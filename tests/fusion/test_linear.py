from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft.utils import merge_utils

from fedfusion.config import build, resolve
from fedfusion.fusion import TaskArithmetic
from fedfusion.types import Evidence, FedfusionError, Layout

NOTHING = Evidence(torch.Generator())
LAYOUT = Layout(("default.0.query", "1.query", "1.value"), ((1, 2), (3,), (2, 1)))


@given(st.floats(0.0, 2.0), st.integers(1, 9))
def test_it_is_the_scaled_sum(coefficient, tasks):
    vectors = torch.randn(tasks, 4, generator=torch.Generator().manual_seed(tasks))
    fused = TaskArithmetic(coefficient)(vectors, Layout(("w",), ((4,),)), NOTHING)
    torch.testing.assert_close(fused, coefficient * vectors.sum(0))


def test_null_is_the_average(rng):
    vectors = torch.randn(4, 7, generator=rng)
    torch.testing.assert_close(TaskArithmetic(None)(vectors, LAYOUT, NOTHING), vectors.mean(0))


def test_a_coefficient_for_each_task_is_what_peft_does(rng):
    vectors, coefficients = torch.randn(3, 7, generator=rng), [0.5, 0.0, 2.0]
    expected = merge_utils.task_arithmetic(list(vectors), torch.tensor(coefficients))
    torch.testing.assert_close(TaskArithmetic(coefficients)(vectors, LAYOUT, NOTHING), expected)


def test_a_coefficient_for_each_module(rng):
    vectors = torch.randn(2, 7, generator=rng)
    fused = TaskArithmetic({"default": 0.5, "1.query": 2.0, "query": 3.0})(vectors, LAYOUT, NOTHING)
    expected = torch.tensor([3.0, 3, 2, 2, 2, 0.5, 0.5]) * vectors.sum(0)
    torch.testing.assert_close(fused, expected)


def test_modules_without_a_coefficient_are_refused():
    with pytest.raises(FedfusionError, match="fusion.coefficient={'query': 1.0} needs a 'default'"):
        TaskArithmetic({"query": 1.0})


def test_tasks_that_were_not_heard_keep_their_coefficients():
    fused = TaskArithmetic([1.0, 2.0, 3.0])(torch.ones(2, 7), LAYOUT, replace(NOTHING, tasks=(0, 2)))
    torch.testing.assert_close(fused, torch.full((7,), 4.0))


@pytest.mark.parametrize("coefficients", [[0.5], [0.5, 0.5, 0.5]])
def test_tasks_without_a_coefficient_are_counted(coefficients):
    with pytest.raises(FedfusionError, match=f"each of the 2 tasks, got {len(coefficients)}"):
        TaskArithmetic(coefficients)(torch.zeros(2, 7), LAYOUT, NOTHING)


@pytest.mark.parametrize("coefficient", [-0.1, float("nan"), float("inf"), [0.5, -0.1], {"default": -0.1}])
def test_a_coefficient_that_is_none_is_refused(coefficient):
    with pytest.raises(FedfusionError, match="fusion.coefficient must be finite and at least 0"):
        TaskArithmetic(coefficient)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("fusion.coefficient=[0,1,2,3,4,5,6,7]", list(range(8))),
        ("fusion.coefficient={query:0.1,default:2}", {"query": 0.1, "default": 2}),
        ("fusion.coefficient=1", 1),
        ("fusion=average", None),
    ],
)
def test_all_kinds_of_coefficients_can_be_configured(override, expected):
    assert build(resolve(["experiment=quickstart", "fusion=task_arithmetic", override])).fusion == TaskArithmetic(
        expected
    )
