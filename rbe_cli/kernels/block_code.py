"""Entropy coding of sparse blocks: a few basis weights, and the places and values of a few coefficients.

All go through the adaptive binary range coder of `rbe_cli.kernels.range_coder`. A number is sent as its length in
bits, by a unary code with a context per place, then its bits below the leading one, the first two with contexts.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from rbe_cli.kernels import INNER, JIT
from rbe_cli.kernels.range_coder import (
    _HALF,
    _decode_bit,
    _decode_plain,
    _encode_bit,
    _finish_encoder,
    _start_decoder,
    _start_encoder,
)

#: Weights of the basis functions per block, at most.
BASIS = 8
_LENGTHS = 32
_SET = _LENGTHS * 4
_COUNT, _GAP, _VALUE = BASIS, BASIS + 1, BASIS + 2
_SETS = BASIS + 3
#: No number is longer, in bits.
_LONGEST = 30


@njit(**INNER)
def _put(coder, probabilities, context_set, value, out):
    """Send an integer >= 0."""
    number = np.int64(value) + 1
    length = 0
    while number >> (length + 1) > 0:
        length += 1
    base = context_set * _SET
    for place in range(length):
        _encode_bit(coder, probabilities, base + place, 1, out)
    _encode_bit(coder, probabilities, base + length, 0, out)
    node = np.int64(0)
    for b in range(length - 1, -1, -1):
        bit = (number >> b) & 1
        if b >= length - 2:
            _encode_bit(coder, probabilities, base + _LENGTHS + length * 3 + node, bit, out)
            node = 1 + bit
        else:
            _encode_bit(coder, probabilities, -1, bit, out)


@njit(**INNER)
def _get(state, probabilities, context_set, data):
    """Read an integer >= 0, -1 if it is impossibly large; and the decoder's state after it."""
    base = context_set * _SET
    length = np.int64(0)
    more, state = _decode_bit(state, probabilities, base + length, data)
    while more == 1:
        length += 1
        if length > _LONGEST:
            return np.int64(-1), state
        more, state = _decode_bit(state, probabilities, base + length, data)
    number = np.int64(1)
    node = np.int64(0)
    for b in range(length - 1, -1, -1):
        if b >= length - 2:
            bit, state = _decode_bit(state, probabilities, base + _LENGTHS + length * 3 + node, data)
            node = 1 + bit
        else:
            bit, state = _decode_plain(state, data)
        number = (number << 1) | bit
    return number - 1, state


@njit(**INNER)
def _get_signed(state, probabilities, context_set, least, data):
    """Read a magnitude of at least `least`, then its sign unless it is 0; whether it fits, the number, the state."""
    v, state = _get(state, probabilities, context_set, data)
    if v < 0:
        return False, v, state
    v += least
    if v > 0:
        negative, state = _decode_plain(state, data)
        v = -v if negative else v
    return True, v, state


@njit(**JIT)
def encode_blocks(weights, counts, places, values, out):
    """Code the blocks of one tile; returns the number of bytes used.

    Parameters
    ----------
    weights : int32[blocks, b]
        Quantised weights of the b basis functions, b from 0 to BASIS.
    counts : int32[blocks]
        Coefficients of each block.
    places, values : int32[sum of counts]
        Place in the block's scan, ascending within a block, and the quantised value, not 0.
    out : uint8
        Scratch; 16 bytes per number and 64 are enough.
    """
    coder = _start_encoder()
    probabilities = np.full(_SETS * _SET, _HALF, np.int64)
    at = 0
    for block in range(weights.shape[0]):
        for j in range(weights.shape[1]):
            v = np.int64(weights[block, j])
            _put(coder, probabilities, j, abs(v), out)
            if v != 0:
                _encode_bit(coder, probabilities, -1, 1 if v < 0 else 0, out)
        _put(coder, probabilities, _COUNT, counts[block], out)
        before = -1
        for _ in range(counts[block]):
            _put(coder, probabilities, _GAP, places[at] - before - 1, out)
            before = places[at]
            v = np.int64(values[at])
            _put(coder, probabilities, _VALUE, abs(v) - 1, out)
            _encode_bit(coder, probabilities, -1, 1 if v < 0 else 0, out)
            at += 1
    return _finish_encoder(coder, out)


@njit(**JIT)
def decode_blocks(data, areas, weights, coefficients, orders, starts):
    """Decode the blocks of one tile; returns False if the data is damaged.

    Parameters
    ----------
    data : uint8[:]
    areas : int64[blocks]
        Elements of each block.
    weights : int32[blocks, b]
        Written.
    coefficients : int32[sum of areas]
        Zeros; a block's quantised coefficients are written to its part, block after block.
    orders : int32[:]; starts : int64[blocks]
        A block's scan is orders[starts[block]:]: the place in the block of each scan position.
    """
    state = _start_decoder(data)
    probabilities = np.full(_SETS * _SET, _HALF, np.uint32)
    first = np.int64(0)
    for block in range(weights.shape[0]):
        for j in range(weights.shape[1]):
            fits, v, state = _get_signed(state, probabilities, j, 0, data)
            if not fits:
                return False
            weights[block, j] = v
        count, state = _get(state, probabilities, _COUNT, data)
        if count < 0 or count > areas[block]:
            return False
        place = np.int64(-1)
        for _ in range(count):
            gap, state = _get(state, probabilities, _GAP, data)
            fits, v, state = _get_signed(state, probabilities, _VALUE, 1, data)
            if not fits or gap < 0 or place + 1 + gap >= areas[block]:
                return False
            place += 1 + gap
            coefficients[first + orders[starts[block] + place]] = v
        first += areas[block]
    return state[2] >= np.uint64(data.shape[0])
