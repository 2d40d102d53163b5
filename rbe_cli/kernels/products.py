"""Matrix products in a fixed order of additions, for what the encoder's decisions and the decoder's weights depend on.

A library product may add in another order on another machine; these give the same bits everywhere.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from rbe_cli.kernels import INNER, JIT


@njit(**INNER)
def _add_rows(factors, rows, row):
    """Add factors[k] * rows[k] to `row`, k upwards: four at a time, in registers, with the roundings of one by one."""
    last = factors.shape[0] // 4 * 4
    for k in range(0, last, 4):
        a, b, c, d = factors[k], factors[k + 1], factors[k + 2], factors[k + 3]
        row_a, row_b, row_c, row_d = rows[k], rows[k + 1], rows[k + 2], rows[k + 3]
        for j in range(row.shape[0]):
            row[j] = (((row[j] + a * row_a[j]) + b * row_b[j]) + c * row_c[j]) + d * row_d[j]
    for k in range(last, factors.shape[0]):
        factor = factors[k]
        other = rows[k]
        for j in range(row.shape[0]):
            row[j] += factor * other[j]


@njit(**JIT)
def multiply_left(matrix, x, out):
    """The first rows of `out` = matrix @ x. matrix float32[h, h]; x float32[h, n]; out float32[m, n]."""
    for i in range(matrix.shape[0]):
        out[i, :] = np.float32(0.0)
        _add_rows(matrix[i], x, out[i])


@njit(**JIT)
def multiply_right(x, matrix, left, out):
    """Columns left to left + w - 1 of `out` = those of x @ matrix. matrix float32[w, w]; x, out float32[m, n]."""
    w = matrix.shape[0]
    for i in range(x.shape[0]):
        row = out[i, left : left + w]
        row[:] = np.float32(0.0)
        _add_rows(x[i, left : left + w], matrix, row)


@njit(**JIT)
def add_product(a, b, sign, out):
    """Add sign * (a @ b) to out. a float32[m, r], b float32[r, n], out float32[m, n]."""
    for i in range(a.shape[0]):
        _add_rows(sign * a[i], b, out[i])
