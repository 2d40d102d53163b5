"""Interleaved range-variant asymmetric numeral systems (Duda, arXiv:1311.2540), with the trellis inside.

Lanes have 32-bit states in [2^16, 2^32) and share one stream of 16-bit words (Giesen, arXiv:1402.3392); element t of a
tile belongs to lane t mod LANES, and each lane walks the trellis on its own. The decoder reads forward, mostly
several lanes at once (`rbe_cli.kernels.lanes`); the encoder walks backward. Frequencies have FREQUENCY_BITS bits and
come from integer tables only.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from rbe_cli.kernels import INNER, JIT
from rbe_cli.kernels.lanes import WIDTH, four_symbols, load, store

LANES = 8
_LOW = np.uint32(1 << 16)
_MASK = np.uint32(4095)

#: Status of a decoder kernel.
OK, DAMAGED = 0, 1


@njit(**INNER)
def _put(state, start, freq, words, at):
    """Push one symbol; returns the new state and where the stream begins now."""
    full = np.uint64(state) >= (np.uint64(freq) << np.uint64(20))
    words[at - np.uint64(1)] = np.uint16(state & np.uint32(0xFFFF))
    at -= np.uint64(full)
    state = state >> np.uint32(16) if full else state
    return np.uint32((state // freq << np.uint32(12)) + state % freq + start), at


@njit(**INNER)
def _put_raw(state, value, bits, words, at):
    """Push `bits` (at most 16) raw bits."""
    if np.uint64(state) >= (np.uint64(1) << np.uint64(32 - bits)):
        at -= np.uint64(1)
        words[at] = np.uint16(state & np.uint32(0xFFFF))
        state = state >> np.uint32(16)
    return np.uint32((state << np.uint32(bits)) | np.uint32(value)), at


@njit(**INNER)
def _finish(lanes, words, at):
    """Put the lanes' states in front of their words; returns where the stream starts."""
    for lane in range(LANES - 1, -1, -1):
        words[at - np.uint64(1)] = np.uint16(lanes[lane] >> np.uint32(16))
        words[at - np.uint64(2)] = np.uint16(lanes[lane] & np.uint32(0xFFFF))
        at -= np.uint64(2)
    return np.int64(at)


@njit(**JIT)
def encode_tile(n, symbols, classes, unions, coded, start, freq, reach, words):
    """Entropy-code the symbols of one tile.

    Parameters
    ----------
    n : int
        Number of elements.
    symbols : int32[T, LANES]
        Symbols k, element t at [t // LANES, t % LANES].
    classes, unions : uint8[T, LANES]
        Class of each element and union of the state it is coded in.
    coded : int
        Highest class with a table of its own; above, one more low bit of k is raw for each 8 classes, and the rest
        goes by the table of union 1.
    start, freq : uint32[C * 256]
        Cumulative and own frequency of every symbol byte (k + 128, 0 the escape), per context 2 x class + union.
    reach : int32[C]
        Per context, largest magnitude that has a symbol of its own.
    words : uint16[>= 4 n + 2 * LANES + 1]
        Scratch, filled from its end.

    Returns
    -------
    at : int
        The stream is words[at:]: LANES states of two words (low first), then the words in the order they are read.
    """
    lanes = np.full(LANES, _LOW, np.uint32)
    at = np.uint64(words.shape[0])
    for t in range(n - 1, -1, -1):
        row = np.uint64(t) >> np.uint64(3)
        lane = np.uint64(t) & np.uint64(LANES - 1)
        x = lanes[lane]
        k = symbols[row, lane]
        c = np.int64(classes[row, lane])
        context = np.uint64(2 * c + unions[row, lane])
        if c > coded:
            m = (c - coded + 7) >> 3
            context = np.uint64(2 * (c - 8 * m) + 1)
            x, at = _put_raw(x, k & ((1 << m) - 1), m, words, at)
            k = k >> m
        magnitude = k if k >= 0 else -k - np.int64(context & np.uint64(1))
        if magnitude > reach[context]:
            beyond = magnitude - reach[context]
            bits = 0
            while beyond >> (bits + 1) > 0:
                bits += 1
            low = beyond - (1 << bits)
            if bits > 12:
                x, at = _put_raw(x, low & 4095, 12, words, at)
                x, at = _put_raw(x, low >> 12, bits - 12, words, at)
            elif bits > 0:
                x, at = _put_raw(x, low, bits, words, at)
            x, at = _put_raw(x, bits * 2 + (1 if k < 0 else 0), 6, words, at)
            symbol = np.uint64(0)
        else:
            symbol = np.uint64(k + 128)
        entry = (context << np.uint64(8)) | symbol
        x, at = _put(x, start[entry], freq[entry], words, at)
        lanes[lane] = x
    return _finish(lanes, words, at)


