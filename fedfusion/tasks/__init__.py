"""The data: tasks, partitions, heads."""
