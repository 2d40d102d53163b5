"""The 8 analytic functions of RBE on a block, and the scan order of its coefficients.

With x, y the column and row coordinate scaled to [-1, 1] and d = sqrt(x^2 + y^2):
1, d, d^2, cos(pi x), cos(pi y), cos(2 pi x), cos(2 pi y), cos(pi x) cos(pi y).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def coordinate(n: int) -> NDArray[np.float64]:
    """x, or y, of the columns, or rows, of a block: from -1 to 1, float64[n]."""
    return np.linspace(-1.0, 1.0, n) if n > 1 else np.zeros(1)


def _functions(height: int, width: int) -> Iterator[NDArray[np.float64]]:
    """The 8 functions one by one, float64[height, width]."""
    y, x = np.meshgrid(coordinate(height), coordinate(width), indexing="ij")
    pi = np.pi
    yield np.ones_like(x)
    d = np.sqrt(x * x + y * y)
    yield d
    yield d * d
    yield np.cos(pi * x)
    yield np.cos(pi * y)
    yield np.cos(2 * pi * x)
    yield np.cos(2 * pi * y)
    yield np.cos(pi * x) * np.cos(pi * y)


def functions(height: int, width: int) -> NDArray[np.float64]:
    """The 8 functions as they are, float64[8, height * width]."""
    return np.stack(list(_functions(height, width))).reshape(8, -1)


#: The set that was asked for last: of a block of 1024 it takes 64 MB, and a file may have blocks of a thousand sizes.
_latest: dict[tuple[int, int], NDArray[np.float64]] = {}


def orthonormal(height: int, width: int) -> NDArray[np.float64]:
    """The same span, orthonormal, in the order of the functions.

    float64[b, height * width]; functions that depend on those before them are left out, so b is at most 8.
    """
    found = _latest.get((height, width))
    if found is None:
        _latest.clear()
        found = _latest[height, width] = _orthonormalised(height, width)
    return found


def _orthonormalised(height: int, width: int) -> NDArray[np.float64]:
    """By modified Gram-Schmidt, twice."""
    kept = np.empty((8, height * width))
    count = 0
    for function in _functions(height, width):
        rest = function.flatten()
        for _ in range(2):
            for other in kept[:count]:
                rest -= other * np.dot(other, rest)
        norm = float(np.sqrt(np.dot(rest, rest)))
        if norm > 1e-6 * np.sqrt(rest.size):
            np.divide(rest, norm, out=kept[count])
            count += 1
    return kept[:count]


@lru_cache(maxsize=4)
def scan_order(height: int, width: int) -> NDArray[np.int32]:
    """Places u * width + v of a block by max(u, v), then u, then v: low frequencies first. int32[height * width]."""
    u, v = np.mgrid[:height, :width]
    return np.lexsort((v.ravel(), u.ravel(), np.maximum(u, v).ravel())).astype(np.int32)
