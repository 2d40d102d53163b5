"""What the encoder knows of a matrix before it has a step, and forecasts of size and error for any step."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rbe_cli.codec.parameters import SIZE
from rbe_cli.codec.residual import scale_field, tables
from rbe_cli.codec.residual.geometry import shaped
from rbe_cli.codec.residual.noise_shaping import PLAIN, Shaping
from rbe_cli.codec.residual.rounding import Rounding
from rbe_cli.codec.residual.scale_field import ZERO, KeptField, ScaleField, inverse_power
from rbe_cli.codec.source import Domain
from rbe_cli.codec.tiles import LARGEST_TILE, TILE, Grid
from rbe_cli.kernels.field import sum_of_squares, sweep
from rbe_cli.kernels.rans import LANES

_SAMPLE_ROWS = 96
#: Rows of a tile whose columns are coded one after the other, with feedback.
FEEDBACK_ROWS = 512
#: Below this mean class, about a bit per weight, single classes decide whether anything is sent.
_COARSE = 15.0


class Corrections(NamedTuple):
    """How many times the symbols and the error of a tensor are what the tables say, at steps where somebody knows.

    In between they go with the logarithm of the step; beyond, they are those of the nearest.

    Attributes
    ----------
    octaves, sizes, errors : tuple of float
        Logarithms of the steps, ascending, and the two factors at each.
    """

    octaves: tuple[float, ...] = (0.0,)
    sizes: tuple[float, ...] = (1.0,)
    errors: tuple[float, ...] = (1.0,)

    def size(self, step: float) -> float:
        """Of the symbols, at a step."""
        return float(np.interp(math.log2(step), self.octaves, self.sizes))

    def error(self, step: float) -> float:
        """Of the squared error, at a step."""
        return float(np.interp(math.log2(step), self.octaves, self.errors))


#: What the tables say is believed.
_AS_TOLD = Corrections()


@dataclass(frozen=True)
class Analysis:
    """What the encoder knows of a tensor before it has a step.

    Attributes
    ----------
    unit : float
        The scale a step is a multiple of: the RMS where error is not shaped, else the geometric mean of sigma / a b.
    factor : float
        Geometric mean of the factors a_i b_j that a step is multiplied with.
    scale : float
        Geometric mean of the tensor's scales.
    energy : float
        Sum of squares; `rms` its mean's root.
    largest : float
        Largest magnitude, in units of the smallest factor a_i b_j.
    first_offset : float; elements, weights : float64[n]
        Number of live elements in each class, the first of which is `first_offset` from that of exponent 0 (whole but
        in a forecast), and their sum of (a_i b_j)^2.
    side_bytes : float
        Everything but the coded symbols.
    share : float
        Of the tensor's rows, those in `matrix`: 1, or less if the analysis is one of a sample. Histograms are of these
        rows; bytes and errors are forecast for all.
    rounding : Rounding or None
        To the tensor's type, where that is a narrow one.
    corrections : Corrections
        Of what the tables say.
    """

    matrix: Domain
    scales: KeptField
    family: int
    shaping: Shaping
    unit: float
    factor: float
    scale: float
    energy: float
    rms: float
    largest: float
    first_offset: float
    elements: NDArray[np.float64]
    weights: NDArray[np.float64]
    side_bytes: float
    share: float = 1.0
    rounding: Rounding | None = None
    corrections: Corrections = _AS_TOLD

    @property
    def field(self) -> ScaleField:
        """The scales of its rows and columns."""
        return self.scales.field()

    def set_aside(self) -> None:
        """Put by what grows with the tensor."""
        self.scales.set_aside()
        self.matrix.set_aside()
        self.shaping.set_aside()

    def finer(self, factor: float) -> Analysis:
        """The same with steps smaller by a factor at every multiplier."""
        return replace(self, unit=self.unit / factor)

    def of_tensor(self, plain: Analysis) -> Analysis:
        """The same for a matrix that is a tensor seen through a pipeline.

        Energy, scale, rounding and unit are the tensor's, the last so that the steps of one multiplier have the same
        geometric mean.
        """
        unit = plain.unit * plain.factor / self.factor
        return replace(self, unit=unit, scale=plain.scale, energy=plain.energy, rms=plain.rms, rounding=plain.rounding)

    def _first_class(self, step: float) -> float:
        octaves = self.scales.log_sigma0 - math.log2(step)
        return tables.PER_OCTAVE * octaves + tables.ONE_STEP + self.first_offset

    def aligned(self, step: float) -> tuple[int, float, ScaleField]:
        """Class of an element whose exponents are 0, step, and scale field rounded to fit.

        Classes are whole numbers, so exponents are rounded with an offset. Where the step follows them it moves with
        the offset; the step that is returned makes up for that: the geometric mean of all elements' steps is the same
        whatever the offset, and size and error are smooth functions of `step`.
        """
        first = self._first_class(step)
        exact = first - self.first_offset
        base = math.floor(exact + 0.5)
        mean = first + float(np.arange(self.elements.size) @ self.elements) / float(self.elements.sum())
        fitted = self.field
        axis = fitted.rounded_axis(mean < _COARSE)
        follows = {"rows": self.shaping.row, "columns": self.shaping.column, "": 0}[axis] / 16
        # An exponent more is a class more less what the step follows. Where it follows all the way no class moves.
        field = fitted.aligned(axis, (exact - base) / (1 - follows) if follows < 1 else 0.0)
        return base, step * (self.factor / _Steps.of(field, self.shaping).factor), field

    def raised(self, octaves: float, shaping: float, tensor: float) -> Analysis:
        """The same of weights whose scale is `octaves` larger, of which steps grow with the part `shaping`.

        `tensor` is what the scale of the tensor is raised by, which its unit goes by; what a pipeline leaves of it may
        be raised by more or less.
        """
        kept, shaped = octaves * (1 - shaping), octaves * shaping
        return replace(
            self,
            unit=self.unit * 2.0 ** (tensor - shaped) if self.shaping.geometric else self.unit,
            factor=self.factor * 2.0**shaped,
            scale=self.scale * 2.0**tensor,
            first_offset=self.first_offset + 8 * kept,
            weights=self.weights * 4.0**shaped,
        )

    def symbol_bits(self, step: float) -> float:
        """Bits of the coded symbols at a step, from what the tables say of Gaussian (or Laplace) weights."""
        bits = tables.family(self.family).bits_of(self._first_class(step), self.elements)
        return bits * self.corrections.size(step) / self.share

    def share_below(self, bits: float, step: float) -> float:
        """Share of the weights that take fewer bits than so many, each, at a step."""
        classes = np.asarray(self._first_class(step) + np.arange(self.elements.size), np.float64)
        low = tables.family(self.family).bits_at(classes) < bits
        return float(self.elements @ low / self.elements.sum())

    def expected_bytes(self, step: float) -> float:
        """Size of the chunks at a step."""
        return self.symbol_bits(step) / 8 + self.side_bytes

    def misfit(self) -> float:
        """Bits per weight that the forecast leaves out.

        The weights' mean square in units of their sigma is not quite 1, since sigma0 comes from a sample, and a code
        for Gaussian weights takes log2(e) / 2 bits more for each 1 more.
        """
        field = self.field
        column_weight = inverse_power(field.columns)
        row_power, total = np.zeros(self.matrix.rows), np.zeros(self.matrix.columns)
        for top, band in self.matrix.bands():
            sweep(band, column_weight, row_power[top : top + len(band)], total)
        power = float(row_power @ inverse_power(field.rows)) / 4.0**field.log_sigma0
        return float(power / self.elements.sum() - 1) / (2 * math.log(2))

    def relative_step(self, step: float) -> float:
        """Geometric mean of the steps of all weights at a step, in units of that of the tensor's scales."""
        return step * self.factor / self.scale

    def expected_error(self, step: float) -> float:
        """Sum of squared errors at a step."""
        told = tables.family(self.family).error_of(self._first_class(step), self.weights) * step * step
        error = told * self.corrections.error(step) / self.share
        if self.rounding is None:
            return error
        elements = self.energy / self.rms**2
        return elements * self.rounding.after(error / elements)


