"""Orthonormal transforms of a residual, and their inverses.

`dct` and `dwt` work on blocks of block x block (smaller at the edges); `klt` on whole rows, with a basis that is sent
along. All are linear, so what is quantised in the transform domain adds the same squared error to the weights (for
`klt` up to the rounding of its basis).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rbe_cli.codec.workspace import scratch
from rbe_cli.kernels.products import multiply_left, multiply_right


class Transform(Protocol):
    """What a residual can be coded in.

    Attributes
    ----------
    alignment : int
        Rows have to be given in groups that begin at multiples of this.
    products : int
        Multiplications per number of the inverse.
    nbytes : int
        Bytes that the inverse holds for one tensor alone.
    """

    alignment: int
    products: int
    nbytes: int

    def forward(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Coefficients of some rows, float32[m, n] -> float32[m, n]."""

    def inverse(self, y: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows of some coefficients."""


class Identity:
    """No transform."""

    alignment = 1
    products = 0
    nbytes = 0

    def forward(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same array."""
        return x

    def inverse(self, y: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same array."""
        return y


class _Run(NamedTuple):
    """Blocks of one size side by side."""

    part: slice
    blocks: int
    size: int


class Blockwise:
    """A separable transform of every block: left @ block @ right^T.

    Parameters
    ----------
    kind : str
        `dct` or `dwt`.
    block : int
        Size of a block.
    levels : int
        Of the wavelet; capped by the block, see `effective_levels`.
    columns : int
        Of the matrix.
    """

    nbytes = 0

    def __init__(self, kind: str, block: int, levels: int, columns: int) -> None:
        self.alignment = block
        self.products = 2 * block
        self._kind = kind
        self._levels = levels
        self._columns = columns

    def _matrix(self, n: int) -> NDArray[np.float32]:
        return dct_matrix(n) if self._kind == "dct" else dwt_matrix(n, self._levels)

    def forward(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Coefficients, frequency (u, v) of a block in the block's row u and column v.

        In a fixed order of additions, since what comes out is quantised.
        """
        x = np.ascontiguousarray(x)
        out, height = np.empty_like(x), min(self.alignment, x.shape[0])
        half = scratch("half transformed", (height, self._columns), np.float32)
        widths = [min(self.alignment, self._columns - left) for left in range(0, self._columns, self.alignment)]
        right = {width: np.ascontiguousarray(self._matrix(width).T) for width in dict.fromkeys(widths)}
        for top in range(0, x.shape[0], height):
            rows, done = x[top : top + height], out[top : top + height]
            multiply_left(self._matrix(len(rows)), rows, half)
            for i, width in enumerate(widths):
                multiply_right(half[: len(rows)], right[width], i * self.alignment, done)
        return out

    def roughly(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Coefficients, good until this thread's next call, but for their last bits: by the library's product."""
        return self._by_library(x, lambda n: self._matrix(n).T)

    def inverse(self, y: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows of some coefficients, good until this thread's next call: by the library's product, which is fast."""
        return self._by_library(y, self._matrix)

    def _by_library(self, y: NDArray[np.float32], matrix: Callable[[int], NDArray[np.float32]]) -> NDArray[np.float32]:
        """Every block between the transpose of a matrix of its height and a matrix of its width."""
        half, out = scratch("half transformed", y.shape, np.float32), scratch("transformed", y.shape, np.float32)
        for rows in self._runs(y.shape[0]):
            shape = (rows.blocks, rows.size, self._columns)
            np.matmul(matrix(rows.size).T, y[rows.part].reshape(shape), out=half[rows.part].reshape(shape))
        for columns in self._runs(self._columns):
            shape = (y.shape[0], columns.blocks, columns.size)
            ahead, back = (side[:, columns.part].reshape(shape).swapaxes(0, 1) for side in (half, out))
            np.matmul(ahead, matrix(columns.size), out=back)
        return out

    def _runs(self, n: int) -> Iterator[_Run]:
        """The whole blocks of n rows or columns, and what is left at the edge."""
        count, rest = divmod(n, self.alignment)
        if count:
            yield _Run(slice(0, n - rest), count, self.alignment)
        if rest:
            yield _Run(slice(n - rest, n), 1, rest)


class KarhunenLoeve:
    """Rows in the coordinates of a basis that was rounded: x = y @ basis^T, y by least squares.

    Parameters
    ----------
    basis : float32[n, n]
        Columns are the basis vectors, as decoded.
    orthonormal : bool
        Whether it was not rounded: y = x @ basis.
    """

    alignment = 1

    def __init__(self, basis: NDArray[np.float32], orthonormal: bool = False) -> None:
        self.products = basis.shape[0]
        self._back = np.ascontiguousarray(basis.T)
        self.nbytes = self._back.nbytes
        self._solved = np.ascontiguousarray(basis) if orthonormal else None
        self._solving = threading.Lock()

    def _ahead(self) -> NDArray[np.float32]:
        """X = y B^T has the solution y = x B (B^T B)^-1; with B nearly orthonormal that is nearly x B."""
        with self._solving:
            if self._solved is None:
                wide = self._back.T.astype(np.float64)
                self._solved = np.ascontiguousarray(np.linalg.solve(wide.T @ wide, wide.T).T.astype(np.float32))
            return self._solved

    def forward(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Coordinates of some rows."""
        out = np.empty(x.shape, np.float32)
        multiply_right(np.ascontiguousarray(x), self._ahead(), 0, out)
        return out

    def inverse(self, y: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows of some coordinates, good until this thread's next call."""
        out = scratch("rotated", y.shape, np.float32)
        np.matmul(y, self._back, out=out)
        return out


def effective_levels(levels: int, block: int) -> int:
    """Levels a block of this size has room for: each halves it.

    >>> effective_levels(16, 128), effective_levels(5, 128)
    (7, 5)
    """
    return min(levels, max(block.bit_length() - 1, 0))


@lru_cache(maxsize=8)
def dct_matrix(n: int) -> NDArray[np.float32]:
    """DCT-II, orthonormal: row u is c_u cos(pi (2 i + 1) u / (2 n)). float32[n, n]."""
    u, i = np.mgrid[:n, :n]
    matrix = math.sqrt(2 / n) * np.cos(math.pi * ((2 * i + 1) * u % (4 * n)) / (2 * n))
    matrix[0] /= math.sqrt(2)
    return np.asarray(matrix, np.float32)


@lru_cache(maxsize=8)
def dwt_matrix(n: int, levels: int) -> NDArray[np.float32]:
    """Wavelet transform by the 4-tap filters of Daubechies (1988), periodic, orthonormal. float32[n, n].

    Each level maps the approximation of even length to approximations, then details; of an odd length, the last
    sample passes as it is, between them. Approximations come first.
    """
    root = math.sqrt(3)
    low = [(1 + root), (3 + root), (3 - root), (1 - root)]
    low = [tap / (4 * math.sqrt(2)) for tap in low]
    high = [low[3], -low[2], low[1], -low[0]]
    matrix = np.eye(n)
    length = n
    for _ in range(effective_levels(levels, n)):
        half = length // 2
        even = 2 * half
        step = np.zeros((length, length))
        for i in range(half):
            for tap in range(4):
                step[i, (2 * i + tap) % even] += low[tap]
                step[length - half + i, (2 * i + tap) % even] += high[tap]
        if length > even:
            step[half, even] = 1.0
        matrix[:length] = step @ matrix[:length]
        length -= half
        if length < 2:
            break
    return np.asarray(matrix, np.float32)
