"""Adaptive binary range coder for short arrays of small integers: the codec's side information.

The coder is LZMA's (Pavlov, LZMA specification 9.20, "Range decoder"): 32-bit range, 11-bit probabilities that adapt
by 1/16 here, carries resolved in the encoder. An integer is sent as: zero or not, sign, magnitude - 1 in unary up to
UNARY, then Elias-gamma of the rest in equiprobable bits. The contexts are whether the one before was zero, and the
place in the unary code.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from rbe_cli.kernels import JIT

UNARY = 14
_BITS = 11
_ADAPT = 4
_CONTEXTS = 2 + 2 + UNARY
_HALF = 1 << (_BITS - 1)
_TOP = 1 << 24
_MASK32 = 0xFFFFFFFF


@njit(**JIT)
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


@njit(**JIT)
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


@njit(**JIT)
def _start_encoder():
    """A coder at the beginning of its output: int64 [low, range, cache, pending, at]."""
    coder = np.zeros(5, np.int64)
    coder[1] = _MASK32
    coder[3] = 1
    return coder


@njit(**JIT)
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
    before = 0
    for t in range(values.shape[0]):
        v = np.int64(values[t])
        nonzero = 1 if v != 0 else 0
        _encode_bit(coder, probabilities, before, nonzero, out)
        if nonzero:
            _encode_bit(coder, probabilities, 2 + before, 1 if v < 0 else 0, out)
            rest = abs(v) - 1
            place = 0
            while place < UNARY and place < rest:
                _encode_bit(coder, probabilities, 4 + place, 1, out)
                place += 1
            if place < UNARY:
                _encode_bit(coder, probabilities, 4 + place, 0, out)
            else:
                rest -= UNARY - 1
                bits = 0
                while rest >> (bits + 1) > 0:
                    bits += 1
                for _ in range(bits):
                    _encode_bit(coder, probabilities, -1, 1, out)
                _encode_bit(coder, probabilities, -1, 0, out)
                for b in range(bits - 1, -1, -1):
                    _encode_bit(coder, probabilities, -1, (rest >> b) & 1, out)
        before = nonzero
    return _finish_encoder(coder, out)


@njit(**JIT)
def _next_byte(coder, data):
    """coder: int64 [code, range, at]; past the end every byte is 0."""
    byte = np.int64(data[coder[2]]) if coder[2] < data.shape[0] else 0
    coder[2] += 1
    return byte


@njit(**JIT)
def _start_decoder(data):
    """A coder at the beginning of its input: int64 [code, range, at]."""
    coder = np.zeros(3, np.int64)
    coder[1] = _MASK32
    for _ in range(4):
        coder[0] = (coder[0] << 8) | _next_byte(coder, data)
    return coder


@njit(**JIT)
def _decode_bit(coder, probabilities, context, data):
    if context >= 0:
        bound = (coder[1] >> _BITS) * probabilities[context]
        if coder[0] < bound:
            coder[1] = bound
            probabilities[context] += ((1 << _BITS) - probabilities[context]) >> _ADAPT
            bit = 0
        else:
            coder[0] -= bound
            coder[1] -= bound
            probabilities[context] -= probabilities[context] >> _ADAPT
            bit = 1
    else:
        coder[1] >>= 1
        bit = 1 if coder[0] >= coder[1] else 0
        if bit:
            coder[0] -= coder[1]
    while coder[1] < _TOP:
        coder[1] = (coder[1] << 8) & _MASK32
        coder[0] = ((coder[0] << 8) & _MASK32) | _next_byte(coder, data)
    return bit


@njit(**JIT)
def decode_integers(data, values):
    """Fill int32[n] from uint8 data. Returns False if the data goes on too long or holds a number that does not fit."""
    coder = _start_decoder(data)
    probabilities = np.full(_CONTEXTS, _HALF, np.int64)
    before = 0
    for t in range(values.shape[0]):
        if _decode_bit(coder, probabilities, before, data) == 0:
            values[t] = 0
            before = 0
            continue
        negative = _decode_bit(coder, probabilities, 2 + before, data)
        place = 0
        while place < UNARY and _decode_bit(coder, probabilities, 4 + place, data) == 1:
            place += 1
        rest = np.int64(place)
        if place == UNARY:
            bits = 0
            while _decode_bit(coder, probabilities, -1, data) == 1:
                bits += 1
                if bits > 30:
                    return False
            rest = np.int64(1)
            for _ in range(bits):
                rest = (rest << 1) | _decode_bit(coder, probabilities, -1, data)
            rest += UNARY - 1
        if rest >= (1 << 31) - 1:
            return False
        values[t] = -1 - rest if negative else rest + 1
        before = 1
    return coder[2] >= data.shape[0]
