"""The TOML files people write: presets and budgets. A wrong key is an error that names the nearest right one."""

from __future__ import annotations

import difflib
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rbe_cli.errors import RBEError, UsageError, first_line
from rbe_cli.files.plain_file import PlainFile

STDIN = Path("-")
_MAX_SIZE = 16 << 20


def unknown_key(key: str, known: Sequence[str], where: str) -> UsageError:
    """The error to raise for a key that is not among the known ones.

    >>> print(unknown_key("blocks", ["bits", "block"], "my.toml"))
    my.toml: unknown key 'blocks'; did you mean 'block'?
    """
    near = difflib.get_close_matches(key.replace("-", "_").lower(), known, 1, 0.5)
    advice = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
    return UsageError(f"{where}: unknown key {key!r}; {advice}")


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file a person wrote; `-` is standard input.

    Raises RBEError if it cannot be read, UsageError if it is no sound TOML.
    """
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file")
    try:
        text = sys.stdin.buffer.read(_MAX_SIZE + 1) if path == STDIN else PlainFile(path).read(0, _MAX_SIZE + 1)
        if len(text) > _MAX_SIZE:
            raise UsageError(f"{path}: more than {_MAX_SIZE >> 20} MB are no settings")
        values = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not TOML ({first_line(error)})") from None
    except OSError as error:
        raise RBEError(f"{path}: cannot be read ({error.strerror})") from None
    if not _all_in_range(values):
        raise UsageError(f"{path}: holds a whole number beyond 64 bits")
    return values


def _all_in_range(values: Any) -> bool:
    """Whether every whole number has 64 bits, as TOML asks: those of thousands of digits cannot even be shown."""
    left = [values]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list):
            left += value
        elif isinstance(value, int) and not -1 << 63 <= value < 1 << 63:
            return False
    return True
