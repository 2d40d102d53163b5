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

from rbe_cli.codec import scale_field, tables
from rbe_cli.codec.analysis import Analysis
from rbe_cli.codec.geometry import Geometry
from rbe_cli.codec.parameters import SIZE, Parameters
from rbe_cli.codec.source import Domain
from rbe_cli.codec.tiles import Grid, Tile
from rbe_cli.codec.trellis import trellis
from rbe_cli.codec.workspace import scratch
from rbe_cli.errors import Damage
from rbe_cli.kernels import rans
from rbe_cli.kernels import trellis as trellis_kernels

#: Tiles searched side by side, at most: their lanes fill the vector registers.
GROUP = 4
#: |w| / step beyond this has no exact float32 reconstruction; such a tensor is stored exactly.
MAX_INDEX = 1 << 22
_ABSENT = 255


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
        matrix = analysis.matrix
        step = float(np.float32(step))
        base, field = analysis.aligned(step)
        row_axis = scale_field.encode_axis(field.rows)
        column_axis = scale_field.encode_axis(field.columns)
        description = matrix.describe()
        self.side = row_axis + column_axis + description.data
        self.parameters = Parameters(
            by_columns=False,
            states=states,
            family=analysis.family,
            row_shaping=analysis.row_shaping,
            column_shaping=analysis.column_shaping,
            base=base,
            step=step,
            grid=Grid.of(matrix.rows, matrix.columns, matrix.alignment, matrix.whole_rows),
            rms=analysis.rms,
            nrmse=0.0,
            row_bytes=len(row_axis),
            column_bytes=len(column_axis),
            structure=description.structure,
            transform=description.transform,
            block=description.block,
            levels=description.levels,
        )
        geometry = Geometry.of(self.parameters, field.rows, field.columns)
        tiles = list(self.parameters.grid)
        count = -(-len(tiles) // GROUP)
        # As even as can be: the fewer lanes, the more time a weight takes.
        groups = [tiles[i * len(tiles) // count : (i + 1) * len(tiles) // count] for i in range(count)]
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
        chunks[0] = replace(self.parameters, nrmse=nrmse).pack() + self.side
        return Encoded(chunks, error, nanoseconds)


def _encode_group(
    matrix: Domain, parameters: Parameters, geometry: Geometry, group: list[Tile]
) -> tuple[list[bytes], float, int]:
    """Streams of some tiles, the squared error of what they decode to, and the processor time it took, in ns."""
    started = time.thread_time_ns()
    lanes = rans.LANES
    shape = (max(-(-tile.size // lanes) for tile in group), lanes * len(group))
    x = scratch("x", shape, np.float32)
    classes = scratch("classes", shape, np.uint8)
    classes.fill(_ABSENT)
    for g, tile in enumerate(group):
        scan = geometry.scan(tile, parameters)
        part = slice(g * lanes, (g + 1) * lanes)
        _deal(
            scan.divide(np.ascontiguousarray(matrix.band(tile.top, tile.bottom)[:, tile.left : tile.right])), x[:, part]
        )
        _deal(scan.classes, classes[:, part])
    family, t = tables.family(parameters.family), trellis(parameters.states)
    symbols, unions = scratch("symbols", shape, np.int32), scratch("unions", shape, np.uint8)
    trellis_kernels.search(
        x, classes, tables.CLASSES, family.price, t.butterflies, t.back,
        scratch("decision", (shape[0], -(-t.states // 32), shape[1]), np.uint32),
        scratch("symbol", (shape[0], 4, shape[1]), np.int32), symbols, unions,
    )  # fmt: skip
    streams, error = [], 0.0
    decoder = ValueDecoder(parameters, geometry)
    for g, tile in enumerate(group):
        part = slice(g * lanes, (g + 1) * lanes)
        words = scratch("words", (4 * tile.size + 2 * lanes + 1,), np.uint16)
        at = rans.encode_tile(
            tile.size, symbols[:, part], classes[:, part], unions[:, part], tables.CLASSES,
            family.start, family.freq, family.reach, words,
        )  # fmt: skip
        streams.append(words[at:].astype("<u2").tobytes())
        error += matrix.squared_error(decoder.values(streams[-1], tile), tile)
    return streams, error, time.thread_time_ns() - started


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
        self.family = tables.family(parameters.family)
        self.step = trellis(parameters.states).step

    def values(self, stream: bytes, tile: Tile) -> NDArray[np.float32]:
        """What was quantised of a tile, float32[rows, columns], good until this thread's next call. Raises Damage."""
        if len(stream) % 2 or len(stream) < 4 * rans.LANES:
            raise Damage("tile is cut short")
        length, scan = len(stream) // 2, self.geometry.scan(tile, self.parameters)
        words = scratch("padded", (length + tile.size,), np.uint16)
        words[:length] = np.frombuffer(stream, "<u2")
        words[length:] = 0
        points = scratch("points", (tile.size,), np.float32)
        coded = tables.CLASSES if scan.classes.max() > tables.CLASSES else None
        status = rans.decode_points(
            words, length, scan.classes, coded, self.step,
            self.family.slots, self.family.points, self.family.reach, points,
        )  # fmt: skip
        if status != rans.OK:
            raise Damage("tile is damaged")
        return scan.multiply(points).reshape(tile.bottom - tile.top, tile.right - tile.left)


def open_values(first_chunk: bytes, parameters: Parameters) -> ValueDecoder:
    """Read the scale field after the parameters of a first chunk. Raises Damage."""
    grid, middle = parameters.grid, SIZE + parameters.row_bytes
    rows = scale_field.decode_axis(first_chunk[SIZE:middle], grid.rows)
    columns = scale_field.decode_axis(first_chunk[middle : middle + parameters.column_bytes], grid.columns)
    return ValueDecoder(parameters, Geometry.of(parameters, rows, columns))
