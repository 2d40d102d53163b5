"""The lossy coder of one tensor: scale field, noise shaping, trellis-coded quantisation, rANS, tile by tile.

    analyse -> Analysis (what does not depend on the step, and forecasts of size and error for any step)
    encode  -> Encoded  (chunks: the parameters with the scale field, then one per tile)
    open_tensor -> TileDecoder, the weights of any tile

The structure and transform stages of the pipeline come before the scale field and after dequantisation; format 1 has
their identifiers in the parameters and only `none` of each.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbe_cli import dtypes
from rbe_cli.codec import scale_field, tables
from rbe_cli.codec.parameters import SHAPING_UNIT, SIZE, Parameters
from rbe_cli.codec.scale_field import ZERO, Axis, ScaleField
from rbe_cli.codec.source import Matrix
from rbe_cli.codec.tiles import Grid, Tile
from rbe_cli.codec.trellis import trellis
from rbe_cli.codec.workspace import scratch
from rbe_cli.errors import Damage
from rbe_cli.kernels import field as field_kernels
from rbe_cli.kernels import rans
from rbe_cli.kernels import trellis as trellis_kernels

#: Tiles searched side by side: their lanes fill the vector registers.
GROUP = 4
#: |w| / step beyond this has no exact float32 reconstruction; such a tensor is stored exactly.
MAX_INDEX = 1 << 22
_SAMPLE_ROWS = 96
_ABSENT = 255
#: Float32 constants of the format: 2^(i / 8).
_EIGHTHS = np.array([2.0 ** (i / 8) for i in range(8)], np.float32)


def shaped(axis: Axis, shaping: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Step exponents A = (shaping E + 8) >> 4 and class exponents E - A of an axis, int32[n] each.

    Where the axis is ZERO, A is 0 and the class stays ZERO.
    """
    live = axis.exponents != ZERO
    steps = np.where(live, (shaping * axis.exponents + SHAPING_UNIT // 2) >> 4, 0).astype(np.int32)
    return steps, np.where(live, axis.exponents - steps, ZERO).astype(np.int32)


def scales(exponents: NDArray[np.int32], live: NDArray[np.bool_]) -> NDArray[np.float32]:
    """2^(A / 8) in float32, 0 where nothing lives."""
    factor = np.ldexp(_EIGHTHS[exponents & 7], exponents >> 3).astype(np.float32)
    return np.where(live, factor, np.float32(0))


@dataclass(frozen=True)
class Geometry:
    """Per-row and per-column classes and steps, the part that encoder and decoder share.

    Attributes
    ----------
    row_class, column_class : int32; row_scale, column_scale : float32
        The step of an element is row_scale x column_scale, its class base + row_class + column_class.
    """

    row_class: NDArray[np.int32]
    column_class: NDArray[np.int32]
    row_scale: NDArray[np.float32]
    column_scale: NDArray[np.float32]

    @classmethod
    def of(cls, parameters: Parameters, rows: Axis, columns: Axis) -> Geometry:
        """From what the first chunk says."""
        row_steps, row_class = shaped(rows, parameters.row_shaping)
        column_steps, column_class = shaped(columns, parameters.column_shaping)
        row_scale = np.float32(parameters.step) * scales(row_steps, row_class != ZERO)
        return cls(row_class, column_class, row_scale, scales(column_steps, column_class != ZERO))

    def scan(self, tile: Tile, parameters: Parameters) -> Scan:
        """The elements of a tile in coding order."""
        row_class, row_scale = self.row_class[tile.top : tile.bottom], self.row_scale[tile.top : tile.bottom]
        column_class = self.column_class[tile.left : tile.right]
        column_scale = self.column_scale[tile.left : tile.right]
        width = tile.right - tile.left
        if parameters.by_columns:
            return Scan(column_class, row_class, column_scale, row_scale, (1, width), parameters.base)
        return Scan(row_class, column_class, row_scale, column_scale, (width, 1), parameters.base)


class Scan:
    """Classes and steps of a tile's elements in coding order. A thread works with one scan at a time, and what its
    methods return is good until the next call.

    Attributes
    ----------
    classes : uint8[n]
    """

    def __init__(
        self,
        outer_class: NDArray[np.int32],
        inner_class: NDArray[np.int32],
        outer_scale: NDArray[np.float32],
        inner_scale: NDArray[np.float32],
        strides: tuple[int, int],
        base: int,
    ) -> None:
        classes = scratch("scan", (outer_class.size, inner_class.size), np.uint8)
        field_kernels.classify(outer_class, inner_class, base, tables.MAX_CLASS, classes)
        self.classes = classes.ravel()
        self._steps = strides, outer_scale, inner_scale

    def divide(self, w: NDArray[np.float32]) -> NDArray[np.float32]:
        """Weights [rows, columns] of the tile, in steps, in coding order."""
        out = scratch("divided", (self.classes.size,), np.float32)
        field_kernels.divide(w.ravel(), *self._steps, out)
        return out

    def multiply(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Inverse of `divide`: weights, flat, by rows."""
        out = scratch("weights", (self.classes.size,), np.float32)
        field_kernels.multiply(points, *self._steps, out)
        return out


@dataclass(frozen=True)
class Analysis:
    """What the encoder knows of a tensor before it has a step.

    Attributes
    ----------
    unit : float
        The scale a step is a multiple of: the RMS where error is not shaped, else the geometric mean of sigma / a b.
    energy : float
        Sum of squares; `rms` its mean's root.
    largest : float
        Largest magnitude, in units of the smallest factor a_i b_j.
    offsets, weights : float64[n]
        Number of live elements in each class, counted from the class of exponent 0, and their sum of (a_i b_j)^2.
    """

    matrix: Matrix
    field: ScaleField
    family: int
    row_shaping: int
    column_shaping: int
    unit: float
    energy: float
    rms: float
    largest: float
    first_offset: int
    elements: NDArray[np.float64]
    weights: NDArray[np.float64]
    side_bytes: int

    def _centres(self, step: float) -> NDArray[np.float64]:
        base = 8 * (self.field.log_sigma0 - math.log2(step)) + 15
        return np.asarray(base + self.first_offset + np.arange(self.elements.size), np.float64)

    def expected_bytes(self, step: float) -> float:
        """Size of the chunks at a step, from what the tables say of Gaussian (or Laplace) weights."""
        family = tables.family(self.family)
        c = self._centres(step)
        raw = np.maximum(c - tables.CLASSES, 0) / 8
        bits = np.interp(np.clip(c, 1, tables.CLASSES), np.arange(1, tables.CLASSES + 1), family.bits[1:]) + raw
        tiles = len(Grid.of(self.matrix.rows, self.matrix.columns))
        return float(bits @ self.elements) / 8 + self.side_bytes + tiles * 32

    def expected_error(self, step: float) -> float:
        """Sum of squared errors at a step."""
        family = tables.family(self.family)
        c = self._centres(step)
        log_d = np.interp(
            np.clip(c, 1, tables.CLASSES), np.arange(1, tables.CLASSES + 1), np.log2(family.distortion[1:])
        )
        log_d += np.minimum(c - 1, 0) / 4
        return float(np.exp2(log_d) @ self.weights) * step * step


def analyse(matrix: Matrix, row_shaping: int, column_shaping: int, shape_unit: bool) -> Analysis | None:
    """Fit the scale field and gather the statistics of a matrix; None if it holds a number that is not finite, or
    nothing but zeros.

    `row_shaping`, `column_shaping` are gr, gc in sixteenths; with `shape_unit` the unit is the geometric mean scale,
    else the RMS.
    """
    energy, largest, finite = 0.0, 0.0, True
    for _, band in matrix.bands():
        peak = float(np.abs(band).max(initial=0.0))
        if not math.isfinite(peak):
            finite = False
            break
        largest = max(largest, peak)
        energy += float(np.dot(band.ravel().astype(np.float64), band.ravel().astype(np.float64)))
    # Squares and steps stay well inside float32 between these bounds; beyond, a tensor is stored exactly.
    if not finite or not 1e-18 < largest < 1e18:
        return None
    rms = math.sqrt(energy / (matrix.rows * matrix.columns))
    field = scale_field.fit(matrix, use_rows=matrix.rows > 1, use_columns=matrix.rows > 1)
    field, family = _normalise(matrix, field)
    row_steps, row_class = shaped(field.rows, row_shaping)
    column_steps, column_class = shaped(field.columns, column_shaping)
    first, elements, weights = _spread(row_steps, row_class, column_steps, column_class)
    unit = rms
    if shape_unit:
        mean_class = float((elements * (first + np.arange(elements.size))).sum() / elements.sum())
        unit = 2.0 ** (field.log_sigma0 + mean_class / 8)
    side_bytes = SIZE + len(scale_field.encode_axis(field.rows)) + len(scale_field.encode_axis(field.columns))
    smallest_factor = 2.0 ** ((_least(row_steps, row_class) + _least(column_steps, column_class)) / 8)
    return Analysis(
        matrix, field, family, row_shaping, column_shaping, unit, energy, rms, largest / smallest_factor,
        first, elements, weights, side_bytes,
    )  # fmt: skip


def _least(steps: NDArray[np.int32], classes: NDArray[np.int32]) -> int:
    return int(steps[classes != ZERO].min(initial=0))


def _spread(
    row_steps: NDArray[Any], row_class: NDArray[Any], column_steps: NDArray[Any], column_class: NDArray[Any]
) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """Elements per class and their squared step factors: convolutions of the rows' and the columns' histograms."""
    firsts, counts, factors = [], [], []
    for steps, classes in ((row_steps, row_class), (column_steps, column_class)):
        live = classes != ZERO
        first = int(classes[live].min(initial=0))
        index = classes[live] - first
        firsts.append(first)
        counts.append(np.bincount(index, minlength=1).astype(np.float64))
        factors.append(np.bincount(index, weights=np.exp2(steps[live] / 4), minlength=1).astype(np.float64))
    return sum(firsts), np.convolve(counts[0], counts[1]), np.convolve(factors[0], factors[1])


def _normalise(matrix: Matrix, field: ScaleField) -> tuple[ScaleField, int]:
    """Choose the table family on a sample of rows, and correct sigma0 so that the weights have unit variance there."""
    rows = np.unique(np.linspace(0, matrix.rows - 1, min(matrix.rows, _SAMPLE_ROWS)).astype(np.int64))
    if matrix.columns * rows.size > 1 << 20:
        rows = rows[:: max(1, matrix.columns * rows.size >> 20)]
    live_columns = field.columns.exponents != ZERO
    samples = []
    for i in rows:
        if field.rows.exponents[i] == ZERO:
            continue
        exponent = (field.rows.exponents[i] + field.columns.exponents[live_columns]) / 8 + field.log_sigma0
        samples.append(matrix.band(i, i + 1)[0, live_columns].astype(np.float64) / np.exp2(exponent))
    x = np.abs(np.concatenate(samples)) if samples else np.ones(1)
    power = float(np.mean(x * x))
    if not power > 0:
        return field, 0
    x /= math.sqrt(power)
    cost = []
    for exponent in tables.FAMILY_EXPONENTS:
        alpha = math.sqrt(math.gamma(1 / exponent) / math.gamma(3 / exponent))
        constant = math.log(2 * alpha * math.gamma(1 / exponent) / exponent)
        cost.append(constant + float(np.mean((x / alpha) ** exponent)))
    return replace(field, log_sigma0=field.log_sigma0 + 0.5 * math.log2(power)), int(np.argmin(cost))


@dataclass(frozen=True)
class Encoded:
    """The chunks of a tensor and how far its decoded weights are from the original.

    Attributes
    ----------
    chunks : list of bytes
    squared_error : float
        Sum over the weights as `decode` gives them back, rounded to the tensor's type.
    nanoseconds : int
        Processor time it took, over all threads, the decoding to measure the error included.
    """

    chunks: list[bytes]
    squared_error: float
    nanoseconds: int

    @property
    def size(self) -> int:
        """Bytes of all chunks."""
        return sum(map(len, self.chunks))


class Encoding:
    """A tensor that is being encoded: its groups of tiles are jobs of an executor. `result` waits for them."""

    def __init__(self, analysis: Analysis, step: float, states: int, executor: Executor) -> None:
        """Start encoding at `step`."""
        self.analysis = analysis
        matrix, field = analysis.matrix, analysis.field
        step = float(np.float32(step))
        row_axis = scale_field.encode_axis(field.rows)
        self.axes = row_axis + scale_field.encode_axis(field.columns)
        self.parameters = Parameters(
            by_columns=False,
            states=states,
            family=analysis.family,
            row_shaping=analysis.row_shaping,
            column_shaping=analysis.column_shaping,
            base=math.floor(8 * (field.log_sigma0 - math.log2(step)) + 15.5),
            step=step,
            grid=Grid.of(matrix.rows, matrix.columns),
            rms=analysis.rms,
            nrmse=0.0,
            row_bytes=len(row_axis),
        )
        geometry = Geometry.of(self.parameters, field.rows, field.columns)
        tiles = list(self.parameters.grid)
        groups = [tiles[i : i + GROUP] for i in range(0, len(tiles), GROUP)]
        self.futures: list[Future[tuple[list[bytes], float, int]]] = [
            executor.submit(_encode_group, matrix, self.parameters, geometry, group) for group in groups
        ]

    def result(self) -> Encoded:
        """Wait and put the chunks together."""
        chunks, error, nanoseconds = [b""], 0.0, 0
        for future in self.futures:
            streams, part, taken = future.result()
            chunks += streams
            error += part
            nanoseconds += taken
        nrmse = math.sqrt(error / self.analysis.energy) if self.analysis.energy else 0.0
        chunks[0] = replace(self.parameters, nrmse=nrmse).pack() + self.axes
        return Encoded(chunks, error, nanoseconds)


def _encode_group(
    matrix: Matrix, parameters: Parameters, geometry: Geometry, group: list[Tile]
) -> tuple[list[bytes], float, int]:
    """Streams of some tiles, the squared error of what they decode to, and the processor time it took, in ns."""
    started = time.thread_time_ns()
    lanes = rans.LANES
    # Always the lanes of a full group: the kernels are fast for that number, and absent lanes cost no bits.
    shape = (max(-(-tile.size // lanes) for tile in group), lanes * GROUP)
    x = scratch("x", shape, np.float32)
    classes = scratch("classes", shape, np.uint8)
    classes.fill(_ABSENT)
    for g, tile in enumerate(group):
        scan = geometry.scan(tile, parameters)
        part = slice(g * lanes, (g + 1) * lanes)
        _deal(scan.divide(_tile_weights(matrix.band, tile)), x[:, part])
        _deal(scan.classes, classes[:, part])
    family, t = tables.family(parameters.family), trellis(parameters.states)
    symbols, unions = scratch("symbols", shape, np.int32), scratch("unions", shape, np.uint8)
    trellis_kernels.search(
        x, classes, tables.CLASSES, family.price, t.butterflies, t.back,
        scratch("decision", (shape[0], -(-t.states // 32), shape[1]), np.uint32),
        scratch("symbol", (shape[0], 4, shape[1]), np.int32), symbols, unions,
    )  # fmt: skip
    streams, error = [], 0.0
    decoder = TileDecoder(parameters, geometry)
    for g, tile in enumerate(group):
        part = slice(g * lanes, (g + 1) * lanes)
        words = scratch("words", (4 * tile.size + 2 * lanes + 1,), np.uint16)
        at = rans.encode_tile(
            tile.size, symbols[:, part], classes[:, part], unions[:, part], tables.CLASSES,
            family.start, family.freq, family.reach, words,
        )  # fmt: skip
        streams.append(words[at:].astype("<u2").tobytes())
        back = dtypes.from_float32(decoder.decode(streams[-1], tile), matrix.dtype)
        error += field_kernels.squared_error(back.astype(np.float64).ravel(), _tile_weights(matrix.exact, tile).ravel())
    return streams, error, time.thread_time_ns() - started


def _deal(values: NDArray[Any], lanes: NDArray[Any]) -> None:
    """Write a tile's values, in coding order, to its lanes: element t to row t // LANES, column t mod LANES."""
    whole, rest = divmod(values.size, lanes.shape[1])
    lanes[:whole] = values[: whole * lanes.shape[1]].reshape(whole, -1)
    if rest:
        lanes[whole, :rest] = values[whole * lanes.shape[1] :]


def _tile_weights(read: Callable[[int, int], NDArray[Any]], tile: Tile) -> NDArray[Any]:
    """The weights of a tile, contiguous, in whatever type `read(top, bottom)` gives."""
    return np.ascontiguousarray(read(tile.top, tile.bottom)[:, tile.left : tile.right])


class TileDecoder:
    """Turns the streams of one tensor's tiles back into weights."""

    def __init__(self, parameters: Parameters, geometry: Geometry) -> None:
        self.parameters = parameters
        self.geometry = geometry
        self.family = tables.family(parameters.family)
        self.step = trellis(parameters.states).step

    def decode(self, stream: bytes, tile: Tile) -> NDArray[np.float32]:
        """Weights of a tile, float32[rows, columns], good until this thread's next call. Raises Damage."""
        if len(stream) % 2 or len(stream) < 4 * rans.LANES:
            raise Damage("tile is cut short")
        # One word of padding, so that the kernel may look ahead without asking.
        words = scratch("padded", (len(stream) // 2 + 1,), np.uint16)
        words[:-1] = np.frombuffer(stream, "<u2")
        words[-1] = 0
        scan = self.geometry.scan(tile, self.parameters)
        points = scratch("points", (tile.size,), np.float32)
        status = rans.decode_points(
            words, scan.classes, tables.CLASSES, self.step,
            self.family.slots, self.family.points, self.family.reach, points,
        )  # fmt: skip
        if status != rans.OK:
            raise Damage("tile is damaged")
        return scan.multiply(points).reshape(tile.bottom - tile.top, tile.right - tile.left)


def open_tensor(first_chunk: bytes, shape: tuple[int, ...]) -> tuple[TileDecoder, Grid]:
    """Read a tensor's first chunk: its decoder and the grid of its tiles. Raises Damage."""
    parameters = Parameters.unpack(first_chunk, dtypes.count(shape))
    grid = parameters.grid
    rows = scale_field.decode_axis(first_chunk[SIZE : SIZE + parameters.row_bytes], grid.rows)
    columns = scale_field.decode_axis(first_chunk[SIZE + parameters.row_bytes :], grid.columns)
    return TileDecoder(parameters, Geometry.of(parameters, rows, columns)), grid
