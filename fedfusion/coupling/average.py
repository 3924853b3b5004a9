"""One common adapter for all clients: the mean of the factors, or of their products."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedfusion.lora.product import stack, truncate
from fedfusion.types import Clients


@dataclass(frozen=True)
class Average:
    r"""FedAvg on LoRA factors (FedIT): all `N` clients, heard or not, continue from the mean of those heard.

    .. math:: \bar w = \sum_{k \in S} p_k w_k

    The mean of the factors does not multiply to the mean of the products. What is missing are the cross terms
    :math:`\bar B \bar A - \sum_k p_k B_k A_k = -\sum_k p_k (B_k - \bar B)(A_k - \bar A)`: nothing when the clients
    agree on one of the factors, and as much as they differ in both. :class:`ProductAverage` has none.

    References
    ----------
    McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
    https://arxiv.org/abs/1602.05629; Zhang et al., "Towards Building the Federated GPT: Federated Instruction
    Tuning", ICASSP 2024, https://arxiv.org/abs/2305.05644
    """

    into_base: ClassVar[bool] = False
    needs_rows: ClassVar[bool] = False
    averages_factors: ClassVar[bool] = True

    def __call__(
        self, adapters: Tensor, heard: Tensor, weights: Tensor, clients: Clients, rng: torch.Generator
    ) -> tuple[Tensor, Mapping[str, float]]:
        """The mean, `N` times `[N, d]`."""
        mean = weights.to(adapters.dtype) @ adapters[heard]
        return mean.repeat(len(adapters), 1), {}


@dataclass(frozen=True)
class ProductAverage:
    r"""FlexLoRA: the exact mean of the products of those heard, cut to the layout's rank by an SVD.

    .. math:: \sum_{k \in S} p_k B_k A_k = U \Sigma V^\top, \qquad
              \bar B = U_r \Sigma_r^{1/2}, \quad \bar A = \Sigma_r^{1/2} V_r^\top

    All `N` clients, heard or not, continue from it. Rows of `A` and columns of `B` are ordered by singular value, so
    that the first `r_k` of them (:func:`fedfusion.lora.product.restrict`) are the best approximation of rank `r_k`.
    Where the mean has a rank below `r`, the rest of `A` is that of the averaged factors and of `B` zero, as in a fresh
    adapter: with zeros in both there would be no gradient ever again. Entries outside the pairs are averaged.

    References
    ----------
    Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources",
    NeurIPS 2024, https://arxiv.org/abs/2402.11505
    """

    into_base: ClassVar[bool] = False
    needs_rows: ClassVar[bool] = True
    averages_factors: ClassVar[bool] = False

    def __call__(
        self, adapters: Tensor, heard: Tensor, weights: Tensor, clients: Clients, rng: torch.Generator
    ) -> tuple[Tensor, Mapping[str, float]]:
        """The mean `[N, d]`, and the largest share of a module's energy that the cut has `discarded`."""
        layout, trained = clients.layout, adapters[heard]
        p = weights.to(trained.dtype)
        mean, discarded = p @ trained, 0.0
        for pair in layout.pairs:
            b, a = layout.entry(trained, pair.b) * p[:, None, None], layout.entry(trained, pair.a)
            (b, a), lost = truncate(stack(list(zip(b, a, strict=True))), layout.shapes[pair.a][0])
            root = b.norm(dim=0)  # of the singular values
            learnt = root > 1e-6 * root.max()
            layout.entry(mean, pair.b).copy_(b * learnt)
            layout.entry(mean, pair.a).copy_(torch.where(learnt[:, None], a, layout.entry(mean, pair.a)))
            discarded = max(discarded, lost)
        return mean.repeat(len(adapters), 1), {"discarded": discarded}
