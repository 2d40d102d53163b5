"""Modules are imported while Python's collector of cycles is away; imports next to nothing itself."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Let no cycles be looked for meanwhile, and never among what was made: modules are many objects that all stay.

    Most are numba's: a process starts in four fifths of the time (`python -m tests.benchmarks.start_up`).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
