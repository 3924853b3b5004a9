import pytest
import torch
from flwr_datasets.partitioner import IidPartitioner

from fedfusion.client.train import LocalTraining, evaluate
from fedfusion.lora.model import LoraModel, Model
from fedfusion.tasks.digits import Digits8
from fedfusion.tasks.heads import PrototypeHead
from fedfusion.types import FedfusionError

NAMES = {"seed": 0, "server_round": 1, "client": 4}


@pytest.fixture(scope="module")
def workplace():
    suite = Digits8(IidPartitioner)
    lora = {"r": 4, "lora_alpha": 4, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
    model = LoraModel(Model("vit-glyphs", lora, {"add_pooling_layer": False}), seed=0)
    start, root = model.read(), suite.root("flipped-size", 0)
    with torch.no_grad():
        head = PrototypeHead.fit(model.features(root.inputs), root.labels, 2)
    return model, start, suite.train(4, 0), head, suite.validation("flipped-size")


def test_training_learns(workplace):
    model, start, data, head, held_out = workplace
    before, _ = evaluate(model, start, held_out, head)
    update, loss = LocalTraining(steps=40, lr=2e-3)(model, start, data, head, **NAMES)
    after, _ = evaluate(model, start + update, held_out, head)
    _, later = LocalTraining(steps=40, lr=2e-3)(model, start + update, data, head, **NAMES)
    assert after > before + 0.05 and later < loss


def test_the_same_name_gives_the_same_bits_whatever_was_drawn_before(workplace):
    model, start, data, head, _ = workplace
    train = LocalTraining(steps=3)
    first, _ = train(model, start, data, head, **NAMES)
    torch.rand(17)
    second, _ = train(model, start, data, head, **NAMES)
    assert torch.equal(first, second)
    for other in ({"client": 5}, {"server_round": 2}, {"seed": 1}):
        assert not torch.equal(first, train(model, start, data, head, **NAMES | other)[0])


def test_training_leaves_the_global_generator_alone(workplace):
    model, start, data, head, _ = workplace
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    LocalTraining(steps=1)(model, start, data, head, **NAMES)
    assert torch.equal(torch.rand(1), expected)


def test_weight_decay_pulls_towards_what_was_broadcast(workplace):
    model, start, data, head, _ = workplace
    free, held = (
        LocalTraining(steps=10, weight_decay=decay)(model, start, data, head, **NAMES)[0] for decay in (0.0, 10.0)
    )
    assert held.norm() < free.norm()


def test_fewer_samples_than_a_batch_serve(workplace):
    model, start, data, head, _ = workplace
    update, loss = LocalTraining(steps=2, batch_size=64)(model, start, data.take(torch.arange(5)), head, **NAMES)
    assert torch.isfinite(update).all() and loss > 0


@pytest.mark.parametrize("settings", [{"steps": 0}, {"batch_size": 0}, {"lr": 0.0}, {"threads": 0}])
def test_meaningless_settings_are_refused(settings):
    with pytest.raises(FedfusionError, match="client."):
        LocalTraining(**settings)
