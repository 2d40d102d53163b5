"""Sums over the inputs of a weight, formed as they pass: in float64, whatever order they come in is the text's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Vectors that are turned to float64, or multiplied in float32, at once.
_AT_ONCE = 1024


class Squares:
    """Sum of squares of each of `inputs` channels.

    Examples
    --------
    >>> sums = Squares(2)
    >>> sums(np.array([[1, 2], [3, 4]], np.float32))
    >>> sums.mean()
    array([ 5., 10.])
    """

    def __init__(self, inputs: int) -> None:
        self.total = np.zeros(inputs, np.float64)
        self.count = 0

    def __call__(self, x: NDArray[np.float32]) -> None:
        """Add float32[n, inputs]."""
        for top in range(0, len(x), _AT_ONCE):
            self.total += np.square(x[top : top + _AT_ONCE], dtype=np.float64).sum(0)
        self.count += len(x)

    def mean(self) -> NDArray[np.float64]:
        """float64[inputs]; zeros if nothing passed."""
        return self.total / max(self.count, 1)


class Moments:
    """Sum of x x^T over vectors x of `inputs` channels: 8 inputs^2 bytes.

    Examples
    --------
    >>> sums = Moments(2)
    >>> sums(np.array([[1, 2], [3, 4]], np.float32))
    >>> sums.mean()
    array([[ 5.,  7.],
           [ 7., 10.]])
    """

    def __init__(self, inputs: int) -> None:
        self.total = np.zeros((inputs, inputs), np.float64)
        self.count = 0

    def __call__(self, x: NDArray[np.float32]) -> None:
        """Add float32[n, inputs]. The products of 1024 vectors are summed in float32, those sums in float64."""
        for top in range(0, len(x), _AT_ONCE):
            part = x[top : top + _AT_ONCE]
            self.total += part.T @ part
        self.count += len(x)

    def mean(self) -> NDArray[np.float64]:
        """float64[inputs, inputs], symmetric to the last bit; zeros if nothing passed."""
        mean: NDArray[np.float64] = (self.total + self.total.T) / (2 * max(self.count, 1))
        return mean
