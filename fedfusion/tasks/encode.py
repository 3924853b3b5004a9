"""From rows to model inputs: text and images with a label, instructions with a response."""

import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import PIL
import PIL.Image
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, BatchEncoding, PreTrainedTokenizerBase

from fedfusion.lora.model import locate
from fedfusion.types import FedfusionError, Samples

BATCH = 256  # images in memory at their own size
ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
Problem = tuple[int, str]  # which row, and what is wrong with it


class Encoder(Protocol):
    """Turns rows into samples."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it needs; a `label` is a class, counted from zero."""
        ...

    def check(self) -> None:
        """Load what it encodes with, without encoding anything."""
        ...

    def problems(self, rows: Dataset) -> Iterator[Problem]:
        """The rows that cannot be encoded."""
        ...

    def __call__(self, rows: Dataset) -> Samples:
        """The samples of all rows, in their order."""
        ...


@dataclass(frozen=True)
class Text:
    """Columns `text` and `label`: `input_ids` and `attention_mask`, padded on the right to the longest text.

    Parameters
    ----------
    tokenizer
        Where the tokenizer is: `model.path`.
    max_length
        Tokens after which a text is cut.
    """

    tokenizer: str
    max_length: int = 128

    columns = ("text", "label")

    def __post_init__(self) -> None:
        _check_length(self.max_length)

    def check(self) -> None:
        """Load the tokenizer."""
        if _tokenizer(self.tokenizer, self.max_length).pad_token_id is None:
            raise FedfusionError(
                f"suite: the tokenizer of '{self.tokenizer}' has no pad token, texts of different length cannot be "
                "put into one batch (choose another model.path, or add a pad_token to its tokenizer_config.json)"
            )

    def problems(self, rows: Dataset) -> Iterator[Problem]:
        """Rows without text."""
        return _empty(rows["text"], "text")

    def __call__(self, rows: Dataset) -> Samples:
        """The samples of all rows, in their order."""
        self.check()
        tokenizer = _tokenizer(self.tokenizer, self.max_length)
        encoded: BatchEncoding = tokenizer(
            [str(text) for text in rows["text"]],
            padding="longest",
            truncation=True,
            max_length=self.max_length,
            padding_side="right",
            return_tensors="pt",
        )
        _report(sum(bool(e.overflowing) for e in encoded.encodings or ()), len(rows), self.max_length)
        inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        if "token_type_ids" in encoded and encoded["token_type_ids"].any():  # all zero is what models assume anyway
            inputs["token_type_ids"] = encoded["token_type_ids"]
        return Samples(inputs, torch.tensor(rows["label"][:]))


