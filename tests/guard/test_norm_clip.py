import math

import pytest
import torch

from fedfusion.guard import NormClip
from fedfusion.types import FedfusionError


def change_norms(updates):
    """Norms of the product changes, by dense algebra."""
    norms = []
    for start, vector in zip(updates.start.double(), updates.vectors.double(), strict=True):
        total = 0.0
        for p in updates.layout.pairs:
            entry = updates.layout.entry
            after = entry(start + vector, p.b) @ entry(start + vector, p.a)
            total += (p.scale * (after - entry(start, p.b) @ entry(start, p.a))).square().sum()
        norms.append(total.sqrt())
    return torch.stack(norms)


def test_long_uploads_are_cut_to_the_median_of_the_product_norm(updates):
    before = change_norms(updates)
    clipped, report = NormClip()(updates)
    median = before.median()
    torch.testing.assert_close(change_norms(clipped), before.clamp_max(median), rtol=1e-5, atol=1e-7)
    assert report.clipped == tuple(i for i in range(6) if before[i] > median) and not report.refused


def test_an_infinite_clip_changes_nothing(updates):
    clipped, report = NormClip(clip=math.inf, refuse=math.inf)(updates)
    assert torch.equal(clipped.vectors, updates.vectors) and report.clipped == ()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_what_cannot_be_an_upload_is_refused_and_named(updates, value):
    vectors = updates.vectors.clone()
    vectors[2, 5] = value
    if value == 1e30:
        vectors[2] = value
    believed, report = NormClip()(updates.with_vectors(vectors))
    assert believed.clients == (0, 1, 3, 4, 5)
    assert list(report.refused) == [2]
    assert ("norm" if value == 1e30 else "not finite") in report.refused[2]


@pytest.mark.parametrize("value", [float("nan"), 1e30])
def test_nothing_believable_is_no_error(updates, value):
    believed, report = NormClip()(updates.with_vectors(torch.full_like(updates.vectors, value)))
    assert len(believed) == 0 and sorted(report.refused) == list(range(6))


def test_silent_clients_do_not_silence_the_others(updates):
    vectors = updates.vectors.clone()
    vectors[:4] = 0
    believed, report = NormClip()(updates.with_vectors(vectors))
    assert len(believed) == 6 and not report.refused and believed.vectors[5].any()


def test_one_honest_upload_among_two_sets_the_median(updates):
    vectors = torch.stack([updates.vectors[0], 1e4 * updates.vectors[1]])
    believed, report = NormClip()(updates.keep([0, 1]).with_vectors(vectors))
    assert believed.clients == (0,) and list(report.refused) == [1]


def test_meaningless_settings_are_refused():
    with pytest.raises(FedfusionError, match="guard.clip"):
        NormClip(clip=10.0, refuse=1.0)