class Extent(NamedTuple):
    """How much there is of a matrix: its sum of squares, and its largest magnitude."""

    energy: float
    largest: float


def extent_of(matrix: Domain, row_power: NDArray[np.float32] | None = None) -> Extent | None:
    """Read a matrix; None if it holds a number that is not finite, or nothing but one number.

    `row_power`, float32[rows], is given each row's sum of squares, about; so is the energy then, to seven digits.
    """
    energy, largest, finite = 0.0, 0.0, True
    lowest, highest = math.inf, -math.inf
    for top, band in matrix.bands():
        low, high = float(band.min()), float(band.max())
        peak = max(high, -low)
        if not math.isfinite(peak):
            finite = False
            break
        largest = max(largest, peak)
        lowest, highest = min(lowest, low), max(highest, high)
        if row_power is None:
            energy += sum_of_squares(band.ravel())
        else:
            part = np.einsum("ij,ij->i", band, band, out=row_power[top : top + len(band)])
            energy += float(part.sum(dtype=np.float64))
    # Squares and steps stay well inside float32 between these bounds; beyond, a tensor is stored exactly.
    if not finite or not 1e-18 < largest < 1e18 or lowest == highest:
        return None
    return Extent(energy, largest)


def analyse(matrix: Domain, shaping: Shaping = PLAIN, share: float = 1.0) -> Analysis | None:
    """Fit the scale field and gather the statistics of a matrix; None where `extent_of` is.

    With a `share` below 1 the matrix is so much of a tensor's rows, and `shaping` is that of these rows.
    """
    extent = extent_of(matrix)
    if extent is None:
        return None
    energy, largest = extent
    rms = math.sqrt(energy / (matrix.rows * matrix.columns))
    field = scale_field.fit(matrix, matrix.rows > 1, matrix.rows > 1, share)
    field, family = _normalise(matrix, field)
    steps = _Steps.of(field, shaping)
    first, elements, weights = steps.spread()
    mean_class = float((elements * (first + np.arange(elements.size))).sum() / elements.sum())
    scale = 2.0 ** (field.log_sigma0 + mean_class / 8) * steps.factor
    unit = scale / steps.factor if shaping.geometric else rms
    size_of = scale_field.axis_bytes if share < 1 else lambda axis: len(scale_field.encode_axis(axis))
    row_axis, column_axis = (size_of(axis) for axis in (field.rows, field.columns))
    axes = row_axis / share + column_axis + sum(map(len, importance_bytes(shaping)))
    tiles = len(grid_of(matrix, shaping)) / share
    side_bytes = SIZE + axes + len(matrix.describe().data) + tiles * 4 * LANES
    return Analysis(
        matrix, KeptField(field), family, shaping, unit, steps.factor, scale, energy, rms, largest / steps.smallest,
        first, elements, weights, side_bytes, share,
    )  # fmt: skip


