"""Values of a JSON document that may be anything: what a field must be, or ValueError, TypeError or OverflowError."""

from __future__ import annotations

import re
from typing import Any

from rbe_cli.files.names import is_text

#: Hexadecimal digits of the fingerprint of a base's tensor: enough to tell it from any other by mistake.
FINGERPRINT = 16


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


def is_fingerprint(value: Any) -> bool:
    """Whether it is what a tensor's bytes may have for a fingerprint.

    >>> is_fingerprint("0123456789abcdef"), is_fingerprint("0123"), is_fingerprint(None)
    (True, False, False)
    """
    return isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{FINGERPRINT}}}", value) is not None
