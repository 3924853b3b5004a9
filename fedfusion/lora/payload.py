"""What of an upload is sent, and the upload that is made of what arrives."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from fedfusion.lora.product import factors, outside, plain, restrict
from fedfusion.types import Layout, Updates


@dataclass(frozen=True)
class Payload:
    r"""The real numbers that a client sends of its upload.

    - `factors`: the changes of `A` and `B`. White errors of relative power `e_A`, `e_B` on the factors are an error
      :math:`\kappa (e_A + e_B + e_A e_B)` of the product, see :func:`fedfusion.lora.product.kappa`.
    - `frozen_a`: the change of `B`, for adapters whose `A` nobody trains: the product is linear in it.
    - `product`: the change of each product `s B A`, entry by entry: `m n` numbers for the `r (m + n)` of the factors.
      The server knows the rank, and keeps the best approximation of it once the guard has judged what was received:
      it takes most of the noise away, and what a sum over several clients has beyond that rank.

    Entries beyond a client's own rank are known to be zero and not sent.

    Parameters
    ----------
    kind
        `factors`, `frozen_a` or `product`.
    layout
        Of an upload.
    ranks
        Rank of each client, repeated over the clients; None is the layout's.
    """

    kind: Literal["factors", "frozen_a", "product"]
    layout: Layout
    ranks: tuple[int, ...] | None = None

    def pack(self, updates: Updates) -> Updates:
        """The same rows, as what is sent: `vectors [n, D]`, filled up with zeros after `sizes [n]`."""
        if self.kind == "product":
            start, trained = self._products(updates.start), self._products(updates.start + updates.vectors)
            return replace(updates, layout=self._product_layout, start=start, vectors=trained - start)
        if self._whole:
            return updates
        columns = [self._columns(client) for client in updates.clients]
        sizes = tuple(map(len, columns))
        vectors = torch.zeros(len(updates), max(sizes, default=0))
        for row, chosen in enumerate(columns):
            vectors[row, : sizes[row]] = updates.vectors[row, chosen]
        return replace(updates, vectors=vectors, sizes=sizes)

    def unpack(self, received: Updates) -> Updates:
        """What was received, for the guard to judge: factors by entry, or changes of products as they are."""
        if self.kind == "product" or self._whole:
            return received
        vectors = torch.zeros(len(received), self.layout.dim)
        for row, client in enumerate(received.clients):
            chosen = self._columns(client)
            vectors[row, chosen] = received.vectors[row, : len(chosen)]
        return replace(received, vectors=vectors, sizes=())

    def uploads(self, believed: Updates, sent: Updates) -> Updates:
        """Uploads of adapters `[n, d]`, from what is believed of those that were `sent`."""
        if self.kind != "product":
            return believed
        rows = {client: row for row, client in enumerate(sent.clients)}
        start = sent.start[[rows[client] for client in believed.clients]]
        vectors = torch.empty_like(start)
        for row, client in enumerate(believed.clients):
            vectors[row] = self._adapter(believed.start[row] + believed.vectors[row], client) - start[row]
        return replace(believed, layout=self.layout, start=start, vectors=vectors)

    @property
    def _whole(self) -> bool:
        """Whether uploads are sent entry by entry, as they are."""
        return self.kind == "factors" and self.ranks is None

    @cached_property
    def _product_layout(self) -> Layout:
        """One entry `[m, n]` per module, and what is outside every pair."""
        shapes: list[tuple[str, tuple[int, ...]]] = [
            (pair.module, (self.layout.shapes[pair.b][0], self.layout.shapes[pair.a][1])) for pair in self.layout.pairs
        ]
        shapes += [(self.layout.names[i], self.layout.shapes[i]) for i in outside(self.layout)]
        return Layout(tuple(name for name, _ in shapes), tuple(shape for _, shape in shapes))

    def _rank(self, client: int) -> int | None:
        return None if self.ranks is None else self.ranks[client % len(self.ranks)]

    def _columns(self, client: int) -> Tensor:
        """The entries that a client sends."""
        sent, rank = torch.ones(1, self.layout.dim), self._rank(client)
        if rank is not None:
            sent = restrict(self.layout, sent, torch.tensor([rank]))
        if self.kind == "frozen_a":
            for pair in self.layout.pairs:
                self.layout.entry(sent, pair.a).zero_()
        return sent[0].nonzero()[:, 0]

    def _products(self, adapters: Tensor) -> Tensor:
        """Products of `adapters [n, d]`, flattened, and what is outside every pair: `[n, D]`."""
        parts = []
        for pair in self.layout.pairs:
            b, a = factors(self.layout, pair, adapters)
            parts.append((b @ a).flatten(1))
        return torch.cat([*parts, plain(self.layout, adapters)], 1)

    def _adapter(self, products: Tensor, client: int) -> Tensor:
        """The adapter `[d]` nearest to `products [D]`, balanced: `A = S^{1/2} V^T`, `B = U S^{1/2}`."""
        adapter, entries = torch.zeros(self.layout.dim), self._product_layout
        for i, pair in enumerate(self.layout.pairs):
            u, s, vt = torch.linalg.svd(entries.entry(products, i).double(), full_matrices=False)
            own = min(self._rank(client) or len(s), self.layout.shapes[pair.a][0], len(s))
            root = s[:own].sqrt()
            self.layout.entry(adapter, pair.b)[:, :own] = u[:, :own] * root / pair.scale
            self.layout.entry(adapter, pair.a)[:own] = root[:, None] * vt[:own]
        for i, entry in enumerate(outside(self.layout), len(self.layout.pairs)):
            self.layout.entry(adapter, entry).copy_(entries.entry(products, i))
        return adapter
