"""What rounding to a narrow type makes of an error.

The weights of a half precision tensor are on its grid. Decoded weights are rounded to that: an error of less than half
the distance to the next number is gone then, and a larger one is a whole number of such distances.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from rbe_cli.codec.source import Matrix

#: Bits of a significand after the first, and exponent of the least normal number.
_GRIDS = {"F16": (10, -14), "BF16": (7, -126)}
#: Rows that are looked at, and their elements, at most.
_ROWS, _ELEMENTS = 96, 1 << 16
#: Errors that are tabulated, by the logarithm of their root mean square in units of the grid; and what is no error.
_LEAST, _MOST, _PER_OCTAVE, _GONE = -4, 2, 16, 1e-12
#: Of the trellis coder's errors, at any rate but the lowest.
_KURTOSIS = 2.74


@dataclass(frozen=True)
class Rounding:
    """How far apart the numbers of a type are around the weights of a tensor.

    Attributes
    ----------
    spacings : float64[n]
        Logarithms to base 2 of the distances there are, of a weight to the next number.
    shares : float64[n]
        Of the weights.
    """

    spacings: NDArray[np.float64]
    shares: NDArray[np.float64]

    @classmethod
    def of(cls, matrix: Matrix) -> Rounding | None:
        """By a sample of a matrix; None if its type is not a narrow one."""
        if matrix.dtype not in _GRIDS:
            return None
        bits, least = _GRIDS[matrix.dtype]
        rows = max(1, min(_ROWS, matrix.rows, _ELEMENTS // matrix.columns))
        sample = matrix.some(np.linspace(0, matrix.rows - 1, rows).astype(np.int64))
        # Of float32, whose bits 23 to 30 are the exponent, 127 for 1; numbers below the least normal have its spacing.
        counts = np.bincount((sample.view(np.uint32).ravel() >> 23) & 255)
        (exponents,) = np.nonzero(counts)
        return cls(np.maximum(exponents - 127.0, least) - bits, counts[exponents] / counts.sum())

    def after(self, power: float) -> float:
        """Mean squared error after rounding, if it was `power` before."""
        if not power > 0:
            return power
        grown = np.interp(math.log2(power) / 2 - self.spacings, *_growth())
        return power * float(self.shares @ np.exp2(grown))


@cache
def _growth() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of the trellis coder's errors, by the logarithm of their root mean square x in units of the grid: that of
    E[round(e)^2] / x^2.

    Above the range it is that of 1 + 1 / (12 x^2), of errors that are much larger than the grid, which is nearly 0;
    below it hardly any error is left.
    """
    logs = np.arange(_LEAST * _PER_OCTAVE, _MOST * _PER_OCTAVE + 1) / _PER_OCTAVE
    # E[round(e)^2] is the sum over k of (2 k - 1) P(|e| > k - 1/2).
    powers = [
        sum((2 * k - 1) * _beyond((k - 0.5) / x) for k in range(1, math.ceil(8 * x) + 2))
        for x in np.exp2(logs).tolist()
    ]
    return logs, np.log2(np.maximum(powers, _GONE)) - 2 * logs


def _beyond(t: float) -> float:
    """Share of the errors beyond +-t times their root mean square: Edgeworth's series of the normal distribution.

    By their kurtosis alone, which comes within 0.002 of what errors have (tests/codec/test_rounding.py).
    """
    density = math.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    return max(math.erfc(t / math.sqrt(2)) + density * (_KURTOSIS - 3) / 12 * (t**3 - 3 * t), 0.0)
