"""JSON that every program reads: RFC 8259 knows no number that is not finite."""

import json
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

WORDS = ("inf", "-inf", "nan")  # as overrides have them


def dumps(content: Any, indent: int | None = None) -> str:
    """`content` as JSON, with null for every figure that is not finite."""
    return json.dumps(_leaves(content, lambda value: None if _beyond(value) else value), indent=indent)


def worded(config: Any) -> Any:
    """Settings for :func:`dumps`: a word for each that is not finite, as null would be another setting."""
    return _leaves(config, lambda value: str(value) if _beyond(value) else value)


def unworded(config: Any) -> Any:
    """The settings that :func:`worded` was given."""
    return _leaves(config, lambda value: float(value) if value in WORDS else value)


def _beyond(value: Any) -> bool:
    return isinstance(value, float) and not isfinite(value)


def _leaves(content: Any, of: Callable[[Any], Any]) -> Any:
    """`content` with `of` each leaf in its place."""
    if isinstance(content, Mapping):
        return {key: _leaves(value, of) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_leaves(value, of) for value in content]
    return of(content)
