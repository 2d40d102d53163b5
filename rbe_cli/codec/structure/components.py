"""The components of a matrix: its leading singular vectors, and how many of them save bits under a residual.

Rows and columns are first brought to one scale. Where a matrix would have to be read whole, a sample of its rows tells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rbe_cli import metrics
from rbe_cli.codec.residual import tables
from rbe_cli.codec.source import Matrix
from rbe_cli.codec.structure.decode_cost import decode_cost
from rbe_cli.codec.structure.singular_vectors import (
    OVERSAMPLING,
    is_long,
    leading,
    orthonormal_basis,
    random_basis,
)

#: Largest rank that is looked for under a residual.
_RANK_UNDER_RESIDUAL = 128
#: Least scale of a row or column, against the mean.
_LEAST_SCALE = 0.01
#: Components that are looked at first, and the share of those looked at up to which a rank is believed.
_FEW, _NEARLY = 32, 0.75
#: Share of the energy above which the scales are taken anew from what is left.
_MUCH = 0.25
#: Steps that are tried, in eighth octaves up and down.
_STEP_RANGE = 16
#: What goes with the factors, about: bytes of headers, and bits of a row's or a column's scale if it has one.
_SIDE_BYTES, _SCALE_BITS = 205.0, 2.0
#: Components that are looked at to see what low rank is worth, and rounds of iteration that find them.
_SKETCHED, _SKETCH_ROUNDS = 16, 2
#: Least part of an energy that something leaves.
_LEAST_PART = 1e-6
_TINY = np.float32(1e-35)
#: Root mean square beyond which, up or down, low rank is not looked for.
_FAR = 1e9
#: Squared error of the trellis quantiser at a fine step, in squared steps.
STEP_POWER = 0.26


class Factors:
    """Leading singular vectors of a matrix whose rows and columns were first brought to one scale.

    W / (rows x columns) has the singular values `values` and the right singular vectors `vectors`. With scales of 1
    they are those of least squared error. With those of what is left, W is taken apart where that saves most bits:
    what is left is coded with a scale for every row and column, and its bits are the logarithms of these.

    Attributes
    ----------
    rows : float64[m]; columns : float64[n]
    values : float64[r]; vectors : float64[n, r]
    energy : float
        Of the scaled matrix.
    """

    def __init__(
        self,
        scaled: NDArray[np.float32],
        count: int,
        rows: NDArray[np.float64],
        columns: NDArray[np.float64],
        real: type[np.floating] = np.float64,
    ) -> None:
        """Of float32[m, n] that was divided by the scales already; `real` is what one computes in."""
        self.rows, self.columns = rows, columns
        self.values, self.vectors = leading(scaled, count, real)
        self.energy = float(np.einsum("ij,ij->", scaled, scaled, dtype=np.float64))

    def scales_left(self, scaled: NDArray[np.float32], rank: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scales of the rows and of the columns of what the first `rank` components leave of W."""
        p = scaled @ self.vectors[:, :rank].astype(np.float32)
        rows = power_of(scaled, "ij,ij->i") - power_of(p, "ij,ij->i")
        columns = power_of(scaled, "ij,ij->j") - (self.values[:rank] ** 2 * self.vectors[:, :rank] ** 2).sum(axis=1)
        return self.rows * scales_from(rows), self.columns * scales_from(columns)


def power_of(x: NDArray[np.float32], sums: str, real: type[np.floating] = np.float64) -> NDArray[np.float64]:
    """Sums of squares of the rows (`ij,ij->i`) or columns (`ij,ij->j`), computed in `real` numbers."""
    return np.asarray(np.einsum(sums, x, x, dtype=real), np.float64)


def _divided(matrix: Matrix, rows: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float32]:
    """A matrix as a whole, divided by the scales of its rows and columns."""
    scaled = np.empty((matrix.rows, matrix.columns), np.float32)
    for top, band in matrix.bands():
        part = slice(top, top + len(band))
        np.multiply(band, (1 / rows[part]).astype(np.float32)[:, None], out=scaled[part])
    scaled *= (1 / columns).astype(np.float32)
    return scaled


