"""The data that ships with the package: a small base model and the digits."""

import sys
from pathlib import Path


def find(name: str) -> Path | None:
    """Where the asset `name` is, or None.

    A Flower bundle carries code but no data; the data is then found in the installed package.
    """
    candidates = (Path(__file__).parent, *(Path(entry, "fedfusion", "assets") for entry in sys.path))
    return next((folder / name for folder in candidates if (folder / name).exists()), None)
