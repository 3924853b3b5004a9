"""Federated multi-task LoRA fine-tuning, and fusion of what the devices learned, over a jammed uplink."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedfusion.api import Results, run

__version__ = "0.1.0"
__all__ = ["Results", "run"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is: `import fedfusion` alone loads no torch."""
    if name not in __all__:
        raise AttributeError(f"module 'fedfusion' has no attribute '{name}'")
    from fedfusion import api

    return globals().setdefault(name, getattr(api, name))
