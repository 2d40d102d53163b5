"""The scale field: sigma_ij = sigma0 x 2^((E_i + F_j) / 8), one small integer per row and per column.

The fit is the maximum likelihood one for independent Gaussian weights, found by alternating between rows and columns
(the "flip-flop" of Dutilleul, J. Stat. Comput. Simul. 64, 1999). Each axis is kept only if it saves more bits than it
costs, in eighth, quarter or half octaves, whichever costs least. The logarithms are to base 2 throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rbe_cli.codec.side_info import decode_integers, encode_integers, entropy
from rbe_cli.codec.source import Domain
from rbe_cli.codec.workspace import Findings
from rbe_cli.errors import Damage
from rbe_cli.kernels.field import AXIS_BITS, LEARNING_BITS, axis_costs, column_powers, sweep, unpack_exponents

#: Exponent of a row or column of zeros.
ZERO = -(1 << 24)
#: Exponents are this many to the octave.
PER_OCTAVE = 8
#: Exponents beyond this are clamped: 2^(+-64) covers every float32 that is worth a scale of its own.
MAX_EXPONENT = 512
#: Elements of a row with fewer of which its scale, of some 5 bits, would be most of what is sent of it.
_SHORT = 64
_SWEEPS = 4
#: Units that are tried, each twice the one before, and zeros for each.
_UNITS, _ORIGINS = 4, 4


@dataclass(frozen=True)
class Axis:
    """Exponents of one axis.

    Attributes
    ----------
    exponents : int32[n]
        In eighth octaves; ZERO for a row or column of zeros.
    shift : int
        They are multiples of 2^shift: what is stored is exponent >> shift.
    """

    exponents: NDArray[np.int32]
    shift: int

    @classmethod
    def flat(cls, n: int) -> Axis:
        """No scales along this axis."""
        return cls(np.zeros(n, np.int32), 3)


@dataclass(frozen=True)
class ScaleField:
    """A fitted field.

    Attributes
    ----------
    rows, columns : Axis
    log_sigma0 : float
        Logarithm of the scale where both exponents are 0.
    row_logs, column_logs : float64
        What the exponents round, in octaves; -inf for zeros. Of an axis that was left flat, what it would have been.
    """

    rows: Axis
    columns: Axis
    log_sigma0: float
    row_logs: NDArray[np.float64]
    column_logs: NDArray[np.float64]

    def rounded_axis(self, coarse: bool) -> str:
        """`rows` or `columns`: the axis that `aligned` may round anew; empty if none has scales.

        With `coarse`, where a class more or less decides whether anything is sent, a flat row axis becomes one that is
        not, unless rows are short, as in the factors of a low rank.
        """
        if varies(self.rows):
            return "rows"
        if coarse and self.rows.exponents.size > 1 and self.columns.exponents.size >= _SHORT:
            return "rows"
        return "columns" if varies(self.columns) else ""

    def aligned(self, axis: str, offset: float) -> ScaleField:
        """The field with an axis (see `rounded_axis`) rounded anew, `offset` eighth octaves above what it is.

        Classes are whole numbers; as the step changes, rows then pass from one class to the next one by one, not all
        at once.
        """
        if axis == "rows":
            return replace(self, rows=_rounded(self.row_logs, self.rows.shift if varies(self.rows) else 0, offset))
        if axis == "columns":
            return replace(self, columns=_rounded(self.column_logs, self.columns.shift, offset))
        return self


class KeptField:
    """A field that is wanted again in every pass.

    Attributes
    ----------
    log_sigma0 : float
        The field's, at hand where the rest is not.
    """

    def __init__(self, field: ScaleField) -> None:
        self.log_sigma0 = field.log_sigma0
        self._shifts = field.rows.shift, field.columns.shift
        self._arrays = Findings(field.rows.exponents, field.columns.exponents, field.row_logs, field.column_logs)

    def set_aside(self) -> None:
        """Put by all that grows with the matrix. Raises RBEError if there is no room for it."""
        self._arrays.set_aside()

    def field(self) -> ScaleField:
        """The field. Raises RBEError if it cannot be read."""
        rows, columns, row_logs, column_logs = self._arrays.arrays()
        row_shift, column_shift = self._shifts
        return ScaleField(Axis(rows, row_shift), Axis(columns, column_shift), self.log_sigma0, row_logs, column_logs)


def varies(axis: Axis) -> bool:
    """Whether an axis has more than one scale, zeros apart."""
    live = axis.exponents[axis.exponents != ZERO]
    return live.size > 0 and bool((live != live[0]).any())


def inverse_power(axis: Axis) -> NDArray[np.float64]:
    """1 over the square of each scale of an axis; 0 for what is all zero."""
    return np.asarray(np.where(axis.exponents == ZERO, 0.0, np.exp2(-axis.exponents.clip(-MAX_EXPONENT) / 4)))


def _rounded(logs: NDArray[np.float64], shift: int, offset: float) -> Axis:
    live = np.isfinite(logs)
    reach = MAX_EXPONENT >> shift
    index = np.zeros(logs.size, np.int64)
    index[live] = np.clip(np.floor((PER_OCTAVE * logs[live] + offset) / (1 << shift) + 0.5), -reach, reach)
    return Axis(np.where(live, index << shift, ZERO).astype(np.int32), shift)


def _log_scale(power: NDArray[np.float64]) -> NDArray[np.float64]:
    """log2 of the root; -inf for zero."""
    with np.errstate(divide="ignore"):
        return 0.5 * np.log2(power)


def _quantise(log_scale: NDArray[np.float64], others: int) -> tuple[Axis, float, float]:
    """Integers for one axis: (axis, logarithm of the scale at exponent 0, bits it costs).

    `others` elements have each entry's scale; see `axis_costs`.
    """
    live = np.isfinite(log_scale)
    if not live.any():
        return Axis(np.where(live, 0, ZERO).astype(np.int32), 3), 0.0, 0.0
    logs = log_scale[live]
    middle = _median(logs)
    costs = np.empty(_UNITS * _ORIGINS)
    axis_costs(logs, middle, PER_OCTAVE, MAX_EXPONENT, _ORIGINS, others, costs)
    i = int(np.argmin(costs))
    shift, origin = divmod(i, _ORIGINS)
    unit = (1 << shift) / PER_OCTAVE
    zero = middle + origin * unit / _ORIGINS
    reach = MAX_EXPONENT >> shift
    exponents = np.full(log_scale.size, ZERO, np.int32)
    exponents[live] = np.clip(np.floor((logs - zero) / unit + 0.5), -reach, reach).astype(np.int32) << shift
    return Axis(exponents, shift), zero, float(costs[i])


def _median(x: NDArray[np.float64]) -> float:
    """`np.median`, which takes four times as long for a few hundred numbers."""
    upper = x.size // 2
    lower = (x.size - 1) // 2
    parted = np.partition(x, (lower, upper))
    return float((parted[lower] + parted[upper]) / 2)


def encode_axis(axis: Axis) -> bytes:
    """Stored form of an axis.

    A byte (shift, plus 4 if there is a marker for zeros), then the integers exponent >> shift, the marker before them
    if there is one; plain or as differences, whichever is shorter.
    """
    dead = axis.exponents == ZERO
    stored = axis.exponents >> axis.shift
    if dead.any():
        marker = int(stored[~dead].min()) - 1 if not dead.all() else 0
        stored = np.concatenate(([marker], np.where(dead, marker, stored))).astype(np.int32)
    # Zeros are their own differences.
    forms = (False, True) if stored.any() else (False,)
    body = min((encode_integers(stored, delta) for delta in forms), key=len)
    return bytes([axis.shift | 4 * bool(dead.any())]) + body


def axis_bytes(axis: Axis) -> float:
    """About what `encode_axis` takes: the entropy of the integers, with what `axis_costs` adds to it."""
    counts = np.unique(axis.exponents, return_counts=True)[1]
    return (AXIS_BITS + entropy(counts) + LEARNING_BITS * (counts.size - 1)) / 8


def decode_axis(data: bytes, n: int) -> Axis:
    """Inverse of `encode_axis`. Raises Damage."""
    if not data or data[0] > 7:
        raise Damage("scale field: unknown form")
    shift, marked = data[0] & 3, data[0] >> 2
    stored = decode_integers(data[1:], n + marked)
    exponents = np.empty(n, np.int32)
    if not unpack_exponents(stored, marked, shift, MAX_EXPONENT, ZERO, exponents):
        raise Damage("scale field: exponent out of range")
    return Axis(exponents, shift)


def fit(w: Domain, use_rows: bool = True, use_columns: bool = True, share: float = 1.0) -> ScaleField:
    """Fit the field of a matrix of finite numbers; with a `share` below 1, to be that of a matrix with more rows.

    An axis is left flat where it would not pay. Rows and columns of zeros get the exponent ZERO whatever else is
    decided, unless that axis is ruled out by the arguments.
    """
    scales = _Scales.of(w)
    rows_alone, columns_alone = scales.alone
    dead = rows_alone == -np.inf, columns_alone == -np.inf
    flat = _only_zeros(dead[0], use_rows), _only_zeros(dead[1], use_columns)
    if scales.energy <= 0.0:
        return ScaleField(*flat, 0.0, rows_alone, columns_alone)
    elements = scales.live_rows * scales.live_columns
    flat_log = 0.5 * math.log2(scales.energy / elements)
    # Total bits of the field and of the mean log scale, and the field, of each that may be; the first is flat.
    candidates = [
        (elements * flat_log / share, ScaleField(*flat, flat_log, rows_alone - flat_log, columns_alone - flat_log))
    ]
    for row_logs, column_logs in ((rows_alone, None), (None, columns_alone), scales.together):
        if (row_logs is not None and not use_rows) or (column_logs is not None and not use_columns):
            continue
        rows, row_zero, row_cost = flat[0], 0.0, 0.0
        columns, column_zero, column_cost = flat[1], 0.0, 0.0
        mean_log = 0.0
        if row_logs is not None:
            rows, row_zero, row_cost = _quantise(row_logs, scales.live_columns)
            mean_log += float(row_logs[np.isfinite(row_logs)].mean())
        if column_logs is not None:
            columns, column_zero, column_cost = _quantise(column_logs, round(scales.live_rows / share))
            mean_log += float(column_logs[np.isfinite(column_logs)].mean())
        field = ScaleField(
            rows,
            columns,
            row_zero + column_zero,
            rows_alone - flat_log if row_logs is None else row_logs - row_zero,
            columns_alone - flat_log if column_logs is None else column_logs - column_zero,
        )
        candidates.append(((elements * mean_log + row_cost) / share + column_cost, field))
    return min(candidates, key=lambda candidate: candidate[0])[1]


class _Scales(NamedTuple):
    """Logarithms of the scales of rows and columns; -inf for zeros.

    Attributes
    ----------
    alone : (float64[m], float64[n])
        Of each axis where the other has none.
    together : (float64[m], float64[n])
        Of both.
    energy : float
        Of the matrix.
    live_rows, live_columns : int
        Those that are not all zero; 1 if all are.
    """

    alone: tuple[NDArray[np.float64], NDArray[np.float64]]
    together: tuple[NDArray[np.float64], NDArray[np.float64]]
    energy: float
    live_rows: int
    live_columns: int

    @classmethod
    def of(cls, w: Domain) -> _Scales:
        """By some sweeps, each of which weighs the rows by the columns' scales of the one before, and the reverse."""
        m, n = w.rows, w.columns
        column_weight, row_power = np.ones(n), np.zeros(m)
        plain_rows = row_power
        for i in range(_SWEEPS):
            column_sum = np.zeros(n)
            for top, band in w.bands():
                sweep(band, column_weight, row_power[top : top + len(band)], column_sum)
            if i == 0:
                plain_rows = row_power.copy()
            live_rows = max(int((row_power > 0).sum()), 1)
            column_power = column_sum / live_rows
            column_weight = np.where(column_power > 0, 1 / np.maximum(column_power, 1e-300), 0.0)
        # The last sweep's rows belong to the columns before it, so take the rows once more.
        for top, band in w.bands():
            sweep(band, column_weight, row_power[top : top + len(band)], np.zeros(n))
        plain_columns = _plain_columns(w)
        live_columns = max(int((plain_columns > 0).sum()), 1)
        return cls(
            (_log_scale(plain_rows / live_columns), _log_scale(plain_columns / live_rows)),
            (_log_scale(row_power / live_columns), _log_scale(column_power)),
            float(plain_rows.sum()), live_rows, live_columns,
        )  # fmt: skip


def _only_zeros(dead: NDArray[np.bool_], allowed: bool) -> Axis:
    """A flat axis that still marks what is all zero."""
    axis = Axis.flat(dead.size)
    return Axis(np.where(dead, ZERO, 0).astype(np.int32), 3) if allowed and dead.any() else axis


def _plain_columns(w: Domain) -> NDArray[np.float64]:
    """Sum of squares of every column."""
    total = np.zeros(w.columns, np.float64)
    for _, band in w.bands():
        column_powers(band, total)
    return total
