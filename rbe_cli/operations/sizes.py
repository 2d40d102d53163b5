"""Sizes as people write them: MB is a power of 1000, MiB one of 1024."""

from __future__ import annotations

import re

from rbe_cli.errors import UsageError

_SIZE = re.compile(r"(.+?)(?:([kmgt])(i?))?b?", re.IGNORECASE)


def parse_size(text: str, where: str) -> int:
    """Bytes from `60MB`, `4g`, `4GiB` or `1000000`. Raises UsageError, which says `where` it stands.

    >>> parse_size("60MB", "--size"), parse_size("1.5 G", "--size"), parse_size("2 KiB", "--size")
    (60000000, 1500000000, 2048)
    """
    found = _SIZE.fullmatch(text.strip())
    if found:
        number, prefix, binary = found.groups("")
        try:
            size = float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix.lower() or " ")
            if 0 <= size < 1 << 63:
                return int(size)
        except ValueError:
            pass
    raise UsageError(f"{where} {text!r}: not a size; write it like 60MB or 4GiB")
