"""Numba kernels: arrays in, arrays out, no I/O, no objects.

Every kernel releases the GIL (`nogil`), is cached on disk, uses no fast-math (the bits depend on the order of
operations) and has a slow plain-Python twin in `tests/naive.py`. What reads untrusted bytes checks its own bounds
and returns a status; the caller turns that into an error naming the file.

`forward` alone lets the compiler reorder sums: what a layer computes is no part of the format.
"""

from __future__ import annotations

from typing import Any

#: Options of all kernels. No `fastmath`: results must not depend on the compiler's choices. No wrapper for C, either:
#: nobody calls them from there, and each would be compiled.
JIT: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy", "no_cfunc_wrapper": True}
#: Those of functions with a leading underscore, which other kernels call: no wrapper for Python, which must not call
#: them. Compiling all kernels takes a sixth less so.
INNER: dict[str, Any] = {**JIT, "no_cpython_wrapper": True}
