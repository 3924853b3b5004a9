"""Linear algebra on LoRA products `s B A`, computed from the factors without forming them.

LoRA factors are defined up to an invertible matrix; only the product means something. Here are its inner
products and norms, stacking, truncation, and the *core space*: one common orthonormal basis per module in
which every product of a round is a small matrix, so that any rule on plain vectors is a rule on products.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedfusion.types import FedfusionError, Layout, Pair

ROUNDING = 1e-7  # singular values below this share of the largest are lost in single precision
DROWNING = 1e3  # times the usual size of a factor
Space = Literal["core", "left", "right", "dense"]
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


def shortening(coefficients: Tensor, limit: Tensor) -> Tensor:
    """The largest `t` `[n]` in [0, 1] at which the changes with these `coefficients [n, 3]` are no longer than `limit`.

    See :func:`change_coefficients`; `limit` is a norm, one for all or `[n]`. Found by bisection (float64).
    """
    c2, c3, c4 = coefficients.unbind(1)
    low, high = torch.full_like(c2, -500.0), torch.zeros_like(c2)  # exponents: limits may be tiny beside the change
    for _ in range(60):
        middle = (low + high) / 2
        t = middle.exp2()
        fits = t.square() * (c2 + t * (c3 + t * c4)) <= limit**2
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    return torch.where((c2 + c3 + c4).clamp_min(0).sqrt() > limit * (1 + 1e-9), low.exp2(), torch.ones_like(low))


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
    left, right = torch.geqrf(b.double()), torch.geqrf(a.double().T)  # the orthogonal factors are never formed
    core = left[0][: b.shape[1]].triu() @ right[0][: b.shape[1]].triu().T
    (u, v), discarded = _balanced(core, rank)
    return _padded((_rotated(left, u).to(b.dtype), _rotated(right, v.T).T.to(a.dtype)), rank), discarded


def spectrum(layout: Layout, vectors: Tensor, weights: Tensor) -> Tensor:
    r"""In how many directions adapters act: the singular values of their mean product, as shares of its energy.

    .. math:: e_i = \frac{1}{M} \sum_\text{modules} \frac{s_i^2}{\sum_j s_j^2}
              \quad\text{of}\quad \sum_k p_k\, s B_k A_k

    Parameters
    ----------
    vectors, weights
        Adapters `[n, d]`, and their weights `[n]`.

    Returns
    -------
    Tensor
        Shares, the largest first (float64); they sum to one. Modules whose product is zero are left out; if there is
        no other, the result is empty.
    """
    columns = []
    for pair in layout.pairs:
        b, a = factors(layout, pair, vectors.double())
        left = torch.linalg.qr((b * weights.double()[:, None, None]).transpose(0, 1).flatten(1), mode="r").R
        right = torch.linalg.qr(a.flatten(0, 1).T, mode="r").R
        power = torch.linalg.svdvals(left @ right.T).square()
        if power.sum() > 0:
            columns.append(power / power.sum())
    if not columns:
        return torch.zeros(0, dtype=torch.float64)
    longest = max(map(len, columns))
    return torch.stack([F.pad(column, (0, longest - len(column))) for column in columns]).mean(0)


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

    Rules that look at single entries depend on the basis, so :meth:`of` has a choice of four:

    - `core`: `U` and `V` as above; coordinates `[p, q]`, `p, q <= min(side, sum of ranks)`.
    - `left`: `U` are the left singular vectors of the products side by side, :math:`[s B_1 A_1, \dots, s B_n A_n]`,
      and there is no `V` (KnOTS); coordinates `[p, in]`.
    - `right`: no `U`, and `V` as in `core`; coordinates `[out, q]`.
    - `dense`: neither, so that coordinates are the products `[out, in]` themselves.

    Attributes
    ----------
    layout
        Layout of the coordinates: one entry per module; then, where adapters have parameters outside every pair, what
        was learnt of those, as it is.
    left, right
        The bases per module, `U [m, p]` and `V [n, q]`; None is the identity.
    origin : [d_0]
        What the parameters outside every pair started from.

    References
    ----------
    Panariello, Marczak et al., "Accurate and Efficient Low-Rank Model Merging in Core Space", NeurIPS 2025,
    https://arxiv.org/abs/2509.17786; Stoica et al., "Model merging with SVD to tie the Knots", ICLR 2025,
    https://arxiv.org/abs/2410.19735
    """

    layout: Layout
    left: tuple[Tensor | None, ...]
    right: tuple[Tensor | None, ...]
    origin: Tensor

    @classmethod
    def of(cls, adapters: Layout, vectors: Tensor, initial: Tensor, space: Space = "core") -> "CoreSpace":
        """The core space of the rows of `vectors [n, d]`, which were trained from `initial [d]`."""
        left: list[Tensor | None] = []
        right: list[Tensor | None] = []
        shapes: list[tuple[int, ...]] = []
        for pair in adapters.pairs:
            b, a = _comparable(factors(adapters, pair, vectors))
            if space == "left":  # A_k^T = Q_k T_k, so the products side by side span what the B_k T_k^T do
                b = b.double() @ torch.linalg.qr(a.double().mT, mode="r").R.mT
            u = _basis(b.transpose(0, 1).flatten(1)).to(vectors.dtype) if space in ("core", "left") else None
            v = _basis(a.flatten(0, 1).T).to(vectors.dtype) if space in ("core", "right") else None
            shapes.append((b.shape[-2] if u is None else u.shape[1], a.shape[-1] if v is None else v.shape[1]))
            left.append(u)
            right.append(v)
        names = tuple(pair.module for pair in adapters.pairs)
        origin = plain(adapters, initial)
        if len(origin):
            names, shapes = (*names, "plain"), [*shapes, (len(origin),)]
        return cls(Layout(names, tuple(shapes)), tuple(left), tuple(right), origin)

    @property
    def rank(self) -> int:
        """The rank at which an adapter holds any coordinates."""
        return max((min(self.layout.shapes[i]) for i in range(len(self.left))), default=0)

    def project(self, adapters: Layout, vectors: Tensor) -> Tensor:
        """Coordinates `[n, D]` of the products of `vectors [n, d]`."""
        parts = []
        for pair, u, v in zip(adapters.pairs, self.left, self.right, strict=True):
            b, a = _within(factors(adapters, pair, vectors), u, v)
            parts.append((b @ a).flatten(1))
        parts.append(plain(adapters, vectors) - self.origin)
        return torch.cat(parts, dim=1)

    def mean(self, adapters: Layout, vectors: Tensor, weights: Tensor) -> Tensor:
        """Coordinates `[D]` of the mean of the products of `vectors [n, d]`, by stacking, without each of them."""
        parts = []
        for pair, u, v in zip(adapters.pairs, self.left, self.right, strict=True):
            b, a = factors(adapters, pair, vectors)
            b = (b * weights.to(b.dtype)[:, None, None]).transpose(0, 1).flatten(1)
            b, a = _within((b, a.flatten(0, 1)), u, v)
            parts.append((b @ a).flatten())
        parts.append(weights.to(vectors.dtype) @ (plain(adapters, vectors) - self.origin))
        return torch.cat(parts)

    def curvature(self, moments: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
        r"""Second moments by module, `inputs [T, n, n]` and `gradients [T, m, m]`, in coordinates.

        They are :math:`V^\top G V` and :math:`U^\top S U`, by entry of the layout.
        """
        bases = zip(self.layout.names, self.left, self.right, strict=False)
        return {
            name: (_quadratic(moments[name][0], v), _quadratic(moments[name][1], u))
            for name, u, v in bases
            if name in moments
        }

    def to_adapter(self, coordinates: Tensor, target: Layout) -> tuple[Tensor, dict[str, float]]:
        """The adapter `[d']` in layout `target` nearest to `coordinates [D]`, and the discarded energy per module.

        The rank is that of `target`; scales of `target` are divided out. The factors are balanced, as those of
        :func:`truncate`.
        """
        pairs, discarded = [], {}
        for i, (pair, u, v) in enumerate(zip(target.pairs, self.left, self.right, strict=True)):
            core = self.layout.entry(coordinates, i)
            (b, a), discarded[pair.module] = _balanced(core.double(), target.shapes[pair.a][0])
            pairs.append((_times(u, b.to(core.dtype)), _times(v, a.T.to(core.dtype)).T))
        return self._adapter(pairs, coordinates, target), discarded

    def embed(self, coordinates: Tensor, target: Layout) -> Tensor:
        """The adapter `[d']` in layout `target` whose products are `coordinates [D]`, differentiable in them.

        One factor is the smaller basis, the other has the coordinates; ranks beyond are zero. So the map is linear
        in the coordinates, but its factors are not balanced.

        Raises
        ------
        FedfusionError
            If the rank of `target` is below :attr:`rank`: nothing is cut off here.
        """
        pairs = []
        for i, (pair, u, v) in enumerate(zip(target.pairs, self.left, self.right, strict=True)):
            core, rank = self.layout.entry(coordinates, i), target.shapes[pair.a][0]
            if min(core.shape) > rank:
                raise FedfusionError(
                    f"the fused adapter has rank {rank} at '{pair.module}', the coordinates need {min(core.shape)} "
                    f"(raise its rank to {self.rank}, or cut the coordinates with to_adapter)"
                )
            eye = torch.eye(min(core.shape), dtype=core.dtype)
            if core.shape[0] <= core.shape[1]:
                pairs.append((eye if u is None else u, _times(v, core.T).T))
            else:
                pairs.append((_times(u, core), eye if v is None else v.T))
        return self._adapter(pairs, coordinates, target)

    def rank_of(self, coordinates: Tensor, energy: float) -> int:
        r"""The smallest rank that keeps the share `energy` of :math:`\sum_i s_i^2` of every module.

        What single precision rounds off counts as nothing, so an `energy` of one gives the rank of the coordinates.

        Raises
        ------
        FedfusionError
            If `energy` is not in `(0, 1]`.
        """
        if not 0 < energy <= 1:
            raise FedfusionError(f"the share of energy to keep must be in (0, 1], got {energy}")
        ranks = [1]
        for i in range(len(self.left)):
            power = torch.linalg.svdvals(self.layout.entry(coordinates, i).double()).square()
            beyond = power.flip(0).cumsum(0).flip(0)  # what is lost where the rank stops before this one
            ranks.append(int((beyond > (1 - energy + ROUNDING**2) * power.sum()).sum()))
        return max(ranks)

    def _adapter(self, pairs: Sequence[Factors], coordinates: Tensor, target: Layout) -> Tensor:
        """The adapter `[d']` of one pair per module and of what there is outside."""
        entries: dict[int, Tensor] = {}
        for pair, own in zip(target.pairs, pairs, strict=True):
            b, entries[pair.a] = _padded(own, target.shapes[pair.a][0])
            entries[pair.b] = b / pair.scale
        learnt = coordinates[self.layout.dim - len(self.origin) :] + self.origin
        sizes = [target.offsets[i + 1] - target.offsets[i] for i in outside(target)]
        entries |= dict(zip(outside(target), learnt.split(sizes), strict=True))
        return torch.cat([entries[i].reshape(-1) for i in range(len(target.names))])


def _comparable(pair: Factors) -> Factors:
    """The same products, with those factors rescaled that would drown the others in a common basis."""
    b, a = pair
    size = a.norm(dim=(1, 2))
    typical = size[size > 0].median() if size.any() else size.new_tensor(1.0)
    far = (size > 0) & ((size > DROWNING * typical) | (size < typical / DROWNING))
    c = torch.where(far, typical / size, 1.0)[:, None, None]
    return b / c, a * c


def _basis(columns: Tensor) -> Tensor:
    """Left singular vectors `[m, p]` of `columns [m, R]` that carry a singular value (float64)."""
    x = columns.double()
    tall = x.shape[0] > x.shape[1]
    values, vectors = torch.linalg.eigh(x.T @ x if tall else x @ x.T)
    share = values.flip(0) / values[-1]
    kept = share > ROUNDING
    if (share[~kept] > ROUNDING**2).any() or not values[-1] > 0:  # the squares have lost them
        u, s, _ = torch.linalg.svd(x, full_matrices=False)
        return u[:, s > s[0] * ROUNDING] if s[0] > 0 else u[:, :1]
    vectors = vectors.flip(1)[:, kept]
    return x @ (vectors / values.flip(0)[kept].sqrt()) if tall else vectors


def _balanced(core: Tensor, rank: int) -> tuple[Factors, float]:
    """Balanced factors of the best approximation of `core [p, q]` (float64), and the discarded share of the energy.

    The rank is at most `rank` and the shorter side. Singular values that single precision cannot hold are zero.
    """
    if core.shape[0] < core.shape[1]:
        (a, b), discarded = _balanced(core.T, rank)
        return (b.T, a.T), discarded
    values, vectors = torch.linalg.eigh(core.T @ core)
    energy, v = values.flip(0).clamp_min(0), vectors.flip(1)[:, :rank]
    b = core @ v
    s = b.norm(dim=0)
    root = torch.where(s > ROUNDING * s[0], s, 0).sqrt()
    discarded = float(energy[rank:].sum() / energy.sum()) if energy.sum() > 0 else 0.0
    return (F.normalize(b, dim=0) * root, root[:, None] * v.T), discarded


def _rotated(reflected: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    """`Q x` of the `Q [m, k]` that :func:`torch.geqrf` returned, `x [k, r]`."""
    reflectors, tau = reflected
    return torch.ormqr(reflectors[:, : len(tau)], tau, F.pad(x, (0, 0, 0, len(reflectors) - len(x))))


def _times(basis: Tensor | None, x: Tensor) -> Tensor:
    """`U x`, where no basis is the identity."""
    return x if basis is None else basis @ x


def _within(pair: Factors, u: Tensor | None, v: Tensor | None) -> Factors:
    """`B [..., p, r]` and `A [..., r, q]` in coordinates."""
    b, a = pair
    return b if u is None else (b.mT @ u).mT, a if v is None else a @ v


def _quadratic(moments: Tensor, basis: Tensor | None) -> Tensor:
    """Second moments `[T, m, m]` along a basis `[m, p]`: `[T, p, p]`."""
    return moments if basis is None else basis.T @ moments @ basis


def _padded(pair: Factors, rank: int) -> Factors:
    """The same product with zeros up to `rank`."""
    b, a = pair
    return F.pad(b, (0, rank - b.shape[-1])), F.pad(a, (0, 0, 0, rank - a.shape[-2]))