def importance_bytes(shaping: Shaping) -> list[bytes]:
    """Stored form of the axes of importance there are, rows before columns."""
    stored = [scale_field.encode_axis(axis) for axis in (shaping.row_importance, shaping.column_importance) if axis]
    return [struct.pack("<I", len(data)) + data for data in stored]


def grid_of(matrix: Domain, shaping: Shaping, tile: int = TILE) -> Grid:
    """How a matrix is cut into tiles of about so many elements.

    Where errors are fed from column to column, columns are long enough for the search to look ahead.
    """
    if shaping.feedback and shaping.column_importance is not None:
        tile = min(max(tile, FEEDBACK_ROWS * matrix.columns), LARGEST_TILE)
    return Grid.of(matrix.rows, matrix.columns, matrix.alignment, matrix.whole_rows, tile)


class _Steps(NamedTuple):
    """Step exponents and class exponents of the rows, and of the columns; see `geometry.shaped`."""

    rows: tuple[NDArray[np.int32], NDArray[np.int32]]
    columns: tuple[NDArray[np.int32], NDArray[np.int32]]

    @classmethod
    def of(cls, field: ScaleField, shaping: Shaping) -> _Steps:
        """Of a scale field."""
        return cls(
            shaped(field.rows, shaping.row, shaping.row_importance),
            shaped(field.columns, shaping.column, shaping.column_importance),
        )

    @property
    def factor(self) -> float:
        """Geometric mean of what the step of a live element is multiplied with."""
        return math.exp2(sum(float(steps[classes != ZERO].mean()) for steps, classes in self) / 8)

    @property
    def smallest(self) -> float:
        """The least it is multiplied with, at most 1."""
        return math.exp2(sum(int(steps[classes != ZERO].min(initial=0)) for steps, classes in self) / 8)

    def spread(self) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
        """First class, elements per class and their squared factors: convolutions of the rows' and the columns'
        histograms.
        """
        firsts, counts, factors = [], [], []
        for steps, classes in self:
            live = classes != ZERO
            first = int(classes[live].min(initial=0))
            index = classes[live] - first
            firsts.append(first)
            counts.append(np.bincount(index, minlength=1).astype(np.float64))
            factors.append(np.bincount(index, weights=np.exp2(steps[live] / 4), minlength=1).astype(np.float64))
        return sum(firsts), np.convolve(counts[0], counts[1]), np.convolve(factors[0], factors[1])


def _normalise(matrix: Domain, field: ScaleField) -> tuple[ScaleField, int]:
    """Choose the table family on a sample of rows, and correct sigma0 so that the weights have unit variance there."""
    rows = np.linspace(0, matrix.rows - 1, min(matrix.rows, _SAMPLE_ROWS)).astype(np.int64)
    if matrix.columns * rows.size > 1 << 20:
        rows = rows[:: max(1, matrix.columns * rows.size >> 20)]
    rows = rows[field.rows.exponents[rows] != ZERO]
    if not rows.size:
        return field, 0
    scaled = matrix.some(rows).astype(np.float64)
    scaled *= np.exp2(-field.rows.exponents[rows] / 8 - field.log_sigma0)[:, None]
    scaled *= np.sqrt(inverse_power(field.columns))
    live = rows.size * int((field.columns.exponents != ZERO).sum())
    power = float(np.vdot(scaled, scaled)) / max(live, 1)
    if not power > 0:
        return field, 0
    x = np.abs(scaled.astype(np.float32))
    cost = []
    for exponent in tables.FAMILY_EXPONENTS:
        alpha = math.sqrt(power * math.gamma(1 / exponent) / math.gamma(3 / exponent))
        constant = math.log(2 * alpha * math.gamma(1 / exponent) / exponent)
        mean = power if exponent == 2 else float((x ** np.float32(exponent)).sum(dtype=np.float64)) / live
        cost.append(constant + mean / alpha**exponent)
    return replace(field, log_sigma0=field.log_sigma0 + 0.5 * math.log2(power)), int(np.argmin(cost))
