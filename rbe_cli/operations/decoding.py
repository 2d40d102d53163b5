"""Decode a tensor piece by piece in threads, a bounded way ahead of what is waited for, and measure time and error."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rbe_cli import dtypes, elements, metrics
from rbe_cli.container.folder import Piece, StoredTensor
from rbe_cli.operations.progress import Progress

#: Elements that may be decoded ahead of the ones waited for.
_AHEAD = 1 << 21

Taken = TypeVar("Taken")


@dataclass
class LossyTime:
    """Processor time of decoding the tensors that are not stored exactly, over all threads, and their elements."""

    nanoseconds: int = 0
    elements: int = 0

    @property
    def per_weight(self) -> float | None:
        """Nanoseconds of one core for each of them; None if there were none."""
        return self.nanoseconds / self.elements if self.elements else None


def decode_ahead(
    stored: StoredTensor,
    pool: ThreadPoolExecutor,
    lossy: LossyTime,
    progress: Progress,
    take: Callable[[NDArray[np.uint8], int], Taken],
) -> Iterator[Taken]:
    """Give, in order, what `take` makes of each piece of a tensor, in the thread that decoded it.

    It is handed the piece's bytes, uint8[n], and which of the tensor's they begin at. What was decoded is added to
    `lossy`, if it is, and told `progress`. Raises CorruptFile.
    """
    ahead: deque[tuple[int, Future[tuple[Taken, int]]]] = deque()
    under_way = at = 0

    def next_one() -> Taken:
        elements, future = ahead.popleft()
        taken, nanoseconds = future.result()
        if stored.record.lossy:
            lossy.nanoseconds += nanoseconds
            lossy.elements += elements
        progress.advance(elements)
        return taken

    try:
        for piece in stored.pieces():
            ahead.append((piece.elements, pool.submit(_timed, piece, at, take)))
            at += (piece.elements * dtypes.BITS[stored.record.dtype] + 7) // 8
            under_way += piece.elements
            while under_way > _AHEAD:
                under_way -= ahead[0][0]
                yield next_one()
        while ahead:
            yield next_one()
    finally:
        for _, future in ahead:
            future.cancel()


def _timed(piece: Piece, at: int, take: Callable[[NDArray[np.uint8], int], Taken]) -> tuple[Taken, int]:
    started = time.thread_time_ns()
    decoded = piece.decode()
    nanoseconds = time.thread_time_ns() - started
    return take(decoded, at), nanoseconds


def error_of(original: NDArray[np.uint8], decoded: NDArray[np.uint8], dtype: str) -> metrics.Error:
    """The error of some elements, given as bytes, uint8[n]; infinite where types that are carried exactly differ."""
    elements = original.size * 8 // dtypes.BITS[dtype]
    # What is no original may be NaN, or as large as it likes.
    with np.errstate(all="ignore"):
        if np.array_equal(original, decoded):
            energy = 0.0
            if dtype in dtypes.FLOATS:
                values = _float64(original, dtype)
                energy = float(values @ values) if np.isfinite(values).all() else 0.0
            return metrics.Error(0.0, energy, elements)
        if dtype not in dtypes.FLOATS:
            return metrics.Error(math.inf, 0.0, elements)
        values = _float64(original, dtype)
        difference = values - _float64(decoded, dtype)
        squared = float(difference @ difference)
        return metrics.Error(squared if math.isfinite(squared) else math.inf, float(values @ values), elements)


def _float64(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float64]:
    return np.ascontiguousarray(raw).view(elements.FLOATS[dtype]).astype(np.float64)