@njit(**INNER)
def _word(words, at):
    """The word at a place of the stream; past its end there are zeros, and the caller looks at `at` afterwards."""
    length = np.uint64(words.shape[0])
    return np.uint32(words[at]) if at < length else np.uint32(0)


@njit(**INNER)
def _refill(x, words, at):
    """Take a word if the state has run low."""
    low = x < _LOW
    word = _word(words, at)
    return ((x << np.uint32(16)) | word if low else x), at + np.uint64(low)


@njit(**INNER)
def _escape(x, union, reach, words, at):
    """Read a symbol whose magnitude is beyond `reach`."""
    head = np.int64(x & np.uint32(63))
    x, at = _refill(x >> np.uint32(6), words, at)
    bits = head >> 1
    if bits > 28:
        # No encoder sends such a number: end the stream where none can end.
        return np.int64(0), x, at + np.uint64(1 << 40)
    low = np.int64(0)
    while bits > 0:
        take = bits - 12 if bits > 12 else bits
        low = (low << take) | (np.int64(x) & ((np.int64(1) << take) - 1))
        x, at = _refill(x >> np.uint32(take), words, at)
        bits -= take
    magnitude = reach + low + (np.int64(1) << (head >> 1))
    return (-magnitude - union if head & 1 else magnitude), x, at


@njit(**INNER)
def _decode_groups(t, lanes, words, at, classes, coded, step, slots, points, out):
    """Decode LANES symbols at a time from element t on, as long as none is an escape and there are words for all.

    coded : uint32, or None if no class is above; see `lanes.four_symbols`.
    lanes : uint32[2 * LANES], the states of the lanes, then those of their trellises; left as they are after the last
    group. Returns where the next element and the next word are.
    """
    second, trellises = np.uint64(WIDTH), np.uint64(LANES)
    group = np.uint64(LANES)
    elements, length = np.uint64(out.shape[0]), np.uint64(words.shape[0])
    x, y = load(lanes, np.uint64(0)), load(lanes, second)
    s, r = load(lanes, trellises), load(lanes, trellises + second)
    # A symbol takes two words at most.
    while t + group <= elements and at + group + group <= length:
        x_next, s_next, middle, escaped = four_symbols(x, s, words, at, classes, t, coded, step, slots, points, out)
        y_next, r_next, after, also = four_symbols(
            y, r, words, middle, classes, t + second, coded, step, slots, points, out
        )
        if escaped | also:
            break
        x, y, s, r, at = x_next, y_next, s_next, r_next, after
        t += group
    store(x, lanes, np.uint64(0))
    store(y, lanes, second)
    store(s, lanes, trellises)
    store(r, lanes, trellises + second)
    return t, at


@njit(**JIT)
def start(words, lanes):
    """Begin to decode uint16[length], at least 2 * LANES words: fills uint32[2 * LANES], returns the next word's place.

    The first half of `lanes` are the states of the lanes, the second those of their trellises.
    """
    for i in range(LANES):
        lanes[i] = np.uint32(words[2 * i]) | (np.uint32(words[2 * i + 1]) << np.uint32(16))
        lanes[LANES + i] = np.uint32(0)
    return np.uint64(2 * LANES)