def scales_from(power: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scales of lines from their energies, of geometric mean 1, to an eighth octave, none below a part of the mean."""
    mean = float(power.mean())
    if not mean > 0:
        return np.ones(power.size)
    eighths = np.round(4 * np.log2(np.maximum(power / mean, _LEAST_SCALE**2)))
    return np.asarray(np.exp2((eighths - np.round(eighths.mean())) / 8))


class _Rank(NamedTuple):
    """A rank, the step of the factors, the bytes they take, and the parts of the energy that they leave, and add."""

    rank: int
    step: float
    size: float
    left: float
    added: float


@dataclass(frozen=True)
class Components:
    """The components that save most bits under a residual, at any fine enough step.

    Attributes
    ----------
    factors : Factors
    rank : int
    step : float
        That of the factors, for the scaled matrix.
    size : float
        Bytes the factors are going to take.
    values : float64[rank]
        Singular values of the whole, of which the scaled matrix may be a sample.
    """

    factors: Factors
    rank: int
    step: float
    size: float
    values: NDArray[np.float64]

    @classmethod
    def best(cls, factors: Factors, shape: tuple[int, int], nrmse: float) -> Components | None:
        """Of the factors of a matrix of this shape, or of some of its rows; None if none saves any bits."""
        share = factors.rows.size / shape[0]
        values = factors.values / math.sqrt(share)
        found = _best_rank(values, factors.energy / share, (factors.rows, factors.columns), shape, nrmse)
        return found and cls(factors, found.rank, found.step, found.size, values[: found.rank])

    @property
    def part(self) -> float:
        """Part of the energy of the scaled matrix that they have."""
        return float((self.factors.values[: self.rank] ** 2).sum()) / self.factors.energy

    def part_left(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Part of the energy of some rows, float32[k, n], that is not theirs: float64[k], above 0, 1 for zeros."""
        scaled = rows * (1 / self.factors.columns).astype(np.float32)
        taken = power_of(scaled @ self.factors.vectors[:, : self.rank].astype(np.float32), "ij,ij->i", np.float32)
        return np.maximum(1 - taken / np.maximum(power_of(scaled, "ij,ij->i", np.float32), _TINY), _LEAST_PART)


def may_have_factors(rms: float) -> bool:
    """Whether factors of a matrix, and their sums of squares, stay inside float32."""
    return 1 / _FAR < rms < _FAR


@dataclass(frozen=True)
class Sketch:
    """What a quick look at some rows tells of the components that save most bits.

    Attributes
    ----------
    octaves : float
        By which the scale of what they leave is below that of the matrix, on average: negative.
    size : float
        Bytes the factors are going to take.
    rank : int
    saw_enough : bool
        Whether the components that were looked at are clearly more than the rank.
    """

    octaves: float
    size: float
    rank: int
    saw_enough: bool

    def gain(self, elements: int) -> float:
        """What low rank gains of a matrix of so many elements, in dB, its time to decode not weighed in."""
        return metrics.DB_PER_BIT * (-self.octaves - 8 * self.size / elements)


def find_components(
    matrix: Matrix, nrmse: float, of_rows: int = 0, real: type[np.floating] = np.float64
) -> Components | None:
    """Find them, for a residual that is coded to a relative error of about `nrmse`.

    None if none saves any bits, or there can be none (see `may_have_factors`).

    The matrix may be some rows of one that has `of_rows`.

    Vectors are found in `real` numbers: float32 is half the time, and enough for a forecast.

    One copy of it is held in float32, of which the caller has asked `workspace.whole_matrices`.
    """
    m, n = matrix.rows, matrix.columns
    shape = (of_rows or m, n)
    most = min(_RANK_UNDER_RESIDUAL, min(m, n) // 4)
    if most < 1:
        return None
    rows, columns = np.empty(m), np.zeros(n)
    for top, band in matrix.bands():
        rows[top : top + len(band)] = power_of(band, "ij,ij->i", real)
        columns += power_of(band, "ij,ij->j", real)
    if not may_have_factors(math.sqrt(columns.sum() / (m * n))):
        return None
    scales = scales_from(rows), scales_from(columns)
    scaled = _divided(matrix, *scales)
    count = most if is_long(m, n) else min(_FEW, most)
    while True:
        factors = Factors(scaled, count, *scales, real)
        best = Components.best(factors, shape, nrmse)
        if best is None or best.rank <= _NEARLY * count or count == most:
            break
        count = min(2 * count, most)
    if best is not None and shape[0] == m and _MUCH < best.part < 1 - nrmse**2:
        # The scales of the weights then say little of those of what is left, if that is coded at all. A forecast is as
        # near without.
        scales = factors.scales_left(scaled, best.rank)
        del scaled
        factors = Factors(_divided(matrix, *scales), factors.values.size, *scales, real)
        best = Components.best(factors, shape, nrmse)
    return best


def sketch_components(matrix: Matrix, nrmse: float, of_rows: int) -> Sketch | None:
    """What a few components of some rows tell of those of all `of_rows`; None if none saves any bits.

    By two rounds of subspace iteration (Halko et al., SIAM Rev. 53, 2011).
    """
    m, n = matrix.rows, matrix.columns
    count = min(_SKETCHED, min(m, n) // 4)
    if count < 1:
        return None
    w = matrix.whole()
    with np.errstate(over="ignore"):
        squares = np.square(w)
        row_power = squares @ np.ones(n, np.float32)
    if not may_have_factors(math.sqrt(float(row_power.sum(dtype=np.float64)) / w.size)):
        return None
    rows = 1 / np.sqrt(np.maximum(row_power, _TINY))
    column_power = np.square(rows) @ squares
    columns = 1 / np.sqrt(np.maximum(column_power * n, _TINY))
    # The scaled matrix is diag(rows) w diag(columns); what it is multiplied with is scaled instead.
    powers = np.square(rows) * (squares @ np.square(columns)), column_power * np.square(columns)
    energy = float(powers[1].sum(dtype=np.float64))
    tall, left, right = (w, rows[:, None], columns[:, None]) if m >= n else (w.T, columns[:, None], rows[:, None])
    tall_power, short_power = powers if m >= n else powers[::-1]
    basis = random_basis(tall.shape[1], min(count + OVERSAMPLING, *tall.shape))
    for _ in range(_SKETCH_ROUNDS):
        basis = right * (tall.T @ (np.square(left) * (tall @ (right * basis))))
        # Of the basis made orthonormal by its Cholesky factor: as many small products as a QR has large ones.
        basis = orthonormal_basis(basis, np.float32)
    seen = left * (tall @ (right * basis))
    squares_seen, turns = np.linalg.eigh(seen.astype(np.float64).T @ seen)
    found, turns = squares_seen[::-1][:count], turns[:, ::-1][:, :count].astype(np.float32)
    real = _of_more_rows(found, energy, (m, n), of_rows)
    scales = tuple(scales_from(power.astype(np.float64)) for power in (row_power, column_power))
    best = _best_rank(np.sqrt(real), energy * of_rows / m, scales, (of_rows, n), nrmse) if real.size else None
    if best is None:
        return None
    kept = turns[:, : best.rank]
    octaves = math.log2(best.left + best.added) / 2
    # Rows and columns that keep less than others make the scales of what is left, on average, lower than its energy.
    for power, taken in (
        (tall_power, np.square(seen @ kept).sum(axis=1)),
        (short_power, np.square(basis @ kept) @ found[: best.rank]),
    ):
        part = 1 - taken[power > 0] / power[power > 0] + best.added
        octaves += float(np.log2(np.maximum(part, _LEAST_PART)).mean()) / 2
    octaves -= math.log2(max(1 - float(found[: best.rank].sum()) / energy, 0.0) + best.added)
    return Sketch(octaves, best.size, best.rank, best.rank < _NEARLY * count)


def _of_more_rows(
    found: NDArray[np.float64], energy: float, shape: tuple[int, int], of_rows: int
) -> NDArray[np.float64]:
    """Squared singular values of a matrix with more rows of the same kind, of those of some rows that are not noise's.

    What noise adds to them is known (Baik and Silverstein, J. Multivariate Anal. 97, 2006).
    """
    m, n = shape
    noise, real = energy / (m * n), found
    for _ in range(2):
        real = found[found > noise * (math.sqrt(m) + math.sqrt(n)) ** 2]
        noise = max(energy - float(real.sum()), _LEAST_PART * energy) / (m * n)
    if of_rows == m:
        return real
    ratio, whole_ratio = n / m, n / of_rows
    y = real / (m * noise) + 1 - ratio
    spikes = (y + np.sqrt(np.maximum(y * y - 4 * (y - 1 + ratio), 0))) / 2
    spikes = spikes[spikes > 1 + math.sqrt(whole_ratio)]
    return of_rows * noise * (spikes + whole_ratio * spikes / (spikes - 1))


def _best_rank(
    values: NDArray[np.float64],
    energy: float,
    scales: tuple[NDArray[np.float64], ...],
    shape: tuple[int, int],
    nrmse: float,
) -> _Rank | None:
    """Rank and factor step of least cost under a residual; None if no rank saves any.

    Of a matrix of this shape and energy with some singular values, of which some rows and all columns have `scales`.

    What the factors' rounding adds to what is left costs bits there; so, by `decode_cost`, does time.
    """
    m, n = shape
    family = tables.family(0)
    left = np.maximum(energy - np.cumsum(values**2), 0.0)
    ranks = np.arange(1.0, values.size + 1)
    time = decode_cost(ranks, ranks * (m + n) / (m * n)) / metrics.DB_PER_BIT * m * n
    step = family.step_at(nrmse) * math.sqrt(energy / (m * n))
    middle = max(math.sqrt(left[-1] / (m * n * STEP_POWER)), step)
    steps = middle * np.exp2(np.arange(-_STEP_RANGE, _STEP_RANGE + 1) / 8)
    bits, error = np.zeros((steps.size, values.size)), np.zeros((steps.size, values.size))
    for size in (m, n):
        classes = tables.class_of(values / math.sqrt(size) / steps[:, None])
        bits += size * family.bits_at(classes)
        error += size * family.distortion_at(classes) * steps[:, None] ** 2
    bits, error = np.cumsum(bits, axis=1), np.cumsum(error, axis=1)

    def cost(energy: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """Of a residual, in bits: an error is worth what it costs to make it less, at the step."""
        classes = tables.class_of(np.sqrt(np.maximum(energy, _TINY) / (m * n)) / step)
        worth = family.distortion_at(classes) / (2 * math.log(2) * STEP_POWER)
        return np.asarray(m * n * (family.bits_at(classes) + worth))

    total = cost(left + error) + bits + time
    i, k = np.unravel_index(np.argmin(total), total.shape)
    if total[i, k] >= cost(energy):
        return None
    rank = int(k) + 1
    scaled = sum(size * scales_pay(each, rank) for size, each in zip(shape, scales, strict=True))
    taken = (float(bits[i, k]) + scaled * _SCALE_BITS) / 8 + _SIDE_BYTES
    return _Rank(rank, float(steps[i]), taken, float(left[k]) / energy, float(error[i, k]) / energy)


def scales_pay(scales: NDArray[np.float64], rank: int) -> bool:
    """Whether lines of so many numbers save more by having scales of their own than these cost."""
    saved = math.log2(float(np.square(scales).mean())) / 2 - float(np.log2(scales).mean())
    return rank * saved > _SCALE_BITS
