"""Trellis search with error feedback: the error of each column is fed into the columns after it.

With the second moments H of a layer's inputs, H = (I + U) D (I + U)^T with U strictly upper triangular, what is
quantised of column j is w_j + sum over k < j of U_kj (w_k - w'_k), and the error of the outputs becomes the sum of
D_j |what the quantiser did to column j|^2: the LDLQ of Chee et al., QuIP (arXiv:2307.13304, section 3), which is the
GPTQ of Frantar et al. (arXiv:2210.17323) in another form. Here the quantiser is a trellis, so it is searched in
windows: the first part of a window is settled, the rest is looking ahead, and the next window begins in the state
that was settled.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from rbe_cli.kernels import INNER, JIT
from rbe_cli.kernels.trellis import RATE_REACH, add_compare_select, branch_costs, symbol_of

_NO_PATH = np.float32(1e30)


@njit(**JIT)
def add_fed_back(errors, factor, j, out):
    """Add the sum over k < j of factor[j, k] errors[k] to out, four k at a time.

    errors : float32[M, n]; factor : float32[M, M], row j holds what column j takes of the columns before it;
    out : float32[n].
    """
    whole = j - j % 4
    for k in range(0, whole, 4):
        a, b, c, d = factor[j, k], factor[j, k + 1], factor[j, k + 2], factor[j, k + 3]
        ea, eb, ec, ed = errors[k], errors[k + 1], errors[k + 2], errors[k + 3]
        for i in range(out.shape[0]):
            out[i] += (a * ea[i] + b * eb[i]) + (c * ec[i] + d * ed[i])
    for k in range(whole, j):
        a = factor[j, k]
        ea = errors[k]
        for i in range(out.shape[0]):
            out[i] += a * ea[i]


@njit(**INNER)
def _prepare(values, first, factor, outer_scale, inner_scale, start, stop, sums, lane, lanes, x):
    """What is to be quantised, in steps, of elements start to stop - 1 of a tile in coding order."""
    width = inner_scale.shape[0]
    at = start
    while at < stop:
        j, left = at // width, at % width
        right = min(width, left + stop - at)
        part = sums[: right - left]
        part[:] = values[first + j, left:right]
        add_fed_back(values[:, left:right], factor, first + j, part)
        for i in range(right - left):
            step = outer_scale[j] * inner_scale[left + i]
            t = at + i
            x[t // lanes % x.shape[0], lane + t % lanes] = part[i] / step if step > 0 else np.float32(0.0)
        at += right - left


@njit(**INNER)
def _settle(values, first, outer_scale, inner_scale, start, stop, lane, lanes, classes, coded, price, symbols, unions):
    """Write the errors of elements start to stop - 1 of a tile, whose symbols are known, over the weights."""
    width = inner_scale.shape[0]
    for t in range(start, stop):
        j, i = t // width, t % width
        row, column = t // lanes, lane + t % lanes
        k, union = int(symbols[row, column]), int(unions[row, column])
        point = np.float32(2 * k + union)
        c = int(classes[row, column])
        if c <= coded:
            index = min(max(k, -RATE_REACH), RATE_REACH) + RATE_REACH
            point += price[((c * (2 * RATE_REACH + 1) + index) * 2 + union) * 2]
        values[first + j, i] -= point * (outer_scale[j] * inner_scale[i])


@njit(**INNER)
def _search_window(
    x, classes, coded, price, butterflies, back, start, stop, keep, state, metric, advanced, cost,
    decision, higher, symbols, unions,
):  # fmt: skip
    """Search time steps start to stop - 1 of all lanes from their states, and settle those before `keep`."""
    states, lanes = metric.shape
    metric[:, :] = _NO_PATH
    for lane in range(lanes):
        metric[state[lane], lane] = np.float32(0.0)
    for t in range(start, stop):
        branch_costs(x[t % x.shape[0]], classes[t], coded, price, cost, higher[t - start])
        add_compare_select(metric, cost, butterflies, decision[t - start], advanced)
        metric, advanced = advanced, metric
        if (t - start) % 64 == 63:
            for lane in range(lanes):
                base = metric[0, lane]
                for s in range(states):
                    metric[s, lane] -= base
    for lane in range(lanes):
        s = 0
        for other in range(states):
            if metric[other, lane] < metric[s, lane]:
                s = other
        for t in range(stop - 1, start - 1, -1):
            if t == keep - 1:
                state[lane] = s
            bit = int(back[s, 0])
            odd = int(decision[t - start, bit >> 5, lane] >> np.uint32(bit & 31)) & 1
            subset = int(back[s, 3])
            if t < keep:
                r = subset + 2 * odd
                v, c = x[t % x.shape[0], lane], np.uint64(classes[t, lane])
                symbols[t, lane] = symbol_of(v, c, r, higher[t - start, lane] >> r & 1)
                unions[t, lane] = subset
            s = int(back[s, 1 + odd])


@njit(**JIT)
def search(
    values, first, factor, outer_scale, inner_scale, widths, classes, coded, price, butterflies, back, ahead, lanes,
    x, decision, higher, symbols, unions,
):  # fmt: skip
    """Symbols of a few tiles side by side, each column's with the errors of those before it taken in.

    Parameters
    ----------
    values : float32[G, M, N]
        Outer (slow) index of the scan first; tile g has `widths[g]` inner elements. Before the outer index `first`, the
        errors w - w'; then m of the tiles' weights, in place of which their errors are written.
    factor : float32[M, M]
        As in `add_fed_back`.
    outer_scale : float32[G, m]; inner_scale : float32[G, N]
        The step of an element is their product; 0 is a weight of zero.
    widths : int64[G]
    classes : uint8[T, G * lanes]; coded, price, butterflies, back
        As in `rbe_cli.kernels.trellis.search`.
    ahead : int
        Of the time steps that are searched at once, how many only to look ahead.
    lanes : int
        Of a tile.
    x : float32[window, G * lanes]; decision : uint32[window, ceil(S / 32), G * lanes];
    higher : uint8[window, G * lanes]
        Scratch for the steps that are searched at once. `window` x `lanes` is at most the smallest width, so that all
        errors a window needs are settled.
    symbols : int32[T, G * lanes]; unions : uint8[T, G * lanes]
        Written, as by `rbe_cli.kernels.trellis.search`.
    """
    steps, all_lanes = classes.shape
    states, window, outer = back.shape[0], x.shape[0], outer_scale.shape[1]
    metric = np.empty((states, all_lanes), np.float32)
    advanced = np.empty((states, all_lanes), np.float32)
    cost = np.empty((4, all_lanes), np.float32)
    state = np.zeros(all_lanes, np.int64)
    sums = np.empty(values.shape[2], np.float32)
    start, filled = 0, 0
    while start < steps:
        stop = min(start + window, steps)
        keep = steps if stop == steps else stop - ahead
        for g in range(values.shape[0]):
            n = outer * widths[g]
            _prepare(
                values[g], first, factor, outer_scale[g], inner_scale[g, : widths[g]],
                min(filled * lanes, n), min(stop * lanes, n), sums, g * lanes, lanes, x,
            )  # fmt: skip
        filled = stop
        _search_window(
            x, classes, coded, price, butterflies, back, start, stop, keep, state, metric, advanced, cost,
            decision, higher, symbols, unions,
        )  # fmt: skip
        for g in range(values.shape[0]):
            n = outer * widths[g]
            _settle(
                values[g], first, outer_scale[g], inner_scale[g, : widths[g]],
                min(start * lanes, n), min(keep * lanes, n), g * lanes, lanes, classes, coded, price, symbols, unions,
            )  # fmt: skip
        start = keep
