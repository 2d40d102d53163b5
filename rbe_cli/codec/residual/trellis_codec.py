"""The lossy coder of one matrix: noise shaping, trellis-coded quantisation, rANS, tile by tile.

    Encoding      -> Encoded (chunks: the parameters with the side information, then one per tile)
    ValueDecoder  -> what was quantised, of any tile

What it codes is a `Domain`; what stands between that and the weights, structure and transform, is not its concern.
"""

from __future__ import annotations

import math
import time
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbe_cli.codec.parameters import SIZE, Parameters
from rbe_cli.codec.residual import scale_field, tables
from rbe_cli.codec.residual.analysis import Analysis, grid_of, importance_bytes
from rbe_cli.codec.residual.feedback import Feedback
from rbe_cli.codec.residual.geometry import Geometry
from rbe_cli.codec.residual.trellis import trellis
from rbe_cli.codec.source import Domain
from rbe_cli.codec.tiles import TILE, Tile
from rbe_cli.codec.workspace import scratch, searching
from rbe_cli.errors import Damage
from rbe_cli.kernels import rans
from rbe_cli.kernels import trellis as trellis_kernels
from rbe_cli.kernels.tile import decode_tile

#: Tiles searched side by side, at most: their lanes fill the vector registers. And their elements, at most: where
#: tiles are larger, because errors are fed from column to column, that is what takes the time.
GROUP, _GROUP_ELEMENTS = 4, 1 << 22
#: And at least, with nothing in the lanes of those that are missing: where a register has more lanes than a tile, one
#: tile alone takes two to three times as long.
LEAST_GROUP = 2
#: |w| / step beyond this has no exact float32 reconstruction; such a tensor is stored exactly.
MAX_INDEX = 1 << 22
_ABSENT = 255
#: Bytes that a search takes for each of its elements (weights, classes, symbols, unions), and making a stream for each
#: of a tile.
_SEARCH_BYTES, _STREAM_BYTES = 10, 12


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
    version : int
        The lowest of the format that can read them.
    """

    chunks: list[bytes]
    squared_error: float
    nanoseconds: int
    version: int = 1

    @property
    def size(self) -> int:
        """Bytes of all chunks."""
        return sum(map(len, self.chunks))


class Encoding:
    """A tensor that is being encoded: its groups of tiles are jobs of an executor. `result` waits for them."""

    def __init__(self, analysis: Analysis, step: float, states: int, executor: Executor, tile: int = TILE) -> None:
        """Start encoding at `step`, in tiles of about so many elements."""
        self.analysis = analysis
        matrix = analysis.matrix.ready()
        base, step, field = analysis.aligned(float(np.float32(step)))
        step = float(np.float32(step))
        row_axis = scale_field.encode_axis(field.rows)
        column_axis = scale_field.encode_axis(field.columns)
        description = matrix.describe()
        shaping = analysis.shaping
        self.side = row_axis + column_axis + b"".join(importance_bytes(shaping)) + description.data
        self.parameters = Parameters(
            by_columns=shaping.feedback and shaping.column_importance is not None,
            states=states,
            family=analysis.family,
            row_shaping=shaping.row,
            column_shaping=shaping.column,
            base=base,
            step=step,
            grid=grid_of(matrix, shaping, tile),
            rms=analysis.rms,
            nrmse=0.0,
            row_bytes=len(row_axis),
            column_bytes=len(column_axis),
            structure=description.structure,
            transform=description.transform,
            block=description.block,
            levels=description.levels,
            row_importance=shaping.row_importance is not None,
            column_importance=shaping.column_importance is not None,
        )
        geometry = Geometry.of(
            self.parameters, field.rows, field.columns, shaping.row_importance, shaping.column_importance
        )
        tiles = list(self.parameters.grid)
        feedback = Feedback.of(shaping, self.parameters)
        if feedback is not None and not self.parameters.by_columns:
            # Errors go from row to row, so from tile to tile.
            jobs = [executor.submit(_encode_one_by_one, matrix, self.parameters, geometry, tiles, feedback)]
        else:
            count = -(-len(tiles) // max(LEAST_GROUP, min(GROUP, _GROUP_ELEMENTS // tiles[0].size)))
            # As even as can be: the fewer lanes, the more time a weight takes.
            groups = [tiles[i * len(tiles) // count : (i + 1) * len(tiles) // count] for i in range(count)]
            jobs = [
                executor.submit(_encode_group, matrix, self.parameters, geometry, group, feedback) for group in groups
            ]
        self.futures: list[Future[tuple[list[bytes], float, int]]] = jobs

    def result(self) -> Encoded:
        """Wait and put the chunks together."""
        chunks, error, nanoseconds = [b""], 0.0, 0
        for future in self.futures:
            streams, part, taken = future.result()
            chunks += streams
            error += part
            nanoseconds += taken
        nrmse = math.sqrt(error / self.analysis.energy) if self.analysis.energy else 0.0
        chunks[0] = replace(self.parameters, nrmse=nrmse).pack() + self.side
        return Encoded(chunks, error, nanoseconds, self.parameters.version)


def _encode_group(
    matrix: Domain, parameters: Parameters, geometry: Geometry, group: list[Tile], feedback: Feedback | None = None
) -> tuple[list[bytes], float, int]:
    """Streams of some tiles, the squared error of what they decode to, and the processor time it took, in ns."""
    started = time.thread_time_ns()
    lanes = rans.LANES
    shape = (max(-(-tile.size // lanes) for tile in group), lanes * max(len(group), LEAST_GROUP))
    decisions = parameters.states // 8 + 1 if feedback is None else 0
    with searching(shape[0] * shape[1] * (_SEARCH_BYTES + decisions) + group[0].size * _STREAM_BYTES):
        classes = scratch("classes", shape, np.uint8)
        classes.fill(_ABSENT)
        if feedback is None:
            x = scratch("x", shape, np.float32)
        else:
            fed = scratch("fed", (len(group), parameters.grid.columns, parameters.grid.height), np.float32)
        scans = []
        for g, tile in enumerate(group):
            scan = geometry.scan(tile, parameters)
            part = slice(g * lanes, (g + 1) * lanes)
            w = np.ascontiguousarray(matrix.piece(tile))
            if feedback is None:
                _deal(scan.divide(w), x[:, part])
            else:
                fed[g, :, : len(w)] = w.T
                scans.append(scan)
            _deal(scan.classes(), classes[:, part])
        symbols, unions = scratch("symbols", shape, np.int32), scratch("unions", shape, np.uint8)
        if feedback is None:
            _search(x, classes, parameters, symbols, unions)
        else:
            feedback.search(scans, fed, 0, classes, parameters, symbols, unions)
        streams, error = _write_streams(matrix, parameters, geometry, group, classes, symbols, unions)
    return streams, error, time.thread_time_ns() - started


def _encode_one_by_one(
    matrix: Domain, parameters: Parameters, geometry: Geometry, tiles: list[Tile], feedback: Feedback
) -> tuple[list[bytes], float, int]:
    """As `_encode_group`, for all tiles of a matrix whose rows are the inputs that feed each other."""
    started = time.thread_time_ns()
    size = tiles[0].size * (_SEARCH_BYTES + _STREAM_BYTES)
    with searching(4 * matrix.rows * matrix.columns + size):
        fed = np.empty((1, matrix.rows, matrix.columns), np.float32)
        streams, error = [], 0.0
        for tile in tiles:
            shape = (-(-tile.size // rans.LANES), rans.LANES)
            classes = scratch("classes", shape, np.uint8)
            classes.fill(_ABSENT)
            scan = geometry.scan(tile, parameters)
            _deal(scan.classes(), classes)
            symbols, unions = scratch("symbols", shape, np.int32), scratch("unions", shape, np.uint8)
            fed[0, tile.top : tile.bottom] = matrix.piece(tile)
            feedback.search([scan], fed, tile.top, classes, parameters, symbols, unions)
            more, part = _write_streams(matrix, parameters, geometry, [tile], classes, symbols, unions)
            streams += more
            error += part
    return streams, error, time.thread_time_ns() - started


def _search(
    x: NDArray[np.float32],
    classes: NDArray[np.uint8],
    parameters: Parameters,
    symbols: NDArray[np.int32],
    unions: NDArray[np.uint8],
) -> None:
    """The symbols of weights in steps, all float32[T, lanes] of them at once."""
    t = trellis(parameters.states)
    trellis_kernels.search(
        x, classes, tables.CLASSES, tables.family(parameters.family).coding.price, t.butterflies, t.back,
        scratch("decision", (x.shape[0], -(-t.states // 32), x.shape[1]), np.uint32),
        scratch("higher", x.shape, np.uint8), symbols, unions,
    )  # fmt: skip


def _write_streams(
    matrix: Domain,
    parameters: Parameters,
    geometry: Geometry,
    group: list[Tile],
    classes: NDArray[np.uint8],
    symbols: NDArray[np.int32],
    unions: NDArray[np.uint8],
) -> tuple[list[bytes], float]:
    """Streams of some tiles, and the squared error of what they decode to."""
    lanes, coding = rans.LANES, tables.family(parameters.family).coding
    streams, error = [], 0.0
    decoder = ValueDecoder(parameters, geometry)
    for g, tile in enumerate(group):
        part = slice(g * lanes, (g + 1) * lanes)
        words = scratch("words", (4 * tile.size + 2 * lanes + 1,), np.uint16)
        at = rans.encode_tile(
            tile.size, symbols[:, part], classes[:, part], unions[:, part], tables.CLASSES,
            coding.start, coding.freq, coding.reach, words,
        )  # fmt: skip
        streams.append(words[at:].astype("<u2").tobytes())
        error += matrix.squared_error(decoder.values(streams[-1], tile), tile)
    return streams, error


def _deal(values: NDArray[Any], lanes: NDArray[Any]) -> None:
    """Write a tile's values, in coding order, to its lanes: element t to row t // LANES, column t mod LANES."""
    whole, rest = divmod(values.size, lanes.shape[1])
    lanes[:whole] = values[: whole * lanes.shape[1]].reshape(whole, lanes.shape[1])
    if rest:
        lanes[whole, :rest] = values[whole * lanes.shape[1] :]


