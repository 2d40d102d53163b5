"""Reading files that strangers may have made or that others may be writing: never a pipe, never by memory mapping."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rbe_cli.errors import CorruptFile

_PIECE = 1 << 20


class PlainFile:
    """A file open for reading at any place by any thread, closed when nobody needs it any more.

    It is read, not memory-mapped: a mapped file that gets shorter kills the process, and its pages count as memory.
    """

    def __init__(self, path: Path) -> None:
        """Open it. Raises CorruptFile if it is a pipe or a device, on which one could wait for ever, else OSError."""
        try:
            self._number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except ValueError:
            raise CorruptFile(f"{path}: no file has such a name") from None
        self.close = weakref.finalize(self, os.close, self._number)
        mode = os.fstat(self._number).st_mode
        if not stat.S_ISREG(mode):
            raise CorruptFile(f"{path}: is {'a folder' if stat.S_ISDIR(mode) else 'not a plain file'}")

    def stamp(self) -> tuple[int, int]:
        """Size, and time of the last change in ns: what tells that its bytes are others now."""
        found = os.fstat(self._number)
        return found.st_size, found.st_mtime_ns

    def read(self, offset: int, size: int) -> bytearray:
        """Some bytes; fewer where the file ends."""
        data = bytearray(max(0, min(size, self.stamp()[0] - offset)))
        view = memoryview(data)
        done = 0
        while done < len(data) and (got := os.preadv(self._number, [view[done:]], offset + done)):
            done += got
        view.release()
        del data[done:]
        return data

    def read_bytes(self, offset: int, size: int) -> bytes:
        """The same in bytes that nobody can change, without holding them twice."""
        parts = []
        while size > 0 and (part := os.pread(self._number, size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)

    def pieces(self) -> Iterator[bytearray]:
        """The bytes it has at this moment, a megabyte at a time.

        Not more: files of the kernel's, whose size is 0, may have no end, or wait.
        """
        for at in range(0, self.stamp()[0], _PIECE):
            yield self.read(at, _PIECE)

    def sha256(self) -> str:
        """Fingerprint of all that is there."""
        with open(self._number, "rb", buffering=0, closefd=False) as file:
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()


def files_below(folder: Path) -> Iterator[str]:
    """The paths within a folder of all that is no folder; links to folders are, too, and are not followed."""
    for top, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(top, name))]
        for name in sorted(files + links):
            yield Path(top, name).relative_to(folder).as_posix()


def copy(source: Path, target: Path) -> str:
    """Copy a file's `pieces`, and have them on the disk; returns their SHA-256. Raises CorruptFile, OSError."""
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for data in PlainFile(source).pieces():
            digest.update(data)
            out.write(data)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def sha256_of_copy(source: Path) -> str:
    """What `copy` would return. Raises CorruptFile, OSError."""
    digest = hashlib.sha256()
    for data in PlainFile(source).pieces():
        digest.update(data)
    return digest.hexdigest()


def read_json(path: Path, limit: int) -> Any:
    """What a JSON file of at most `limit` bytes says. Raises ValueError if it is none, CorruptFile and OSError."""
    data = PlainFile(path).read(0, limit + 1)
    if len(data) > limit:
        raise ValueError
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError from None
