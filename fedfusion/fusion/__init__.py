"""Across tasks: one multi-task vector."""

from fedfusion.fusion.linear import TaskArithmetic as TaskArithmetic
