"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rbe_cli.errors import RBEError
from rbe_cli.files.plain_file import files_below

#: Names of outputs that are longer, in bytes, are shortened for what they are written to first.
_LONGEST = 200
#: What new files may not allow. Read once, before there are threads: reading it is to change it for a moment.
_UMASK = os.umask(0o077)
os.umask(_UMASK)
#: What a write says where there is no more room, without a file's name.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def named_when_full(path: Path) -> Iterator[None]:
    """Have the error of a disk that is full name what was being written."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            error.filename = str(path)
        raise


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when all went well: temporary, flushed, synced, renamed.

    Raises RBEError if there cannot be such a file.
    """
    handle, partial = _partial_file(path)
    # Whoever is next gets the lock when the file is closed: by then there is no partial file any more.
    with named_when_full(path), os.fdopen(handle, "wb") as file:
        try:
            yield file
            file.flush()
            os.fsync(handle)
            os.fchmod(handle, 0o666 & ~_UMASK)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _partial_file(path: Path) -> tuple[int, Path]:
    """The file `.NAME.partial`, empty, open and locked as long as this process lives; a killed one may have left it.

    Raises RBEError if there cannot be one, or another process has it.
    """
    if path.exists() and not path.is_file():
        raise RBEError(f"{path}: is {'a folder' if path.is_dir() else 'not a plain file'}; name a file")
    if not path.absolute().parent.is_dir():
        raise RBEError(f"{path}: there is no folder {path.parent}; make it first")
    try:
        return _locked_file(_working_path(path), path)
    except OSError as error:
        raise RBEError(f"{path}: cannot be written ({error.strerror}); choose another place") from None


def _locked_file(partial: Path, path: Path) -> tuple[int, Path]:
    while True:
        handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink > 1:
                raise RBEError(f"{partial}: is not a file of rbe's; remove it, or choose another output")
            _lock(handle, path)
            # Whoever had it before may have put it in its place meanwhile.
            if partial.exists() and os.path.samestat(os.fstat(handle), partial.stat()):
                os.ftruncate(handle, 0)
                return handle, partial
            os.close(handle)
        except BaseException:
            os.close(handle)
            raise


@contextmanager
def atomic_folder(path: Path, replace: bool, keep: bool = False) -> Iterator[Path]:
    """A folder to fill that takes the place of `path` when all went well.

    It is in a working folder beside `path`, whose other files are the caller's. What a killed process left of that is
    cleared away, unless `keep`: then it is there to go on with, and stays when this one fails, too.

    Raises RBEError if `path` is there and `replace` is not given, or if another process is at it. The folder before
    stays until the new one is complete, and comes back if the last step fails or is interrupted.
    """
    check_free(path, replace)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_be_written(path, error) from None
    with named_when_full(path), _working_folder(path) as work:
        whole, old = work / "whole", work / "old"
        # Killed between the last two steps, or after them.
        if not _brought_back(old, path) and old.exists():
            remove(old)
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
            whole.rename(path)
        except BaseException:
            _brought_back(old, path)
            if not keep:
                shutil.rmtree(work, ignore_errors=True)
            raise
        remove(work)


def _brought_back(old: Path, path: Path) -> bool:
    """Put the folder before back where there is neither it nor the new one."""
    if path.exists() or not old.exists():
        return False
    old.rename(path)
    return True


@contextmanager
def _working_folder(path: Path) -> Iterator[Path]:
    """The folder `.NAME.partial`, locked as long as this process lives. Raises RBEError if another one has it."""
    work = _working_path(path)
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


def _working_path(path: Path) -> Path:
    """Beside an output, what is going to be it."""
    name = path.name
    if len(os.fsencode(name)) > _LONGEST:
        name = name[: _LONGEST // 4] + hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return path.with_name(f".{name}.partial")


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
    """Remove a file or a folder with what is in it; of a link, only the link. Raises RBEError if it may not."""
    try:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    except OSError as error:
        raise RBEError(f"{error.filename or entry}: cannot be removed ({error.strerror}); remove it yourself") from None


def _cannot_be_written(path: Path, error: OSError) -> RBEError:
    return RBEError(f"{path}: cannot be written ({error.strerror}); choose another output with -o")


def check_free(path: Path, replace: bool) -> None:
    """Raise RBEError if `path` holds something that must not be replaced."""
    if path.is_symlink() or path.is_file() or (path.exists() and not path.is_dir()):
        raise RBEError(f"{path}: is not a folder; choose another output with -o")
    if path.exists() and any(path.iterdir()) and not replace:
        raise RBEError(f"{path}: already there; use --force to replace it, or choose another output with -o")


def check_apart(path: Path, files: Iterable[Path], what: str) -> None:
    """Raise RBEError if an output is one of some files, or a folder that has one of them in it."""
    there = path.resolve()
    if any(there in (file, *file.parents) for file in (file.resolve() for file in files)):
        raise RBEError(f"{path}: holds {what}; choose another output with -o")


def check_own(folder: Path, own: Callable[[str], bool]) -> None:
    """Raise RBEError if a folder that is to be replaced holds a file that is not `own`, by its path within it."""
    for path in files_below(folder):
        if not own(path):
            raise RBEError(f"{folder / path}: --force would remove it, and rbe would not write it again; move it first")


def check_file(path: Path, replace: bool) -> None:
    """Raise RBEError if there cannot be a file `path`, or if there is one that must not be replaced."""
    handle, partial = _partial_file(path)
    partial.unlink(missing_ok=True)
    os.close(handle)
    if path.exists() and not replace:
        raise RBEError(f"{path}: already there; use --force to replace it, or name another file")
