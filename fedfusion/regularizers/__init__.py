"""The client's side of multi-task learning: a penalty on its adapter.

Examples
--------
>>> import torch
>>> from fedfusion.regularizers import Proximal
>>> from fedfusion.types import Layout
>>> params, anchor, no_tasks, own = torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(0, 2), torch.tensor([0])
>>> Proximal(mu=0.5)(params, anchor, no_tasks, own, Layout.of({"w": params}))
tensor([0.5000])
"""

from fedfusion.regularizers.orthogonal import Orthogonal
from fedfusion.regularizers.proximal import Proximal
from fedfusion.regularizers.unregularized import Unregularized

__all__ = [
    "Orthogonal",
    "Proximal",
    "Unregularized",
]
