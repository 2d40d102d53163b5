"""The product of a vector, or of a batch, with a matrix that stays compressed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rbe_cli.errors import RBEError
from rbe_cli.layers.weights import WeightMatrix


class FusedForwardPass:
    """y = W x for a vector and Y = X W^T for a batch, or the same with W^T.

    How that is done is the matrix's own affair: two thin products for a low rank, a product in the domain of the
    transform for sparse blocks, and tile by tile, each decoded into a small buffer, for what has a coded residual.
    None of them forms the dense matrix.

    Parameters
    ----------
    matrix : WeightMatrix
    in_by_out : bool
        The matrix is stored in x out (GPT-2's Conv1D) rather than out x in (torch's Linear).

    Attributes
    ----------
    inputs, outputs : int

    Examples
    --------
    >>> from rbe_cli.layers.weights import DenseMatrix
    >>> forward = FusedForwardPass(DenseMatrix(np.array([[1, 2], [3, 4], [5, 6]], np.float32)))
    >>> forward(np.array([1, 1], np.float32))
    array([ 3.,  7., 11.], dtype=float32)
    """

    def __init__(self, matrix: WeightMatrix, in_by_out: bool = False) -> None:
        self.matrix = matrix
        self.in_by_out = in_by_out
        self.inputs, self.outputs = matrix.shape if in_by_out else matrix.shape[::-1]
        self._product = matrix.times if in_by_out else matrix.times_transposed

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32[..., inputs] -> float32[..., outputs]; any number of vectors, 0 too. Raises RBEError."""
        if x.ndim == 2 and x.shape[1] == self.inputs and x.dtype == np.float32:
            return self._product(x)
        if x.shape[-1:] != (self.inputs,):
            raise RBEError(f"layer of {self.inputs} inputs was given an array of shape {x.shape}")
        count = x.size // self.inputs
        flat = np.asarray(x, np.float32).reshape(count, self.inputs)
        return self._product(flat).reshape(*x.shape[:-1], self.outputs)
