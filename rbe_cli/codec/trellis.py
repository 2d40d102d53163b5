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
    first, second, branch : int32[states]
        The two states that lead into each state, and the subset n mod 4 of the first branch (the second's is two
        further).
    """

    states: int
    step: NDArray[np.uint8]
    first: NDArray[np.int32]
    second: NDArray[np.int32]
    branch: NDArray[np.int32]


@cache
def trellis(states: int) -> Trellis:
    """The trellis of 4, 8, ..., 256 states.

    >>> trellis(4).step.tolist()
    [0, 1, 2, 3, 1, 0, 3, 2]
    """
    h0, h1 = POLYNOMIALS[states]
    step = np.zeros(2 * states, np.uint8)
    first = np.full(states, -1, np.int32)
    second = np.full(states, -1, np.int32)
    branch = np.zeros(states, np.int32)
    for s in range(states):
        for z in (0, 1):
            to = (s >> 1) ^ (h1 >> 1 if z else 0) ^ (h0 >> 1 if s & 1 else 0)
            step[2 * s + z] = to
            if z == 0:
                first[to] = s
                branch[to] = s & 1
            else:
                second[to] = s
    return Trellis(states, step, first, second, branch)
