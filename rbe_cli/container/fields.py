"""Values of a JSON document that may be anything: what a field must be, or ValueError, TypeError or OverflowError."""

from __future__ import annotations

from typing import Any

from rbe_cli.container.names import is_text


def number(value: Any) -> float:
    """An integer or a float."""
    if type(value) not in (int, float):
        raise TypeError
    return float(value)


def text(value: Any) -> str:
    """A string that has a UTF-8 form."""
    if not isinstance(value, str) or not is_text(value):
        raise TypeError
    return value


def count(value: Any) -> int:
    """An integer from 0 to below 2^63."""
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise TypeError
    return value
