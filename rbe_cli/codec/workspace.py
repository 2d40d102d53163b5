"""Scratch memory of the threads that encode and decode.

Every job needs some megabytes for a moment. Asking the system for them anew each time costs more than the coding
itself, since each page is faulted in and cleared again, so each thread keeps its buffers until it ends.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_local = threading.local()


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
