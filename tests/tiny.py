"""Picoscopic models with random weights, one of each architecture, saved as Hugging Face folders."""

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTModel,
)

from fedfusion.lora.model import Model
from fedfusion.types import Samples

VOCABULARY = 40
LOAD = {"add_pooling_layer": False}


def bert(folder, **model):
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(**sizes, intermediate_size=24), add_pooling_layer=False).save_pretrained(folder)
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]}
    return Model(str(folder), lora | model.pop("lora", {}), LOAD, **model)


def vit(folder, **model):
    torch.manual_seed(0)
    sizes = {"image_size": 8, "patch_size": 4, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    config = ViTConfig(**sizes, num_channels=1, num_attention_heads=2)
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "fc1", "fc2"]}
    return Model(str(folder), lora | model.pop("lora", {}), LOAD, **model)


def gpt2(folder, **model):
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, pad_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(folder)
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    return Model(str(folder), lora | model.pop("lora", {}), auto="AutoModelForCausalLM", **model)


def clip(folder, words=(), **model):
    """Both towers, for grey images of 32 by 32 pixels, and a tokenizer that knows `words`."""
    torch.manual_seed(0)
    vocabulary = dict.fromkeys(["<pad>", "<bos>", "<eos>", "<unk>", *"a photo of .".split(), *words])
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = {**sizes, **tokens, "vocab_size": len(vocabulary), "max_position_embeddings": 16, "projection_dim": 12}
    vision = {**sizes, "image_size": 32, "patch_size": 16, "num_channels": 1, "projection_dim": 12}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder)
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    core.pre_tokenizer = Whitespace()
    core.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)])
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=16, **special).save_pretrained(folder)
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    lora |= model.pop("lora", {})
    return Model(str(folder), lora, auto="CLIPVisionModelWithProjection", pooling="pooler", **model)


ARCHITECTURES = {"bert": bert, "vit": vit, "gpt2": gpt2}


def samples(kind, n, rng, longest=9):
    """Images, or sequences of different lengths, with three classes or with the last tokens as the response."""
    labels = torch.randint(0, 3, (n,), generator=rng)
    if kind == "vit":
        return Samples({"pixel_values": torch.randn(n, 1, 8, 8, generator=rng)}, labels)
    lengths = torch.randint(4, longest + 1, (n,), generator=rng)
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    tokens = torch.randint(2, VOCABULARY, mask.shape, generator=rng) * mask
    if kind == "gpt2":
        response = (torch.arange(mask.shape[1]) >= lengths[:, None] - 2) & (mask == 1)
        labels = tokens.masked_fill(~response, -100)
    return Samples({"input_ids": tokens, "attention_mask": mask}, labels)
