"""Make the small vision transformer that ships with fedfusion.

    python experiments/digits8/pretrain.py --out fedfusion/assets/vit-glyphs

A 1.2M-parameter ViT learns to name rendered glyphs: the characters of several scripts, drawn with the
fonts that ship with matplotlib, warped, blurred and sampled to 8x8 as the scikit-learn digits were, then
enlarged to 32x32. No image of any task is used: the digits of `digits8` are handwritten, these are type.
Seeded; about 40 minutes on two cores.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import font_manager, get_data_path
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from transformers import ViTConfig, ViTForImageClassification

CANVAS = 48
SCRIPTS = {
    "latin": [*range(0x30, 0x3A), *range(0x41, 0x5B), *range(0x61, 0x7B)],
    "greek": [*range(0x391, 0x3A2), *range(0x3A3, 0x3AA), *range(0x3B1, 0x3CA)],
    "cyrillic": [*range(0x410, 0x450)],
    "armenian": [*range(0x531, 0x557), *range(0x561, 0x587)],
    "georgian": [*range(0x10D0, 0x10F1)],
    "hebrew": [*range(0x5D0, 0x5EB)],
    "symbols": [*b"!#$%&()*+/<=>?@[]{}~", 0x2190, 0x2191, 0x2192, 0x2193, 0x25A1, 0x25CB, 0x25B3, 0x221E, 0x2211],
}


def draw(font: ImageFont.FreeTypeFont, char: str) -> np.ndarray | None:
    """One glyph, cropped to its ink and fitted into the canvas, as the digits were into their boxes."""
    left, top, right, bottom = font.getbbox(char)
    if right <= left or bottom <= top:
        return None
    image = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), char, fill=255, font=font)
    scale = 0.72 * CANVAS / max(image.size)
    image = image.resize(
        (max(2, round(image.width * scale)), max(2, round(image.height * scale))), Image.Resampling.LANCZOS
    )
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(image, ((CANVAS - image.width) // 2, (CANVAS - image.height) // 2))
    return np.asarray(canvas)


def glyph_bank() -> tuple[torch.Tensor, torch.Tensor]:
    """Every glyph of every font that has it: images `[n, 48, 48]` in [0, 1] and class ids `[n]`.

    Characters that look alike (O and o, the Greek and the Latin A) share one class: the class of a
    character is decided by its picture in DejaVu Sans.
    """
    fonts = sorted(Path(get_data_path(), "fonts", "ttf").glob("*.ttf"))
    fonts = [f for f in fonts if not any(word in f.name for word in ("STIXSiz", "STIXNonUni", "cmex", "cmsy", "cmmi"))]
    reference = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 96)
    classes: dict[int, int] = {}
    seen: list[np.ndarray] = []
    for code in sorted({c for codes in SCRIPTS.values() for c in codes}):
        picture = draw(reference, chr(code)).astype(np.float32)
        picture /= np.linalg.norm(picture)
        twins = [i for i, other in enumerate(seen) if float((picture * other).sum()) > 0.95]
        classes[code] = twins[0] if twins else len(seen)
        if not twins:
            seen.append(picture)
    images, labels = [], []
    for path in fonts:
        covered = FT2Font(str(path)).get_charmap()
        font = ImageFont.truetype(str(path), 96)
        for code, label in classes.items():
            if code in covered and (picture := draw(font, chr(code))) is not None:
                images.append(picture)
                labels.append(label)
    return torch.from_numpy(np.stack(images)).float() / 255, torch.tensor(labels)


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Warp, thicken or thin, sample to 8x8 with 17 grey levels, enlarge to 32x32, change the contrast."""
    n = len(images)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    angle = uniform(-25, 25) * math.pi / 180
    turned = torch.rand(n, generator=generator) < 0.15
    angle = torch.where(turned, uniform(-math.pi, math.pi), angle)
    shear, stretch, zoom = uniform(-0.25, 0.25), uniform(0.75, 1.3), uniform(0.65, 1.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    rotation = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    skew = torch.zeros(n, 2, 2)
    skew[:, 0, 0], skew[:, 0, 1], skew[:, 1, 1] = stretch, shear, 1.0
    matrix = (rotation @ skew) * zoom[:, None, None]
    theta = torch.cat([matrix, uniform(-0.15, 0.15, 2)[:, :, None]], -1)
    grid = F.affine_grid(theta, [n, 1, 32, 32], align_corners=False)
    bend = F.interpolate(uniform(-0.12, 0.12, 2, 4, 4), size=(32, 32), mode="bicubic", align_corners=False)
    x = F.grid_sample(images[:, None], grid + bend.permute(0, 2, 3, 1), align_corners=False)
    thick = torch.rand(n, 1, 1, 1, generator=generator)
    x = torch.where(thick < 0.35, F.max_pool2d(x, 3, 1, 1), x)
    x = torch.where(thick > 0.9, -F.max_pool2d(-x, 3, 1, 1), x)
    x = (F.avg_pool2d((x > 0.4).float(), 4) * 16).round() / 16
    x = F.interpolate(x, size=(32, 32), mode="bilinear", align_corners=False)
    x = x ** uniform(0.6, 1.5, 1, 1, 1) * uniform(0.6, 1.0, 1, 1, 1)
    x = torch.where(torch.rand(n, 1, 1, 1, generator=generator) < 0.2, 1 - x, x)
    noise = torch.randn(x.shape, generator=generator) * uniform(0, 0.15, 1, 1, 1)
    return ((x + noise).clamp(0, 1) - 0.5) / 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    images, labels = glyph_bank()
    num_classes = int(labels.max()) + 1
    by_class = [torch.nonzero(labels == c)[:, 0] for c in range(num_classes)]
    print(f"{len(images)} glyphs, {num_classes} classes")
    model = ViTForImageClassification(
        ViTConfig(
            image_size=32, patch_size=8, num_channels=1, hidden_size=128, intermediate_size=512,
            num_hidden_layers=6, num_attention_heads=4, num_labels=num_classes,
        )
    )  # fmt: skip
    print(f"{sum(p.numel() for p in model.vit.parameters()):,} parameters without the head")
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.5e-3, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=args.steps, pct_start=0.06)
    started, hits, total = time.perf_counter(), 0, 0
    for step in range(1, args.steps + 1):
        classes = torch.randint(num_classes, (args.batch,), generator=generator)
        pick = [by_class[c][torch.randint(len(by_class[c]), (), generator=generator)] for c in classes.tolist()]
        pixels = augment(images[torch.stack(pick)], generator)
        logits = model(pixel_values=pixels).logits
        loss = F.cross_entropy(logits, classes, label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        hits, total = hits + int((logits.argmax(-1) == classes).sum()), total + len(classes)
        if step % 250 == 0:
            print(
                f"step {step}  loss {loss:.3f}  top-1 {hits / total:.3f}  {time.perf_counter() - started:.0f} s",
                flush=True,
            )
            hits = total = 0
        if step % 1000 == 0 or step == args.steps:
            save(model, args.out, vars(args) | {"step": step, "classes": num_classes, "glyphs": len(images)})


def save(model: ViTForImageClassification, out: Path, facts: dict) -> None:
    """The encoder in Hugging Face format, weights rounded to float16 (half the bytes, same features)."""
    out.mkdir(parents=True, exist_ok=True)
    encoder = ViTForImageClassification(model.config).vit
    encoder.load_state_dict(model.vit.state_dict())
    encoder.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    encoder.config.label2id = {"LABEL_0": 0, "LABEL_1": 1}
    encoder.half().save_pretrained(out)
    config = json.loads((out / "config.json").read_text()) | {"dtype": "float32"}  # to be loaded as float32 again
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    facts = {k: str(v) if isinstance(v, Path) else v for k, v in facts.items() if k != "out"}
    (out / "pretraining.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
