import pytest
import torch

from fedfusion.fusion import MetaGpt
from fedfusion.types import Evidence, FedfusionError, Layout

LAYOUT = Layout(("w",), ((5,),))


def fuse(rule, vectors):
    return rule(vectors, LAYOUT, Evidence(torch.Generator()))


def test_weights_are_the_squared_norms(rng):
    vectors = torch.tensor([[1.0], [2.0], [4.0]]) * torch.randn(3, 5, generator=rng)
    square = vectors.square().sum(1)
    torch.testing.assert_close(fuse(MetaGpt(clip=None), vectors), (square / square.sum()) @ vectors)


def test_norms_are_clipped_at_the_median_and_vectors_with_them(rng):
    directions = torch.nn.functional.normalize(torch.randn(5, 5, generator=rng))
    norms = torch.tensor([1.0, 2.0, 3.0, 5.0, 100.0])
    fused = fuse(MetaGpt(clip=1.5), norms[:, None] * directions)
    clipped = torch.tensor([1.0, 2.0, 3.0, 4.5, 4.5])
    weights = clipped.square() / clipped.square().sum()
    torch.testing.assert_close(fused, (weights * clipped) @ directions)


def test_a_client_with_a_huge_norm_moves_no_more_than_one_with_the_median(rng):
    vectors = torch.randn(5, 5, generator=rng)
    grown, huge = vectors.clone(), vectors.clone()
    grown[0] *= 10
    huge[0] *= 1e15
    torch.testing.assert_close(fuse(MetaGpt(), huge), fuse(MetaGpt(), grown))


def test_task_vectors_of_one_norm_are_averaged(rng):
    vectors = torch.nn.functional.normalize(torch.randn(4, 5, generator=rng))
    for clip in (None, 1.0):
        torch.testing.assert_close(fuse(MetaGpt(clip), vectors), vectors.mean(0))


def test_one_task_is_itself_and_no_task_vector_nothing(rng):
    vector = torch.randn(1, 5, generator=rng)
    torch.testing.assert_close(fuse(MetaGpt(), vector), vector[0])
    assert torch.equal(fuse(MetaGpt(), torch.zeros(3, 5)), torch.zeros(5))
    assert torch.equal(fuse(MetaGpt(clip=None), torch.zeros(3, 5)), torch.zeros(5))


def test_the_longer_of_two_is_scaled_down_to_the_shorter(rng):
    vectors = torch.nn.functional.normalize(torch.randn(2, 5, generator=rng))
    torch.testing.assert_close(fuse(MetaGpt(), vectors * torch.tensor([[1.0], [9.0]])), vectors.mean(0))


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan")])
def test_a_clip_that_leaves_nothing_is_refused(clip):
    with pytest.raises(FedfusionError, match="fusion.clip must be positive or null"):
        MetaGpt(clip)
