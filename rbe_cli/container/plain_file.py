"""Reading files that strangers may have made or that others may be writing: never a pipe, never by memory mapping."""

from __future__ import annotations

import os
import stat
import weakref
from pathlib import Path

from rbe_cli.errors import CorruptFile


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
