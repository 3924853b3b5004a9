"""The server's side of a round, and any strategy of Flower's behind a radio uplink."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedfusion.server.wireless import WirelessStrategy as WirelessStrategy


def __getattr__(name: str) -> Any:
    if name == "WirelessStrategy":  # Flower is imported only by those who ask for it
        from fedfusion.server.wireless import WirelessStrategy

        return WirelessStrategy
    raise AttributeError(f"module 'fedfusion.server' has no attribute '{name}'")
