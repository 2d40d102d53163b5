"""What the codec reads from: a tensor's bytes, seen as rows x columns, some rows at a time in float32.

A `Domain` is what the trellis coder works on. The plain one is the `Matrix` itself; a pipeline makes others, of what
a structure leaves over, in a transform.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rbe_cli import dtypes, elements
from rbe_cli.codec.tiles import LONG_ROW, Tile
from rbe_cli.codec.workspace import whole_matrices
from rbe_cli.kernels.field import squared_error

#: Elements that are looked at at once, and the most of a whole matrix that is read at once.
_BAND, _READ = 1 << 18, 1 << 20
#: Rows side by side, and elements, that tell how large a difference is, about; and how small it is at least.
_RUN, _GLANCE, _LEAST_SHARE = 4, 1 << 16, 2.0**-20
#: Largest matrix, in elements, that is held in memory as it is looked at again and again.
LARGEST_HELD = 1 << 28


def view_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows x columns a tensor is coded as.

    Dimension 0 x the rest; a vector is one row. Stacks of matrices (experts), whose rows would be very long, keep
    their last dimension as the columns instead.

    >>> view_shape((768, 3, 16, 16)), view_shape((8, 14336, 4096)), view_shape((30,))
    ((768, 768), (114688, 4096), (1, 30))
    """
    n = dtypes.count(shape)
    if n == 0 or len(shape) < 2:
        return (1, n)
    rows = shape[0]
    if n // rows > LONG_ROW and len(shape) > 2:
        rows = n // shape[-1]
    return (rows, n // rows)


class Description(NamedTuple):
    """What the parameters say of a domain, and the bytes that go with it."""

    structure: int = 0
    transform: int = 0
    block: int = 0
    levels: int = 0
    data: bytes = b""


class Bytes(Protocol):
    """A tensor's bytes, in memory or in a file: a slice of them is an array."""

    @property
    def size(self) -> int: ...  # noqa: D102
    def __getitem__(self, part: slice, /) -> NDArray[np.uint8]: ...


class Domain(Protocol):
    """A float32[rows, columns] matrix that is read some rows at a time, and knows the way back to the weights.

    Attributes
    ----------
    alignment : int
        Tiles begin at multiples of so many rows.
    whole_rows : bool
        Tiles have whole rows.
    """

    @property
    def rows(self) -> int: ...  # noqa: D102
    @property
    def columns(self) -> int: ...  # noqa: D102
    @property
    def alignment(self) -> int: ...  # noqa: D102
    @property
    def whole_rows(self) -> bool: ...  # noqa: D102

    def band(self, top: int, bottom: int) -> NDArray[np.float32]:
        """Rows top to bottom - 1, float32[bottom - top, columns], to be read only: they may be somebody else's."""

    def piece(self, tile: Tile) -> NDArray[np.float32]:
        """A tile of whole rows, or a piece of one, float32[rows, columns], to be read only; nothing else is read."""

    def bands(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """All rows in order, some at a time, with the number of the first."""

    def some(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Single rows by their numbers, float32[k, columns], a copy."""

    def squared_error(self, values: NDArray[np.float32], tile: Tile) -> float:
        """Squared error of the weights that a tile's decoded values stand for, rounded to the tensor's type."""

    def describe(self) -> Description:
        """What a decoder has to know of it."""

    def set_aside(self) -> None:
        """Put by what was worked out of it, until somebody wants it `ready`."""

    def ready(self) -> Domain:
        """The same for somebody who is going to read all of it: with everything that takes in memory."""


def read_rows(matrix: Domain, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """What `Domain.some` gives, by reading runs of neighbours."""
    out = np.empty((rows.size, matrix.columns), np.float32)
    ends = np.append(np.flatnonzero(np.diff(rows) != 1) + 1, rows.size)
    at = 0
    for end in map(int, ends):
        out[at:end] = matrix.band(int(rows[at]), int(rows[end - 1]) + 1)
        at = end
    return out


def read_whole(matrix: Domain) -> NDArray[np.float32]:
    """All rows, float32[rows, columns]."""
    out = np.empty((matrix.rows, matrix.columns), np.float32)
    for top, band in matrix.bands():
        out[top : top + len(band)] = band
    return out


@contextmanager
def held_whole(matrix: Domain) -> Iterator[NDArray[np.float32] | None]:
    """All rows, for somebody who reads them again and again, in memory that is allowed for; None if they are too many.

    See `rbe_cli.codec.workspace.whole_matrices`.
    """
    if matrix.rows * matrix.columns > LARGEST_HELD:
        yield None
    else:
        with whole_matrices.held(4 * matrix.rows * matrix.columns):
            yield read_whole(matrix)


@dataclass(eq=False)
class Matrix:
    """A floating-point tensor as float32[rows, columns], converted piece by piece.

    Attributes
    ----------
    raw : Bytes
        As stored, uint8[nbytes] or what reads them from a file.
    dtype : str
        Its safetensors name.
    """

    raw: Bytes
    dtype: str
    rows: int
    columns: int

    @classmethod
    def of(cls, values: NDArray[np.float32]) -> Matrix:
        """An array in memory, float32[rows, columns]."""
        return cls(np.ascontiguousarray(values).view(np.uint8).ravel(), "F32", *values.shape)

    def band(self, top: int, bottom: int) -> NDArray[np.float32]:
        """Rows top to bottom - 1, float32[bottom - top, columns], to be read only: they may be the matrix itself."""
        return self.piece(Tile(top, bottom, 0, self.columns))

    def piece(self, tile: Tile) -> NDArray[np.float32]:
        """A tile of whole rows, or a piece of one, float32[rows, columns], to be read only: it may be the matrix."""
        values = elements.to_float32(self._bytes(tile), self.dtype)
        return values.reshape(tile.bottom - tile.top, tile.right - tile.left)

    def some(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Single rows by their numbers, float32[k, columns], a copy."""
        if not isinstance(self.raw, np.ndarray):
            return read_rows(self, rows)
        pieces = self.raw.reshape(self.rows, -1)[rows]
        return elements.to_float32(pieces.ravel(), self.dtype).reshape(rows.size, self.columns)

    def whole(self) -> NDArray[np.float32]:
        """All rows, float32[rows, columns], to be read only; see `rbe_cli.codec.workspace.whole_matrices`."""
        return self.band(0, self.rows) if self.rows * self.columns <= _READ else read_whole(self)

    def exact(self, tile: Tile) -> NDArray[np.float64]:
        """The same as float64."""
        values = self._bytes(tile).view(elements.FLOATS[self.dtype]).astype(np.float64)
        return values.reshape(tile.bottom - tile.top, tile.right - tile.left)

    def _bytes(self, tile: Tile) -> NDArray[np.uint8]:
        size = dtypes.BITS[self.dtype] // 8
        start, stop = tile.top * self.columns + tile.left, (tile.bottom - 1) * self.columns + tile.right
        return self.raw[start * size : stop * size]

    @property
    def alignment(self) -> int:
        """Tiles may begin anywhere."""
        return 1

    @property
    def whole_rows(self) -> bool:
        """Tiles may be pieces of rows."""
        return False

    def squared_error(self, values: NDArray[np.float32], tile: Tile) -> float:
        """Squared error of decoded weights of a tile, rounded to the tensor's type."""
        total, height = 0.0, max(1, _BAND // max(values.shape[1], 1))
        for top in range(tile.top, tile.bottom, height):
            part = replace(tile, top=top, bottom=min(top + height, tile.bottom))
            back = elements.from_float32(values[top - tile.top : part.bottom - tile.top], self.dtype)
            total += float(squared_error(back.astype(np.float64).ravel(), self.exact(part).ravel()))
        return total

    def describe(self) -> Description:
        """No structure, no transform."""
        return Description()

    def set_aside(self) -> None:
        """Nothing was."""

    def ready(self) -> Matrix:
        """It always is."""
        return self

    def weights(self) -> Matrix:
        """The tensor itself, whatever of it is coded."""
        return self

    def bands(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """All rows in order, some at a time, with the number of the first."""
        height = max(1, _BAND // max(self.columns, 1))
        for top in range(0, self.rows, height):
            yield top, self.band(top, min(top + height, self.rows))


class Difference(Matrix):
    """What a tensor has that its base has not, in float32; its error is that of the sum of both, in the tensor's type.

    Attributes
    ----------
    base : Matrix
        Of as many rows and columns.
    """

    def __init__(self, matrix: Matrix, base: Matrix) -> None:
        """That of a tensor."""
        super().__init__(matrix.raw, matrix.dtype, matrix.rows, matrix.columns)
        self.base = base
        self._held: NDArray[np.float32] | None = None

    @contextmanager
    def held(self) -> Iterator[Difference]:
        """Worked out once, and held in memory for somebody who reads it again and again, if it is not too large."""
        with held_whole(self) as values:
            self._held = values
            try:
                yield self
            finally:
                self._held = None

    def piece(self, tile: Tile) -> NDArray[np.float32]:
        """A tile of whole rows, or a piece of one, float32[rows, columns]."""
        if self._held is not None:
            return self._held[tile.top : tile.bottom, tile.left : tile.right]
        with np.errstate(invalid="ignore"):
            return super().piece(tile) - self.base.piece(tile)

    def some(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Single rows by their numbers, float32[k, columns], a copy."""
        if self._held is not None:
            return self._held[rows]
        with np.errstate(invalid="ignore"):
            return self.weights().some(rows) - self.base.some(rows)

    def share(self) -> float:
        """How large it is relative to the tensor, at most 1: by the RMS of some rows."""
        runs = np.linspace(0, max(self.rows - _RUN, 0), max(1, min(self.rows, _GLANCE // self.columns) // _RUN))
        rows = np.unique(runs.astype(np.int64)[:, None] + np.arange(min(_RUN, self.rows)))
        with np.errstate(all="ignore"):
            share = np.linalg.norm(self.some(rows)) / np.linalg.norm(self.weights().some(rows))
        return float(np.clip(share, _LEAST_SHARE, 1.0)) if np.isfinite(share) else 1.0

    def weights(self) -> Matrix:
        """The tensor itself."""
        return Matrix(self.raw, self.dtype, self.rows, self.columns)

    def squared_error(self, values: NDArray[np.float32], tile: Tile) -> float:
        """Squared error of the weights that a tile's decoded differences make."""
        return super().squared_error(values + self.base.piece(tile), tile)
