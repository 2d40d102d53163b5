"""Structure only, low rank: a matrix as the product of two quantised factors, and nothing else.

The one chunk is LOW_RANK_HEAD, then the stored form of `rbe_cli.codec.structure.low_rank.LowRank`.
"""

from __future__ import annotations

import math
import time

import numpy as np
from numpy.typing import NDArray

from rbe_cli.codec.parameters import LOW_RANK_HEAD as HEAD
from rbe_cli.codec.residual.trellis_codec import Encoded
from rbe_cli.codec.source import Matrix
from rbe_cli.codec.structure.components import STEP_POWER, Factors
from rbe_cli.codec.structure.low_rank import GRID, LowRank, encode_low_rank
from rbe_cli.codec.structure.structure_only import StructureAnalysis
from rbe_cli.codec.tiles import Grid, Tile
from rbe_cli.codec.workspace import Findings, whole_matrices
from rbe_cli.errors import Damage

#: Components of a matrix, at most.
MOST_COMPONENTS = 256
#: Bits a factor element costs against the rate of a Gaussian at the squared error of a fine step: near nought, and
#: below it, since at the rates in question the trellis makes a larger error and takes fewer bits.
_OVERHEAD = -0.05
#: Bytes a forecast counts beside the factors' numbers: for the heads and the lanes' states of both, and for each
#: component. Nominal; what the factors' scales take is left out.
_HEAD_BYTES, _COMPONENT_BYTES = 140, 2
#: Bytes that looking for the singular vectors takes for each element.
_FIT_BYTES = 8


class LowRankAnalysis(StructureAnalysis):
    """The leading singular values of a matrix.

    A component is kept where it takes away more squared error than its bits are worth at the step.
    """

    def __init__(self, matrix: Matrix, energy: float, most: int = MOST_COMPONENTS) -> None:
        """`energy` is that of the matrix, of which there are `most` components at most."""
        super().__init__(matrix, energy)
        count = min(most, max(1, min(matrix.rows, matrix.columns) // 2))
        flat = np.ones(matrix.rows), np.ones(matrix.columns)
        with whole_matrices.held(_FIT_BYTES * matrix.rows * matrix.columns):
            factors = Factors(matrix.whole(), count, *flat)
        self._values = factors.values
        self._vectors = Findings(np.round(factors.vectors * GRID).astype(np.int16))
        self.largest = float(self._values[0])
        self._power = energy

    def set_aside(self) -> None:
        """Put by what only the encoder needs."""
        self._vectors.set_aside()

    def _components(self, step: float) -> tuple[int, float, float]:
        """How many components are kept, their bits, and the squared error of all."""
        m, n = self.matrix.rows, self.matrix.columns
        power = STEP_POWER * step * step
        squares = self._values**2
        bits = np.zeros(squares.size)
        for size in (m, n):
            rate = np.maximum(0.5 * np.log2(np.maximum(squares / size / power, 1e-30)), 0) + _OVERHEAD
            bits += size * rate
        worth = squares - power * (m + n) > 2 * math.log(2) * power * bits
        kept = int(np.argmin(worth)) if not worth.all() else worth.size
        # The sums cancel but for their rounding where nothing is left.
        error = max(self._power - float(squares[:kept].sum()), 0.0) + kept * (m + n) * power
        return kept, float(bits[:kept].sum()), error

    def expected_bytes(self, step: float) -> float:
        """Size of the chunk at a step."""
        kept, bits, _ = self._components(step)
        return bits / 8 + HEAD.size + _HEAD_BYTES + _COMPONENT_BYTES * kept

    def expected_error(self, step: float) -> float:
        """Sum of squared errors at a step."""
        return self._components(step)[2]

    def encode(self, step: float) -> Encoded:
        """Code the factors with a step; at least one component is kept."""
        started = time.thread_time_ns()
        rank = max(self._components(step)[0], 1)
        matrix = self.matrix
        (grid,) = self._vectors.arrays()
        vectors = np.ascontiguousarray(grid[:, :rank], np.float32) / np.float32(GRID)
        low_rank = encode_low_rank(matrix, self._values[:rank], vectors, vectors, step)
        decoder = LowRankDecoder(low_rank)
        error = sum(matrix.squared_error(decoder.decode(b"", tile), tile) for tile in decoder.grid)
        head = HEAD.pack(matrix.rows, self.rms, math.sqrt(error / self.energy))
        return Encoded([head + low_rank.data], error, time.thread_time_ns() - started)


class LowRankDecoder:
    """Weights of any rows of a low-rank tensor.

    Attributes
    ----------
    low_rank : LowRank
    grid : Grid
        The tiles it is worked through in.
    streams : int
        None: everything is in the first chunk.
    """

    streams = 0

    def __init__(self, low_rank: LowRank) -> None:
        self.low_rank = low_rank
        self.grid = Grid.of(low_rank.left.shape[0], low_rank.right.shape[1], whole_rows=True)

    def decode(self, stream: bytes, tile: Tile) -> NDArray[np.float32]:
        """Weights of a tile, float32[rows, columns]. There is no stream: pass b""."""
        del stream
        w = np.zeros((tile.bottom - tile.top, tile.right), np.float32)
        self.low_rank.add(w, tile.top)
        return w[:, tile.left :]


def open_low_rank(first_chunk: bytes, elements: int) -> LowRankDecoder:
    """The decoder of a tensor, from its one chunk. Raises Damage."""
    rows = _unpack_head(first_chunk, elements)
    low_rank, used = LowRank.unpack(first_chunk[HEAD.size :], rows, elements // rows)
    if HEAD.size + used != len(first_chunk):
        raise Damage("low rank tensor is too long")
    return LowRankDecoder(low_rank)


def _unpack_head(first_chunk: bytes, elements: int) -> int:
    """The rows, as the head says. Raises Damage."""
    if len(first_chunk) < HEAD.size:
        raise Damage("low rank tensor is cut short")
    rows, rms, nrmse = HEAD.unpack_from(first_chunk)
    if rows < 1 or elements < 1 or elements % rows or not (math.isfinite(rms) and rms >= 0 and 0 <= nrmse < math.inf):
        raise Damage("head of a low rank tensor makes no sense")
    return int(rows)
