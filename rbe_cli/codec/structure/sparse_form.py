"""How a sparse tensor is cut: its blocks, their transform, and the tiles they are in; and how that is stored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from numpy.typing import NDArray

from rbe_cli.codec.parameters import SPARSE_HEAD as HEAD
from rbe_cli.codec.source import Matrix
from rbe_cli.codec.structure.transform import Blockwise, effective_levels
from rbe_cli.codec.tiles import Grid, Tile, plausible_tile
from rbe_cli.errors import Damage

_KINDS = {"dct": 1, "dwt": 2}
_SMALLEST_BLOCK, _LARGEST_BLOCK = 4, 1024
#: Elements of a tile: large, since there is little in it, and the coder has to learn.
_TILE = 1 << 21


@dataclass(frozen=True)
class SparseForm:
    """Everything but the numbers: block, transform, and the cut into tiles."""

    kind: str
    block: int
    levels: int
    with_basis: bool
    grid: Grid

    def pack(self, step: float, rms: float, nrmse: float) -> bytes:
        """The first chunk."""
        return HEAD.pack(
            _KINDS[self.kind], self.levels, self.with_basis, 0, self.block, 0, step, rms, nrmse,
            self.grid.rows, self.grid.height,
        )  # fmt: skip

    @classmethod
    def unpack(cls, first_chunk: bytes, elements: int) -> tuple[SparseForm, float]:
        """That of a tensor of so many elements, and its step. Raises Damage."""
        if len(first_chunk) != HEAD.size:
            raise Damage("head of a sparse tensor has the wrong size")
        transform, levels, basis, zero, block, zeros, step, rms, nrmse, rows, height = HEAD.unpack(first_chunk)
        kinds = {number: kind for kind, number in _KINDS.items()}
        if (
            transform not in kinds
            or basis > 1
            or zero
            or zeros
            or levels > 16 * (transform == _KINDS["dwt"])
            or not _SMALLEST_BLOCK <= block <= _LARGEST_BLOCK
        ):
            raise Damage("head of a sparse tensor asks for what this version does not have")
        if not (math.isfinite(step) and step > 0 and math.isfinite(rms) and rms >= 0 and 0 <= nrmse < math.inf):
            raise Damage("head of a sparse tensor holds a number that makes no sense")
        if rows < 1 or elements < 1 or elements % rows or not 1 <= height <= rows or (height < rows and height % block):
            raise Damage("head of a sparse tensor does not fit its shape")
        if not plausible_tile(height, elements // rows, block, elements // rows):
            raise Damage("head of a sparse tensor holds an impossible tile")
        grid = Grid(rows, elements // rows, height, elements // rows)
        return cls(kinds[transform], block, levels, bool(basis), grid), step

    def blocks(self, tile: Tile) -> list[Tile]:
        """The blocks of a tile, by rows."""
        b = self.block
        return [
            Tile(top, min(top + b, tile.bottom), left, min(left + b, tile.right))
            for top in range(tile.top, tile.bottom, b)
            for left in range(tile.left, tile.right, b)
        ]

    def alike(self, tile: Tile) -> list[AlikeBlocks]:
        """The same by their shapes, of which there are at most four: a tile may have millions of blocks."""
        columns, across = self.grid.columns, -(-self.grid.columns // self.block)
        return [
            AlikeBlocks(down, height, along, width, top, left, columns, across)
            for top, down, height in self._runs(tile.bottom - tile.top)
            for left, along, width in self._runs(columns)
        ]

    def _runs(self, n: int) -> list[tuple[int, int, int]]:
        """Where the whole blocks of n rows or columns begin, how many and how long they are; and what is left."""
        count, rest = divmod(n, self.block)
        return [run for run in ((0, count, self.block), (n - rest, int(rest > 0), rest)) if run[1]]

    def transform(self) -> Blockwise:
        """The transform of its blocks."""
        return Blockwise(self.kind, self.block, self.levels, self.grid.columns)


class AlikeBlocks(NamedTuple):
    """The blocks of a tile that are height x width: down x along of them, side by side.

    Attributes
    ----------
    top, left : int
        Where they begin in the tile.
    columns, across : int
        Of the tile, and its blocks side by side.
    """

    down: int
    height: int
    along: int
    width: int
    top: int
    left: int
    columns: int
    across: int

    @property
    def area(self) -> int:
        """Elements of one."""
        return self.height * self.width

    def among(self, numbers: NDArray[Any]) -> NDArray[Any]:
        """Theirs of what there is for each block of the tile, [blocks, ...] -> a view, [down, along, ...]."""
        each = numbers.reshape(len(numbers) // self.across, self.across, *numbers.shape[1:])
        # Whole blocks come first, and what is left at an edge is one row or column of blocks.
        rows = slice(0, self.down) if self.top == 0 else slice(-1, None)
        columns = slice(0, self.along) if self.left == 0 else slice(-1, None)
        return each[rows, columns]

    def within(self, values: NDArray[Any]) -> NDArray[Any]:
        """Theirs of a tile's values, [rows, columns] -> a view, [down, along, height, width]."""
        part = values[self.top : self.top + self.down * self.height, self.left : self.left + self.along * self.width]
        return part.reshape(self.down, self.height, self.along, self.width).swapaxes(1, 2)

    def listed(self, values: NDArray[Any]) -> NDArray[Any]:
        """Theirs of a tile's values block by block, [elements] -> a view, [down, along, height, width]."""
        rows = values[self.top * self.columns :][: self.down * self.height * self.columns].reshape(self.down, -1)
        part = rows[:, self.height * self.left :][:, : self.along * self.area]
        return part.reshape(self.down, self.along, self.height, self.width)


def sparse_form(matrix: Matrix, kind: str, block: int, levels: int) -> SparseForm:
    """The form an encoder uses for a matrix: with the basis functions."""
    block = min(block, _LARGEST_BLOCK)
    grid = Grid.of(matrix.rows, matrix.columns, block, whole_rows=True, tile=_TILE)
    return SparseForm(kind, block, effective_levels(levels, block) if kind == "dwt" else 0, True, grid)
