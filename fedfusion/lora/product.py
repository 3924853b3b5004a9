"""Linear algebra on LoRA products `s B A`, computed from the factors without forming them.

LoRA factors are defined up to an invertible matrix; only the product means something. Here are its inner
products and norms, stacking, truncation, and the *core space*: one common orthonormal basis per module in
which every product of a round is a small matrix, so that any rule on plain vectors is a rule on products.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedfusion.types import Layout, Pair

Factors = tuple[Tensor, Tensor]  # B [m, r] with the LoRA scale inside, A [r, n]


def factors(layout: Layout, pair: Pair, vectors: Tensor) -> Factors:
    """The pair's `scale * B [..., m, r]` and `A [..., r, n]` in `vectors [..., d]`."""
    return pair.scale * layout.entry(vectors, pair.b), layout.entry(vectors, pair.a)


def outside(layout: Layout) -> list[int]:
    """The entries that belong to no pair: virtual tokens, magnitudes, biases."""
    paired = {i for pair in layout.pairs for i in (pair.a, pair.b)}
    return [i for i in range(len(layout.names)) if i not in paired]


def plain(layout: Layout, vectors: Tensor) -> Tensor:
    """What is outside every pair in `vectors [..., d]`, flattened: `[..., d_0]`."""
    parts = [layout.entry(vectors, i).flatten(vectors.dim() - 1) for i in outside(layout)]
    return torch.cat([vectors[..., :0], *parts], -1)


def gram(layout: Layout, vectors: Tensor) -> Tensor:
    r"""Inner products of adapters in product space.

    .. math:: G_{jk} = \sum_\text{modules} \langle s B_j A_j, s B_k A_k \rangle_F
              = \sum_\text{modules} \langle s^2 B_j^\top B_k, A_j A_k^\top \rangle_F

    Parameters
    ----------
    vectors : [n, d]
        Adapters, flattened.

    Returns
    -------
    Tensor
        `[n, n]`, float64, whatever the dtype of the input: squares of large rows stay finite.
    """
    n = len(vectors)
    total = torch.zeros(n, n, dtype=torch.float64)
    for pair in layout.pairs:
        b, a = pair.scale * layout.entry(vectors, pair.b).double(), layout.entry(vectors, pair.a).double()
        left = b.transpose(-1, -2).reshape(-1, b.shape[-2])  # [n r, m]
        right = a.reshape(-1, a.shape[-1])  # [n r, in]
        blocks = (left @ left.T) * (right @ right.T)
        rank = a.shape[-2]
        total += blocks.reshape(n, rank, n, rank).sum((1, 3))
    rest = plain(layout, vectors).double()
    return total + rest @ rest.T


def change_coefficients(layout: Layout, start: Tensor, vectors: Tensor) -> Tensor:
    r"""How the product moves when an upload is scaled by `t`.

    The product change of `t * (dA, dB)` on top of `(A, B)` is `t X + t^2 Y` with `X = s (B dA + dB A)` and
    `Y = s dB dA`, so its squared norm is `c_2 t^2 + c_3 t^3 + c_4 t^4`.

    Parameters
    ----------
    start, vectors : [n, d]
        What was broadcast, and what was uploaded on top of it.

    Returns
    -------
    Tensor
        `[n, 3]`, float64: `c_2 = ||X||^2`, `c_3 = 2 <X, Y>`, `c_4 = ||Y||^2`, summed over modules.
    """
    total = torch.zeros(len(vectors), 3, dtype=torch.float64)
    for pair in layout.pairs:
        b, a = (factor.double() for factor in factors(layout, pair, start))
        db, da = (factor.double() for factor in factors(layout, pair, vectors))
        left, right = torch.cat([b, db], -1), torch.cat([da, a], -2)  # X = left @ right
        cross_left, cross_right = left.mT @ db, right @ da.mT
        total[:, 0] += ((left.mT @ left) * (right @ right.mT)).sum((1, 2))
        total[:, 1] += 2 * (cross_left * cross_right).sum((1, 2))
        total[:, 2] += ((db.mT @ db) * (da @ da.mT)).sum((1, 2))
    total[:, 0] += plain(layout, vectors).double().square().sum(1)
    return total


def norms(layout: Layout, vectors: Tensor) -> Tensor:
    """Frobenius norms `[n]` of the products of `vectors [n, d]` (float64)."""
    return torch.cat([gram(layout, row[None]) for row in vectors]).flatten().clamp_min(0).sqrt()


def distances(layout: Layout, first: Tensor, second: Tensor) -> Tensor:
    """Squared Frobenius distances `[n]` of the products of `first [n, d]` and `second [n, d]`, row by row (float64)."""
    total = (plain(layout, first).double() - plain(layout, second).double()).square().sum(1)
    for pair in layout.pairs:
        b, a = (factor.double() for factor in factors(layout, pair, first))
        other_b, other_a = (factor.double() for factor in factors(layout, pair, second))
        left, right = torch.cat([b, -other_b], -1), torch.cat([a, other_a], -2)
        total += ((left.mT @ left) * (right @ right.mT)).sum((1, 2))
    return total.clamp_min(0)


