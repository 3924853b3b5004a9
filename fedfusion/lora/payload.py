"""What of an upload is sent, and the upload that is made of what arrives."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedfusion.lora.product import factors, outside, plain, restrict, truncate
from fedfusion.types import Layout, Updates


@dataclass(frozen=True)
class Payload:
    r"""The real numbers that a client sends of its upload.

    - `factors`: the changes of `A` and `B`. White errors of relative power `e_A`, `e_B` on the factors are an error
      :math:`\kappa (e_A + e_B + e_A e_B)` of the product, see :func:`fedfusion.lora.product.kappa`.
    - `frozen_a`: the change of `B`, for adapters whose `A` nobody trains: the product is linear in it.
    - `product`: the change of each product `s B A`, entry by entry: `m n` numbers for the `r (m + n)` of the factors.
      The server knows the rank, and keeps the best approximation of it, which takes most of the noise away.

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
            return updates.with_vectors(self._products(updates.start + updates.vectors) - self._products(updates.start))
        if self.kind == "factors" and self.ranks is None:
            return updates
        columns = [self._columns(client) for client in updates.clients]
        sizes = tuple(map(len, columns))
        vectors = torch.zeros(len(updates), max(sizes))
        for row, chosen in enumerate(columns):
            vectors[row, : sizes[row]] = updates.vectors[row, chosen]
        return updates.with_vectors(vectors).with_sizes(sizes)

    def unpack(self, received: Updates) -> Updates:
        """Uploads `[n, d]` again, of what was received."""
        if self.kind == "factors" and self.ranks is None:
            return received
        if self.kind == "product":
            products = self._products(received.start) + received.vectors
            rows = [self._adapter(product, client) for product, client in zip(products, received.clients, strict=True)]
            return received.with_vectors(torch.stack(rows) - received.start if rows else received.start.clone())
        vectors = torch.zeros(len(received), self.layout.dim)
        for row, client in enumerate(received.clients):
            chosen = self._columns(client)
            vectors[row, chosen] = received.vectors[row, : len(chosen)]
        return received.with_vectors(vectors).with_sizes(())

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
        """The adapter `[d]` nearest to `products [D]`."""
        adapter = torch.zeros(self.layout.dim)
        for pair in self.layout.pairs:
            m, n = self.layout.shapes[pair.b][0], self.layout.shapes[pair.a][1]
            product, products = products.tensor_split([m * n])
            rank = self.layout.shapes[pair.a][0]
            own = min(self._rank(client) or rank, rank)
            (b, a), _ = truncate((product.view(m, n), torch.eye(n)), own)
            self.layout.entry(adapter, pair.b)[:, :own] = b / pair.scale
            self.layout.entry(adapter, pair.a)[:own] = a
        for i in outside(self.layout):
            part, products = products.tensor_split([self.layout.offsets[i + 1] - self.layout.offsets[i]])
            self.layout.entry(adapter, i).copy_(part.view(self.layout.shapes[i]))
        return adapter
