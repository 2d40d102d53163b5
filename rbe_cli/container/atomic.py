"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rbe_cli.errors import RBEError

#: Names of outputs that are longer, in bytes, are shortened for the working folder.
_LONGEST = 200
#: What new files may not allow. Read once, before there are threads: reading it is to change it for a moment.
_UMASK = os.umask(0o077)
os.umask(_UMASK)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when all went well: temporary, flushed, synced, renamed.

    Raises RBEError if there cannot be such a file.
    """
    check_file(path, replace=True)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".partial", dir=path.parent)
    except OSError as error:
        raise RBEError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(0o666 & ~_UMASK)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: Path, replace: bool, keep: bool = False) -> Iterator[Path]:
    """A folder to fill that takes the place of `path` when all went well.

    It is in a working folder beside `path`, whose other files are the caller's. What a killed process left of that is
    cleared away, unless `keep`: then it is there to go on with, and stays when this one fails, too.

    Raises RBEError if `path` is there and `replace` is not given, or if another process is at it. The folder before
    stays until the new one is complete, and comes back if the last step fails.
    """
    check_free(path, replace)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_be_written(path, error) from None
    with _working_folder(path) as work:
        whole, old = work / "whole", work / "old"
        if old.exists() and not path.exists():
            # Killed between the last two steps.
            old.rename(path)
            check_free(path, replace)
        if not keep:
            _clear(work)
        if whole.is_symlink() or whole.is_file():
            whole.unlink()
        try:
            whole.mkdir(exist_ok=True)
            yield whole
            check_free(path, replace)
            if path.exists():
                path.rename(old)
            try:
                whole.rename(path)
            except OSError:
                if old.exists():
                    old.rename(path)
                raise
        except BaseException:
            if not keep:
                shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work)


@contextmanager
def _working_folder(path: Path) -> Iterator[Path]:
    """The folder `.NAME.partial`, locked as long as this process lives. Raises RBEError if another one has it."""
    name = path.name
    if len(os.fsencode(name)) > _LONGEST:
        name = name[: _LONGEST // 4] + hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    work = path.with_name(f".{name}.partial")
    while True:
        try:
            work.mkdir(exist_ok=True)
        except OSError as error:
            raise _cannot_be_written(path, error) from None
        if work.is_symlink() or work.stat().st_uid != os.geteuid():
            raise RBEError(f"{work}: is not a folder of yours; remove it, or choose another output with -o")
        handle = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _lock(handle, path)
            # Whoever had it before may have removed it meanwhile.
            if work.exists() and os.path.samestat(os.fstat(handle), work.stat()):
                yield work
                return
        finally:
            os.close(handle)


def _lock(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RBEError(f"{path}: another rbe is writing it; wait for that one, or choose another output") from None
    except OSError:
        # Some network file systems have no locks.
        return


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        remove(entry)


def remove(entry: Path) -> None:
    """Remove a file or a folder with what is in it; of a link, only the link."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


def _cannot_be_written(path: Path, error: OSError) -> RBEError:
    return RBEError(f"{path}: cannot be written ({error.strerror}); choose another output with -o")


def check_free(path: Path, replace: bool) -> None:
    """Raise RBEError if `path` holds something that must not be replaced."""
    if path.is_symlink() or path.is_file() or (path.exists() and not path.is_dir()):
        raise RBEError(f"{path}: is not a folder; choose another output with -o")
    if path.exists() and any(path.iterdir()) and not replace:
        raise RBEError(f"{path}: already there; use --force to replace it, or choose another output with -o")


def check_file(path: Path, replace: bool) -> None:
    """Raise RBEError if there cannot be a file `path`, or if there is one that must not be replaced."""
    if path.is_dir():
        raise RBEError(f"{path}: is a folder; name a file")
    if not path.absolute().parent.is_dir():
        raise RBEError(f"{path}: there is no folder {path.parent}; make it first")
    if path.exists() and not replace:
        raise RBEError(f"{path}: already there; use --force to replace it, or name another file")
