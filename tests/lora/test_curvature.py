"""Against one sample at a time, without padding, with a displacement of each layer's output to differentiate by."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import ARCHITECTURES, gpt2, samples

from fedfusion.lora.curvature import curvature
from fedfusion.lora.model import LoraModel
from fedfusion.rng import generator
from fedfusion.types import FedfusionError, Samples


def even(features):
    """Two classes, each with probability one half, so that the sign of the gradient is all that the label changes."""
    direction = torch.linspace(-1, 2, features.shape[1])
    slope = (features - features.detach()) @ direction
    return torch.stack([slope, -slope], 1)


def one_token(data):
    """Responses of their first token only."""
    first = (data.labels != -100).int().argmax(1)
    labels = torch.full_like(data.labels, -100)
    labels[torch.arange(len(data)), first] = data.labels[torch.arange(len(data)), first]
    return replace(data, labels=labels)


def problem(kind, folder, rng, n=7, **model):
    lora = LoraModel(ARCHITECTURES[kind](folder, **model), seed=0)
    data = samples(kind, n, rng)
    adapter = lora.initial + 0.1 * torch.randn(lora.layout.dim, generator=rng)
    return lora, adapter, one_token(data) if data.labels.dim() == 2 else data


def singly(model, adapter, data, loss):
    """Inputs `[tokens, n]` and, per sample, gradients `[tokens, m]` of `loss(hidden, sample)` by module, with peft."""
    base = model.module.get_base_model()
    backbone = base.base_model if model.model.auto == "AutoModelForCausalLM" else base
    model._adopt(adapter)
    found = {pair.module: ([], []) for pair in model.layout.pairs}
    for row in range(len(data)):
        sample = data.take(torch.tensor([row]))
        if sample.lengths is not None:
            sample = sample.pad(int(sample.lengths))
        moved, hooks = {}, []

        def displace(layer, given, made, moved=moved):
            moved[layer] = given[0][0].detach(), torch.zeros_like(made, requires_grad=True)
            return made + moved[layer][1]

        for module in found:
            hooks.append(model.module.get_submodule(module).register_forward_hook(displace))
        hidden = backbone(**sample.inputs).last_hidden_state[0]
        for hook in hooks:
            hook.remove()
        slopes = torch.autograd.grad(loss(hidden, sample), [delta for _, delta in moved.values()])
        for module, (x, _), slope in zip(found, moved.values(), slopes, strict=True):
            found[module][0].append(x)
            found[module][1].append(slope[0])
    return found


def feature(hidden, sample):
    """The first token, or the one before the labelled one."""
    if sample.labels.dim() == 1:
        return hidden[:1]
    return hidden[torch.nonzero(sample.labels[0, 1:] != -100)[:, 0]]


@pytest.mark.parametrize("max_tokens", [4096, 9])
@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_moments_are_those_of_one_sample_at_a_time(kind, max_tokens, tmp_path, rng):
    model, adapter, data = problem(kind, tmp_path, rng)
    found = curvature(model, adapter, data, even, rows=99, rng=rng, max_tokens=max_tokens)
    each = singly(model, adapter, data, lambda h, s: F.cross_entropy(even(feature(h, s)), torch.tensor([0])))
    assert list(found) == [pair.module for pair in model.layout.pairs]
    for pair in model.layout.pairs:
        inputs, gradients = each[pair.module]
        x = torch.cat(inputs).double()
        expected = x.T @ x / len(x), sum(g.T.double() @ g.double() for g in gradients) / len(data)
        assert (
            expected[0].shape[0] == model.layout.shapes[pair.a][1]
            and len(expected[1]) == model.layout.shapes[pair.b][0]
        )
        for ours, theirs in zip(found[pair.module], expected, strict=True):
            assert ours.dtype == torch.float32 and torch.equal(ours, ours.T) and theirs.any()
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_labels_are_drawn_as_the_fisher_information_has_it(tmp_path, rng):
    """The mean over draws for one image is the sum over classes, weighted by their probabilities."""
    model, adapter, data = problem("vit", tmp_path, rng, n=1)
    weight = torch.randn(16, 3, generator=rng)

    def head(features):
        return features @ weight / 4 + torch.tensor([0.0, 0.7, 1.4])

    many = data.take(torch.zeros(4000, dtype=torch.long))
    found = curvature(model, adapter, many, head, rows=4000, rng=rng)
    with torch.no_grad():
        p = head(model.features(adapter[None], data, torch.zeros(1, dtype=torch.long))[0])[0].softmax(-1)
    assert 0.05 < float(p.min()) and float(p.max() - p.min()) > 0.1
    parts = []
    for label in range(3):
        each = singly(model, adapter, data, lambda h, s, y=label: F.cross_entropy(head(h[:1]), torch.tensor([y])))
        parts.append({module: p[label] * g[0].T @ g[0] for module, (_, g) in each.items()})
    for module, (_, gradients) in found.items():
        expected = sum(part[module] for part in parts)
        assert (gradients - expected).norm() < 0.06 * expected.norm()
        assert (gradients - parts[0][module] / p[0]).norm() > 0.2 * expected.norm()


def test_every_token_of_a_response_is_a_prediction(tmp_path, rng):
    """Tokens are drawn independently, so that moments add up over them; the mean is over tokens, not over samples."""
    model = LoraModel(gpt2(tmp_path), seed=0)
    adapter = model.initial + 0.1 * torch.randn(model.layout.dim, generator=rng)
    data = samples("gpt2", 1, rng)
    many = data.take(torch.zeros(2000, dtype=torch.long))
    found = curvature(model, adapter, many, even, rows=2000, rng=rng)
    both = []
    for position in torch.nonzero(data.labels[0] != -100)[:, 0].tolist():
        labels = torch.full_like(data.labels, -100)
        labels[0, position] = data.labels[0, position]
        both.append(curvature(model, adapter, replace(data, labels=labels), even, rows=1, rng=rng))
    assert len(both) == 2
    for module, (inputs, gradients) in found.items():
        expected = (both[0][module][1] + both[1][module][1]) / 2
        assert (gradients - expected).norm() < 0.06 * expected.norm()
        torch.testing.assert_close(inputs, both[0][module][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_both_engines_and_any_padding_give_the_same(kind, tmp_path, rng):
    model, adapter, data = problem(kind, tmp_path, rng, lora={"lora_dropout": 0.3})
    other = LoraModel(model.model, seed=0, engine="peft")
    wide = data if data.lengths is None else data.pad(20)
    one, two = (
        curvature(m, adapter, d, even, rows=5, rng=generator(0, "curvature")) for m, d in ((model, data), (other, wide))
    )
    for module in one:
        for ours, theirs in zip(one[module], two[module], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_rows_and_labels_are_drawn_by_the_generator_given_alone(tmp_path, rng):
    model, adapter, data = problem("bert", tmp_path, rng, n=12)
    head = lambda features: features[:, :3]  # noqa: E731
    drawn = lambda seed, rows=5, d=data: curvature(model, adapter, d, head, rows=rows, rng=generator(seed))  # noqa: E731
    module = model.layout.pairs[0].module
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = drawn(0)
    assert torch.equal(torch.rand(1), expected)
    other_labels = Samples(data.inputs, (data.labels + 1) % 3)
    for again in (drawn(0), drawn(0, d=other_labels)):
        assert all(torch.equal(a, b) for a, b in zip(first[module], again[module], strict=True))
    assert not torch.equal(first[module][0], drawn(1)[module][0])
    assert torch.allclose(drawn(0, 12)[module][0], drawn(1, 99)[module][0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(drawn(0, 11)[module][0], drawn(0, 12)[module][0], rtol=1e-4, atol=1e-5)


def test_nothing_is_left_behind(tmp_path, rng):
    model, adapter, data = problem("vit", tmp_path, rng)
    kept, cohort = adapter.clone(), model.cohort
    curvature(model, adapter, data, even, rows=3, rng=rng)
    assert torch.equal(adapter, kept) and not adapter.requires_grad and model.cohort is cohort is not None
    assert not any(model.module.get_submodule(pair.module)._forward_hooks for pair in model.layout.pairs)
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_virtual_tokens_are_refused(tmp_path, rng):
    model = LoraModel(gpt2(tmp_path, num_virtual_tokens=2), seed=0)
    with pytest.raises(FedfusionError, match="client.statistics=curvature needs LoRA factors"):
        curvature(model, model.initial, samples("gpt2", 2, rng), even, rows=2, rng=rng)
