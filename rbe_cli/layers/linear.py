"""A linear layer, y = x W + b."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from rbe_cli.layers.weights import WeightMatrix


class RBELinear:
    """A linear layer whose weights may stay compressed.

    Parameters
    ----------
    weight : WeightMatrix
        in x out if `in_by_out` (GPT-2's Conv1D), else out x in (torch's Linear).
    bias : float32[out] or None
    in_by_out : bool

    Examples
    --------
    >>> from rbe_cli.layers.weights import DenseMatrix
    >>> layer = RBELinear(DenseMatrix(np.array([[1, 2], [3, 4], [5, 6]], np.float32)), None, in_by_out=False)
    >>> layer.inputs, layer.outputs, layer(np.array([[1, 1]], np.float32))
    (2, 3, array([[ 3.,  7., 11.]], dtype=float32))
    """

    def __init__(self, weight: WeightMatrix, bias: NDArray[np.float32] | None = None, *, in_by_out: bool) -> None:
        self.weight = weight
        self.bias = bias
        self.in_by_out = in_by_out
        #: Called with the inputs, float32[n, in], before they are multiplied; what calibration looks through.
        self.observer: Callable[[NDArray[np.float32]], None] | None = None
        self.inputs, self.outputs = weight.shape if in_by_out else weight.shape[::-1]

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32[..., in] -> float32[..., out]; any number of vectors, 0 too."""
        flat = x.reshape(-1, self.inputs)
        if self.observer is not None:
            self.observer(flat)
        y = self.weight.times(flat) if self.in_by_out else self.weight.times_transposed(flat)
        if self.bias is not None:
            y += self.bias
        return y.reshape(*x.shape[:-1], self.outputs)

    @property
    def nbytes(self) -> int:
        """Bytes held, a shared tile cache not counted."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)
