"""What a table's figures come to for a histogram of classes: a forecast asks for it some dozens of times a tensor."""

from __future__ import annotations

import numpy as np
from numba import njit

from rbe_cli.kernels import INNER, JIT


@njit(**INNER)
def _at(values, x, below, above):
    """Of float64[n], at any real x: between two numbers in a straight line, beyond the ends with the slopes given."""
    last = values.shape[0] - 1
    if x <= 0.0:
        return values[0] + below * x
    if x >= last:
        return values[last] + above * (x - last)
    i = int(x)
    return values[i] + (x - i) * (values[i + 1] - values[i])


@njit(**JIT)
def total(values, below, above, first, counts):
    """Sum over i of counts_i, float64[k], times what `values` are at first + i; see `_at`."""
    result = 0.0
    for i in range(counts.shape[0]):
        result += counts[i] * _at(values, first + i, below, above)
    return result


@njit(**JIT)
def total_of_exponentials(values, below, above, first, counts):
    """The same of 2 to the power of what `values` are there."""
    result = 0.0
    for i in range(counts.shape[0]):
        if counts[i] > 0.0:
            result += counts[i] * np.exp2(_at(values, first + i, below, above))
    return result
