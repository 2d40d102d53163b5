"""Viterbi search of the trellis-coded quantiser, across many independent lanes at once.

Reconstruction points are the integers n = 2 k + u, where the union u is the lowest bit of the trellis state and k the
transmitted symbol; the parity z of k moves the state (`rbe_cli.codec.residual.trellis`). Points fall into four subsets
n mod 4 = u + 2 z, so a step has four branch costs per lane whatever the number of states.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from rbe_cli.kernels import INNER, JIT

#: Symbols beyond +-RATE_REACH share the cost of an escape.
RATE_REACH = 112
#: Entries of `price` for one class.
_CLASS_PRICES = (2 * RATE_REACH + 1) * 4
_NO_PATH = np.float32(1e30)
#: Lanes of a tile that is searched alone.
FEW_LANES = 8


@njit(**INNER)
def _slow_cost(v, k, union, m, base, price):
    """Cost of one symbol k, the slow way: any size, any number of raw bits."""
    index = min(max(k >> m, -RATE_REACH), RATE_REACH) + RATE_REACH
    error = v - np.float32(2 * k + union)
    if m == 0:
        error -= price[base + index * 4 + union * 2]
    return error * error + price[base + index * 4 + (2 if m > 0 else union * 2) + 1]


@njit(**JIT)
def symbol_of(v, c, r, higher):
    """The symbol k of subset r that `branch_costs` chose for a weight in steps, of class c: by one bit."""
    if c == np.uint64(255) or c == np.uint64(0):
        return np.int64(r >> 1)
    quarter = np.floor(v * np.float32(0.25))
    below = v - np.float32(4.0) * quarter < np.float32(r)
    return 2 * np.int64(quarter) + (r >> 1) - (2 if below else 0) + (2 if higher else 0)


@njit(**JIT)
def branch_costs(x, classes, coded, price, cost, higher):
    """Cheapest symbol of each subset n mod 4, for one time step of all lanes.

    The two points of a subset on either side of x are looked at; rate never moves the choice further.

    Parameters
    ----------
    x : float32[L]
        Weights divided by their step.
    classes : uint8[L]
        Class of each element; 0 is a weight of zero, 255 marks an element that does not exist.
    coded : int
        Highest class with a table of its own; above, one more low bit of k is raw for each 8 classes.
    price : float32[C * (2 * RATE_REACH + 1) * 2 * 2]
        Per class, symbol and union: displacement of the reconstruction point in steps, and the symbol's bits times
        the price of a bit in squared steps.
    cost : float32[4, L]
        Written: least cost of each subset.
    higher : uint8[L]
        Written: bit r is set if the upper one of the two points of subset r has it (`symbol_of`).
    """
    highest = np.uint64(coded)
    for lane in range(x.shape[0]):
        c = np.uint64(classes[lane])
        if c == np.uint64(255):
            for r in range(4):
                cost[r, lane] = np.float32(0.0)
            continue
        if c == np.uint64(0):
            # A weight that is exactly zero: its step is 0, so any point will do, and k = 0 is the only symbol.
            for r in range(4):
                cost[r, lane] = np.float32(0.0) if r < 2 else _NO_PATH
            continue
        v = x[lane]
        quarter = np.floor(v * np.float32(0.25))
        rest = v - np.float32(4.0) * quarter
        q = 2 * np.int64(quarter)
        chosen = 0
        if c <= highest and q - 2 > -RATE_REACH and q + 3 < RATE_REACH:
            base = c * np.uint64(_CLASS_PRICES) + (np.uint64(q + RATE_REACH) << np.uint64(2))
            for r in range(4):
                below = rest < np.float32(r)
                # Place of k = q + z - 2 below, with z = r >> 1, and of the union r & 1.
                at = base + np.uint64(4 * (r >> 1) + 2 * (r & 1)) - (np.uint64(8) if below else np.uint64(0))
                error = rest - np.float32(r) + (np.float32(4.0) if below else np.float32(0.0))
                error_low = error - price[at]
                error_high = error - np.float32(4.0) - price[at + np.uint64(8)]
                cost_low = error_low * error_low + price[at + np.uint64(1)]
                cost_high = error_high * error_high + price[at + np.uint64(9)]
                cost[r, lane] = min(cost_high, cost_low)
                chosen |= (1 << r) if cost_high < cost_low else 0
        else:
            m = np.int64(0)
            if c > highest:
                m = np.int64((c - highest + np.uint64(7)) >> np.uint64(3))
            base_slow = (np.int64(c) - 8 * m) * _CLASS_PRICES
            for r in range(4):
                low = q + (r >> 1) - (2 if rest < np.float32(r) else 0)
                cost_low = _slow_cost(v, low, r & 1, m, base_slow, price)
                cost_high = _slow_cost(v, low + 2, r & 1, m, base_slow, price)
                cost[r, lane] = min(cost_high, cost_low)
                chosen |= (1 << r) if cost_high < cost_low else 0
        higher[lane] = chosen


@njit(inline="always", **JIT)
def _butterfly(from_a, from_b, even, odd, to_c, to_d, bits, place, lanes):
    """One butterfly: its bits go to the places `place` and `place` + 1."""
    bit_c = np.uint32(1) << place
    bit_d = np.uint32(2) << place
    for lane in range(np.uint64(lanes)):
        a_even = from_a[lane] + even[lane]
        b_odd = from_b[lane] + odd[lane]
        b_even = from_b[lane] + even[lane]
        a_odd = from_a[lane] + odd[lane]
        c_odd = b_odd < a_even
        d_odd = a_odd < b_even
        to_c[lane] = b_odd if c_odd else a_even
        to_d[lane] = a_odd if d_odd else b_even
        bits[lane] |= (bit_c if c_odd else np.uint32(0)) | (bit_d if d_odd else np.uint32(0))


@njit(**JIT)
def add_compare_select(metric, cost, butterflies, decision, advanced):
    """One trellis step for all states and lanes: keep the better of the two paths into each state.

    States come in butterflies: two that lead to the same two, with the parities exchanged.

    Parameters
    ----------
    metric, advanced : float32[S, L]
        Path costs before the step, and after it (written).
    cost : float32[4, L]
        Of each subset n mod 4.
    butterflies : int32[S / 2, 5]
        States a and b before; states c (from a by parity 0, from b by 1) and d (from b by 0, from a by 1) after; and
        the subset of parity 0 (that of parity 1 is two further).
    decision : uint32[ceil(S / 32), L]
        Written: bit 2 i is set if c of butterfly i came from b, bit 2 i + 1 if d came from a.
    """
    lanes = metric.shape[1]
    decision[:] = np.uint32(0)
    for i in range(np.uint64(butterflies.shape[0])):
        from_a, from_b = metric[np.uint64(butterflies[i, 0])], metric[np.uint64(butterflies[i, 1])]
        to_c, to_d = advanced[np.uint64(butterflies[i, 2])], advanced[np.uint64(butterflies[i, 3])]
        subset = np.uint64(butterflies[i, 4])
        even, odd = cost[subset], cost[subset + np.uint64(2)]
        bits, place = decision[i >> np.uint64(4)], np.uint32(np.uint64(2) * (i & np.uint64(15)))
        if lanes == FEW_LANES:
            # A number the compiler knows: one vector, no loop.
            _butterfly(from_a, from_b, even, odd, to_c, to_d, bits, place, FEW_LANES)
        else:
            _butterfly(from_a, from_b, even, odd, to_c, to_d, bits, place, lanes)


@njit(**JIT)
def search(x, classes, coded, price, butterflies, back, decision, higher, symbols, unions):
    """Symbols of least distortion + price, each lane on its own path from state 0.

    Parameters
    ----------
    x : float32[T, L]; classes : uint8[T, L]; coded, price
        As in `branch_costs`, one row per time step.
    butterflies : int32[S / 2, 5]
        As in `add_compare_select`.
    back : int32[S, 4]
        Per state: its bit in `decision`, the state before by parity 0 and by parity 1, the subset of parity 0.
    decision : uint32[T, ceil(S / 32), L]; higher : uint8[T, L]
        Scratch.
    symbols : int32[T, L]; unions : uint8[T, L]
        Written: the symbols k and the unions of the states they are sent in.
    """
    steps, lanes = x.shape
    states = back.shape[0]
    metric = np.full((states, lanes), _NO_PATH, np.float32)
    metric[0, :] = np.float32(0.0)
    advanced = np.empty((states, lanes), np.float32)
    cost = np.empty((4, lanes), np.float32)
    for t in range(steps):
        branch_costs(x[t], classes[t], coded, price, cost, higher[t])
        add_compare_select(metric, cost, butterflies, decision[t], advanced)
        metric, advanced = advanced, metric
        if t % 64 == 63:
            for lane in range(lanes):
                base = metric[0, lane]
                for s in range(states):
                    metric[s, lane] -= base
    state = np.zeros(lanes, np.uint64)
    for lane in range(lanes):
        for s in range(states):
            if metric[s, lane] < metric[state[lane], lane]:
                state[lane] = s
    # All lanes step back together: what is read at one time stands side by side.
    for t in range(steps - 1, -1, -1):
        for lane in range(lanes):
            s = state[lane]
            bit = np.uint64(back[s, 0])
            odd = np.int64(decision[t, bit >> np.uint64(5), lane] >> np.uint32(bit & np.uint64(31))) & 1
            subset = np.int64(back[s, 3])
            r = subset + 2 * odd
            symbols[t, lane] = symbol_of(x[t, lane], np.uint64(classes[t, lane]), r, higher[t, lane] >> r & 1)
            unions[t, lane] = subset
            state[lane] = back[s, 1 + odd]