@dataclass(frozen=True)
class Image:
    """Columns `image` and `label`: `pixel_values [n, 3, H, W]`, resized and normalised as the model expects.

    An image is the bytes of a file, or `{bytes, path}` as `datasets.Image` stores it; grey becomes RGB.

    Parameters
    ----------
    processor
        Where the `preprocessor_config.json` is: `model.path`.
    """

    processor: str

    columns = ("image", "label")

    def check(self) -> None:
        """Load the image processor."""
        _processor(self.processor)

    def problems(self, rows: Dataset) -> Iterator[Problem]:
        """Rows whose image cannot be read."""
        for i, value in enumerate(rows["image"]):
            try:
                _open(value)
            except PIL.UnidentifiedImageError:
                yield i, f"image{_path(value)} is not in a format that Pillow reads"
            except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
                yield i, f"image{_path(value)} cannot be read ({str(error).splitlines()[0]})"

    def __call__(self, rows: Dataset) -> Samples:
        """The samples of all rows, in their order."""
        process, values = _processor(self.processor), rows["image"]
        batches = [values[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        pixels = [process(images=[_open(v) for v in batch], return_tensors="pt")["pixel_values"] for batch in batches]
        return Samples({"pixel_values": torch.cat(pixels)}, torch.tensor(rows["label"][:]))


@dataclass(frozen=True)
class Instruct:
    """Columns `instruction`, `input` and `output`: tokens of prompt and response, and the response as labels.

    `input_ids`, `attention_mask` and `labels` are `[n, T]`, padded on the right; `labels` is -100 outside of the
    response, which ends with the end-of-sequence token. Of what is longer than `max_length`, the middle of the
    prompt is left out; a response is only cut where it does not fit at all.

    Parameters
    ----------
    tokenizer
        Where the tokenizer is: `model.path`.
    prompt
        `alpaca`, or a template with `{instruction}` and `{input}`, after which the response follows with a space.
    max_length
        Tokens of prompt and response together.
    pad_with_eos
        Lets a tokenizer without a pad token pad with its end-of-sequence token.

    References
    ----------
    Taori et al., "Stanford Alpaca: An Instruction-following LLaMA model", 2023,
    https://github.com/tatsu-lab/stanford_alpaca
    """

    tokenizer: str
    prompt: str = "alpaca"
    max_length: int = 256
    pad_with_eos: bool = False

    columns = ("instruction", "input", "output")

    def __post_init__(self) -> None:
        _check_length(self.max_length)
        try:
            fixed = self.prompt != "alpaca" and self.prompt == self.prompt.format(instruction="?", input="?")
        except (LookupError, ValueError) as error:
            raise FedfusionError(
                f"suite: prompt={self.prompt!r} is no template with {{instruction}} and {{input}} ({error!r})"
            ) from error
        if fixed:
            raise FedfusionError(
                f"suite: prompt={self.prompt!r} is the same for all rows "
                "(give 'alpaca', or a template with {instruction} or {input})"
            )

    def check(self) -> None:
        """Load the tokenizer."""
        tokenizer = _tokenizer(self.tokenizer, self.max_length)
        if tokenizer.eos_token_id is None:
            raise FedfusionError(
                f"suite: the tokenizer of '{self.tokenizer}' has no eos token, so that no response would ever end "
                "(choose a causal language model, as model=gpt2_lists)"
            )
        if tokenizer.pad_token_id is None and not self.pad_with_eos:
            raise FedfusionError(
                f"suite: the tokenizer of '{self.tokenizer}' has no pad token "
                "(set pad_with_eos: true to pad with its eos token)"
            )

    def problems(self, rows: Dataset) -> Iterator[Problem]:
        """Rows without instruction or output."""
        for name in ("instruction", "output"):
            yield from _empty(rows[name], name)

    def text(self, row: Mapping[str, Any]) -> tuple[str, str]:
        """Prompt and response of a row, as they are tokenized.

        Examples
        --------
        >>> row = {"instruction": "add", "input": "1 2", "output": "3"}
        >>> Instruct("gpt2", prompt="{instruction}: {input} =").text(row)
        ('add: 1 2 =', ' 3')
        """
        instruction, given, output = (str("" if row[name] is None else row[name]) for name in self.columns)
        if self.prompt != "alpaca":
            return self.prompt.format(instruction=instruction, input=given), f" {output}"
        template = ALPACA if given.strip() else ALPACA_WITHOUT_INPUT
        return template.format(instruction=instruction, input=given), output

    def __call__(self, rows: Dataset) -> Samples:
        """The samples of all rows, in their order."""
        self.check()
        tokenizer = _tokenizer(self.tokenizer, self.max_length)
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        starts = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
        texts = zip(*map(self.text, rows), strict=True)
        prompts, responses = (tokenizer(list(part), add_special_tokens=False).input_ids for part in texts)
        ids, kept, cut = [], [], 0
        for prompt, response in zip(prompts, responses, strict=True):
            prompt = [tokenizer.bos_token_id] * starts + prompt
            whole = [*response, tokenizer.eos_token_id]
            cut += len(prompt) + len(whole) > self.max_length
            whole = whole[: self.max_length - 1]
            ids.append([*_without_middle(prompt, self.max_length - len(whole)), *whole])
            kept.append(len(whole))
        _report(cut, len(rows), self.max_length)
        lengths = torch.tensor([len(tokens) for tokens in ids])
        column = torch.arange(int(lengths.max()))
        filled = torch.nn.utils.rnn.pad_sequence([torch.tensor(tokens) for tokens in ids], True, pad)
        mask = column < lengths[:, None]
        response_only = mask & (column >= (lengths - torch.tensor(kept))[:, None])
        inputs: dict[str, Tensor] = {"input_ids": filled, "attention_mask": mask.long()}
        return Samples(inputs, filled.masked_fill(~response_only, -100))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a response, up to its end-of-sequence token."""
        tokenizer, tokens = _tokenizer(self.tokenizer, self.max_length), list(ids)
        if tokenizer.eos_token_id in tokens:
            tokens = tokens[: tokens.index(tokenizer.eos_token_id)]
        return str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def _without_middle(tokens: list[int], length: int) -> list[int]:
    """Both ends of `tokens`, `length` together: the instruction stands first, the cue for the response last."""
    if len(tokens) <= length:
        return tokens
    head = length // 2
    return tokens[:head] + tokens[len(tokens) - (length - head) :]


def _empty(values: Sequence[object], name: str) -> Iterator[Problem]:
    return ((i, f"{name} is empty") for i, value in enumerate(values) if value is None or not str(value).strip())


def _open(value: Any) -> PIL.Image.Image:
    if isinstance(value, Mapping):
        value = value["bytes"] if value["bytes"] is not None else value["path"]
    if not value:
        raise ValueError("there is nothing in it")
    with PIL.Image.open(io.BytesIO(value) if isinstance(value, bytes) else value) as image:
        return image.convert("RGB")


def _path(value: Any) -> str:
    return f" {value['path']}" if isinstance(value, Mapping) and value["path"] else ""


def _check_length(max_length: int) -> None:
    if max_length < 4:
        raise FedfusionError(f"suite: max_length must be at least 4, got {max_length}")


def _report(cut: int, rows: int, max_length: int) -> None:
    if cut:
        logging.getLogger(__name__).warning(
            "suite: %d of %d rows are longer than max_length=%d tokens and were cut", cut, rows, max_length
        )


def _tokenizer(path: str, max_length: int) -> PreTrainedTokenizerBase:
    tokenizer = _load(AutoTokenizer.from_pretrained, path, "tokenizer")
    if max_length > tokenizer.model_max_length:
        raise FedfusionError(
            f"suite.max_length={max_length}, but the tokenizer of '{path}' says that its model takes at most "
            f"{tokenizer.model_max_length} tokens (lower it, or choose another model)"
        )
    return tokenizer


def _processor(path: str) -> Callable[..., Mapping[str, Tensor]]:
    return _load(AutoImageProcessor.from_pretrained, path, "image processor")


@lru_cache(maxsize=4)
def _load(from_pretrained: Callable[[str], Any], path: str, what: str) -> Any:
    location = locate(path)
    try:
        return from_pretrained(location)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if "connect to" in str(error):
            raise FedfusionError(
                f"model.path: '{path}' cannot be fetched (give a folder, or check its name and the network)"
            ) from error
        raise FedfusionError(
            f"suite: '{path}' has no {what} (choose another model, as model=minilm for text, model=gpt2_lists for "
            "instructions, or another model.path)"
        ) from error
