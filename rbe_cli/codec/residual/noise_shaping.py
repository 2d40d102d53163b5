"""Noise shaping: the step of element (i, j) is step x a_i x b_j, so that the error goes where it does least harm.

a and b follow the scale field (a = r^gr, b = c^gc), or along the axis of a layer's inputs what is known of them: with
mean squares m_j the error of the outputs is the sum of m_j e_ij^2, least at a given rate for b_j = 1 / sqrt(m_j). With
their second moments H, and the errors fed back (`rbe_cli.kernels.feedback`), m_j is D_j of H = (I + U) D (I + U)^T,
what is left of input j when those after it are known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rbe_cli.codec.residual.scale_field import Axis
from rbe_cli.codec.workspace import Findings, whole_matrices
from rbe_cli.errors import UsageError

#: Part of the mean over all inputs that is added to each one's mean square: what was never active on the text may be
#: on another.
DAMPING = 0.01
MOST_DAMPING = 0.5
#: Importance is in quarter octaves.
_SHIFT = 1
#: Elements of the feedback's factors are multiples of this, so that the last bits of a library's arithmetic do not
#: reach the file.
_GRID = 2.0**-12
_LEAST = 1e-300
#: Bytes that a Cholesky factor takes for each of its numbers: it is worked out in place in float64, from float32 and to
#: float32. Rows that are seen to at once.
_ROOT_BYTES, _BAND_ROWS = 12, 128


def damping(bits: float) -> float:
    """The damping of second moments whose errors are fed back, for weights of so many bits.

    Feedback hides errors where the inputs are not. But the inputs of a compressed model have errors of their own, in
    all directions, and larger ones at fewer bits; what was found best on mini-gpt2 and MiniLM (docs/calibration.md).

    >>> damping(3.0), damping(2.0)
    (0.1875, 0.5)
    """
    return min(max(12 * math.exp2(-2 * bits), DAMPING), MOST_DAMPING)


class Inputs:
    """What is known of the inputs of a layer.

    Attributes
    ----------
    axis : int
        Along which they lie in the matrix: 0 rows, 1 columns.
    size : int
        How many there are.
    moments : callable or None
        Gives float[n, n], the mean of x x^T; called each time it is needed, so that one layer's is in memory at a time.
        With it, errors are fed back.
    damping : float
        Part of the mean that is added to each input's mean square.
    """

    def __init__(
        self,
        axis: int,
        mean_square: NDArray[np.float64],
        moments: Callable[[], NDArray[np.floating]] | None = None,
        damping: float = DAMPING,
        where: str = "",
    ) -> None:
        """Of their mean squares, float64[n]; `where` is what the moments are of, for messages."""
        self.axis = axis
        self.size = mean_square.size
        self.moments = moments
        self.damping = damping
        self._where = where
        self._mean_square = Findings(mean_square)
        self._indices: Findings | None = None

    def set_aside(self) -> None:
        """Put by what grows with the checkpoint."""
        self._mean_square.set_aside()
        if self._indices is not None:
            self._indices.set_aside()

    @property
    def exponents(self) -> Axis:
        """Importance as it is stored: exponents of the step in eighth octaves, of mean 0."""
        if self._indices is None:
            self._indices = Findings(self._quarter_octaves())
        (indices,) = self._indices.arrays()
        return Axis(indices.astype(np.int32) << _SHIFT, _SHIFT)

    def _quarter_octaves(self) -> NDArray[np.int16]:
        if self.moments is None:
            (mean_square,) = self._mean_square.arrays()
            left = mean_square + self.damping * mean_square.mean()
        else:
            with whole_matrices.held(_ROOT_BYTES * self.size**2):
                left = np.diag(self._root()) ** 2
        logs = 0.5 * np.log2(np.maximum(left, _LEAST))
        index = np.clip(np.round(8 * (logs.mean() - logs) / (1 << _SHIFT)), -256, 256)
        return np.asarray(index, np.int16)

    def factor(self) -> NDArray[np.float32]:
        """What input j takes of the errors of the inputs before it, float32[n, n], row j; zero from the diagonal on."""
        n = self.size
        with whole_matrices.held(_ROOT_BYTES * n**2):
            root = self._root()
            power, out = np.diag(root), np.empty((n, n), np.float32)
            for rows in _bands(n):
                taken = (root[:, rows] / power[rows]).T
                out[rows] = np.tril(np.round(taken / _GRID) * _GRID, rows.start - 1)
            return out

    def _root(self) -> NDArray[np.float64]:
        assert self.moments is not None
        try:
            return _upper_root(self.moments, self.damping)
        except np.linalg.LinAlgError:
            raise UsageError(f"{self._where}: the second moments are no mean of x x^T") from None


def _bands(n: int) -> Iterator[slice]:
    """Rows of a square matrix, some at a time."""
    return (slice(top, top + _BAND_ROWS) for top in range(0, n, _BAND_ROWS))


def _upper_root(moments: Callable[[], NDArray[np.floating]], damping: float) -> NDArray[np.float64]:
    """Upper triangular R with R R^T the damped moments, beside what is left below its diagonal: the Cholesky factor of
    what is turned around, turned back.

    The caller has asked `workspace.whole_matrices` for _ROOT_BYTES a number.
    """
    matrix = moments()[::-1, ::-1]
    wide = np.empty(matrix.shape)
    for rows in _bands(len(matrix)):
        wide[rows] = (matrix[rows].astype(np.float64) + matrix[:, rows].T.astype(np.float64)) / 2
    del matrix
    mean = float(np.diag(wide).mean())
    wide[np.diag_indices_from(wide)] += damping * mean if mean > 0 else 1.0
    _factorise(wide)
    return wide[::-1, ::-1]


def _factorise(a: NDArray[np.float64]) -> None:
    """Write the Cholesky factor of a matrix over its lower triangle, some columns at a time."""
    for columns in _bands(len(a)):
        own, before = a[columns.start :, columns], a[columns.start :, : columns.start]
        own -= before @ a[columns, : columns.start].T
        corner = np.linalg.cholesky(own[:_BAND_ROWS])
        own[:_BAND_ROWS] = corner
        own[_BAND_ROWS:] = np.linalg.solve(corner, own[_BAND_ROWS:].T).T


@dataclass(frozen=True)
class Shaping:
    """How the steps of a tensor vary.

    Attributes
    ----------
    row, column : int
        gr and gc in sixteenths.
    geometric : bool
        The unit of the step is the geometric mean of sigma / (a b), not the RMS.
    inputs : Inputs or None
        What is known of the inputs: along their axis, b is theirs.
    rows : int64[k] or None
        Those there are in the matrix, if it is a sample and they are the inputs.
    """

    row: int = 0
    column: int = 0
    geometric: bool = False
    inputs: Inputs | None = None
    rows: NDArray[np.int64] | None = None

    def of_rows(self, rows: NDArray[np.int64]) -> Shaping:
        """The same for a matrix of only these rows."""
        if self.inputs is None or self.inputs.axis != 0:
            return self
        return replace(self, rows=rows)

    def set_aside(self) -> None:
        """Put by what grows with the checkpoint."""
        if self.inputs is not None:
            self.inputs.set_aside()

    @property
    def shaped(self) -> bool:
        """Whether the step varies at all."""
        return bool(self.row or self.column or self.inputs)

    @property
    def row_importance(self) -> Axis | None:
        """Importance along the rows' axis."""
        if self.inputs is None or self.inputs.axis != 0:
            return None
        axis = self.inputs.exponents
        return axis if self.rows is None else replace(axis, exponents=axis.exponents[self.rows])

    @property
    def column_importance(self) -> Axis | None:
        """Importance along the columns' axis."""
        return self.inputs.exponents if self.inputs and self.inputs.axis == 1 else None

    @property
    def feedback(self) -> bool:
        """Whether errors are fed back."""
        return self.inputs is not None and self.inputs.moments is not None


#: Least squared error.
PLAIN = Shaping()
