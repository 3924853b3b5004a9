import torch

from fedfusion.tasks.heads import PrototypeHead


def test_well_separated_classes_are_told_apart(rng):
    centres = 5 * torch.randn(3, 8, generator=rng)
    labels = torch.arange(60) % 3
    features = centres[labels] + 0.1 * torch.randn(60, 8, generator=rng)
    head = PrototypeHead.fit(features[:30], labels[:30], 3)
    assert (head(features[30:]).argmax(-1) == labels[30:]).all()


def test_a_common_offset_of_all_features_changes_nothing(rng):
    features, labels = torch.randn(20, 8, generator=rng), torch.arange(20) % 4
    near, far = (PrototypeHead.fit(features + offset, labels, 4)(features + offset) for offset in (0.0, 100.0))
    torch.testing.assert_close(near, far, rtol=1e-3, atol=1e-3)


def test_a_head_travels_as_one_tensor(rng):
    head = PrototypeHead.fit(torch.randn(6, 8, generator=rng), torch.arange(6) % 2, 2)
    assert head.to_tensor().shape == (3, 8)
    again = PrototypeHead.from_tensor(head.to_tensor())
    assert torch.equal(again.weight, head.weight) and torch.equal(again.centre, head.centre)