def kappa(layout: Layout, vectors: Tensor) -> Tensor:
    r"""How noise on the factors becomes noise on the product, for each of `vectors [n, d]` and each module: `[n, M]`.

    .. math:: \kappa = \lVert A\rVert^2 \lVert B\rVert^2 / (r \lVert BA\rVert^2), \qquad
              \mathrm{NMSE}(BA) = \kappa (e_A + e_B + e_A e_B)

    for white errors of relative power :math:`e_A, e_B`. One for random factors of rank `r`, `1/r` where one
    direction dominates both, more where the strong directions of one meet the weak ones of the other; infinite where
    the product is zero.
    """
    columns = []
    for pair in layout.pairs:
        b, a = (factor.double() for factor in factors(layout, pair, vectors))
        product = ((b.mT @ b) * (a @ a.mT)).sum((1, 2)).clamp_min(0)
        columns.append(a.square().sum((1, 2)) * b.square().sum((1, 2)) / (a.shape[-2] * product))
    return torch.stack(columns, 1) if columns else vectors.new_zeros(len(vectors), 0)


def restrict(layout: Layout, vectors: Tensor, ranks: Tensor) -> Tensor:
    """Each of `vectors [n, d]` cut to its own rank: rows of `A` and columns of `B` beyond `ranks [n]` are zero.

    The layout's rank, or more, changes nothing.
    """
    cut = vectors.clone()
    for pair in layout.pairs:
        beyond = torch.arange(layout.shapes[pair.a][0]) >= ranks[:, None]
        layout.entry(cut, pair.a).masked_fill_(beyond[:, :, None], 0)
        layout.entry(cut, pair.b).masked_fill_(beyond[:, None, :], 0)
    return cut


def revive(layout: Layout, vectors: Tensor, initial: Tensor) -> None:
    """Give parts of `vectors [n, d]` that are zero in both factors the `A` of `initial [d]`, in place.

    Their product stays as it is, but without it they could never learn again.
    """
    for pair in layout.pairs:
        a, b = layout.entry(vectors, pair.a), layout.entry(vectors, pair.b)
        dead = ~(a.any(-1) | b.any(-2))
        if dead.any():
            a.copy_(torch.where(dead[..., None], layout.entry(initial, pair.a), a))


def stack(pairs: Sequence[Factors]) -> Factors:
    """The pair of rank `sum(r_k)` whose product is the sum of the products: exact, ranks may differ."""
    return torch.cat([b for b, _ in pairs], dim=-1), torch.cat([a for _, a in pairs], dim=-2)


def truncate(pair: Factors, rank: int) -> tuple[Factors, float]:
    r"""The best approximation of rank `rank` of `B A` (Eckart-Young), by QR of the factors and a small SVD.

    Parameters
    ----------
    pair
        `B [m, R]`, `A [R, n]`.
    rank
        Rank of the result; the factors are padded with zeros where the product has a smaller one.

    Returns
    -------
    pair, discarded
        Balanced factors `U S^{1/2}`, `S^{1/2} V^T`, and the discarded share of the energy,
        :math:`\sum_{i > \text{rank}} s_i^2 / \sum_i s_i^2`.
    """
    b, a = pair
    q_left, t_left = torch.linalg.qr(b.double())
    q_right, t_right = torch.linalg.qr(a.double().T)
    u, s, vt = torch.linalg.svd(t_left @ t_right.T)
    energy = s.square()
    kept = min(rank, len(s))
    root = s[:kept].sqrt()
    left = (q_left @ u[:, :kept]) * root
    right = root[:, None] * (vt[:kept] @ q_right.T)
    padding = rank - kept
    left = torch.nn.functional.pad(left, (0, padding))
    right = torch.nn.functional.pad(right, (0, 0, 0, padding))
    discarded = float(energy[kept:].sum() / energy.sum()) if energy.sum() > 0 else 0.0
    return (left.to(b.dtype), right.to(a.dtype)), discarded


def accumulate(total: Tensor, target: Layout, vectors: Tensor, weights: Tensor, layout: Layout) -> tuple[Tensor, float]:
    r"""Add the weighted sum of products, :math:`\sum_k p_k s B_k A_k`, to the product of `total [d']`.

    Parameters
    ----------
    total, target
        What there is already, and its layout; its rank is that of the result.
    vectors, weights, layout
        `[n, d]`, `[n]`, and their layout.

    Returns
    -------
    total, discarded
        `[d']`, and the largest share of a module's energy that its rank could not hold.
    """
    result, discarded = total.clone(), 0.0
    for goal, pair in zip(target.pairs, layout.pairs, strict=True):
        b, a = factors(layout, pair, vectors)
        parts = [factors(target, goal, total), *zip(weights.to(b.dtype)[:, None, None] * b, a, strict=True)]
        (b, a), lost = truncate(stack(parts), target.shapes[goal.a][0])
        target.entry(result, goal.b).copy_(b / goal.scale)
        target.entry(result, goal.a).copy_(a)
        discarded = max(discarded, lost)
    return result, discarded


