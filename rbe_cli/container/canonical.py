"""Canonical JSON: sorted keys, no spaces, ASCII; one text for one value."""

from __future__ import annotations

import json
from typing import Any

from rbe_cli.errors import CorruptFile


def dump(value: Any) -> bytes:
    """The canonical text of a value.

    >>> dump({"b": 1, "a": [True, "x"]})
    b'{"a":[true,"x"],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True).encode("ascii")


def load(text: bytes, what: str) -> Any:
    """Parse canonical JSON. Anything else (spaces, duplicate keys, NaN, other spellings) raises CorruptFile."""
    try:
        value = json.loads(text.decode("ascii"))
        if dump(value) == text:
            return value
    except (ValueError, RecursionError):
        pass
    raise CorruptFile(f"{what}: not canonical JSON")
