"""What the server refuses or clips.

Examples
--------
>>> import torch
>>> from fedfusion.guard import NormClip
>>> from fedfusion.types import Updates
>>> believed, report = NormClip(clip=1.0, refuse=100.0)(Updates.of(torch.tensor([[1.0], [1.0], [5.0], [999.0]])))
>>> believed.vectors[:, 0], report.clipped, report.refused
(tensor([1., 1., 1.]), (2,), {3: 'sent a norm of 999, the median is 1'})
"""

from fedfusion.guard.norm_clip import NormClip
from fedfusion.guard.task_aware import TaskAware

__all__ = [
    "NormClip",
    "TaskAware",
]
