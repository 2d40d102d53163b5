"""Numba kernels: arrays in, arrays out, no I/O, no objects.

Every kernel releases the GIL (`nogil`), is cached on disk, uses no fast-math (the bits depend on the order of
operations) and has a slow plain-Python twin in `tests/naive.py`. What reads untrusted bytes checks its own bounds
and returns a status; the caller turns that into an error naming the file.

`forward` alone lets the compiler reorder sums: what a layer computes is no part of the format.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from numba import config, njit

#: Options of all kernels. No `fastmath`: results must not depend on the compiler's choices. No wrapper for C, either:
#: nobody calls them from there, and each would be compiled.
JIT: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy", "no_cfunc_wrapper": True}
#: Those of functions with a leading underscore, which other kernels call: no wrapper for Python, which must not call
#: them. Compiling all kernels takes a sixth less so.
INNER: dict[str, Any] = {**JIT, "no_cpython_wrapper": True}


def _own_folder() -> Path | None:
    """A temporary folder that nobody but this user can write to, since code is read from it; None if it is not so."""
    try:
        folder = Path(tempfile.gettempdir()) / f"rbe-kernels-{os.geteuid()}"
        folder.mkdir(0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == 0o700
    return folder if ours else None


def _find_cache() -> None:
    """Have kernels cached in a temporary folder where numba finds none that it can write to, or else not at all."""
    try:
        njit(cache=True)(_find_cache)
    except RuntimeError:
        folder = _own_folder()
        if folder is None:
            JIT["cache"] = INNER["cache"] = False
        else:
            config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]


_find_cache()
