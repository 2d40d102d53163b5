"""A matrix of sparse blocks that is multiplied with where it is sparse: y = A^T S (B x).

A block of the codec `sparse` is a sum of the 8 basis functions and of a few coefficients of a transform. Both are the
same thing here: products of a function of the row and a function of the column, times a number. The functions of an
axis are the rows of the transform, the four the analytic functions are made of (1, cos pi t, cos 2 pi t, t^2), and the
leading singular vectors of d = sqrt(x^2 + y^2), which is no such product but the sum of about ten. They are the same
for all blocks, so a vector is taken to them once per block, the few numbers are applied, and the result comes back
once per block. Functions that no block uses are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rbe_cli.codec.structure.basis import coordinate, functions, orthonormal
from rbe_cli.codec.structure.sparse_codec import SparseDecoder
from rbe_cli.codec.structure.sparse_form import AlikeBlocks, SparseForm
from rbe_cli.codec.structure.transform import dct_matrix, dwt_matrix
from rbe_cli.errors import located
from rbe_cli.kernels import forward
from rbe_cli.layers.block_layout import BlockLayout
from rbe_cli.layers.encoded import StoredMatrix
from rbe_cli.layers.resident import aligned

_Numbers = TypeVar("_Numbers", int, NDArray[np.int64])
#: Singular values of d below this times the largest are left out.
_NEGLIGIBLE = 1e-7
#: Places of the analytic functions but d among the four of each axis: (of the row, of the column, number).
_SEPARABLE = ((0, 0, 0), (0, 3, 2), (3, 0, 2), (0, 1, 3), (1, 0, 4), (0, 2, 5), (2, 0, 6), (1, 1, 7))
_ANALYTIC = 4
#: Weights of the analytic functions beyond this would cancel each other in float32.
_ILL_CONDITIONED = 100.0
#: From so many vectors on, products of the linear algebra library are faster than one call per vector.
_MANY = 4


class SparseMatrix:
    """W, rows x columns, as the numbers of its blocks.

    Products are those with the decoded weights of a float32 tensor; what `rbe decode` writes of a 16-bit tensor is
    rounded to its type, and these are not.

    Parameters
    ----------
    stored : StoredMatrix
    decoder : SparseDecoder
        That of `stored`.
    """

    def __init__(self, stored: StoredMatrix, decoder: SparseDecoder) -> None:
        form, grid = decoder.form, decoder.grid
        self._form = form
        self.layout = BlockLayout(grid.rows, grid.columns, min(form.block, grid.rows), min(form.block, grid.columns))
        self._rows = _Axis.of(form, grid.rows, grid.columns, _row_vectors)
        self._columns = _Axis.of(form, grid.columns, grid.rows, _column_vectors)
        entries: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []
        # What no encoder writes may overflow on the way; it stays what it is.
        with located(stored.where), np.errstate(all="ignore"):
            for index, tile in enumerate(grid):
                weights, coefficients = decoder.numbers(stored.stream(index), tile)
                for alike in form.alike(tile):
                    entries += self._entries(alike, tile.top, weights, coefficients, decoder.step)
            self._keep(*(np.concatenate(part) for part in zip(*entries, strict=True)))

    def _entries(
        self,
        alike: AlikeBlocks,
        top: int,
        weights: NDArray[np.int32],
        coefficients: NDArray[np.int32],
        step: np.float32,
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
        """The numbers of blocks of a tile that begins at row `top`, and the functions they go with: the coefficients,
        and the weights of the functions.
        """
        down, along = (top + alike.top) // self._form.block, alike.left // self._form.block
        part = alike.listed(coefficients)
        i, j, u, v = np.nonzero(part)
        yield (
            self._rows.first(down + i) + u,
            self._columns.first(along + j) + v,
            (part[i, j, u, v] * step).astype(np.float32),
        )
        i, j = np.nonzero(alike.among(weights).any(axis=-1))
        if i.size:
            u, v, values = self._smooth(alike.height, alike.width, alike.among(weights)[i, j] * step)
            rows = self._rows.first(down + i)[:, None] + alike.height + u
            columns = self._columns.first(along + j)[:, None] + alike.width + v
            yield rows.ravel(), columns.ravel(), values.ravel()

    def _smooth(
        self, height: int, width: int, own: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """What the weights of the orthonormal functions, float32[blocks, 8], are in products of functions after the
        transform's: the k functions of the rows and of the columns, and float32[blocks, k].
        """
        back = _analytic(height, width)
        if np.abs(back).max() > _ILL_CONDITIONED:
            return self._transformed(height, width, own)
        weights = own[:, : len(back)].astype(np.float64) @ back
        _, strengths, _ = _distance(height, width)
        m = np.arange(strengths.size)
        u, v, number = np.array(_SEPARABLE).T
        return (
            np.concatenate((u, self._rows.distance(height, width) + m)),
            np.concatenate((v, self._columns.distance(width, height) + m)),
            np.concatenate((weights[:, number], weights[:, 1:2] * strengths), axis=1).astype(np.float32),
        )

    def _transformed(
        self, height: int, width: int, own: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """The same as coefficients of the transform: for blocks so narrow that the functions hardly differ on them."""
        basis = orthonormal(height, width)
        smooth = (own[:, : len(basis)].astype(np.float64) @ basis).reshape(-1, height, width)
        coefficients = _transform(self._form, height) @ smooth @ _transform(self._form, width).T
        u, v = np.mgrid[:height, :width].reshape(2, -1)
        return u - height, v - width, coefficients.reshape(len(own), -1).astype(np.float32)

    def _keep(self, rows: NDArray[np.int64], columns: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Leave out the functions that are not used, and order the entries by function of the rows."""
        rows, columns = self._rows.prune(rows), self._columns.prune(columns)
        order = np.lexsort((columns, rows))
        counts = np.bincount(rows, minlength=self._rows.coordinates)
        self._starts = np.concatenate(([0], np.cumsum(counts))).astype(np.uint32)
        self._places = columns[order].astype(np.uint32)
        self._values = values[order].astype(np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.layout.rows, self.layout.columns

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers, their places and the functions."""
        sparse = self._starts.nbytes + self._places.nbytes + self._values.nbytes
        return sparse + self._rows.nbytes + self._columns.nbytes

    def block(self, index: int) -> NDArray[np.float32]:
        """Weights of a block, float32[height, width]."""
        rows, columns, u, v, values = self._block_entries(index)
        core = np.bincount(u * len(columns) + v, values, len(rows) * len(columns)).astype(np.float32)
        weights: NDArray[np.float32] = rows.T @ (core.reshape(len(rows), len(columns)) @ columns)
        return weights

    def at(self, index: int, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
        """Weights at positions of a block, float32[n]."""
        row_functions, column_functions, u, v, values = self._block_entries(index)
        out = np.empty(rows.size, np.float32)
        forward.weights_at(rows, columns, row_functions, column_functions, u, v, values, out)
        return out

    def take(self, ids: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Rows by number, int[n] -> float32[n, columns]."""
        coordinates = np.empty((ids.size, self._columns.coordinates), np.float32)
        axis = self._rows
        forward.sparse_rows(
            np.asarray(ids, np.int64), self.layout.height, axis.blocks, axis.whole, axis.rest,
            self._starts, self._places, self._values, coordinates,
        )  # fmt: skip
        return self._columns.synthesise(coordinates)

    def times(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """X W, float32[n, rows] -> float32[n, columns]."""
        sparse = self._starts, self._places, self._values
        if len(x) < _MANY:
            out = np.empty((len(x), self.layout.columns), np.float32)
            a, b = self._rows, self._columns
            forward.sparse_times(np.ascontiguousarray(x), a.whole, a.rest, *sparse, b.whole, b.rest, out)
            return out
        z = np.empty((len(x), self._columns.coordinates), np.float32)
        forward.sparse_scatter(self._rows.analyse(x), *sparse, z)
        return self._columns.synthesise(z)

    def times_transposed(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """X W^T, float32[n, columns] -> float32[n, rows]."""
        sparse = self._starts, self._places, self._values
        if len(x) < _MANY:
            out = np.empty((len(x), self.layout.rows), np.float32)
            a, b = self._rows, self._columns
            forward.sparse_times_transposed(np.ascontiguousarray(x), a.whole, a.rest, *sparse, b.whole, b.rest, out)
            return out
        z = np.empty((len(x), self._rows.coordinates), np.float32)
        forward.sparse_gather(self._columns.analyse(x), *sparse, z)
        return self._rows.synthesise(z)

    def _block_entries(self, index: int) -> tuple[NDArray[Any], ...]:
        """Functions of a block's rows and columns, and its entries: numbers of the two functions, and the values."""
        down, along = divmod(index, self.layout.across)
        row_functions, column_functions = self._rows.functions(down), self._columns.functions(along)
        begin, first = self._rows.first(down), self._columns.first(along)
        span = slice(self._starts[begin], self._starts[begin + len(row_functions)])
        places = self._places[span].astype(np.int64) - first
        own = (places >= 0) & (places < len(column_functions))
        counts = np.diff(self._starts[begin : begin + len(row_functions) + 1])
        u = np.repeat(np.arange(len(row_functions)), counts)[own]
        return row_functions, column_functions, u, places[own], self._values[span][own]


#: (own size, size across) of a block -> singular vectors of d, by rows.
Vectors = Callable[[int, int], NDArray[np.float64]]


@dataclass
class _Axis:
    """The rows, or the columns, of a matrix: blocks of `whole` size and perhaps a smaller one, and their functions.

    Attributes
    ----------
    size, block, blocks : int
        Rows in all, rows of a block, and how many such blocks there are.
    whole : float32[p, block]; rest : float32[q, size - blocks * block]
        The functions, one per row.
    offsets : dict
        (own size, size across) of a block -> number of the first singular vector of d among the functions after the
        transform's.
    """

    size: int
    block: int
    blocks: int
    whole: NDArray[np.float32]
    rest: NDArray[np.float32]
    offsets: dict[tuple[int, int], int]

    @classmethod
    def of(cls, form: SparseForm, size: int, across: int, vectors_of: Vectors) -> _Axis:
        """All functions of an axis of `size`, whose blocks meet those of an axis of `across`."""
        block = min(form.block, size)
        others = sorted({min(form.block, across), across % form.block or min(form.block, across)}, reverse=True)
        offsets: dict[tuple[int, int], int] = {}
        tables = []
        for own in (block, size % block):
            if not own:
                tables.append(np.zeros((0, 0), np.float32))
                continue
            t = coordinate(own)
            rows = [_transform(form, own), np.stack((np.ones(own), np.cos(np.pi * t), np.cos(2 * np.pi * t), t * t))]
            at = _ANALYTIC
            for other in others if form.with_basis else ():
                vectors = vectors_of(own, other)
                offsets[own, other] = at
                rows.append(vectors)
                at += len(vectors)
            tables.append(np.concatenate(rows).astype(np.float32))
        return cls(size, block, size // block, tables[0], tables[1], offsets)

    @property
    def coordinates(self) -> int:
        """Functions of all blocks together."""
        return self.blocks * len(self.whole) + len(self.rest)

    @property
    def nbytes(self) -> int:
        """Bytes of the functions."""
        return self.whole.nbytes + self.rest.nbytes

    def first(self, number: _Numbers) -> _Numbers:
        """Number of a block's first function, or of several."""
        return number * len(self.whole)

    def functions(self, number: int) -> NDArray[np.float32]:
        """Those of a block."""
        return self.whole if number < self.blocks else self.rest

    def distance(self, own: int, across: int) -> int:
        """Where the singular vectors of d begin, for a block of this shape."""
        return self.offsets[own, across]

    def prune(self, used: NDArray[np.int64]) -> NDArray[np.int64]:
        """Leave out functions no block uses; the numbers of the used ones as they are afterwards."""
        before = len(self.whole)
        number = np.minimum(used // before, self.blocks)
        within = used - number * before
        keep, keep_rest = np.unique(within[number < self.blocks]), np.unique(within[number == self.blocks])
        self.whole, self.rest = aligned(self.whole[keep]), aligned(self.rest[keep_rest])
        place = np.where(number < self.blocks, np.searchsorted(keep, within), np.searchsorted(keep_rest, within))
        return np.asarray(number * len(keep) + place, np.int64)

    def analyse(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors float32[n, size] in the coordinates of the functions, float32[n, coordinates]."""
        cut = self.blocks * self.block
        whole = x[:, :cut].reshape(len(x) * self.blocks, self.block) @ self.whole.T
        whole = whole.reshape(len(x), self.blocks * len(self.whole))
        return np.concatenate((whole, x[:, cut:] @ self.rest.T), axis=1) if len(self.rest) else whole

    def synthesise(self, z: NDArray[np.float32]) -> NDArray[np.float32]:
        """Transpose of `analyse`."""
        cut = self.blocks * len(self.whole)
        whole = z[:, :cut].reshape(len(z) * self.blocks, len(self.whole)) @ self.whole
        whole = whole.reshape(len(z), self.blocks * self.block)
        return np.concatenate((whole, z[:, cut:] @ self.rest), axis=1) if self.rest.shape[1] else whole


def _transform(form: SparseForm, size: int) -> NDArray[np.float64]:
    """The transform of an axis of a block, functions by rows."""
    matrix = dct_matrix(size) if form.kind == "dct" else dwt_matrix(size, form.levels)
    return matrix.astype(np.float64)


@lru_cache(maxsize=16)
def _distance(height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Leading singular vectors and values of d on a block: float64[m, height], float64[m], float64[m, width]."""
    u, s, vt = np.linalg.svd(functions(height, width)[1].reshape(height, width), full_matrices=False)
    m = int((s > _NEGLIGIBLE * s[0]).sum()) if s[0] else 0
    return u[:, :m].T.copy(), s[:m], vt[:m].copy()


def _row_vectors(height: int, width: int) -> NDArray[np.float64]:
    return _distance(height, width)[0]


def _column_vectors(width: int, height: int) -> NDArray[np.float64]:
    return _distance(height, width)[2]


@lru_cache(maxsize=16)
def _analytic(height: int, width: int) -> NDArray[np.float64]:
    """The orthonormal functions of a block in the analytic ones, float64[b, 8]."""
    back = np.linalg.lstsq(functions(height, width).T, orthonormal(height, width).T, rcond=None)[0]
    return np.asarray(back.T, np.float64)
