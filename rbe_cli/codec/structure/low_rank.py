"""The low-rank part of a matrix, and its stored form.

    S = P diag(2^(-e / 8)) Q,   P = W V (rows x r),   Q = diag(2^(e / 8)) V^T (r x columns)

V holds the leading right singular vectors and 2^(e / 8) the singular values, to an eighth octave, so that an error in
P and an error in Q weigh the same and one quantisation step serves both. What P and Q lose is in the residual.
"""

from __future__ import annotations

import math
import struct

import numpy as np
from numpy.typing import NDArray

from rbe_cli.codec.parameters import SHAPING_UNIT
from rbe_cli.codec.residual import tables
from rbe_cli.codec.residual.noise_shaping import Shaping
from rbe_cli.codec.side_info import decode_integers, encode_integers
from rbe_cli.codec.source import Matrix
from rbe_cli.codec.structure.components import Components, find_components, power_of, scales_from, scales_pay
from rbe_cli.codec.structure.side_matrix import STATES as FACTOR_STATES
from rbe_cli.codec.structure.side_matrix import Uncodable, decode_side_matrix, encode_side_matrix
from rbe_cli.codec.workspace import scratch
from rbe_cli.errors import Damage
from rbe_cli.kernels.products import add_product

#: Largest rank in a file.
MAX_RANK = 1024
_HEAD = struct.Struct("<HH")
_MAX_EXPONENT = 1024
#: Singular vectors are multiples of 1 / GRID, so that the last bits of a library's arithmetic do not reach the file.
GRID = 1 << 14


class LowRank:
    """A decoded low-rank part.

    Attributes
    ----------
    left : float32[rows, r]
        P diag(2^(-e / 8)).
    right : float32[r, columns]
        Q.
    data : bytes
        Its stored form.
    left_units : float32[r]; right_unit : float
        A column of `left` is whole multiples of its unit, `right` of one.
    """

    def __init__(
        self,
        left: NDArray[np.float32],
        right: NDArray[np.float32],
        data: bytes,
        left_units: NDArray[np.float32],
        right_unit: np.float32,
    ) -> None:
        self.left = left
        self.right = right
        self.data = data
        self.left_units = left_units
        self.right_unit = right_unit

    @classmethod
    def unpack(cls, data: bytes, rows: int, columns: int) -> tuple[LowRank, int]:
        """Read the stored form; returns it and the bytes it took. Raises Damage."""
        if len(data) < _HEAD.size:
            raise Damage("low rank part is cut short")
        rank, size = _HEAD.unpack_from(data)
        if not 1 <= rank <= min(MAX_RANK, rows, columns) or len(data) < _HEAD.size + size:
            raise Damage("low rank part has an impossible rank")
        at = _HEAD.size + size
        exponents = decode_integers(data[_HEAD.size : at], rank)
        if np.abs(exponents.astype(np.int64)).max() > _MAX_EXPONENT:
            raise Damage("low rank part has an exponent out of range")
        p = decode_side_matrix(data[at:], rows, rank)
        at += p.used
        q = decode_side_matrix(data[at:], rank, columns)
        at += q.used
        scale = np.exp2(-exponents / 8).astype(np.float32)
        left = p.values
        left *= scale
        return cls(left, q.values, data[:at], scale * np.float32(p.unit), np.float32(q.unit)), at

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded factors."""
        return self.left.nbytes + self.right.nbytes + self.left_units.nbytes

    def of_rows(self, rows: NDArray[np.int64]) -> LowRank:
        """The same for a matrix of only these rows; its stored form stays that of the whole."""
        return LowRank(self.left[rows], self.right, self.data, self.left_units, self.right_unit)

    def subtract(self, w: NDArray[np.float32], top: int) -> None:
        """Take it from rows top, top + 1, ... in place: in a fixed order, since what is left is quantised."""
        add_product(self.left[top : top + w.shape[0]], self.right, np.float32(-1), w)

    def add(self, w: NDArray[np.float32], top: int, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Rows top, top + 1, ... plus it, in `out` or else in place: by the library's product, which is fast."""
        part = scratch("low rank", w.shape, np.float32) if out is None else out
        np.matmul(self.left[top : top + w.shape[0]], self.right, out=part)
        return np.add(w, part, out=w if out is None else out)


def fit_low_rank(matrix: Matrix, nrmse: float) -> LowRank | None:
    """The low-rank part of the components that save most bits of a matrix; see `find_components`."""
    found = find_components(matrix, nrmse)
    return take_low_rank(matrix, found) if found else None