@njit(**JIT)
def status(words, at, lanes):
    """After the last symbol: OK, or DAMAGED if this is not where a stream ends."""
    if at != np.uint64(words.shape[0]):
        return DAMAGED
    for i in range(LANES):
        if lanes[i] != _LOW:
            return DAMAGED
    return OK


@njit(**JIT)
def decode_points(words, at, lanes, classes, coded, step, slots, points, reach, out):
    """Decode the reconstruction points of a tile, or of its next elements; but for the last, LANES or a multiple of it.

    Parameters
    ----------
    words : uint16[length]
        The tile's stream.
    at : uint64
        Place of the next word.
    lanes : uint32[2 * LANES]
        States of the lanes, then of their trellises; see `start`. Updated.
    classes : uint8[n]
        Class of each element, in coding order.
    coded : int
        Highest class with a table of its own; above, one more low bit of k is raw for each 8 classes.
    step : uint8[2 * states]
        The trellis.
    slots : uint32[C * 4096]
        Per context (2 x class + union) and slot: symbol << 24 | (slot - start) << 12 | frequency.
    points : float32[C * 256]
        Per context, reconstruction point of every symbol byte, in steps.
    reach : int32[C]
        Per context, largest magnitude that has a symbol of its own.
    out : float32[n]
        Written, in coding order, in steps.

    Returns
    -------
    at : uint64
        Place of the next word. Beyond the end the stream is damaged, and not all may be written.
    """
    last, elements = np.uint64(words.shape[0]), np.uint64(out.shape[0])
    highest = np.uint32(coded)
    some_are_raw = False
    for c in classes:
        some_are_raw |= c > highest
    t, alone = np.uint64(0), np.uint64(0)
    # Unsigned indices throughout: a signed one is tested for being negative.
    while t < elements:
        if t >= alone:
            if some_are_raw:
                t, at = _decode_groups(t, lanes, words, at, classes, highest, step, slots, points, out)
            else:
                t, at = _decode_groups(t, lanes, words, at, classes, None, step, slots, points, out)
            # What has stopped it goes symbol by symbol.
            alone = t + np.uint64(LANES)
            if t >= elements:
                break
        lane = t & np.uint64(LANES - 1)
        x = lanes[lane]
        s = lanes[lane + np.uint64(LANES)]
        c = np.uint32(classes[t])
        m = np.uint32(0)
        context = (c << np.uint32(1)) | (s & np.uint32(1))
        if c > highest:
            m = (c - highest + np.uint32(7)) >> np.uint32(3)
            context = ((c - (m << np.uint32(3))) << np.uint32(1)) | np.uint32(1)
        e = slots[np.uint64((context << np.uint32(12)) | (x & _MASK))]
        x = (e & _MASK) * (x >> np.uint32(12)) + ((e >> np.uint32(12)) & _MASK)
        x, at = _refill(x, words, at)
        symbol = e >> np.uint32(24)
        point = points[np.uint64((context << np.uint32(8)) | symbol)]
        parity = symbol & np.uint32(1)
        if symbol == 0 or m > 0:
            k = np.int64(symbol) - 128
            if symbol == 0:
                k, x, at = _escape(x, np.int64(context & np.uint32(1)), np.int64(reach[context]), words, at)
            if m > 0:
                k = (k << np.int64(m)) | (np.int64(x) & ((np.int64(1) << np.int64(m)) - 1))
                x, at = _refill(x >> m, words, at)
            if at > last:
                return at
            point = np.float32(2 * k + np.int64(s & np.uint32(1)))
            parity = np.uint32(k & 1)
        out[t] = point
        lanes[lane] = x
        lanes[lane + np.uint64(LANES)] = step[np.uint64((s << np.uint32(1)) | parity)]
        t += np.uint64(1)
    return at
