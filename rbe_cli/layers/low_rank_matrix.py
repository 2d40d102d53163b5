"""A matrix that is held as the product of two thin ones and never formed: y = U (V x)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbe_cli.codec.structure.low_rank import LowRank
from rbe_cli.kernels import forward
from rbe_cli.layers.block_layout import BlockLayout
from rbe_cli.layers.resident import aligned, fixed_point

#: Blocks it is seen as; it has none of its own.
_BLOCK = 128
#: The rank is filled up to a multiple of this, so that no vector of a row lies across two cache lines: twice as fast.
_LANES = 16
#: From so many vectors on, two products of the linear algebra library are faster than one call per vector.
_MANY = 4

Factor = NDArray[np.int16 | np.float32]


class LowRankMatrix:
    """W = left diag(scale) right, rows x columns.

    The factors are decoded once and held in 16 bits a number: what was quantised, exactly, as long as no number is
    larger than 127 steps. Beyond it is rounded, or float32 where that would lose 3e-5 of the norm. Products are those
    with the decoded weights of a float32 tensor; what `rbe decode` writes of a 16-bit tensor is rounded to its type,
    and these are not.

    Parameters
    ----------
    low_rank : LowRank
        As it is decoded.
    """

    def __init__(self, low_rank: LowRank) -> None:
        rows, columns = low_rank.left.shape[0], low_rank.right.shape[1]
        self.layout = BlockLayout(rows, columns, min(_BLOCK, rows), min(_BLOCK, columns))
        self.rank = low_rank.left.shape[1]
        padding = -self.rank % _LANES
        left, right = (np.pad(factor, ((0, padding), (0, 0))) for factor in (low_rank.left.T, low_rank.right))
        components, left_units = fixed_point(left, np.pad(low_rank.left_units, (0, padding), constant_values=1))
        self._left = aligned(components.T)
        self._right, right_units = fixed_point(right, np.full(len(right), low_rank.right_unit))
        self._scale = left_units * right_units

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.layout.rows, self.layout.columns

    @property
    def nbytes(self) -> int:
        """Bytes of the two factors as they are held."""
        return self._left.nbytes + self._right.nbytes + self._scale.nbytes

    def block(self, index: int) -> NDArray[np.float32]:
        """Weights of a block, float32[height, width]."""
        tile = self.layout[index]
        right = self._floats(self._right[:, tile.left : tile.right])
        return self._left_rows(slice(tile.top, tile.bottom)) @ right

    def at(self, index: int, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
        """Weights at positions of a block, float32[n]."""
        tile = self.layout[index]
        right = self._floats(self._right[:, tile.left + columns])
        products: NDArray[np.float32] = np.einsum("nr,rn->n", self._left_rows(tile.top + rows), right)
        return products

    def take(self, ids: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Rows by number, int[n] -> float32[n, columns]."""
        return self._left_rows(ids) @ self._floats(self._right)

    def times(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """X W, float32[n, rows] -> float32[n, columns]."""
        if len(x) < _MANY:
            out = np.empty((len(x), self.layout.columns), np.float32)
            forward.low_rank_times(np.ascontiguousarray(x), self._left, self._scale, self._right, out)
            return out
        return (x @ self._floats(self._left.T).T * self._scale[: self.rank]) @ self._floats(self._right)

    def times_transposed(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """X W^T, float32[n, columns] -> float32[n, rows]."""
        if len(x) < _MANY:
            out = np.empty((len(x), self.layout.rows), np.float32)
            forward.low_rank_times_transposed(np.ascontiguousarray(x), self._left, self._scale, self._right, out)
            return out
        return (x @ self._floats(self._right).T * self._scale[: self.rank]) @ self._floats(self._left.T)

    def _floats(self, factor: Factor) -> NDArray[np.float32]:
        """The rows of a factor that are not padding."""
        return factor[: self.rank].astype(np.float32, copy=False)

    def _left_rows(self, rows: slice | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Some rows of left diag(scale), float32[n, rank]."""
        return self._left[rows, : self.rank] * self._scale[: self.rank]
