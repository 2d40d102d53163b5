"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rbe_cli.errors import RBEError


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when all went well: temporary, flushed, synced, renamed."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".partial", dir=path.parent)
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(0o666 & ~_umask())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: Path, replace: bool) -> Iterator[Path]:
    """A folder to fill that takes the place of `path` when all went well.

    Raises RBEError if `path` is there and `replace` is not given. The folder before stays until the new one is
    complete, and comes back if the last step fails.
    """
    check_free(path, replace)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}.", suffix=".partial", dir=path.parent))
    try:
        yield partial
        partial.chmod(0o777 & ~_umask())
        check_free(path, replace)
        if path.exists():
            old = partial.with_suffix(".old")
            path.rename(old)
            try:
                partial.rename(path)
            except OSError:
                old.rename(path)
                raise
            shutil.rmtree(old)
        else:
            partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def check_free(path: Path, replace: bool) -> None:
    """Raise RBEError if `path` holds something that must not be replaced."""
    if path.is_symlink() or path.is_file() or (path.exists() and not path.is_dir()):
        raise RBEError(f"{path}: is not a folder; choose another output with -o")
    if path.exists() and any(path.iterdir()) and not replace:
        raise RBEError(f"{path}: already there; use --force to replace it, or choose another output with -o")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
