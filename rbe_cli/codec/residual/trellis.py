"""The trellis: which reconstruction points a state may use and where a symbol leads.

State s uses the points n = 2 k + (s & 1). With h0, h1 the parity polynomials of Ungerboeck ("Channel coding with
multilevel/phase signals", IEEE Trans. IT 28, 1982, table I) and z the parity of k,

    next(s, z) = (s >> 1) ^ (h1 >> 1 if z else 0) ^ (h0 >> 1 if s & 1 else 0).

Coding trellis-quantised symbols with an entropy code is the ECTCQ of Fischer and Wang (IEEE Trans. IT 38, 1992).
The number of states only costs time in the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

#: states -> (h0, h1), octal as in the literature.
POLYNOMIALS = {
    4: (0o5, 0o2),
    8: (0o13, 0o4),
    16: (0o23, 0o4),
    32: (0o45, 0o10),
    64: (0o103, 0o24),
    128: (0o235, 0o126),
    256: (0o515, 0o362),
}


@dataclass(frozen=True)
class Trellis:
    """The tables of one trellis.

    Attributes
    ----------
    states : int
    step : uint8[2 * states]
        State after symbol parity z in state s, at index 2 s + z.
    butterflies : int32[states / 2, 5]; back : int32[states, 4]
        For the search, see `rbe_cli.kernels.trellis`.
    """

    states: int
    step: NDArray[np.uint8]
    butterflies: NDArray[np.int32]
    back: NDArray[np.int32]


@cache
def trellis(states: int) -> Trellis:
    """The trellis of 4, 8, ..., 256 states.

    >>> trellis(4).step.tolist()
    [0, 1, 2, 3, 1, 0, 3, 2]
    """
    h0, h1 = POLYNOMIALS[states]
    step = np.zeros(2 * states, np.uint8)
    before: dict[int, list[int]] = {s: [-1, -1] for s in range(states)}
    for s in range(states):
        for z in (0, 1):
            to = (s >> 1) ^ (h1 >> 1 if z else 0) ^ (h0 >> 1 if s & 1 else 0)
            step[2 * s + z] = to
            before[to][z] = s
    butterflies: list[tuple[int, ...]] = []
    back = np.zeros((states, 4), np.int32)
    for c in range(states):
        a, b = before[c]
        d = int(step[2 * b])
        if c > d:
            continue
        for bit, to in enumerate((c, d)):
            back[to] = (2 * len(butterflies) + bit, *before[to], a & 1)
        butterflies.append((a, b, c, d, a & 1))
    return Trellis(states, step, np.array(butterflies, np.int32), back)
