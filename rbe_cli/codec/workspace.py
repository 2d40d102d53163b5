"""Memory of the threads that encode and decode: scratch, allowances, and what is put aside.

Every job needs some megabytes for a moment. Asking the system for them anew each time costs more than the coding
itself, since each page is faulted in and cleared again, so each thread keeps its buffers until it ends. Those of the
trellis search are the largest: they go from one job to the next, whichever thread has it, and no more than have room
at once are under way.

What is large, or would grow with the checkpoint, has an allowance that all threads share.
"""

from __future__ import annotations

import ctypes
import math
import tempfile
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rbe_cli.errors import RBEError

_local = threading.local()
#: Of glibc; others have none. M_MMAP_THRESHOLD, from which on an array has pages of its own that go back to the system
#: with it, while memory is scarce and otherwise (its own upper limit); M_TRIM_THRESHOLD, how much that was freed at the
#: end of a heap stays there: pages that come and go are a sixth of the time of a forecast.
_malloc_trim, _mallopt = (getattr(ctypes.CDLL(None), name, None) for name in ("malloc_trim", "mallopt"))
_MMAP_THRESHOLD, _SCARCE, _PLENTY = -3, 4 << 20, 32 << 20
_TRIM_THRESHOLD, _AT_END = -1, 8 << 20
#: M_ARENA_MAX: the C library has a heap for each thread, and in each some megabytes that were freed, unless told to
#: make do with fewer. Arrays are few and large; no thread waits for another's heap.
_ARENA_MAX, _ARENAS = -8, 4
if _mallopt is not None:
    _mallopt(_ARENA_MAX, _ARENAS)
    _mallopt(_MMAP_THRESHOLD, _PLENTY)
    _mallopt(_TRIM_THRESHOLD, _AT_END)
#: Bytes that matrices held in memory as a whole may take together, and the buffers of all searches, and matrices that
#: stay in memory between passes: for checkpoints of small tensors, and more for each byte of the largest. With what is
#: put aside in memory (little, since a file that was just written is read at the speed of memory), the interpreter and
#: the kernels, and some megabytes for each of 16 threads, that is 300 MB and three times the largest tensor.
_WHOLE, _SEARCHED, _KEPT, _MOST_KEPT = (26 << 20, 1.4), (50 << 20, 1.25), (12 << 20, 0.6), 48 << 20
_ASIDE = 4 << 20
#: The tensor that is thought of where nobody has said how large they are.
_LARGEST = 1 << 25


class Inline(Executor):
    """Runs a job at once, in the thread that submits it: for what is coded inside a job of something larger."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run it."""
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class Allowance:
    """So many bytes that threads share. Whoever wants more than there are in all waits to be alone.

    While some are `held` of one that is `scarce`, what is freed goes back to the system: the C library keeps up to
    64 MB of it for each thread unless it is told not to, which is faster but not for those who have large matrices.
    """

    def __init__(self, size: int, scarce: bool = False) -> None:
        self._size = size
        self._scarce = scarce
        self._taken = 0
        self._returning = False
        self._changed = threading.Condition(threading.RLock())
        self._holding = threading.local()

    def resize(self, size: int) -> None:
        """Have another size from now on; what was taken stays so."""
        with self._changed:
            self._size = size
            self._changed.notify_all()

    def take(self, size: int) -> bool:
        """Take some bytes, if there are so many left; whoever did gives them back."""
        with self._changed:
            if self._taken + size > self._size:
                return False
            self._taken += size
            return True

    def lend(self, owner: object, size: int) -> bool:
        """Take some bytes, if there are so many left, for as long as an object lives."""
        taken = self.take(size)
        if taken:
            weakref.finalize(owner, self.give, size)
        return taken

    def give(self, size: int) -> None:
        """Give them back."""
        with self._changed:
            self._taken -= size
            self._changed.notify_all()

    @contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Have some bytes for a while. A thread that has some already gets no more: it would wait for itself."""
        if getattr(self._holding, "some", False):
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: self._taken + size <= self._size or not self._taken)
            self._taken += size
            if self._scarce and size >= _SCARCE:
                _keep_freed(False)
                self._returning = True
        self._holding.some = True
        try:
            yield
        finally:
            self._holding.some = False
            with self._changed:
                self.give(size)
                if self._returning:
                    self._returning = self._taken > 0
                    _keep_freed(not self._returning)


def _keep_freed(allowed: bool) -> None:
    """Whether the C library may keep large pieces of memory that were freed."""
    if _mallopt is not None:
        _mallopt(_MMAP_THRESHOLD, _PLENTY if allowed else _SCARCE)
    return_freed()


def return_freed() -> None:
    """Give what was freed back to the system: each thread's part of it is of no use to the others."""
    if _malloc_trim is not None:
        _malloc_trim(0)


