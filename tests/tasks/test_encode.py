import io

import pytest
import torch
from datasets import Dataset
from files import WORDS, save_tokenizer
from PIL import Image as Picture
from transformers import ViTImageProcessorPil

from fedfusion.tasks.encode import Image, Instruct, Text
from fedfusion.types import FedfusionError


@pytest.fixture
def tokenizer(tmp_path):
    return save_tokenizer(tmp_path, pad_token="<pad>", eos_token="<eos>")


def words(ids):
    return " ".join(WORDS[i] for i in ids)


def test_text_is_padded_on_the_right_to_the_longest_and_cut_at_max_length(tokenizer, caplog):
    rows = Dataset.from_dict({"text": ["a b", "c d e f g h", "a"], "label": [1, 0, 1]})
    samples = Text(tokenizer, 5)(rows)
    assert sorted(samples.inputs) == ["attention_mask", "input_ids"]
    assert [words(row) for row in samples.inputs["input_ids"]] == [
        "a b <pad> <pad> <pad>", "c d e f g", "a <pad> <pad> <pad> <pad>"
    ]  # fmt: skip
    assert samples.lengths.tolist() == [2, 5, 1] and samples.labels.tolist() == [1, 0, 1]
    assert "1 of 3 rows are longer than max_length=5" in caplog.text


def test_instructions_are_labelled_only_in_the_response_which_ends(tokenizer):
    rows = Dataset.from_list(
        [
            {"instruction": "add", "input": "1 2", "output": "3"},
            {"instruction": "add", "input": "1", "output": "1 2"},
        ]
    )
    samples = Instruct(tokenizer, "{instruction}: {input} =", 16)(rows)
    ids, labels = samples.inputs["input_ids"], samples.labels
    assert [words(row) for row in ids] == ["add: 1 2 = 3 <eos>", "add: 1 = 1 2 <eos>"]
    assert labels.shape == ids.shape and ((labels == ids) | (labels == -100)).all()
    assert [words(row[row >= 0]) for row in labels] == ["3 <eos>", "1 2 <eos>"]
    shorter = Instruct(tokenizer, "{instruction}: {input} =", 16)(rows.select([1, 1]).add_column("x", [0, 1]))
    assert shorter.lengths.tolist() == [6, 6]


def test_padding_with_eos_is_masked_and_not_labelled(tmp_path):
    path = save_tokenizer(tmp_path, eos_token="<eos>")
    rows = Dataset.from_list([{"instruction": "a", "input": "b c d" * i, "output": "e"} for i in (0, 1)])
    samples = Instruct(path, "{instruction} {input} =", 16, pad_with_eos=True)(rows)
    assert [words(row) for row in samples.inputs["input_ids"]] == ["a = e <eos> <eos> <eos> <eos>", "a b c d = e <eos>"]
    assert samples.lengths.tolist() == [4, 7]
    assert [words(row[row >= 0]) for row in samples.labels] == ["e <eos>", "e <eos>"]


def test_a_tokenizer_that_begins_with_bos_does_so_once(tmp_path):
    path = save_tokenizer(tmp_path, bos=True, pad_token="<pad>", eos_token="<eos>")
    rows = Dataset.from_list([{"instruction": "a", "input": "b", "output": "c"}])
    (ids,) = Instruct(path, "{instruction} {input} =", 16)(rows).inputs["input_ids"]
    assert words(ids) == "<bos> a b = c <eos>"


@pytest.mark.parametrize("output, kept", [("e f", "a b c = e f <eos>"), ("a b c d e f g", "= a b c d e f")])
def test_what_is_too_long_loses_the_middle_of_its_prompt(tokenizer, caplog, output, kept):
    rows = Dataset.from_list([{"instruction": "a b", "input": "h h h c", "output": output}])
    (ids,) = Instruct(tokenizer, "{instruction} {input} =", 7)(rows).inputs["input_ids"]
    assert words(ids) == kept and "1 of 1 rows are longer than max_length=7" in caplog.text


