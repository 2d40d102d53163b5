"""The regular expressions people write to say which tensors they mean."""

from __future__ import annotations

import re

from rbe_cli.errors import UsageError, first_line

_SHOWN = 100


def compile_pattern(pattern: str, where: str) -> re.Pattern[str]:
    """Compile a person's pattern. Raises UsageError, which says `where` it stands.

    >>> compile_pattern("wte|lm_head", "--include").search("lm_head.weight").group()
    'lm_head'
    """
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        shown = pattern if len(pattern) <= _SHOWN else pattern[:_SHOWN] + "..."
        raise UsageError(f"{where} {shown!r}: not a regular expression ({first_line(error)})") from None
