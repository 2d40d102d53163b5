"""Small matrices that go along with a tensor (bases, factors), coded by the trellis coder themselves.

Stored as: number of chunks u32, their lengths u32 each, the chunks.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rbe_cli.codec.parameters import Parameters
from rbe_cli.codec.residual.analysis import analyse
from rbe_cli.codec.residual.forecast import multiplier_for_error
from rbe_cli.codec.residual.noise_shaping import PLAIN, Shaping
from rbe_cli.codec.residual.tables import SHIFT_UNIT
from rbe_cli.codec.residual.trellis_codec import Encoding, open_values
from rbe_cli.codec.source import Matrix
from rbe_cli.codec.workspace import Inline
from rbe_cli.errors import Damage

#: Of the trellis, in what is written.
STATES = 128
_MOST_CHUNKS = 1 << 16


class Uncodable(ValueError):
    """A side matrix of zeros, of one number, or of numbers out of range."""


def encode_side_matrix(
    matrix: NDArray[np.float32],
    step: float | None = None,
    nrmse: float = 0.0,
    shaping: Shaping = PLAIN,
    states: int = STATES,
) -> bytes:
    """Code float32[m, n] with a quantisation step, or without one for a relative error of about `nrmse`.

    With `shaping`, the step is in its units. Raises Uncodable.
    """
    array = np.ascontiguousarray(matrix, np.float32)
    if (array == array.flat[0]).all():
        # Nothing but one number is not for this coder; nothing but two is.
        array = array.copy()
        array.flat[0] = np.nextafter(array.flat[0], np.float32(0))
    analysis = analyse(Matrix.of(array), shaping)
    if analysis is None:
        raise Uncodable
    if step is None:
        step = multiplier_for_error(analysis, nrmse) * analysis.unit
    elif shaping.geometric:
        step *= analysis.unit
    chunks = Encoding(analysis, step, states, Inline()).result().chunks
    return struct.pack(f"<I{len(chunks)}I", len(chunks), *map(len, chunks)) + b"".join(chunks)


class SideMatrix(NamedTuple):
    """A decoded side matrix.

    Attributes
    ----------
    values : float32[rows, columns]
    used : int
        Bytes it took.
    unit : float
        All values are whole multiples of it.
    """

    values: NDArray[np.float32]
    used: int
    unit: float


def decode_side_matrix(data: bytes, rows: int, columns: int) -> SideMatrix:
    """Inverse. Raises Damage."""
    if len(data) < 4:
        raise Damage("side matrix is cut short")
    (count,) = struct.unpack_from("<I", data)
    if not 1 < count <= _MOST_CHUNKS or len(data) < 4 + 4 * count:
        raise Damage("side matrix is cut short")
    lengths = struct.unpack_from(f"<{count}I", data, 4)
    at = 4 + 4 * count
    if at + sum(lengths) > len(data):
        raise Damage("side matrix is cut short")
    chunks = []
    for length in lengths:
        chunks.append(data[at : at + length])
        at += length
    parameters = Parameters.unpack(chunks[0], rows * columns)
    decoder, rest = open_values(chunks[0], parameters)
    grid = parameters.grid
    if rest or not parameters.plain or grid.rows not in (rows, 1) or len(grid) != count - 1:
        raise Damage("side matrix has the wrong form")
    out = np.empty((grid.rows, grid.columns), np.float32)
    for tile, chunk in zip(grid, chunks[1:], strict=True):
        part = out[tile.top : tile.bottom, tile.left : tile.right]
        if part.flags.c_contiguous:
            decoder.values(chunk, tile, part)
        else:
            part[...] = decoder.values(chunk, tile)
    return SideMatrix(out.reshape(rows, columns), at, parameters.step / SHIFT_UNIT)
