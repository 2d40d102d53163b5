"""Short arrays of small integers, entropy-coded: the scale fields and whatever else describes a tensor.

One mode byte (0 plain, 1 differences from the entry before), then the range coder's bytes
(`rbe_cli.kernels.range_coder`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rbe_cli.errors import Damage
from rbe_cli.kernels import range_coder


def encode_integers(values: NDArray[np.int32], delta: bool) -> bytes:
    """Code int32[n]. The caller keeps n.

    >>> len(encode_integers(np.zeros(1000, np.int32), False)) < 30
    True
    """
    array = np.ascontiguousarray(values, np.int32)
    if delta:
        array = np.diff(array, prepend=np.int32(0)).astype(np.int32)
    scratch = np.zeros(12 * array.size + 16, np.uint8)
    used = range_coder.encode_integers(array, scratch)
    return bytes([int(delta)]) + scratch[:used].tobytes()


def decode_integers(data: bytes, n: int) -> NDArray[np.int32]:
    """Inverse of `encode_integers`. Raises Damage."""
    if not data or data[0] > 1:
        raise Damage("side information: unknown mode")
    values = np.empty(n, np.int32)
    if not range_coder.decode_integers(np.frombuffer(data, np.uint8)[1:], values):
        raise Damage("side information: damaged")
    if data[0] and not range_coder.add_up(values):
        raise Damage("side information: number out of range")
    return values


def entropy(counts: NDArray[np.int64]) -> float:
    """Bits that so many of each kind take an ideal coder that knows the counts, int64[n], none of them 0.

    >>> entropy(np.array([2, 2]))
    4.0
    """
    return float(-(counts * np.log2(counts / counts.sum())).sum())
