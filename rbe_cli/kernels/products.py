"""Matrix products in a fixed order of additions, for what the encoder's decisions and the decoder's weights depend on.

A library product may add in another order on another machine; these give the same bits everywhere.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from rbe_cli.kernels import JIT


@njit(**JIT)
def multiply_left(matrix, x, top, out):
    """Rows top to top + h - 1 of `out` = matrix @ the same rows of x. matrix float32[h, h]; x, out float32[m, n]."""
    h = matrix.shape[0]
    n = x.shape[1]
    for i in range(h):
        row = out[top + i]
        for j in range(n):
            row[j] = np.float32(0.0)
        for k in range(h):
            factor = matrix[i, k]
            other = x[top + k]
            for j in range(n):
                row[j] += factor * other[j]


@njit(**JIT)
def multiply_right(x, matrix, left, out):
    """Columns left to left + w - 1 of `out` = those of x @ matrix. matrix float32[w, w]; x, out float32[m, n]."""
    w = matrix.shape[0]
    for i in range(x.shape[0]):
        row = out[i, left : left + w]
        for j in range(w):
            row[j] = np.float32(0.0)
        for k in range(w):
            factor = x[i, left + k]
            other = matrix[k]
            for j in range(w):
                row[j] += factor * other[j]


@njit(**JIT)
def add_product(a, b, sign, out):
    """Add sign * (a @ b) to out. a float32[m, r], b float32[r, n], out float32[m, n]."""
    for i in range(a.shape[0]):
        row = out[i]
        for k in range(a.shape[1]):
            factor = sign * a[i, k]
            other = b[k]
            for j in range(b.shape[1]):
                row[j] += factor * other[j]
