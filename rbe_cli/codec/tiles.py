"""Tiles: the unit of random access, of parallel work and of checksums.

A matrix is cut into a grid of `height` x `width` tiles, rows of tiles first. A tile is whole rows, about TILE elements
of them, except where one row is longer than LONG_ROW: then it is a piece of one row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

TILE = 1 << 16
LONG_ROW = 1 << 18
#: No tile is larger than this, unless it is a single row of blocks: what a decoder has to hold at once is bounded.
LARGEST_TILE = 1 << 22


def plausible_tile(height: int, width: int, alignment: int, columns: int) -> bool:
    """Whether a tile of a matrix of so many columns is one a decoder should agree to hold.

    `alignment` is the block of a blockwise transform, of which a tile has at least one row; else 0.

    >>> plausible_tile(170, 384, 0, 384), plausible_tile(1 << 12, 1 << 12, 0, 1 << 12)
    (True, False)
    """
    return height * width <= LARGEST_TILE + alignment * columns


@dataclass(frozen=True)
class Tile:
    """Rows top to bottom - 1, columns left to right - 1."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return (self.bottom - self.top) * (self.right - self.left)


@dataclass(frozen=True)
class Grid:
    """How a rows x columns matrix is cut; the last tile of a row or column may be smaller."""

    rows: int
    columns: int
    height: int
    width: int

    @classmethod
    def of(cls, rows: int, columns: int, alignment: int = 1, whole_rows: bool = False, tile: int = TILE) -> Grid:
        """The cut the encoder uses: heights are multiples of `alignment`, rows whole if they have to be, tiles of
        about `tile` elements.

        >>> Grid.of(384, 384).height, len(Grid.of(384, 384))
        (128, 3)
        """
        if columns > LONG_ROW and not whole_rows:
            return cls(rows, columns, 1, TILE)
        least = max(1, tile // max(columns, 1))
        # Tiles of nearly equal height: the lanes of the encoder run side by side, as long as the longest of them.
        pieces = max(1, -(-rows // least))
        height = -(-max(1, -(-rows // pieces)) // alignment) * alignment
        return cls(rows, columns, min(height, max(rows, 1)), max(columns, 1))

    def __len__(self) -> int:
        return -(-self.rows // self.height) * -(-self.columns // self.width)

    def __getitem__(self, index: int) -> Tile:
        across = -(-self.columns // self.width)
        top, left = index // across * self.height, index % across * self.width
        return Tile(top, min(top + self.height, self.rows), left, min(left + self.width, self.columns))

    def __iter__(self) -> Iterator[Tile]:
        return (self[i] for i in range(len(self)))