def take_low_rank(matrix: Matrix, found: Components, states: int = FACTOR_STATES) -> LowRank | None:
    """The low-rank part of what `find_components` found of a whole matrix, coded with a trellis of so many states.

    None where columns are so far apart in scale that nothing of a factor is left on its grid.
    """
    factors = found.factors
    vectors, widths = factors.vectors[:, : found.rank], factors.columns[:, None]
    ahead, back = on_grid(vectors / widths), on_grid(vectors * widths)
    shaped = scales_pay(factors.rows, found.rank), scales_pay(factors.columns, found.rank)
    try:
        return encode_low_rank(matrix, factors.values[: found.rank], ahead, back, found.step, shaped, states)
    except Uncodable:
        return None


def imagine_low_rank(matrix: Matrix, found: Components, shape: tuple[int, int]) -> LowRank:
    """The low-rank part of some rows of a matrix, with noise in place of the rounding of its factors, for a forecast.

    `matrix` is that of these rows, `shape` that of the whole, of which `found` knows but a sample. There is no stored
    form.
    """
    factors, rng = found.factors, np.random.default_rng(0)

    def rounding(size: int) -> NDArray[np.float64]:
        """Its root mean square in each component."""
        classes = tables.class_of(found.values / math.sqrt(size) / found.step)
        return np.asarray(np.sqrt(tables.family(0).distortion_at(classes)) * found.step)

    vectors = factors.vectors[:, : found.rank]
    whole = matrix.whole()
    left: NDArray[np.float32] = whole @ (vectors / factors.columns[:, None]).astype(np.float32)
    noise = rng.standard_normal(left.shape) * rounding(shape[0])
    if scales_pay(factors.rows, found.rank):
        scaled = whole * (1 / factors.columns).astype(np.float32)
        noise *= scales_from(power_of(scaled, "ij,ij->i") - power_of(left, "ij,ij->i"))[:, None]
    left += noise.astype(np.float32)
    right = vectors + rng.standard_normal(vectors.shape) * (rounding(shape[1]) / found.values)
    back = np.ascontiguousarray((right * factors.columns[:, None]).T, np.float32)
    return LowRank(left, back, b"", np.ones(found.rank, np.float32), np.float32(1))


def encode_low_rank(
    matrix: Matrix,
    values: NDArray[np.float64],
    ahead: NDArray[np.float32],
    back: NDArray[np.float32],
    step: float,
    shaped: tuple[bool, bool] = (False, False),
    states: int = FACTOR_STATES,
) -> LowRank:
    """Some components of a matrix, their factors quantised with a step, as they are decoded.

    Parameters
    ----------
    values : float64[r]
        Singular values, of the scaled matrix.
    ahead, back : float32[n, r]
        Its right singular vectors over, and times, the scales of the columns; see `on_grid`.
    step : float
        For the scaled matrix.
    shaped : (bool, bool)
        Whether the step of a row of P grows with the row's scale, and that of a column of Q with the column's.
    states : int
        Of the trellis.
    """
    m, n, rank = matrix.rows, matrix.columns, values.size
    exponents = np.round(8 * np.log2(values)).astype(np.int32)
    p = np.zeros((m, rank), np.float32)
    for top, band in matrix.bands():
        add_product(np.ascontiguousarray(band), ahead, np.float32(1), p[top : top + len(band)])
    q = np.ascontiguousarray(np.exp2(exponents / 8).astype(np.float32)[:, None] * back.T)
    stored = encode_integers(exponents, False)
    data = _HEAD.pack(rank, len(stored)) + stored
    middle = float(np.exp2(np.log2(values).mean()))
    for factor, size, follows, shaping in (
        (p, m, shaped[0], Shaping(SHAPING_UNIT, 0, geometric=True)),
        (q, n, shaped[1], Shaping(0, SHAPING_UNIT, geometric=True)),
    ):
        if follows:
            data += encode_side_matrix(factor, step * math.sqrt(size) / middle, shaping=shaping, states=states)
        else:
            data += encode_side_matrix(factor, step, states=states)
    return LowRank.unpack(data, m, n)[0]


def on_grid(x: NDArray[np.float64]) -> NDArray[np.float32]:
    """Rounded to multiples of 1 / GRID."""
    return np.ascontiguousarray(np.round(x * GRID) / GRID, np.float32)
