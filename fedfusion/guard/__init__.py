"""What the server refuses or clips."""

from fedfusion.guard.norm_clip import NormClip as NormClip
