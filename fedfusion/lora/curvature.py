"""What a client knows of its loss beyond its adapter: second moments of each adapted layer, as K-FAC has them."""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedfusion.lora.cohort import buckets
from fedfusion.lora.model import LoraModel
from fedfusion.types import FedfusionError, Samples

Moments = tuple[Tensor, Tensor]  # of inputs [n, n], of gradients [m, m]


def curvature(
    model: LoraModel,
    adapter: Tensor,
    data: Samples,
    head: Callable[[Tensor], Tensor],
    *,
    rows: int,
    rng: torch.Generator,
    max_tokens: int = 4096,
) -> dict[str, Moments]:
    r"""Second moments of the inputs and of the gradients of every adapted layer, at `adapter [d]`.

    .. math:: G = \mathbb{E}\, x x^\top, \qquad S = \mathbb{E} \sum_t g_t g_t^\top, \qquad F \approx S \otimes G

    `G` is the mean over all tokens that are no padding, with `x [n]` what enters the layer. `S` is the mean over
    predictions (one per sample, or one per token of a response), with `g_t [m]` the gradient of the log-likelihood of
    a sample at the layer's output for token `t`. Their Kronecker product approximates the Fisher information `F` of
    the layer's weight `[m, n]`; it is exact for one token per sample whose `x` and `g` are independent.

    Labels are drawn from the model's own predictions, which makes `F` the Fisher information and no labels necessary.
    With the true labels (the "empirical" one) it would vanish where the training data are fitted.

    They are not anonymous: `G` tells the directions and sizes of the layer's inputs, and a rare one stands out.

    Parameters
    ----------
    data, head
        The client's samples, and what turns features `[k, h]` into logits `[k, C]`.
    rows
        At most this many samples are used.
    rng
        Draws the samples, then the labels.
    max_tokens
        At most as many tokens go through the model at once.

    Returns
    -------
    dict
        By module: `G [n, n]` and `S [m, m]`, float32, exactly symmetric. A layer that no prediction depends on has
        `S = 0`.

    Raises
    ------
    FedfusionError
        If no linear layer is adapted, as with virtual tokens.

    References
    ----------
    Martens, Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature", ICML 2015,
    https://arxiv.org/abs/1503.05671
    """
    if not model.layout.pairs:
        raise FedfusionError(
            "client.statistics=curvature needs LoRA factors, and virtual tokens have none (set it to none)"
        )
    whole = copy.copy(model)
    whole.cohort = None  # its last layer may run on the first token alone, peft's never does
    shapes, pairs = model.layout.shapes, model.layout.pairs
    inputs = [torch.zeros(shapes[pair.a][1], shapes[pair.a][1]) for pair in pairs]
    gradients = [torch.zeros(shapes[pair.b][0], shapes[pair.b][0]) for pair in pairs]
    tokens, predictions = [0] * len(pairs), 0
    data = data.take(torch.randperm(len(data), generator=rng)[:rows])
    leaf, owner = adapter.detach()[None].requires_grad_(), torch.zeros(len(data), dtype=torch.long)
    seen: list[tuple[int, Tensor, Tensor]] = []

    def note(i: int, layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        seen.append((i, given[0].detach(), made))

    with ExitStack() as hooks:
        for i, pair in enumerate(pairs):
            layer = model.module.get_submodule(pair.module)
            hooks.enter_context(layer.register_forward_hook(partial(note, i)))
        for part in buckets(data, owner, max_tokens, model.image_tokens):
            seen.clear()
            samples = data.take(part).trimmed()
            features, labels, _ = whole.features(leaf, samples, owner[part])
            logits = head(features)
            drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=rng)[:, 0]
            loss = F.cross_entropy(logits, drawn, reduction="sum")
            slopes = torch.autograd.grad(loss, [made for *_, made in seen], allow_unused=True)
            predictions += len(labels)
            for (i, x, _), slope in zip(seen, slopes, strict=True):
                x = _tokens(x, samples)
                inputs[i] += x.T @ x
                tokens[i] += len(x)
                if slope is not None:
                    g = _tokens(slope, samples)
                    gradients[i] += g.T @ g
    return {
        pair.module: (_mean(inputs[i], tokens[i]), _mean(gradients[i], predictions)) for i, pair in enumerate(pairs)
    }


def _tokens(x: Tensor, samples: Samples) -> Tensor:
    """The rows of `x [k, T, n]` (or `[k, n]`) that are no padding, in float32."""
    mask = samples.inputs.get("attention_mask")
    padded = mask is not None and mask.shape == x.shape[:-1]
    return (x[mask.bool()] if padded else x.flatten(0, -2)).float()  # type: ignore[union-attr]


def _mean(total: Tensor, count: int) -> Tensor:
    """The mean, symmetric to the last bit: matrix products are not."""
    return (total + total.T) / (2 * max(1, count))
