"""The cohort engine against the loop that everybody writes: peft, one client after another."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from flwr_datasets.partitioner import IidPartitioner
from peft import LoraConfig, get_peft_model
from tiny import ARCHITECTURES, bert, gpt2, samples, vit
from transformers import AutoModel, AutoModelForCausalLM

from fedfusion.client.train import Job, LocalTraining, evaluate
from fedfusion.lora.curvature import curvature
from fedfusion.lora.model import LoraModel, Model
from fedfusion.lora.product import restrict
from fedfusion.regularizers import Proximal
from fedfusion.rng import generator
from fedfusion.tasks.digits import Digits8
from fedfusion.tasks.heads import LanguageHead, PrototypeHead
from fedfusion.types import FedfusionError

NAMES = {"seed": 0, "server_round": 1}


def jobs_for(kind, model, rng, sizes):
    """Clients with their own start, data and head; `sizes` are their numbers of samples."""
    head = (
        LanguageHead(model.output)
        if kind == "gpt2"
        else PrototypeHead.fit(torch.randn(3, 16, generator=rng), torch.arange(3), 3)
    )
    start = model.initial.repeat(len(sizes), 1) + 0.05 * torch.randn(len(sizes), model.layout.dim, generator=rng)
    return [Job(k, start[k], samples(kind, n, rng), head) for k, n in enumerate(sizes)]


def sequential(spec, job, rank, steps, *, batch_size, lr, max_grad_norm):
    """One client by peft, torch and nothing of ours but the order of its data."""
    auto = AutoModelForCausalLM if spec.auto == "AutoModelForCausalLM" else AutoModel
    base = auto.from_pretrained(spec.path, **spec.load).requires_grad_(False)
    full = dict(spec.lora)
    module = get_peft_model(base, LoraConfig(**full | {"r": rank, "lora_alpha": full["lora_alpha"] * rank / full["r"]}))
    module.eval()
    params = dict(module.named_parameters())
    offset, views = 0, {}
    for name, p in [(n, p) for n, p in params.items() if p.requires_grad]:
        shape = [full["r"] if size == rank else size for size in p.shape]
        whole = job.start[offset : offset + torch.Size(shape).numel()].reshape(shape)
        offset += whole.numel()
        p.data.copy_(whole[: p.shape[0], : p.shape[1]])
        views[name] = (p, whole.shape)
    optimizer = torch.optim.AdamW([p for p, _ in views.values()], lr=lr, weight_decay=0.0)
    shuffle, order, losses = generator(0, "shuffle", 1, job.client), torch.empty(0, dtype=torch.long), []
    for step in range(steps):
        while len(order) < min(batch_size, len(job.data)):
            order = torch.cat([order, torch.randperm(len(job.data), generator=shuffle)])
        batch, order = job.data.take(order[:batch_size]), order[batch_size:]
        if spec.auto == "AutoModelForCausalLM":
            logits = module(**batch.inputs).logits[:, :-1]
            loss = F.cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=-100)
        else:
            loss = F.cross_entropy(job.head(module(**batch.inputs).last_hidden_state[:, 0]), batch.labels)
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p, _ in views.values()], max_grad_norm)
        optimizer.step()
        losses.append(float(loss.detach()))
    padded = [F.pad(p.detach(), (0, s[1] - p.shape[1], 0, s[0] - p.shape[0])).flatten() for p, s in views.values()]
    return torch.cat(padded), sum(losses) / len(losses)


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_a_cohort_is_its_clients_trained_alone_by_peft(kind, tmp_path, rng):
    """Five AdamW steps; mixed lengths, ranks, numbers of samples and of steps."""
    spec = ARCHITECTURES[kind](tmp_path)
    model = LoraModel(spec, seed=0)
    ranks = [4, 2, 4, 3]
    jobs = jobs_for(kind, model, rng, [20, 3, 12, 20])
    starts = restrict(model.layout, torch.stack([job.start for job in jobs]), torch.tensor(ranks))
    jobs = [replace(job, start=start) for job, start in zip(jobs, starts, strict=True)]
    # the longest take 5 steps
    plan = LocalTraining(epochs=1, batch_size=4, lr=1e-3, max_grad_norm=0.5, max_tokens=40)
    trained = plan(model, jobs, **NAMES)
    for job, rank, steps, result in zip(jobs, ranks, [5, 1, 3, 5], trained, strict=True):
        expected, loss = sequential(spec, job, rank, steps, batch_size=4, lr=1e-3, max_grad_norm=0.5)
        assert abs(result.loss - loss) < 1e-5
        assert (job.start + result.update - expected).abs().max() < 1e-4


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_both_engines_compute_the_same_with_the_same_dropout(kind, dropout, tmp_path, rng):
    spec = ARCHITECTURES[kind](tmp_path, lora={"lora_dropout": dropout})
    cohort, peft = LoraModel(spec, seed=0), LoraModel(spec, seed=0, engine="peft")
    jobs = jobs_for(kind, cohort, rng, [8, 8, 5])
    plan = LocalTraining(steps=2, batch_size=4)
    for ours, theirs in zip(plan(cohort, jobs, **NAMES), plan(peft, jobs, **NAMES), strict=True):
        torch.testing.assert_close(ours.update, theirs.update, rtol=0, atol=1e-5)
        assert abs(ours.loss - theirs.loss) < 1e-5
    if dropout:
        dry = LoraModel(replace(spec, lora=dict(spec.lora) | {"lora_dropout": 0.0}), seed=0)
        assert (plan(dry, jobs, **NAMES)[0].update - plan(cohort, jobs, **NAMES)[0].update).abs().max() > 1e-5


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_who_else_is_in_the_cohort_changes_nothing_but_rounding(kind, tmp_path, rng):
    model = LoraModel(ARCHITECTURES[kind](tmp_path, lora={"lora_dropout": 0.2}), seed=0)
    jobs = jobs_for(kind, model, rng, [9, 4, 7])
    plan = LocalTraining(epochs=2, batch_size=3, regularizer=Proximal(0.1), sharpness_rho=0.05)
    together = plan(model, jobs, **NAMES)
    for job, result in zip(jobs, together, strict=True):
        (alone,) = plan(model, [job], **NAMES)
        torch.testing.assert_close(result.update, alone.update, rtol=0, atol=1e-5)
        assert abs(result.loss - alone.loss) < 1e-5


@pytest.fixture(scope="module")
def digits():
    suite = Digits8(IidPartitioner)
    lora = {"r": 4, "lora_alpha": 4, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
    model = LoraModel(Model("vit-glyphs", lora, {"add_pooling_layer": False}), seed=0)
    root = suite.root("flipped-size", 0)
    with torch.no_grad():
        features, labels, _ = model.features(model.initial[None], root, torch.zeros(len(root), dtype=torch.long))
    head = PrototypeHead.fit(features, labels, 2)
    return model, Job(4, model.initial, suite.train(4, 0), head), suite.validation("flipped-size")


def test_training_learns(digits):
    model, job, held_out = digits
    before = evaluate(model, job.start, held_out, job.head)["accuracy"]
    plan = LocalTraining(steps=40, lr=2e-3)
    (first,) = plan(model, [job], **NAMES)
    after = evaluate(model, job.start + first.update, held_out, job.head)["accuracy"]
    (second,) = plan(model, [replace(job, start=job.start + first.update)], **NAMES)
    assert after > before + 0.05 and second.loss < first.loss


def test_the_same_name_gives_the_same_bits_whatever_was_drawn_before(digits):
    model, job, _ = digits
    plan = LocalTraining(steps=3)
    (first,) = plan(model, [job], **NAMES)
    torch.rand(17)
    (second,) = plan(model, [job], **NAMES)
    assert torch.equal(first.update, second.update)
    for other in ({"server_round": 2}, {"seed": 1}):
        assert not torch.equal(first.update, plan(model, [job], **NAMES | other)[0].update)
    assert not torch.equal(first.update, plan(model, [replace(job, client=5)], **NAMES)[0].update)


def test_training_leaves_the_global_generator_alone(digits):
    model, job, _ = digits
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    LocalTraining(steps=1)(model, [job], **NAMES)
    assert torch.equal(torch.rand(1), expected)


def test_a_proximal_penalty_keeps_clients_where_they_started(digits):
    model, job, _ = digits
    free, held = (
        LocalTraining(steps=10, regularizer=Proximal(mu))(model, [job], **NAMES)[0].update for mu in (0.0, 10.0)
    )
    assert held.norm() < 0.9 * free.norm()


def test_a_trained_head_moves_and_a_frozen_one_does_not(digits):
    model, job, _ = digits
    (frozen,) = LocalTraining(steps=2)(model, [job], **NAMES)
    (trained,) = LocalTraining(steps=2, train_head=True)(model, [job], **NAMES)
    before = job.head.to_tensor()
    assert torch.equal(frozen.head.to_tensor(), before) and not torch.equal(trained.head.to_tensor(), before)
    assert not trained.head.parameters() and torch.equal(job.head.to_tensor(), before)


def test_ffa_trains_no_a(tmp_path, rng):
    model = LoraModel(bert(tmp_path, freeze_a=True), seed=0)
    (result,) = LocalTraining(steps=2)(model, jobs_for("bert", model, rng, [8]), **NAMES)
    for pair in model.layout.pairs:
        assert not model.layout.entry(result.update, pair.a).any() and model.layout.entry(result.update, pair.b).any()


def test_sharpness_aware_steps_take_the_gradient_uphill(tmp_path, rng):
    """One plain descent step would follow g(w); this one follows g(w + rho g / ||g||)."""
    model = LoraModel(vit(tmp_path), seed=0)
    (job,) = jobs_for("vit", model, rng, [4])

    def gradient(params):
        leaf = params.clone().requires_grad_()
        features, labels, _ = model.features(leaf[None], job.data, torch.zeros(4, dtype=torch.long))
        F.cross_entropy(job.head(features), labels).backward()
        return leaf.grad

    first = gradient(job.start)
    uphill = gradient(job.start + 0.5 * first / first.norm())
    (result,) = LocalTraining(steps=1, batch_size=4, lr=1e-3, sharpness_rho=0.5, max_grad_norm=1e9)(
        model, [job], **NAMES
    )
    clear = uphill.abs() > 1e-5  # the first step of Adam is the sign of the gradient
    assert torch.equal(result.update.sign()[clear], -uphill.sign()[clear])
    assert not torch.equal(first.sign(), uphill.sign())


def test_exact_match_is_what_greedy_decoding_gives(tmp_path, rng):
    model = LoraModel(gpt2(tmp_path), seed=0)
    base = AutoModelForCausalLM.from_pretrained(tmp_path)
    prompt = torch.randint(2, 40, (1, 5), generator=rng)
    greedy = base.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=3, do_sample=False)
    rows = greedy.repeat(2, 1)
    rows[1, -1] = (rows[1, -1] + 1) % 40
    labels = rows.clone()
    labels[:, :5] = -100
    data = replace(
        samples("gpt2", 2, rng), inputs={"input_ids": rows, "attention_mask": torch.ones_like(rows)}, labels=labels
    )
    assert evaluate(model, model.initial, data, LanguageHead(model.output))["accuracy"] == 0.5


@pytest.mark.parametrize(
    "settings",
    [{"steps": 0}, {"batch_size": 0}, {"lr": 0.0}, {"threads": 0}, {"epochs": 0.0}, {"sharpness_rho": -1.0}]
    + [{"ranks": []}, {"ranks": [0]}, {"cohort_size": 0}, {"statistics_rows": 0}],
)
def test_meaningless_settings_are_refused(settings):
    with pytest.raises(FedfusionError, match="client."):
        LocalTraining(**settings)


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_layers_below_the_first_adapter_run_once_with_the_same_result(kind, tmp_path, rng):
    upper = {"bert": "1.attention.self.query", "vit": "1.mlp.fc1", "gpt2": "1.attn.c_attn"}[kind]
    spec = ARCHITECTURES[kind](tmp_path, lora={"target_modules": [upper]})
    model, whole = LoraModel(spec, seed=0), LoraModel(spec, seed=0)
    assert model.cohort.depth == 1
    whole.cohort.depth = 0
    jobs = jobs_for(kind, model, rng, [6, 4])
    plan = LocalTraining(steps=4, batch_size=3)
    for cached, plain in zip(plan(model, jobs, **NAMES), plan(whole, jobs, **NAMES), strict=True):
        torch.testing.assert_close(cached.update, plain.update, rtol=0, atol=1e-6)


def test_a_prefix_is_used_only_where_samples_are_seen_again(tmp_path, rng, monkeypatch):
    model = LoraModel(bert(tmp_path, lora={"layers_to_transform": [1]}), seed=0)
    calls = []
    below = model.cohort.below
    monkeypatch.setattr(model.cohort, "below", lambda data: calls.append(len(data)) or below(data))
    jobs = jobs_for("bert", model, rng, [4, 20])
    LocalTraining(steps=3, batch_size=4)(model, jobs, **NAMES)
    assert calls == []
    LocalTraining(steps=4, batch_size=4)(model, jobs, **NAMES)
    assert calls == [4, 20]


def test_a_head_stops_when_its_client_has_finished(tmp_path, rng):
    model = LoraModel(bert(tmp_path), seed=0)
    jobs = jobs_for("bert", model, rng, [20, 4, 8])
    plan = LocalTraining(epochs=1, batch_size=4, lr=1e-2, train_head=True)
    for job, result in zip(jobs, plan(model, jobs, **NAMES), strict=True):
        (alone,) = plan(model, [job], **NAMES)
        torch.testing.assert_close(result.head.to_tensor(), alone.head.to_tensor(), rtol=0, atol=1e-5)


def test_statistics_are_taken_at_the_trained_adapter_and_head_by_each_clients_own_generator(tmp_path, rng):
    model = LoraModel(bert(tmp_path), seed=0)
    jobs = jobs_for("bert", model, rng, [9, 30])
    settings = {"epochs": 1, "batch_size": 4, "lr": 0.05, "train_head": True}
    plan = LocalTraining(statistics="curvature", statistics_rows=6, **settings)
    silent = LocalTraining(**settings)(model, jobs, **NAMES)
    for job, plain, result in zip(jobs, silent, plan(model, jobs, **NAMES), strict=True):
        assert torch.equal(result.update, plain.update) and plain.curvature == {}
        adapter, draws = job.start + result.update, {"rows": 6, "rng": generator(0, "curvature", 1, job.client)}
        expected = curvature(model, adapter, job.data, result.head, **draws)
        assert list(result.curvature) == list(expected)
        for module, moments in expected.items():
            assert all(torch.equal(a, b) for a, b in zip(result.curvature[module], moments, strict=True))
    elsewhere = curvature(model, jobs[0].start, jobs[0].data, jobs[0].head, rows=6, rng=generator(0, "curvature", 1, 0))
    module = model.layout.pairs[-1].module
    assert not torch.allclose(elsewhere[module][1], plan(model, jobs, **NAMES)[0].curvature[module][1], rtol=1e-2)
