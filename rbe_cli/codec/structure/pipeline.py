"""The pipeline: structure and transform on the way from weights to what is quantised, and back.

y = T(w - S)        w = S + T^-1(y)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbe_cli.codec.parameters import KLT_COLUMNS, STRUCTURES, TRANSFORMS
from rbe_cli.codec.source import Description, Matrix, held_whole, read_rows
from rbe_cli.codec.structure.decode_cost import decode_cost
from rbe_cli.codec.structure.low_rank import LowRank, on_grid
from rbe_cli.codec.structure.side_matrix import decode_side_matrix, encode_side_matrix
from rbe_cli.codec.structure.singular_vectors import of_one_sign
from rbe_cli.codec.structure.transform import Blockwise, Identity, KarhunenLoeve, Transform, effective_levels
from rbe_cli.codec.tiles import Tile
from rbe_cli.codec.workspace import Findings, kept_matrices
from rbe_cli.errors import Damage

#: For a matrix wider than so much, a Karhunen-Loeve basis is sent if it is many times longer than wide: else working
#: out the basis takes more memory than the matrix is allowed, and sending it more bits.
_ANY_KLT_COLUMNS = 512
ROWS_PER_KLT_COLUMN = 8
#: Bytes that working out a basis takes, for each of its numbers: some copies in float64.
EIGEN_BYTES = 56
#: Relative error the basis is sent with.
_BASIS_ERROR = 0.02
#: And what it takes at that, per number.
BASIS_BITS = 5.7
#: At most such a share of what a matrix is to take, unless it is many times longer than wide.
_BASIS_SHARE = 0.5


def may_have_basis(rows: int, columns: int, bits: float) -> bool:
    """Whether there is a Karhunen-Loeve basis to be had for a matrix that is to take so many bits per weight.

    >>> may_have_basis(512, 128, 4.0), may_have_basis(128, 512, 4.0), may_have_basis(1024, 128, 1.0)
    (True, False, True)

    One column has none: its basis would be one number, which cannot be coded.

    >>> may_have_basis(2000, 1, 4.0)
    False
    """
    if columns == 1:
        return False
    if rows >= ROWS_PER_KLT_COLUMN * columns:
        return columns <= KLT_COLUMNS
    return columns <= _ANY_KLT_COLUMNS and BASIS_BITS * columns <= _BASIS_SHARE * bits * rows


class Pipeline:
    """A structure and a transform.

    Attributes
    ----------
    structure : LowRank or None
    transform : Transform
    description : Description
        What the parameters say of it.
    """

    def __init__(self, structure: LowRank | None, transform: Transform, description: Description) -> None:
        self.structure = structure
        self.transform = transform
        self.description = description

    @property
    def decode_cost(self) -> float:
        """What its inverse has to gain to be worth the time, in dB."""
        products, numbers = self.transform.products, 0.0
        if self.structure is not None:
            left, right = self.structure.left, self.structure.right
            products += right.shape[0]
            numbers = (left.size + right.size) / (left.shape[0] * right.shape[1])
        return float(decode_cost(products, numbers))

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that its inverse holds."""
        return self.transform.nbytes + (self.structure.nbytes if self.structure is not None else 0)

    @classmethod
    def of(
        cls, structure: LowRank | None, kind: str, block: int, levels: int, columns: int, basis: bytes = b""
    ) -> Pipeline:
        """For the encoder. `basis` is what `encode_basis` gave, for `klt`."""
        data = (structure.data if structure else b"") + basis
        blockwise = kind in ("dct", "dwt")
        transform: Transform = Identity()
        if blockwise:
            transform = Blockwise(kind, block, levels, columns)
        elif kind == "klt":
            transform = KarhunenLoeve(decode_side_matrix(basis, columns, columns).values)
        description = Description(
            STRUCTURES.index("lowrank") if structure else 0,
            TRANSFORMS.index(kind),
            block if blockwise else 0,
            effective_levels(levels, block) if kind == "dwt" else 0,
            data,
        )
        return cls(structure, transform, description)

    @classmethod
    def unpack(cls, description: Description, rows: int, columns: int) -> Pipeline:
        """That of a matrix of rows x columns, from its description. Raises Damage."""
        data = description.data
        structure, at = None, 0
        if description.structure:
            structure, at = LowRank.unpack(data, rows, columns)
        kind = TRANSFORMS[description.transform]
        transform: Transform = Identity()
        if kind == "klt":
            if columns > KLT_COLUMNS:
                raise Damage("basis is impossibly large")
            basis = decode_side_matrix(data[at:], columns, columns)
            transform = KarhunenLoeve(basis.values)
            at += basis.used
        elif kind != "none":
            transform = Blockwise(kind, description.block, description.levels, columns)
        if at != len(data):
            raise Damage("side information is too long")
        return cls(structure, transform, description)

    def forward(self, w: NDArray[np.float32], top: int) -> NDArray[np.float32]:
        """What is to be quantised of rows top, top + 1, ..."""
        if self.structure is not None:
            w = w.copy()
            self.structure.subtract(w, top)
        return self.transform.forward(w)

    def inverse(
        self, values: NDArray[np.float32], top: int, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """The weights of rows top, top + 1, ..., in `out` or else good until this thread's next call."""
        w = self.transform.inverse(values)
        if self.structure is not None:
            return self.structure.add(w, top, out)
        if out is None:
            return w
        out[...] = w
        return out


class Piped:
    """A matrix seen through a pipeline: a `Domain` for the trellis coder."""

    def __init__(self, matrix: Matrix, pipeline: Pipeline, values: NDArray[np.float32] | None = None) -> None:
        """`values` is the whole of it, if it is known."""
        self._matrix = matrix
        self._pipeline: Pipeline | None = pipeline
        self._description = pipeline.description._replace(data=b"")
        self._data = Findings(np.frombuffer(pipeline.description.data, np.uint8))
        self._values = values
        self.rows, self.columns = matrix.rows, matrix.columns
        self.alignment = pipeline.transform.alignment
        self.whole_rows = True

    @contextmanager
    def held(self) -> Iterator[Piped]:
        """Computed once and held as a whole, for somebody who reads it again and again; if it is small, also later."""
        with held_whole(self) as values:
            self._values = values
            yield self
            if values is not None and not kept_matrices.lend(self, values.nbytes):
                self._values = None

    def set_aside(self) -> None:
        """Put by the pipeline, in its stored form, until somebody wants it `ready`."""
        self._data.set_aside()
        self._pipeline = None

    def ready(self) -> Piped:
        """The same with the pipeline in memory."""
        return self if self._pipeline is not None else Piped(self._matrix, self._opened(), self._values)

    def _opened(self) -> Pipeline:
        return self._pipeline or Pipeline.unpack(self.describe(), self.rows, self.columns)

    def band(self, top: int, bottom: int) -> NDArray[np.float32]:
        """Rows top to bottom - 1 of what is to be quantised."""
        if self._values is not None:
            return self._values[top:bottom]
        first = top // self.alignment * self.alignment
        last = min(-(-bottom // self.alignment) * self.alignment, self.rows)
        values = self._opened().forward(self._matrix.band(first, last), first)
        return values[top - first : bottom - first]

    def piece(self, tile: Tile) -> NDArray[np.float32]:
        """A tile of that, of whole rows."""
        return self.band(tile.top, tile.bottom)

    def bands(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """All rows in order."""
        height = max(self.alignment, (1 << 18) // self.columns // self.alignment * self.alignment)
        for top in range(0, self.rows, height):
            yield top, self.band(top, min(top + height, self.rows))

    def some(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Single rows by their numbers, float32[k, columns], a copy."""
        if self._values is not None:
            return self._values[rows]
        return read_rows(self, rows)

    def squared_error(self, values: NDArray[np.float32], tile: Tile) -> float:
        """Squared error of the weights a tile's values stand for."""
        return self._matrix.squared_error(self._opened().inverse(values, tile.top), tile)

    def describe(self) -> Description:
        """What the parameters say of the pipeline."""
        return self._description._replace(data=self._data.arrays()[0].tobytes())


def encode_basis(matrix: Matrix) -> bytes:
    """A Karhunen-Loeve basis of the rows of a matrix, in its stored form.

    The eigenvectors of the columns' second moments, the largest first, every row brought to one scale, since each is
    coded with a scale of its own; on a grid so that the last bits of a library's arithmetic do not reach the file.
    The caller has asked `workspace.whole_matrices` for EIGEN_BYTES a number.
    """
    vectors = np.linalg.eigh(second_moments(matrix))[1][:, ::-1]
    return encode_side_matrix(on_grid(of_one_sign(vectors)), nrmse=_BASIS_ERROR)


def second_moments(matrix: Matrix, real: type[np.floating] = np.float64) -> NDArray[Any]:
    """Those of the columns, float64[columns, columns] or another `real`, with every row brought to one scale."""
    moments = np.zeros((matrix.columns, matrix.columns), real)
    for _, band in matrix.bands():
        wide = band.astype(real)
        power = np.einsum("ij,ij->i", wide, wide)
        wide /= np.sqrt(np.where(power > 0, power, 1.0))[:, None]
        moments += wide.T @ wide
    return moments
