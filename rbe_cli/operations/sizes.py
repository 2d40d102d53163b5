"""Sizes as people write them: powers of 1000."""

from __future__ import annotations

from rbe_cli.errors import UsageError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def parse_size(text: str, where: str) -> int:
    """Bytes from `60MB`, `4g` or `1000000`. Raises UsageError, which says `where` it stands.

    >>> parse_size("60MB", "--size"), parse_size("1.5 G", "--size")
    (60000000, 1500000000)
    """
    body = text.strip().lower().removesuffix("b")
    unit = body[-1:] if body[-1:].isalpha() else ""
    try:
        size = float(body.removesuffix(unit)) * _UNITS[unit]
        if 0 <= size < 1 << 63:
            return int(size)
    except (ValueError, KeyError):
        pass
    raise UsageError(f"{where} {text!r}: not a size; write it like 60MB or 4GB")
