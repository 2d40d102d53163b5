"""Order-0 rANS of bytes, 8 interleaved lanes: the lossless coder's entropy stage."""

from __future__ import annotations

import numpy as np
from numba import njit

from rbe_cli.kernels import JIT
from rbe_cli.kernels.rans import _LOW, _MASK, DAMAGED, LANES, OK, _finish, _put, _refill


@njit(**JIT)
def normalise(counts, total):
    """Frequencies that sum to `total`, at least 1 for every byte that occurs. int64[256] -> uint32[256].

    Integer arithmetic only; what rounding leaves goes to, or comes from, the most frequent bytes.
    """
    freq = np.zeros(256, np.uint32)
    n = counts.sum()
    used = np.int64(0)
    for b in range(256):
        if counts[b] > 0:
            share = counts[b] * total // n
            freq[b] = max(share, 1)
            used += np.int64(freq[b])
    while used != total:
        largest = 0
        for b in range(256):
            if freq[b] > freq[largest]:
                largest = b
        if used < total:
            freq[largest] += np.uint32(total - used)
            used = total
        else:
            take = min(used - total, max(np.int64(freq[largest]) // 4, 1))
            freq[largest] -= np.uint32(take)
            used -= take
    return freq


@njit(**JIT)
def encode_bytes(data, freq, words):
    """Code uint8[n]; returns where the stream starts.

    `words` is uint16 scratch of n + 2 * LANES + 1, filled from its end.
    """
    start = np.zeros(256, np.uint32)
    for b in range(1, 256):
        start[b] = start[b - 1] + freq[b - 1]
    lanes = np.full(LANES, _LOW, np.uint32)
    at = np.uint64(words.shape[0])
    for t in range(data.shape[0] - 1, -1, -1):
        b = data[t]
        lanes[t % LANES], at = _put(lanes[t % LANES], start[b], freq[b], words, at)
    return _finish(lanes, words, at)


@njit(**JIT)
def decode_bytes(words, freq, out):
    """Fill uint8[n] from a stream and one word of padding. `freq` is uint32[256]. Returns a status."""
    slots = np.empty(4096, np.uint32)
    filled = 0
    for b in range(256):
        if freq[b] >= 4096:
            return DAMAGED
        for i in range(np.int64(freq[b])):
            if filled >= 4096:
                return DAMAGED
            slots[filled] = (np.uint32(b) << np.uint32(24)) | (np.uint32(i) << np.uint32(12)) | (freq[b] & _MASK)
            filled += 1
    if filled != 4096:
        return DAMAGED
    lanes = np.empty(LANES, np.uint32)
    for lane in range(LANES):
        lanes[lane] = np.uint32(words[2 * lane]) | (np.uint32(words[2 * lane + 1]) << np.uint32(16))
    at = np.uint64(2 * LANES)
    for t in range(out.shape[0]):
        x = lanes[t % LANES]
        e = slots[x & _MASK]
        x = (e & _MASK) * (x >> np.uint32(12)) + ((e >> np.uint32(12)) & _MASK)
        lanes[t % LANES], at = _refill(x, words, at)
        out[t] = e >> np.uint32(24)
    if at != np.uint64(words.shape[0] - 1):
        return DAMAGED
    for lane in range(LANES):
        if lanes[lane] != _LOW:
            return DAMAGED
    return OK