#: For the few matrices that an encoder needs whole, in float32: without it every thread would hold one.
whole_matrices = Allowance(0, scarce=True)
#: For what an encoder has worked out of matrices and would work out again in every pass.
kept_matrices = Allowance(0)
#: For `Findings`.
arrays_aside = Allowance(_ASIDE)
#: For `searching`.
searches = Allowance(0)


def make_room(largest: int) -> None:
    """Fit the allowances to a checkpoint whose largest tensor has so many bytes, as stored."""
    whole, searched, kept = (size + int(share * largest) for size, share in (_WHOLE, _SEARCHED, _KEPT))
    whole_matrices.resize(whole)
    searches.resize(searched)
    kept_matrices.resize(min(kept, _MOST_KEPT))


make_room(_LARGEST)


class Findings:
    """Arrays that an encoder has worked out of a tensor and will want again in every pass.

    They are in memory. Once they are set aside they stay there only while the allowance lasts; those of a large
    checkpoint go to a temporary file, which has no name and lasts as long as anything in it. TMPDIR says where.

    >>> Findings(np.arange(3), np.zeros((1, 2))).arrays()
    (array([0, 1, 2]), array([[0., 0.]]))
    """

    def __init__(self, *arrays: NDArray[Any]) -> None:
        self._arrays: tuple[NDArray[Any], ...] | None = arrays
        self._aside = False

    def set_aside(self) -> None:
        """Make room for those of other tensors. Raises RBEError if there is none for these."""
        if self._aside or self._arrays is None:
            return
        self._aside = arrays_aside.lend(self, sum(array.nbytes for array in self._arrays))
        if not self._aside:
            self._file = _SpillFile.shared()
            self._places = [(self._file.append(array), array.dtype, array.shape) for array in self._arrays]
            self._arrays = None

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The arrays as they were. Raises RBEError if they cannot be read."""
        if self._arrays is not None:
            return self._arrays
        return tuple(self._file.read(*place) for place in self._places)


class _SpillFile:
    """A temporary file without a name."""

    _latest: weakref.ref[_SpillFile] | None = None
    _lock = threading.Lock()

    def __init__(self) -> None:
        self._end = 0
        with self._explained():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it is closed with the last that is in it)
        weakref.finalize(self, self._file.close)

    @classmethod
    def shared(cls) -> _SpillFile:
        """The one that is there, or a new one."""
        with cls._lock:
            file = cls._latest() if cls._latest else None
            if file is None:
                file = cls()
                cls._latest = weakref.ref(file)
            return file

    def append(self, array: NDArray[Any]) -> int:
        """Write an array; returns its place."""
        with self._lock, self._explained():
            at = self._file.seek(self._end)
            self._file.write(array.tobytes())
            self._file.flush()
            self._end += array.nbytes
            return at

    def read(self, at: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """The array that was written at a place."""
        array = np.empty(math.prod(shape), dtype)
        with self._lock, self._explained():
            self._file.seek(at)
            self._file.readinto(array.view(np.uint8).data)
        return array.reshape(shape)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RBEError(f"temporary file: {error.strerror}; set TMPDIR to a folder with room") from None


class _Buffers:
    """The buffers of searches: those under way have one set each, and leave it to the next."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way = 0
        self._free: list[dict[str, NDArray[np.uint8]]] = []

    def borrow(self) -> dict[str, NDArray[np.uint8]]:
        """A set of buffers that is free, or a new one."""
        with self._lock:
            self._under_way += 1
            return self._free.pop() if self._free else {}

    def give_back(self, buffers: dict[str, NDArray[np.uint8]]) -> None:
        """For others, if there are any."""
        with self._lock:
            self._under_way -= 1
            self._free.append(buffers)
            if not self._under_way:
                self._free.clear()


_buffers = _Buffers()


@contextmanager
def searching(size: int) -> Iterator[None]:
    """A while in which this thread's `scratch`, of `size` bytes in all, is from the allowance of searches."""
    own = _local.__dict__.get("buffers", {})
    with searches.held(size):
        _local.buffers = _buffers.borrow()
        try:
            yield
        finally:
            _buffers.give_back(_local.buffers)
            _local.buffers = own


@contextmanager
def apart() -> Iterator[None]:
    """A while in which this thread's `scratch` is not what it has under way, which finds its own again: for what is
    decoded in the middle of an encoding, or of another decoding, and so on.
    """
    own = _local.__dict__.get("buffers", {})
    spare: list[dict[str, NDArray[np.uint8]]] = _local.__dict__.setdefault("spare", [])
    _local.buffers = spare.pop() if spare else {}
    try:
        yield
    finally:
        spare.append(_local.buffers)
        _local.buffers = own


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
