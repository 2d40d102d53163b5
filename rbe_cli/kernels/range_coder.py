"""Adaptive binary range coder for short arrays of small integers: the codec's side information.

The coder is LZMA's (Pavlov, LZMA specification 9.20, "Range decoder"): 32-bit range, 11-bit probabilities that adapt
by 1/16 here, carries resolved in the encoder. An integer is sent as: zero or not, sign, magnitude - 1 in unary up to
UNARY, then Elias-gamma of the rest in equiprobable bits. The contexts are whether the one before was zero, and the
place in the unary code.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from rbe_cli.kernels import INNER, JIT

UNARY = 14
_BITS = 11
_ADAPT = 4
_CONTEXTS = 2 + 2 + UNARY
_HALF = 1 << (_BITS - 1)
_TOP = 1 << 24
_MASK32 = 0xFFFFFFFF


@njit(**INNER)
def _encode_bit(coder, probabilities, context, bit, out):
    """coder: int64 [low, range, cache, pending, at]; context < 0 codes an equiprobable bit."""
    if context >= 0:
        bound = (coder[1] >> _BITS) * probabilities[context]
        if bit == 0:
            coder[1] = bound
            probabilities[context] += ((1 << _BITS) - probabilities[context]) >> _ADAPT
        else:
            coder[0] += bound
            coder[1] -= bound
            probabilities[context] -= probabilities[context] >> _ADAPT
    else:
        coder[1] >>= 1
        if bit != 0:
            coder[0] += coder[1]
    while coder[1] < _TOP:
        coder[1] = (coder[1] << 8) & _MASK32
        _shift_low(coder, out)


@njit(**INNER)
def _shift_low(coder, out):
    if coder[0] < 0xFF000000 or coder[0] > _MASK32:
        carry = coder[0] >> 32
        byte = coder[2]
        while coder[3] > 0:
            out[coder[4]] = (byte + carry) & 0xFF
            coder[4] += 1
            byte = 0xFF
            coder[3] -= 1
        coder[2] = (coder[0] >> 24) & 0xFF
    coder[3] += 1
    coder[0] = (coder[0] << 8) & _MASK32


@njit(**INNER)
def _start_encoder():
    """A coder at the beginning of its output: int64 [low, range, cache, pending, at]."""
    coder = np.zeros(5, np.int64)
    coder[1] = _MASK32
    coder[3] = 1
    return coder


@njit(**INNER)
def _finish_encoder(coder, out):
    """Write out what is pending; returns the number of bytes used."""
    for _ in range(5):
        _shift_low(coder, out)
    # The first byte is always 0, and zeros at the end are what the decoder reads past the end: neither is sent.
    used = coder[4]
    for i in range(1, used):
        out[i - 1] = out[i]
    used -= 1
    while used > 0 and out[used - 1] == 0:
        used -= 1
    return used


@njit(**JIT)
def encode_integers(values, out):
    """Code int32[n]; `out` is uint8 scratch of at least 12 n + 16 bytes. Returns the number of bytes used."""
    coder = _start_encoder()
    probabilities = np.full(_CONTEXTS, _HALF, np.int64)
    # As literals each of them would have `_encode_bit` compiled once more.
    no, yes = np.int64(0), np.int64(1)
    before = no
    for t in range(values.shape[0]):
        v = np.int64(values[t])
        nonzero = yes if v != 0 else no
        _encode_bit(coder, probabilities, before, nonzero, out)
        if nonzero:
            _encode_bit(coder, probabilities, 2 + before, yes if v < 0 else no, out)
            rest = abs(v) - 1
            place = 0
            while place < UNARY and place < rest:
                _encode_bit(coder, probabilities, 4 + place, yes, out)
                place += 1
            if place < UNARY:
                _encode_bit(coder, probabilities, 4 + place, no, out)
            else:
                rest -= UNARY - 1
                bits = 0
                while rest >> (bits + 1) > 0:
                    bits += 1
                for _ in range(bits):
                    _encode_bit(coder, probabilities, -1, yes, out)
                _encode_bit(coder, probabilities, -1, no, out)
                for b in range(bits - 1, -1, -1):
                    _encode_bit(coder, probabilities, -1, (rest >> b) & 1, out)
        before = nonzero
    return _finish_encoder(coder, out)


@njit(**INNER)
def _next_byte(code, at, data):
    """The code with a byte more, and where the next one is; past the end every byte is 0."""
    byte = np.uint32(data[at]) if at < np.uint64(data.shape[0]) else np.uint32(0)
    return (code << np.uint32(8)) | byte, at + np.uint64(1)


@njit(**INNER)
def _start_decoder(data):
    """State of a decoder at the beginning of its input: uint32 code, uint32 range, uint64 bytes read.

    It goes from call to call by value, so that it stays in registers.
    """
    code, at = np.uint32(0), np.uint64(0)
    for _ in range(4):
        code, at = _next_byte(code, at, data)
    return code, np.uint32(_MASK32), at


@njit(**INNER)
def _widened(code, width, at, data):
    """The state with the range wide enough for another bit."""
    while width < np.uint32(_TOP):
        width <<= np.uint32(8)
        code, at = _next_byte(code, at, data)
    return code, width, at


@njit(**INNER)
def _decode_bit(state, probabilities, context, data):
    """A bit in a context, and the state after it."""
    code, width, at = state
    probability = probabilities[np.uint64(context)]
    bound = (width >> np.uint32(_BITS)) * probability
    one = code >= bound
    up = probability + ((np.uint32(1 << _BITS) - probability) >> np.uint32(_ADAPT))
    probabilities[np.uint64(context)] = probability - (probability >> np.uint32(_ADAPT)) if one else up
    width = width - bound if one else bound
    code = code - bound if one else code
    return np.int64(one), _widened(code, width, at, data)


@njit(**INNER)
def _decode_plain(state, data):
    """An equiprobable bit, and the state after it."""
    code, width, at = state
    width >>= np.uint32(1)
    one = code >= width
    code = code - width if one else code
    return np.int64(one), _widened(code, width, at, data)


@njit(**JIT)
def decode_integers(data, values):
    """Fill int32[n] from uint8 data. Returns False if the data goes on too long or holds a number that does not fit."""
    state = _start_decoder(data)
    probabilities = np.full(_CONTEXTS, _HALF, np.uint32)
    before = np.int64(0)
    for t in range(values.shape[0]):
        nonzero, state = _decode_bit(state, probabilities, before, data)
        if nonzero == 0:
            values[t] = 0
            before = np.int64(0)
            continue
        negative, state = _decode_bit(state, probabilities, 2 + before, data)
        place, more = np.int64(0), np.int64(1)
        while place < UNARY:
            more, state = _decode_bit(state, probabilities, 4 + place, data)
            if more == 0:
                break
            place += 1
        rest = place
        if place == UNARY:
            bits = 0
            more, state = _decode_plain(state, data)
            while more == 1:
                bits += 1
                if bits > 30:
                    return False
                more, state = _decode_plain(state, data)
            rest = np.int64(1)
            for _ in range(bits):
                bit, state = _decode_plain(state, data)
                rest = (rest << 1) | bit
            rest += UNARY - 1
        if rest >= (1 << 31) - 1:
            return False
        values[t] = -1 - rest if negative else rest + 1
        before = np.int64(1)
    return state[2] >= np.uint64(data.shape[0])


@njit(**JIT)
def add_up(values):
    """Turn differences, int32[n], into what they are the differences of. Returns False if one does not fit."""
    total = np.int64(0)
    for t in range(values.shape[0]):
        total += values[t]
        if total < -(1 << 31) or total >= 1 << 31:
            return False
        values[t] = total
    return True
