"""Files to go on from: one JSON object a line, `{"sha256": ..., "record": ...}`, added as the work goes on.

The SHA-256 is that of the record's canonical text, so that a figure changed by hand is noticed. A line that a kill cut
short is the last and has no end.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rbe_cli.container import canonical
from rbe_cli.errors import CorruptFile
from rbe_cli.files.atomic import named_when_full
from rbe_cli.files.plain_file import PlainFile

_MAX_SIZE = 128 << 20
_BEGIN = b'{"sha256":"'
#: What tells that a first line without an end is one that a kill cut short, and not a text that begins alike.
_OURS = re.compile(_BEGIN + rb'[0-9a-f]{64}","record":')
#: What reading a line that is not ours may raise.
_NOT_OURS = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


def read(path: Path, take: Callable[[Any], object]) -> None:
    """Give every record of a file to `take`, and remove what a kill left of one behind them.

    `take` may raise ValueError, KeyError, TypeError or AttributeError for a record that is none of its own. Raises
    CorruptFile if the file is not such a file from beginning to end, OSError if it cannot be read.
    """
    data = PlainFile(path).read(0, _MAX_SIZE + 1)
    if len(data) > _MAX_SIZE:
        raise CorruptFile(f"{path}: too large to be records")
    *lines, rest = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            take(_record(line))
        except _NOT_OURS:
            raise CorruptFile(f"{path}: line {number} is damaged, or of another kind of file") from None
    if not (_BEGIN.startswith(rest[: len(_BEGIN)]) if lines or not rest else _OURS.match(rest)):
        raise CorruptFile(f"{path}: line {len(lines) + 1} is damaged, or of another kind of file")
    if rest:
        os.truncate(path, len(data) - len(rest))


def add(path: Path, record: Any) -> None:
    """Put a record behind those a file has, and have it on the disk; the first makes the file."""
    text = canonical.dump(record)
    with named_when_full(path), path.open("ab") as file:
        file.write(_BEGIN + _digest(text) + b'","record":' + text + b"}\n")
        file.flush()
        os.fsync(file.fileno())


def _record(line: bytearray) -> Any:
    value = json.loads(line)
    if value["sha256"].encode() != _digest(canonical.dump(value["record"])):
        raise ValueError
    return value["record"]


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()
