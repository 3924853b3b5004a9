"""Make the small language model that ships with fedfusion.

    OMP_NUM_THREADS=1 python experiments/lists/pretrain.py --out fedfusion/assets/gpt2-lists

A 1.2M-parameter GPT-2 learns to run the `PRETRAINING` programs of `fedfusion.tasks.lists` on lists of digits and
letters. It has seen every word of the suite's instructions, but none of the suite's programs. Its tokens are
those words, and single characters with and without a space before them. Seeded; 11 minutes on one core, after
which it runs 98.6 % of fresh lists of its own programs without a mistake.
"""

import argparse
import json
import string
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from fedfusion.rng import generator, seed_of
from fedfusion.tasks.lists import PRETRAINING, PROGRAMS, examples

SPECIAL = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
CONTEXT = 64


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Words of the instructions are one token, anything else is spelled; decoding gives back the text."""
    chars = string.digits + string.ascii_letters + string.punctuation
    words = sorted({word for name in (*PRETRAINING, *PROGRAMS) for word in name.split("-") if len(word) > 1} | {"none"})
    pieces = [*SPECIAL.values(), "▁", *chars, *("▁" + c for c in chars), *words, *("▁" + w for w in words)]
    model = models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=[("▁", c) for c in chars],
        unk_token=SPECIAL["unk_token"],
        ignore_merges=True,  # a piece that is in the vocabulary as a whole needs no merges
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace("▁", prepend_scheme="never"), pre_tokenizers.Split(":", "isolated")]
    )
    tokenizer.decoder = decoders.Metaspace("▁", prepend_scheme="never")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=CONTEXT, **SPECIAL)


def make_batch(rows: list[dict], tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids `[n, length]` and the labels: the ids of the response, -100 elsewhere."""
    prompts = tokenizer([f"{r['instruction']}: {r['input']} =" for r in rows])["input_ids"]
    responses = tokenizer([f" {r['output']}{tokenizer.eos_token}" for r in rows])["input_ids"]
    length = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    labels = torch.full((len(rows), length), -100)
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        ids[i, : len(prompt) + len(response)] = torch.tensor(prompt + response)
        labels[i, len(prompt) : len(prompt) + len(response)] = torch.tensor(response)
    return ids, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(seed_of(args.seed, "lists", "weights"))
    tokenizer = make_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=CONTEXT, n_embd=args.width, n_layer=args.depth, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, activation_function="gelu_pytorch_tanh", bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",  # two and a half times faster than sdpa in bfloat16 on a CPU
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    print(f"{model.num_parameters():,} parameters, {len(PRETRAINING)} programs, {len(tokenizer)} tokens")
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.steps, pct_start=0.06)
    streams = [examples(task, generator(args.seed, "lists", "pretrain", task)) for task in PRETRAINING]
    rng = generator(args.seed, "lists", "pretrain")
    started, hits = time.perf_counter(), torch.zeros(len(streams), 2)
    for step in range(1, args.steps + 1):
        tasks = torch.randint(len(streams), (args.batch,), generator=rng)
        ids, labels = make_batch([next(streams[t]) for t in tasks], tokenizer)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).logits
        logits = logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        exact = ((logits.argmax(-1) == labels[:, 1:]) | (labels[:, 1:] < 0)).all(1)
        hits.index_add_(0, tasks, torch.stack([exact.float(), torch.ones(len(exact))], 1))
        if step % 200 == 0 or step == args.steps:
            match = hits[:, 0] / hits[:, 1]
            print(f"step {step}  loss {loss:.3f}  exact match {match.mean():.3f}  "
                  f"{time.perf_counter() - started:.0f} s", flush=True)  # fmt: skip
            if step % 1000 == 0 or step == args.steps:
                print("  " + ", ".join(f"{t} {m:.2f}" for t, m in zip(PRETRAINING, match, strict=True) if m < 0.9))
            hits.zero_()
        if step % 1000 == 0 or step == args.steps:
            save(model, tokenizer, args.out, vars(args) | {"step": step, "programs": len(PRETRAINING)})


def save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, out: Path, facts: dict) -> None:
    """Model and tokenizer in Hugging Face format, weights rounded to float16."""
    out.mkdir(parents=True, exist_ok=True)
    rounded = GPT2LMHeadModel(model.config)
    rounded.load_state_dict(model.state_dict())
    rounded.half().save_pretrained(out)
    config = json.loads((out / "config.json").read_text()) | {"dtype": "float32"}  # to be loaded as float32 again
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.save_pretrained(out)
    (out / "pretraining.json").write_text(json.dumps({k: v for k, v in facts.items() if k != "out"}, indent=1) + "\n")


if __name__ == "__main__":
    main()
