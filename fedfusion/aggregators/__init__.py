"""Within one task: many clients, one vector."""

from fedfusion.aggregators.mean import Mean as Mean
