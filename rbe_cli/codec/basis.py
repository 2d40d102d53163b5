"""The 8 analytic functions of RBE on a block, and the scan order of its coefficients.

With x, y the column and row coordinate scaled to [-1, 1] and d = sqrt(x^2 + y^2):
1, d, d^2, cos(pi x), cos(pi y), cos(2 pi x), cos(2 pi y), cos(pi x) cos(pi y).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray


def _coordinate(n: int) -> NDArray[np.float64]:
    return np.linspace(-1.0, 1.0, n) if n > 1 else np.zeros(1)


def functions(height: int, width: int) -> NDArray[np.float64]:
    """The 8 functions as they are, float64[8, height * width]."""
    y, x = np.meshgrid(_coordinate(height), _coordinate(width), indexing="ij")
    d = np.sqrt(x * x + y * y)
    pi = np.pi
    return np.stack(
        [
            np.ones_like(x), d, d * d, np.cos(pi * x), np.cos(pi * y), np.cos(2 * pi * x), np.cos(2 * pi * y),
            np.cos(pi * x) * np.cos(pi * y),
        ]
    ).reshape(8, -1)  # fmt: skip


@cache
def orthonormal(height: int, width: int) -> NDArray[np.float64]:
    """The same span, orthonormal, in the order of the functions (modified Gram-Schmidt, twice).

    float64[b, height * width]; functions that depend on those before them are left out, so b is at most 8.
    """
    kept: list[NDArray[np.float64]] = []
    for function in functions(height, width):
        rest = function.copy()
        for _ in range(2):
            for other in kept:
                rest -= other * np.dot(other, rest)
        norm = float(np.sqrt(np.dot(rest, rest)))
        if norm > 1e-6 * np.sqrt(function.size):
            kept.append(rest / norm)
    return np.stack(kept)


@cache
def scan_order(height: int, width: int) -> NDArray[np.int32]:
    """Places u * width + v of a block by max(u, v), then u, then v: low frequencies first. int32[height * width]."""
    u, v = np.mgrid[:height, :width]
    return np.lexsort((v.ravel(), u.ravel(), np.maximum(u, v).ravel())).astype(np.int32)
