"""Viterbi search of the trellis-coded quantiser, across many independent lanes at once.

Reconstruction points are the integers n = 2 k + u, where the union u is the lowest bit of the trellis state and k the
transmitted symbol; the parity z of k moves the state (`rbe_cli.codec.trellis`). Points fall into four subsets
n mod 4 = u + 2 z, so a step has four branch costs per lane whatever the number of states.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from rbe_cli.kernels import JIT

#: Symbols beyond +-RATE_REACH share the cost of an escape.
RATE_REACH = 112
_NO_PATH = np.float32(1e30)


@njit(**JIT)
def _slow_cost(v, k, union, m, table):
    """Cost of one symbol k, the slow way: any size, any number of raw bits."""
    index = min(max(k >> m, -RATE_REACH), RATE_REACH) + RATE_REACH
    error = v - np.float32(2 * k + union)
    if m == 0:
        error -= table[index, union, 0]
    return error * error + table[index, np.int64(1) if m > 0 else union, 1]


@njit(**JIT)
def branch_costs(x, classes, coded, price, cost, symbol):
    """Cheapest symbol of each subset n mod 4, for one time step of all lanes.

    The two points of a subset on either side of x are looked at; rate never moves the choice further.

    Parameters
    ----------
    x : float32[L]
        Weights divided by their step.
    classes : uint8[L]
        Class of each element; 255 marks an element that does not exist.
    coded : int
        Highest class with a table of its own; above, one more low bit of k is raw for each 8 classes.
    price : float32[C, 2 * RATE_REACH + 1, 2, 2]
        Per class, symbol and union: displacement of the reconstruction point in steps, and the symbol's bits times
        the price of a bit in squared steps.
    cost : float32[4, L] and symbol : int32[4, L]
        Written: least cost of each subset and the symbol k that has it.
    """
    for lane in range(x.shape[0]):
        c = np.uint64(classes[lane])
        if c == np.uint64(255):
            for r in range(4):
                cost[r, lane] = np.float32(0.0)
                symbol[r, lane] = r >> 1
            continue
        v = x[lane]
        m = np.int64(0)
        if c > np.uint64(coded):
            m = np.int64((c - np.uint64(coded) + np.uint64(7)) >> np.uint64(3))
            c -= np.uint64(8 * m)
        quarter = np.floor(v * np.float32(0.25))
        rest = v - np.float32(4.0) * quarter
        q = 2 * np.int64(quarter)
        fast = m == 0 and q - 2 > -RATE_REACH and q + 3 < RATE_REACH
        table = price[c]
        for r in range(4):
            u = r & 1
            below = rest < np.float32(r)
            low = q + (r >> 1) - (2 if below else 0)
            if fast:
                at = np.uint64(low + RATE_REACH)
                error = rest - np.float32(r) + (np.float32(4.0) if below else np.float32(0.0))
                error_low = error - table[at, u, 0]
                error_high = error - np.float32(4.0) - table[at + np.uint64(2), u, 0]
                cost_low = error_low * error_low + table[at, u, 1]
                cost_high = error_high * error_high + table[at + np.uint64(2), u, 1]
            else:
                cost_low = _slow_cost(v, low, u, m, table)
                cost_high = _slow_cost(v, low + 2, u, m, table)
            higher = cost_high < cost_low
            cost[r, lane] = cost_high if higher else cost_low
            symbol[r, lane] = low + 2 if higher else low


@njit(**JIT)
def add_compare_select(metric, cost, first, second, branch, decision, advanced):
    """One trellis step for all states and lanes: keep the better of the two paths into each state.

    `metric` and `advanced` are float32[S, L]; `first`, `second` int32[S] the two states before, `branch` int32[S] the
    subset of the first (the second's is two further); `decision` uint32[ceil(S / 32), L] gets one bit per state.
    """
    states, lanes = metric.shape
    for word in range(decision.shape[0]):
        bits = decision[word]
        for lane in range(lanes):
            bits[lane] = np.uint32(0)
        for b in range(min(32, states)):
            s = word * 32 + b
            metric_a = metric[first[s]]
            metric_b = metric[second[s]]
            cost_a = cost[branch[s]]
            cost_b = cost[branch[s] + 2]
            out = advanced[s]
            bit = np.uint32(1) << np.uint32(b)
            for lane in range(lanes):
                path_a = metric_a[lane] + cost_a[lane]
                path_b = metric_b[lane] + cost_b[lane]
                better = path_b < path_a
                out[lane] = path_b if better else path_a
                bits[lane] |= bit if better else np.uint32(0)


@njit(**JIT)
def search(x, classes, coded, price, first, second, branch, decision, symbol, symbols, unions):
    """Symbols of least distortion + price, each lane on its own path from state 0.

    Parameters
    ----------
    x : float32[T, L]; classes : uint8[T, L]; coded, price
        As in `branch_costs`, one row per time step.
    first, second, branch : int32[S]
        The trellis, as in `add_compare_select`.
    decision : uint32[T, ceil(S / 32), L]; symbol : int32[T, 4, L]
        Scratch.
    symbols : int32[T, L]; unions : uint8[T, L]
        Written: the symbols k and the unions of the states they are sent in.
    """
    steps, lanes = x.shape
    states = first.shape[0]
    metric = np.full((states, lanes), _NO_PATH, np.float32)
    metric[0, :] = np.float32(0.0)
    advanced = np.empty((states, lanes), np.float32)
    cost = np.empty((4, lanes), np.float32)
    for t in range(steps):
        branch_costs(x[t], classes[t], coded, price, cost, symbol[t])
        add_compare_select(metric, cost, first, second, branch, decision[t], advanced)
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
            taken = (decision[t, s >> np.uint64(5), lane] >> np.uint32(s & np.uint64(31))) & np.uint32(1)
            subset = branch[s]
            symbols[t, lane] = symbol[t, subset + 2 * taken, lane]
            unions[t, lane] = subset
            state[lane] = second[s] if taken else first[s]
