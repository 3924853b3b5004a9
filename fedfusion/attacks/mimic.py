"""Byzantine clients repeat one honest client, so that it is heard too often."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedfusion.attacks.spread import spread
from fedfusion.types import Updates


@dataclass(frozen=True)
class Mimic:
    r"""All Byzantine clients upload a copy of one honest row: no outlier, and yet the others lose weight.

    .. math:: i^\star = \arg\max_i |\langle x_i, z\rangle|,
              \qquad z = \arg\max_{\lVert z\rVert = 1} \sum_i \langle x_i - m, z\rangle^2,

    the row that lies furthest out in the direction of the largest spread, of this round. The paper settles on one
    client after a warm-up; here the clients of a round may be others in the next.

    References
    ----------
    Karimireddy et al., "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022,
    https://arxiv.org/abs/2006.09365
    """

    def __call__(self, own: Updates, honest: Updates, rng: torch.Generator, last: Tensor) -> Updates:
        """One row for all of `own.vectors [f, d]`."""
        _, centred, gram = spread(honest.vectors)
        top = torch.linalg.eigh(gram).eigenvectors[:, -1]
        z = top.to(centred.dtype) @ centred
        chosen = (honest.vectors @ z).abs().argmax()
        return own.with_vectors(honest.vectors[chosen].repeat(len(own), 1))
