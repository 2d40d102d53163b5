"""How the numbers of a compressed matrix lie in memory while it is multiplied with."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

#: Numbers are held in 16 bits where that loses no more of their norm than this.
_TOLERANCE = 3e-5
_LARGEST = 32767
_LINE = 64

Kind = TypeVar("Kind", bound=np.generic)


def aligned(values: NDArray[Kind]) -> NDArray[Kind]:
    """A copy by rows that begins on a cache line."""
    buffer: NDArray[Any] = np.empty(values.nbytes + _LINE, np.uint8)
    first = -buffer.ctypes.data % _LINE
    copy: NDArray[Kind] = buffer[first : first + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


def fixed_point(
    rows: NDArray[np.float32], units: NDArray[np.float32]
) -> tuple[NDArray[np.int16 | np.float32], NDArray[np.float32]]:
    """Rows as whole multiples of a unit each, in 16 bits where that is exact enough; else as they are.

    Parameters
    ----------
    rows : float32[r, n]
    units : float32[r]
        What the rows are multiples of; they are doubled where a row has more than 32767 of them.

    Returns
    -------
    numbers : int16[r, n] or float32[r, n]
        On a cache line.
    units : float32[r]
        The rows are units[:, None] * numbers.
    """
    # What no encoder writes may overflow on the way, and is float32 then.
    with np.errstate(all="ignore"):
        largest = np.abs(rows).max(axis=1, initial=0.0) / units
        units = np.ldexp(units, np.maximum(np.ceil(np.log2(largest / _LARGEST)), 0).astype(np.int32))
        numbers = np.round(rows / units[:, None])
        lost = np.linalg.norm(numbers * units[:, None] - rows)
    if np.isfinite(lost) and np.abs(numbers).max(initial=0) <= _LARGEST and lost <= _TOLERANCE * np.linalg.norm(rows):
        return aligned(numbers.astype(np.int16)), units
    return aligned(np.asarray(rows, np.float32)), np.ones(len(rows), np.float32)
