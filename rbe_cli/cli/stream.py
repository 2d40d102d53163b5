"""`-o -`: the result goes to standard output as one stream, and what is to be said goes to standard error."""

from __future__ import annotations

import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rbe_cli.errors import UsageError

STDOUT = Path("-")


def binary_stdout(as_json: bool) -> BinaryIO:
    """Standard output for bytes. Raises UsageError if that is a terminal, or is wanted for JSON."""
    if as_json:
        raise UsageError("-o - writes to stdout, and so does --json: give one of them")
    if sys.stdout.isatty():
        raise UsageError("-o - writes bytes to stdout, which is a terminal: redirect it, or name a file or folder")
    return sys.stdout.buffer


@contextmanager
def tar_on_stdout(name: str, as_json: bool) -> Iterator[Path]:
    """A folder to fill, outside the user's; when it is filled, a tar of it goes to standard output.

    The tar is the same for the same files: sorted, no times, no owners.
    """
    out = binary_stdout(as_json)
    with tempfile.TemporaryDirectory(prefix="rbe-") as scratch:
        folder = Path(scratch) / name
        yield folder
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                entry = tarfile.TarInfo(f"{name}/{path.relative_to(folder).as_posix()}")
                entry.size = path.stat().st_size
                with path.open("rb") as file:
                    tar.addfile(entry, file)
        out.flush()
