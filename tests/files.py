"""Data files and a tokenizer, written for a test."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", *"abcdefgh", "=", "add:", "1", "2", "3"]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as a file of the format that its suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = Dataset.from_list(rows)
    if path.suffix == ".parquet":
        data.to_parquet(path)
    elif path.suffix == ".csv":
        data.to_pandas().to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))


def save_tokenizer(folder: Path, bos: bool = False, **special: str) -> str:
    """A tokenizer of `WORDS` with the given special tokens, as if it were the folder of a model."""
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    if bos:
        core.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
        special["bos_token"] = "<bos>"
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", model_max_length=32, **special).save_pretrained(
        folder
    )
    (folder / "config.json").write_text("{}")
    return str(folder)
