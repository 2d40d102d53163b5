"""Scratch memory of the threads that encode and decode.

Every job needs some megabytes for a moment. Asking the system for them anew each time costs more than the coding
itself, since each page is faulted in and cleared again, so each thread keeps its buffers until it ends.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_local = threading.local()
#: Bytes that matrices held in memory as a whole may take together, and those that stay so between passes.
_WHOLE, _KEPT = 96 << 20, 48 << 20


class Inline(Executor):
    """Runs a job at once, in the thread that submits it: for what is coded inside a job of something larger."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run it."""
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class Allowance:
    """So many bytes that threads share. Whoever wants more than there are in all waits to be alone."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken = 0
        self._changed = threading.Condition(threading.RLock())

    def take(self, size: int) -> bool:
        """Take some bytes, if there are so many left; whoever did gives them back."""
        with self._changed:
            if self._taken + size > self._size:
                return False
            self._taken += size
            return True

    def give(self, size: int) -> None:
        """Give them back."""
        with self._changed:
            self._taken -= size
            self._changed.notify_all()

    @contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Have some bytes for a while. A thread must not ask while it has some."""
        size = min(size, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self.take(size))
        try:
            yield
        finally:
            self.give(size)


#: For the few matrices that an encoder needs whole, in float32: without it every thread would hold one.
whole_matrices = Allowance(_WHOLE)
#: For what an encoder has worked out of matrices and would work out again in every pass.
kept_matrices = Allowance(_KEPT)


def scratch(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An uninitialised array, valid until this thread asks for the same name again.

    >>> scratch("example", (2, 3), np.float32).shape
    (2, 3)
    """
    buffers: dict[str, NDArray[np.uint8]] = _local.__dict__.setdefault("buffers", {})
    size = math.prod(shape) * np.dtype(dtype).itemsize
    buffer = buffers.get(name)
    if buffer is None or buffer.nbytes < size:
        buffer = buffers[name] = np.empty(size, np.uint8)
    return buffer[:size].view(dtype).reshape(shape)
