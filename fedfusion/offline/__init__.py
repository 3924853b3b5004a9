"""Without a federation: fuse LoRA adapters that exist already, and measure one."""
