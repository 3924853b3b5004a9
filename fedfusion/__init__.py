"""Federated multi-task LoRA fine-tuning, and fusion of what the devices learned, over a jammed uplink."""

__version__ = "0.1.0"
