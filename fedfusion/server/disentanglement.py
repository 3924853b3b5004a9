"""How much the tasks disturb each other in one fused model: the weight disentanglement error."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedfusion.lora.cohort import buckets
from fedfusion.lora.model import LoraModel
from fedfusion.tasks.heads import Head
from fedfusion.types import FedfusionError, Samples


def disagreement(single: Tensor, fused: Tensor) -> float:
    r"""Share of the inputs that two models put into different classes.

    .. math:: \mathbb E_x \, \mathbf 1[\arg\max_c f_c(x) \ne \arg\max_c f'_c(x)]

    Parameters
    ----------
    single, fused : [m, C]
        Logits of the two models on the same inputs. Equal predictions give 0, whatever the margins.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    FedfusionError
        If the shapes differ, or there is no input.
    """
    _check(single, fused)
    return float((single.argmax(-1) != fused.argmax(-1)).double().mean())


def squared_distance(single: Tensor, fused: Tensor) -> float:
    r"""Mean squared distance of the logits of two models, :math:`\mathbb E_x \lVert f(x) - f'(x) \rVert^2`.

    Parameters
    ----------
    single, fused : [m, C]
        Logits of the two models on the same inputs. Equal logits give 0.

    Raises
    ------
    FedfusionError
        If the shapes differ, or there is no input.
    """
    _check(single, fused)
    return float((single.double() - fused.double()).square().sum(-1).mean())


def disentanglement(single: Mapping[str, Tensor], fused: Mapping[str, Tensor]) -> dict[str, float]:
    r"""Weight disentanglement error of a fused model, from logits.

    .. math:: \xi(\lambda) = \sum_t \mathbb E_{x \sim \mu_t} \operatorname{dist}\bigl(
              f(x;\, \theta_0 + \lambda \tau_t),\; f(x;\, \theta_0 + \lambda \textstyle\sum_q \tau_q) \bigr)

    It is zero where the task vectors do not interfere: each of them changes the model on its own task only. So it is
    for one task, whose sum is that task's vector itself.

    Where the :math:`\tau_q` of the sum, and those alone, carry zero-mean noise, :math:`\delta` of covariance
    :math:`v I` on the sum :math:`\lambda \sum_q \tau_q`, and `f` is linear in the weights,

    .. math:: \mathbb E\, \xi_{L2} = \xi_{L2}(\text{clean}) + v \sum_t \mathbb E_x \lVert J_t(x) \rVert_F^2

    with the Jacobian :math:`J_t` of the logits. A model that is not linear adds the curvature of `f` in proportion to
    its clean error, which is of the same order in `v`. Only the mean rises: one draw may be below the clean error.

    Parameters
    ----------
    single : [m, C] of each task
        Logits of the single-task model :math:`\theta_0 + \lambda \tau_t` on the inputs of task `t`.
    fused : [m, C] of each task
        Logits of the fused model on the same inputs.

    Returns
    -------
    dict
        `xi_01` by :func:`disagreement`, in `[0, T]`, and `xi_L2` by :func:`squared_distance`.

    Raises
    ------
    FedfusionError
        If the tasks or their shapes differ, or there is no input.

    References
    ----------
    Ortiz-Jimenez, Favero, Frossard, "Task Arithmetic in the Tangent Space: Improved Editing of Pre-Trained Models",
    NeurIPS 2023, https://arxiv.org/abs/2305.12827
    """
    if single.keys() != fused.keys():
        raise FedfusionError(f"the tasks of the single models are {list(single)}, those of the fused {list(fused)}")
    distances = {"xi_01": disagreement, "xi_L2": squared_distance}
    return {name: sum(dist(single[t], fused[t]) for t in single) for name, dist in distances.items()}


@torch.no_grad()
def interference(
    model: LoraModel,
    fused: Tensor,
    single: Mapping[str, Tensor],
    data: Mapping[str, Samples],
    heads: Mapping[str, Head],
) -> dict[str, float]:
    r"""Weight disentanglement error of a fused adapter, see :func:`disentanglement`.

    Parameters
    ----------
    model
        Carries all the adapters: its rank is that of the fused one.
    fused : [d]
        The fused adapter.
    single : [d] of each task
        The adapter of :math:`\lambda \tau_t`, scaled as in the fused one. Equal to `fused`, all errors are 0.
    data, heads
        Samples and head of each task; further tasks are not looked at.
    """
    alone = {task: logits(model, adapter, data[task], heads[task]) for task, adapter in single.items()}
    return disentanglement(alone, {task: logits(model, fused, data[task], heads[task]) for task in single})


def logits(model: LoraModel, adapter: Tensor, data: Samples, head: Head, max_tokens: int = 4096) -> Tensor:
    """Logits `[m, C]` of `adapter [d]`, differentiable in it: one row per sample, or one per token of a response."""
    owner, parts, order = torch.zeros(len(data), dtype=torch.long), [], []
    for rows in buckets(data, owner, max_tokens, model.image_tokens):
        part = data.take(rows).trimmed()
        features, _, of = model.features(adapter[None], part, owner[rows])
        parts.append(head(features))
        order.append(rows[of])
    return torch.cat(parts)[torch.argsort(torch.cat(order), stable=True)]


def _check(single: Tensor, fused: Tensor) -> None:
    if single.shape != fused.shape or not len(single):
        found = f"{tuple(single.shape)} and {tuple(fused.shape)}"
        raise FedfusionError(f"two models are compared on the same inputs, at least one; their logits are {found}")
