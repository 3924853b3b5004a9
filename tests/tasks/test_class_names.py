from dataclasses import replace

import pytest
import torch
from flwr_datasets.partitioner import IidPartitioner
from tiny import clip, vit
from transformers import AutoTokenizer, CLIPModel, CLIPVisionModelWithProjection

from fedfusion.lora.model import LoraModel
from fedfusion.tasks.class_names import ClassNames
from fedfusion.tasks.digits import NAMES, Digits8
from fedfusion.tasks.heads import PrototypeHead
from fedfusion.types import FedfusionError

WORDS = sorted({word for names in NAMES.values() for name in names for word in name.split()})
DIGITS = Digits8(IidPartitioner, tasks=("upright-digit", "flipped-size"))


def test_class_names_give_the_zero_shot_logits_of_clip(tmp_path):
    model, root = LoraModel(clip(tmp_path, WORDS), seed=0), DIGITS.root("upright-digit", 0)
    head = ClassNames()(model, DIGITS, "upright-digit", root)
    owner = torch.zeros(len(root), dtype=torch.long)
    with torch.no_grad():
        found = head(model.features(model.initial[None], root, owner)[0])
        prompts = [f"a photo of a {name}." for name in NAMES["upright-digit"]]
        texts = AutoTokenizer.from_pretrained(tmp_path)(prompts, padding=True, return_tensors="pt")
        texts.pop("token_type_ids", None)
        expected = CLIPModel.from_pretrained(tmp_path)(**texts, **root.inputs).logits_per_image
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert expected.std(1).min() > 1e-3
    again = PrototypeHead.from_tensor(head.to_tensor())
    assert torch.equal(again(model.initial[None, :12]), head(model.initial[None, :12]))


def test_names_may_be_given_and_lose_their_underscores(tmp_path):
    model, root = LoraModel(clip(tmp_path, WORDS), seed=0), DIGITS.root("flipped-size", 0)
    ours = ClassNames(names={"flipped-size": ["digit_below_five", "digit_of_five_or_more"]})
    torch.testing.assert_close(
        ours(model, DIGITS, "flipped-size", root).weight, ClassNames()(model, DIGITS, "flipped-size", root).weight
    )


class Numbered(Digits8):
    def class_names(self, task):
        return ("0", "1")


def test_class_names_are_refused_where_they_make_no_sense(tmp_path):
    spec = clip(tmp_path / "clip", WORDS)
    ClassNames().check(spec, Digits8(IidPartitioner))
    for other, got in ((vit(tmp_path / "vit"), "AutoModel and first"), (replace(spec, pooling="mean"), "and mean")):
        with pytest.raises(FedfusionError, match=f"model.auto=CLIP.* and model.pooling=pooler, got .*{got}"):
            ClassNames().check(other, DIGITS)
    CLIPVisionModelWithProjection.from_pretrained(spec.path).save_pretrained(tmp_path / "vision")
    with pytest.raises(FedfusionError, match="is a clip_vision_model, without the text tower"):
        ClassNames().check(replace(spec, path=str(tmp_path / "vision")), DIGITS)
    with pytest.raises(FedfusionError, match=r"task 'upright-digit' has 10 classes and 2 names \(name them, \+head"):
        ClassNames(names={"upright-digit": ["a", "b"]}).check(spec, DIGITS)
    with pytest.raises(FedfusionError, match="the classes of task 'flipped-size' are only numbered, 0, 1"):
        ClassNames().check(spec, Numbered(IidPartitioner, tasks=("flipped-size",)))
    with pytest.raises(FedfusionError, match="head.template='a photo' must have {} in it once"):
        ClassNames("a photo")
