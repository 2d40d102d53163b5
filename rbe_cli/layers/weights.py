"""What a layer asks of its weights, and the dense answer to it.

A layer never knows whether a matrix lies in memory as float32, is decoded tile by tile as it is used, or is never
formed at all: each is a `WeightMatrix`, and comes by name from a `WeightSource`.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rbe_cli.layers.block_layout import BlockLayout


class WeightMatrix(Protocol):
    """A stored matrix W of shape rows x columns that can be multiplied with, on either side.

    Attributes
    ----------
    layout : BlockLayout
        Blocks of which weights can be had without those of the others.
    """

    @property
    def layout(self) -> BlockLayout: ...  # noqa: D102

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns), as stored."""

    @property
    def nbytes(self) -> int:
        """Bytes held in memory for it, a shared tile cache not counted."""

    def block(self, index: int) -> NDArray[np.float32]:
        """All weights of a block, float32[height, width]."""

    def at(self, index: int, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
        """Weights of a block at some positions in it, int64[n] each -> float32[n]."""

    def take(self, ids: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Rows by number, int[n] -> float32[n, columns]. The numbers must be within the matrix."""

    def times(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """X W, float32[n, rows] -> float32[n, columns]: a layer stored in x out, as GPT-2's Conv1D."""

    def times_transposed(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """X W^T, float32[n, columns] -> float32[n, rows]: a layer stored out x in, as torch's Linear."""


class WeightSource(Protocol):
    """Tensors by name."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of everything there is."""

    def vector(self, name: str) -> NDArray[np.float32]:
        """A small tensor, whole, in float32. Raises RBEError if there is none of that name."""

    def matrix(self, name: str) -> WeightMatrix:
        """A tensor of two dimensions. Tensors stored as one (tied) are the same object. Raises RBEError."""


class DenseMatrix:
    """A matrix in memory.

    Parameters
    ----------
    values : float32[rows, columns]

    Examples
    --------
    >>> w = DenseMatrix(np.array([[1, 2, 3], [4, 5, 6]], np.float32))
    >>> w.times(np.ones((1, 2), np.float32))
    array([[5., 7., 9.]], dtype=float32)
    """

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values = values
        self.layout = BlockLayout(*values.shape, *(max(size, 1) for size in values.shape))

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.layout.rows, self.layout.columns

    @property
    def nbytes(self) -> int:
        """4 a weight."""
        return self.values.nbytes

    def block(self, index: int) -> NDArray[np.float32]:
        """There is one, the whole."""
        del index
        return self.values.copy()

    def at(self, index: int, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
        """Weights at some positions, float32[n]."""
        del index
        picked: NDArray[np.float32] = self.values[rows, columns]
        return picked

    def take(self, ids: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Rows by number, int[n] -> float32[n, columns]."""
        taken: NDArray[np.float32] = self.values[ids]
        return taken

    def times(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """X W, float32[n, rows] -> float32[n, columns]."""
        return x @ self.values

    def times_transposed(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """X W^T, float32[n, columns] -> float32[n, rows]."""
        return x @ self.values.T
