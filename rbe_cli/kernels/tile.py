"""A tile from its stream to its weights, PIECE elements at a time, so that what is in between stays in the cache."""

from __future__ import annotations

import numpy as np
from numba import njit

from rbe_cli.kernels import JIT, rans
from rbe_cli.kernels.field import classify_line, multiply_line

#: Elements; a multiple of rans.LANES.
PIECE = 4096


@njit(**JIT)
def decode_tile(
    words, classes, base, highest, coded, step, slots, points, reach, scales, strides, out
):  # fmt: skip
    """Decode the weights of a tile.

    Parameters
    ----------
    words : uint16[length]
        The tile's stream, at least 2 * rans.LANES words.
    classes : (int32[outer], int32[inner])
        Of the outer (slow) and inner (fast) index of the scan; with `base` and `highest` see `field.classify`.
    coded, step, slots, points, reach
        See `rans.decode_points`.
    scales : (float32[outer], float32[inner])
        The step of an element is their product.
    strides : (int, int)
        Element (i, j) of the scan is out[i * strides[0] + j * strides[1]].
    out : float32[outer * inner]
        Written.

    Returns
    -------
    status : rans.OK, or rans.DAMAGED if the stream does not end where the tile does
    """
    outer_class, inner_class = classes
    outer_scale, inner_scale = scales
    n = inner_class.shape[0]
    total = outer_class.shape[0] * n
    of_piece, levels = np.empty(PIECE, np.uint8), np.empty(PIECE, np.float32)
    lanes, length = np.empty(2 * rans.LANES, np.uint32), np.uint64(words.shape[0])
    at = rans.start(words, lanes)
    for first in range(0, total, PIECE):
        size = min(PIECE, total - first)
        done, i, j = 0, first // n, first % n
        while done < size:
            count = min(n - j, size - done)
            classify_line(np.int32(base + outer_class[i]), inner_class[j : j + count], highest, of_piece[done:])
            done, i, j = done + count, i + 1, 0
        at = rans.decode_points(
            words, at, lanes, of_piece[:size], coded, step, slots, points, reach, levels[:size]
        )  # fmt: skip
        if at > length:
            return rans.DAMAGED
        done, i, j = 0, first // n, first % n
        while done < size:
            count = min(n - j, size - done)
            place = i * strides[0] + j * strides[1]
            if strides[1] == 1:
                # The usual order by a loop of its own: side by side in memory, the elements fill the vector registers.
                line = out[place : place + count]
                multiply_line(levels[done:], outer_scale[i], inner_scale[j : j + count], line)
            else:
                multiply_line(levels[done:], outer_scale[i], inner_scale[j : j + count], out[place :: strides[1]])
            done, i, j = done + count, i + 1, 0
    return rans.status(words, at, lanes)
