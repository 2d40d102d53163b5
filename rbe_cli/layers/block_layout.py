"""How a matrix is cut into blocks, and where in which block a weight is."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rbe_cli.codec.tiles import Grid

Positions = NDArray[np.integer[Any]]


class Places(NamedTuple):
    """Positions as blocks see them: block number, and row and column within it. int64[n] each."""

    block: NDArray[np.int64]
    row: NDArray[np.int64]
    column: NDArray[np.int64]


class BlockLayout(Grid):
    """A rows x columns matrix cut into blocks of height x width, by rows of blocks; those at the edges may be smaller.

    Examples
    --------
    >>> layout = BlockLayout(rows=5, columns=7, height=4, width=4)
    >>> len(layout), layout[3]
    (4, Tile(top=4, bottom=5, left=4, right=7))
    >>> layout.locate(np.array([4]), np.array([6]))
    Places(block=array([3]), row=array([0]), column=array([2]))
    """

    @classmethod
    def of_grid(cls, grid: Grid) -> BlockLayout:
        """The blocks are a tensor's tiles."""
        return cls(grid.rows, grid.columns, grid.height, grid.width)

    @property
    def across(self) -> int:
        """Blocks side by side."""
        return -(-self.columns // self.width)

    def shape(self, block: int) -> tuple[int, int]:
        """Rows and columns of a block."""
        tile = self[block]
        return tile.bottom - tile.top, tile.right - tile.left

    def locate(self, rows: Positions, columns: Positions) -> Places:
        """Where positions are, int[n] each; they must be within the matrix."""
        down, row = np.divmod(np.asarray(rows, np.int64), self.height)
        along, column = np.divmod(np.asarray(columns, np.int64), self.width)
        return Places(down * self.across + along, row, column)