class ValueDecoder:
    """Turns the streams of one tensor's tiles back into weights."""

    def __init__(self, parameters: Parameters, geometry: Geometry) -> None:
        self.parameters = parameters
        self.geometry = geometry
        self.coding = tables.family(parameters.family).coding
        self.step = trellis(parameters.states).step

    def values(self, stream: bytes, tile: Tile, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """What was quantised of a tile, float32[rows, columns], in `out` or else good until this thread's next call.

        `out` must be contiguous.

        Raises Damage.
        """
        if len(stream) % 2 or len(stream) < 4 * rans.LANES:
            raise Damage("tile is cut short")
        scan = self.geometry.scan(tile, self.parameters)
        if out is None:
            out = scratch("weights", (tile.bottom - tile.top, tile.right - tile.left), np.float32)
        status = decode_tile(
            np.frombuffer(stream, "<u2"), scan.line_classes, scan.base, tables.MAX_CLASS, tables.CLASSES, self.step,
            self.coding.slots, self.coding.points, self.coding.reach, scan.line_scales, scan.strides, out.reshape(-1),
        )  # fmt: skip
        if status != rans.OK:
            raise Damage("tile is damaged")
        return out


def open_values(first_chunk: bytes, parameters: Parameters) -> tuple[ValueDecoder, bytes]:
    """Read the scale field and the importance after the parameters of a first chunk: the decoder, and what follows.

    Raises Damage.
    """
    grid, middle = parameters.grid, SIZE + parameters.row_bytes
    rows = scale_field.decode_axis(first_chunk[SIZE:middle], grid.rows)
    rest = first_chunk[middle + parameters.column_bytes :]
    columns = scale_field.decode_axis(first_chunk[middle : middle + parameters.column_bytes], grid.columns)
    importance: list[scale_field.Axis | None] = []
    for there, n in ((parameters.row_importance, grid.rows), (parameters.column_importance, grid.columns)):
        axis = None
        if there:
            length = int.from_bytes(rest[:4], "little")
            if len(rest) < 4 + length:
                raise Damage("importance is cut short")
            axis, rest = scale_field.decode_axis(rest[4 : 4 + length], n), rest[4 + length :]
            if (axis.exponents == scale_field.ZERO).any():
                raise Damage("importance: a row or column has none")
        importance.append(axis)
    return ValueDecoder(parameters, Geometry.of(parameters, rows, columns, *importance)), rest