@dataclass(frozen=True)
class CoreSpace:
    r"""A common orthonormal basis per module for the products of a set of adapters.

    With :math:`U` the left singular vectors of the stacked `B_k` and :math:`V` the right ones of the stacked
    `A_k`, each product is :math:`s B_k A_k = U M_k V^\top` with :math:`M_k = U^\top s B_k A_k V`. Because the
    bases are orthonormal, inner products of the `M_k` are those of the products: a mean, a median or a
    geometric median of the flattened `M_k` is that of the products in this basis, and linear rules are
    lossless. The result is a LoRA pair again.

    Attributes
    ----------
    layout
        Layout of the coordinates: one entry `[p, q]` per module, `p, q <= min(side, sum of ranks)`; then, where
        adapters have parameters outside every pair, what was learnt of those, as it is.
    left, right
        The bases per module, `U [m, p]` and `V [n, q]`.
    origin : [d_0]
        What the parameters outside every pair started from.

    References
    ----------
    Panariello, Marczak et al., "Accurate and Efficient Low-Rank Model Merging in Core Space", NeurIPS 2025,
    https://arxiv.org/abs/2509.17786
    """

    layout: Layout
    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...]
    origin: Tensor

    @classmethod
    def of(cls, adapters: Layout, vectors: Tensor, initial: Tensor) -> "CoreSpace":
        """The core space of the rows of `vectors [n, d]`, which were trained from `initial [d]`."""
        left, right = [], []
        for pair in adapters.pairs:
            b, a = factors(adapters, pair, vectors)
            left.append(_basis(b.transpose(0, 1).flatten(1)))
            right.append(_basis(a.flatten(0, 1).T))
        names = tuple(pair.module for pair in adapters.pairs)
        shapes: tuple[tuple[int, ...], ...] = tuple((u.shape[1], v.shape[1]) for u, v in zip(left, right, strict=True))
        origin = plain(adapters, initial)
        if len(origin):
            names, shapes = (*names, "plain"), (*shapes, (len(origin),))
        return cls(Layout(names, shapes), tuple(left), tuple(right), origin)

    def project(self, adapters: Layout, vectors: Tensor) -> Tensor:
        """Coordinates `[n, D]` of the products of `vectors [n, d]`."""
        parts = []
        for pair, u, v in zip(adapters.pairs, self.left, self.right, strict=True):
            b, a = factors(adapters, pair, vectors)
            parts.append(((u.T @ b) @ (a @ v)).flatten(1))
        parts.append(plain(adapters, vectors) - self.origin)
        return torch.cat(parts, dim=1)

    def mean(self, adapters: Layout, vectors: Tensor, weights: Tensor) -> Tensor:
        """Coordinates `[D]` of the mean of the products of `vectors [n, d]`, by stacking, without each of them."""
        parts = []
        for pair, u, v in zip(adapters.pairs, self.left, self.right, strict=True):
            b, a = factors(adapters, pair, vectors)
            b = (b * weights.to(b.dtype)[:, None, None]).transpose(0, 1).flatten(1)
            parts.append(((u.T @ b) @ (a.flatten(0, 1) @ v)).flatten())
        parts.append(weights.to(vectors.dtype) @ (plain(adapters, vectors) - self.origin))
        return torch.cat(parts)

    def to_adapter(self, coordinates: Tensor, target: Layout) -> tuple[Tensor, dict[str, float]]:
        """The adapter `[d']` in layout `target` nearest to `coordinates [D]`, and the discarded energy per module.

        The rank is that of `target`; scales of `target` are divided out.
        """
        vector = torch.zeros(target.dim, dtype=coordinates.dtype)
        discarded = {}
        for i, (pair, u, v) in enumerate(zip(target.pairs, self.left, self.right, strict=True)):
            core = self.layout.entry(coordinates, i)
            rank = target.shapes[pair.a][0]
            (b, a), discarded[pair.module] = truncate((u @ core, v.T), rank)
            target.entry(vector, pair.b).copy_(b / pair.scale)
            target.entry(vector, pair.a).copy_(a)
        learnt = coordinates[self.layout.dim - len(self.origin) :] + self.origin
        for i in outside(target):
            part, learnt = learnt.tensor_split([target.offsets[i + 1] - target.offsets[i]])
            target.entry(vector, i).copy_(part.reshape(target.shapes[i]))
        return vector, discarded


def _basis(columns: Tensor) -> Tensor:
    """Left singular vectors `[m, p]` of `columns [m, R]` that carry a singular value."""
    u, s, _ = torch.linalg.svd(columns.double(), full_matrices=False)
    return u[:, s > s[0] * 1e-7].to(columns.dtype) if s[0] > 0 else u[:, :1].to(columns.dtype)
