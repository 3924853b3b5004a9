import pytest
import torch

from fedfusion.lora.payload import Payload
from fedfusion.lora.product import distances, restrict


def trained(updates):
    return updates.start + updates.vectors


def test_factors_of_full_rank_are_the_upload_itself(layout, updates):
    payload = Payload("factors", layout)
    assert payload.pack(updates) is updates and payload.unpack(updates) is updates


def test_only_what_is_trained_of_b_is_sent_when_a_is_frozen(layout, updates):
    frozen = updates.with_vectors(updates.vectors.clone())
    for pair in layout.pairs:
        layout.entry(frozen.vectors, pair.a).zero_()
    payload = Payload("frozen_a", layout)
    sent = payload.pack(frozen)
    assert sent.vectors.shape == (6, 7 * 2 + 4 * 3) and sent.sizes == (26,) * 6
    assert torch.equal(payload.unpack(sent).vectors, frozen.vectors)


def test_a_client_sends_no_more_than_its_rank(layout, updates):
    ranks = (1, 3)
    own = updates.with_vectors(restrict(layout, updates.vectors, torch.tensor([ranks[c % 2] for c in updates.clients])))
    payload = Payload("factors", layout, ranks)
    sent = payload.pack(own)
    small, whole = (5 + 7) + (6 + 4), layout.dim
    assert sent.sizes == (small, whole) * 3 and not sent.vectors[0, small:].any()
    received = payload.unpack(sent)
    assert torch.equal(received.vectors, own.vectors) and received.sizes == ()
    erased = payload.unpack(sent.keep([1, 2, 5]))
    assert torch.equal(erased.vectors, own.vectors[[1, 2, 5]])


@pytest.mark.parametrize("ranks", [None, (1, 2)])
def test_the_product_comes_back_as_the_best_factors_of_the_clients_rank(layout, updates, ranks):
    if ranks:
        cut = torch.tensor([ranks[c % 2] for c in updates.clients])
        updates = updates.with_vectors(
            restrict(layout, updates.vectors, cut) - (updates.start - restrict(layout, updates.start, cut))
        )
    payload = Payload("product", layout, ranks)
    sent = payload.pack(updates)
    assert sent.vectors.shape == (6, 7 * 5 + 4 * 6) and payload.unpack(sent) is sent
    back = payload.uploads(sent, updates)
    assert torch.equal(back.start, updates.start) and back.layout == layout
    error = distances(layout, trained(back), trained(updates))
    assert (error < 1e-10 * distances(layout, trained(updates), torch.zeros_like(updates.vectors))).all()


def test_truncation_takes_noise_off_a_product(layout, updates, rng):
    payload = Payload("product", layout)
    sent = payload.pack(updates)
    noise = 0.3 * sent.vectors.norm() / sent.vectors.numel() ** 0.5 * torch.randn(sent.vectors.shape, generator=rng)
    back = payload.uploads(sent.with_vectors(sent.vectors + noise), updates)
    error = distances(layout, trained(back), trained(updates)).sum()
    assert error < 0.9 * noise.square().sum()


def test_nothing_received_is_nothing_unpacked(layout, updates):
    for kind in ("factors", "frozen_a", "product"):
        payload = Payload(kind, layout)
        assert len(payload.uploads(payload.unpack(payload.pack(updates).keep([])), updates)) == 0
