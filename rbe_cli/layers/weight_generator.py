"""Weights where they are asked for, and nowhere else."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rbe_cli.layers.block_layout import BlockLayout, Positions
from rbe_cli.layers.weights import WeightMatrix

#: Where at least one in so many weights of a block is wanted, the whole block is made: it has the cheaper way.
_SPARSE = 64


class WeightGenerator:
    """Makes single weights, blocks and rows of a matrix from its compressed form.

    Parameters
    ----------
    matrix : WeightMatrix
        Of any kind the codec writes.

    Attributes
    ----------
    layout : BlockLayout

    Examples
    --------
    >>> from rbe_cli.layers.weights import DenseMatrix
    >>> weights = WeightGenerator(DenseMatrix(np.array([[1, 2, 3], [4, 5, 6]], np.float32)))
    >>> weights.at(np.array([0, 1]), np.array([2, 0]))
    array([3., 4.], dtype=float32)
    """

    def __init__(self, matrix: WeightMatrix) -> None:
        self.matrix = matrix

    @property
    def layout(self) -> BlockLayout:
        """The blocks."""
        return self.matrix.layout

    def __call__(self, block: int, rows: Positions, columns: Positions) -> NDArray[np.float32]:
        """Weights of a block at positions within it, int[n] each -> float32[n]. Raises IndexError outside of it."""
        height, width = self.layout.shape(_checked(block, len(self.layout)))
        rows, columns = _inside(rows, height), _inside(columns, width)
        if rows.size * _SPARSE >= height * width:
            return self.matrix.block(block).ravel().take(rows * width + columns)
        return self.matrix.at(block, rows, columns)

    def at(self, rows: Positions, columns: Positions) -> NDArray[np.float32]:
        """Weights at positions anywhere in the matrix, int[n] each -> float32[n]. Raises IndexError outside of it."""
        layout = self.layout
        places = layout.locate(_inside(rows, layout.rows), _inside(columns, layout.columns))
        out = np.empty(places.block.size, np.float32)
        order = np.argsort(places.block, kind="stable")
        for own in np.split(order, np.flatnonzero(np.diff(places.block[order])) + 1) if order.size else ():
            out[own] = self(int(places.block[own[0]]), places.row[own], places.column[own])
        return out

    def block(self, block: int) -> NDArray[np.float32]:
        """All weights of a block, float32[height, width]."""
        return self.matrix.block(_checked(block, len(self.layout)))

    def rows(self, ids: Positions) -> NDArray[np.float32]:
        """Whole rows by number, int[n] -> float32[n, columns]. Raises IndexError for a row that is not there."""
        return self.matrix.take(_inside(ids, self.layout.rows))


def _checked(number: int, count: int) -> int:
    if not 0 <= number < count:
        raise IndexError(f"block {number} of {count}")
    return number


def _inside(numbers: Positions, size: int) -> NDArray[np.int64]:
    """Numbers from 0 to size - 1, as int64."""
    places: NDArray[np.int64] = np.asarray(numbers, np.int64)
    # Seen as unsigned, what is negative is too large.
    if places.size and int(places.view(np.uint64).max()) >= size:
        raise IndexError(f"position {int(places.min())} or {int(places.max())} of {size}")
    return places