def test_the_alpaca_prompt_has_an_input_only_where_there_is_one():
    encoder = Instruct("gpt2")
    with_input, response = encoder.text({"instruction": "add", "input": "1 2", "output": "3"})
    without, _ = encoder.text({"instruction": "sing", "input": "", "output": "la"})
    assert with_input.endswith("### Instruction:\nadd\n\n### Input:\n1 2\n\n### Response:\n") and response == "3"
    assert without.endswith("request.\n\n### Instruction:\nsing\n\n### Response:\n") and "Input" not in without


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def test_images_of_any_size_and_mode_become_normalised_rgb(tmp_path):
    ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(
        tmp_path
    )
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    Picture.new("RGB", (5, 9), (255, 0, 0)).save(tmp_path / "red.png")
    images = [png(Picture.new("L", (4, 4), 255)), png(Picture.new("RGBA", (20, 6), (0, 0, 0, 255)))]
    samples = Image(str(tmp_path))(Dataset.from_dict({"image": images * 200, "label": [0, 1] * 200}))
    pixels = samples.inputs["pixel_values"]
    assert pixels.shape == (400, 3, 8, 8) and pixels.dtype == torch.float32
    assert (pixels[::2] == 1).all() and (pixels[1::2] == -1).all() and samples.labels.tolist() == [0, 1] * 200
    stored = [{"bytes": None, "path": str(tmp_path / "red.png")}]
    (red,) = Image(str(tmp_path))(Dataset.from_dict({"image": stored, "label": [0]})).inputs["pixel_values"]
    assert red[:, 0, 0].tolist() == [1, -1, -1]


def test_images_that_cannot_be_read_are_found():
    whole = png(Picture.effect_noise((16, 16), 9))
    rows = Dataset.from_dict({"image": [whole, b"no image", whole[:120], None], "label": [0] * 4})
    problems = dict(Image("vit").problems(rows))
    assert sorted(problems) == [1, 2, 3] and problems[1] == "image is not in a format that Pillow reads"
    assert problems[2].startswith("image cannot be read (") and "nothing in it" in problems[3]
    stored = Dataset.from_dict({"image": [{"bytes": None, "path": "/no/such.png"}], "label": [0]})
    assert "image /no/such.png cannot be read" in dict(Image("vit").problems(stored))[0]


def test_rows_without_text_are_found():
    rows = Dataset.from_dict({"text": ["a", " ", None], "label": [0, 1, 0]})
    assert list(Text("bert").problems(rows)) == [(1, "text is empty"), (2, "text is empty")]
    rows = Dataset.from_dict({"instruction": ["a", ""], "input": ["", ""], "output": ["", "b"]})
    assert list(Instruct("gpt2").problems(rows)) == [(1, "instruction is empty"), (0, "output is empty")]


def test_a_tokenizer_without_pad_token_is_refused(tmp_path):
    path = save_tokenizer(tmp_path, eos_token="<eos>")
    with pytest.raises(FedfusionError, match="has no pad token, texts of different length cannot"):
        Text(path, 8).check()
    with pytest.raises(FedfusionError, match=r"has no pad token \(set pad_with_eos: true"):
        Instruct(path, max_length=8).check()
    Instruct(path, max_length=8, pad_with_eos=True).check()


def test_a_tokenizer_without_eos_token_is_refused_for_instructions(tmp_path):
    with pytest.raises(FedfusionError, match="has no eos token, so that no response would ever end"):
        Instruct(save_tokenizer(tmp_path, pad_token="<pad>"), max_length=8).check()


def test_a_length_beyond_the_model_is_refused(tokenizer):
    with pytest.raises(FedfusionError, match="max_length=64, but the tokenizer of .* at most 32 tokens"):
        Text(tokenizer, 64).check()


def test_a_model_without_tokenizer_or_image_processor_is_refused():
    with pytest.raises(FedfusionError, match="'vit-glyphs' has no tokenizer .*model=minilm for text"):
        Text("vit-glyphs").check()
    with pytest.raises(FedfusionError, match="'vit-glyphs' has no image processor"):
        Image("vit-glyphs").check()


@pytest.mark.parametrize("settings", [{"prompt": "{question}"}, {"prompt": "{"}, {"prompt": "same"}, {"max_length": 3}])
def test_meaningless_settings_are_refused(settings):
    with pytest.raises(FedfusionError, match="suite: (prompt|max_length)"):
        Instruct("gpt2", **settings)


def test_a_response_is_decoded_up_to_its_end(tokenizer):
    instruct = Instruct(tokenizer, "{instruction}: {input} =", 16)
    rows = Dataset.from_list([{"instruction": "add", "input": "1 2", "output": "3 a"}])
    labels = instruct(rows).labels[0]
    response = labels[labels != -100].tolist()
    assert words(response) == "3 a <eos>" and instruct.decode([*response, *response]) == "3 a"
