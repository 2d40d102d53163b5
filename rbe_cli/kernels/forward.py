"""Products with weights that are never formed, and what a transformer does between them.

A layer's whole product is one call, since a call from Python costs as much as a thousand multiplications. Nothing here
is part of the format, so sums may be formed in the order that is fastest on the machine at hand.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from rbe_cli.kernels import JIT

#: Sums in any order, products and sums as one instruction: without it the dot products are four times slower.
_LAYER: dict[str, Any] = JIT | {"fastmath": {"reassoc", "contract"}}


@njit(**_LAYER)
def _dots(x, rows, out):
    """out[k] = rows[k] . x. x float32[a]; rows float32 or int16[r, a]; out float32[r]."""
    size = x.shape[0]
    fours = rows.shape[0] // 4 * 4
    for k in range(0, fours, 4):
        r0, r1, r2, r3 = rows[k], rows[k + 1], rows[k + 2], rows[k + 3]
        s0 = s1 = s2 = s3 = np.float32(0)
        for j in range(size):
            s0 += x[j] * np.float32(r0[j])
            s1 += x[j] * np.float32(r1[j])
            s2 += x[j] * np.float32(r2[j])
            s3 += x[j] * np.float32(r3[j])
        out[k], out[k + 1], out[k + 2], out[k + 3] = s0, s1, s2, s3
    for k in range(fours, rows.shape[0]):
        row = rows[k]
        s0 = np.float32(0)
        for j in range(size):
            s0 += x[j] * np.float32(row[j])
        out[k] = s0


@njit(**_LAYER)
def _add_rows(factors, rows, out):
    """Add sum over k of factors[k] rows[k] to out. factors float32[r]; rows float32 or int16[r, b]; out float32[b]."""
    size = out.shape[0]
    fours = rows.shape[0] // 4 * 4
    for k in range(0, fours, 4):
        r0, r1, r2, r3 = rows[k], rows[k + 1], rows[k + 2], rows[k + 3]
        f0, f1, f2, f3 = factors[k], factors[k + 1], factors[k + 2], factors[k + 3]
        for j in range(size):
            pair = f0 * np.float32(r0[j]) + f1 * np.float32(r1[j])
            out[j] += pair + (f2 * np.float32(r2[j]) + f3 * np.float32(r3[j]))
    for k in range(fours, rows.shape[0]):
        row, factor = rows[k], factors[k]
        for j in range(size):
            out[j] += factor * np.float32(row[j])


@njit(**_LAYER)
def low_rank_times(x, left, scale, right, out):
    """Write x left diag(scale) right to out.

    x float32[n, m]; left float32 or int16[m, r]; scale float32[r]; right float32 or int16[r, c]; out float32[n, c].
    """
    inner = np.empty(scale.shape[0], np.float32)
    for i in range(x.shape[0]):
        inner[:] = np.float32(0)
        _add_rows(x[i], left, inner)
        inner *= scale
        out[i, :] = np.float32(0)
        _add_rows(inner, right, out[i])


@njit(**_LAYER)
def low_rank_times_transposed(x, left, scale, right, out):
    """Write x (left diag(scale) right)^T to out: x float32[n, c], out float32[n, m], the rest as above."""
    inner = np.empty(scale.shape[0], np.float32)
    for i in range(x.shape[0]):
        _dots(x[i], right, inner)
        inner *= scale
        _dots(inner, left, out[i])


@njit(**_LAYER)
def analyse_blocks(x, whole, rest, out):
    """Each block of x in the coordinates of its basis, one after the other.

    Parameters
    ----------
    x : float32[m]
        Blocks of b numbers, then one of e < b if e is not 0.
    whole : float32[p, b]; rest : float32[q, e]
        Rows are the functions of a block; q is 0 without a smaller block.
    out : float32[m // b * p + q]
        Written.
    """
    functions, block = whole.shape
    blocks = (x.shape[0] - rest.shape[1]) // block if block else 0
    for i in range(blocks):
        _dots(x[i * block : (i + 1) * block], whole, out[i * functions : (i + 1) * functions])
    _dots(x[blocks * block :], rest, out[blocks * functions :])


@njit(**_LAYER)
def synthesise_blocks(z, whole, rest, out):
    """Transpose of `analyse_blocks`: coordinates float32[m // b * p + q] to out float32[m]."""
    functions, block = whole.shape
    blocks = (out.shape[0] - rest.shape[1]) // block if block else 0
    out[:] = np.float32(0)
    for i in range(blocks):
        _add_rows(z[i * functions : (i + 1) * functions], whole, out[i * block : (i + 1) * block])
    _add_rows(z[blocks * functions :], rest, out[blocks * block :])


@njit(**JIT)
def sparse_gather(x, starts, places, values, out):
    """out[:, u] = sum of values x[:, places] over the entries starts[u] to starts[u + 1] - 1.

    x float32[n, k]; starts uint32[m + 1]; places uint32, values float32[entries]; out float32[n, m]. Unsigned, as a
    signed index might be negative and is tested; sums in order, as there are too few entries to a sum for vectors.
    """
    for i in range(x.shape[0]):
        own, to = x[i], out[i]
        e = starts[0]
        for u in range(to.shape[0]):
            total = np.float32(0)
            end = starts[u + 1]
            while e < end:
                total += values[e] * own[places[e]]
                e += np.uint32(1)
            to[u] = total


@njit(**JIT)
def sparse_scatter(x, starts, places, values, out):
    """Transpose of `sparse_gather`: x float32[n, m] to out float32[n, k]."""
    for i in range(x.shape[0]):
        own = out[i]
        own[:] = np.float32(0)
        for u in range(x.shape[1]):
            factor = x[i, u]
            for e in range(starts[u], starts[u + 1]):
                own[places[e]] += factor * values[e]


@njit(**_LAYER)
def sparse_times(x, rows_whole, rows_rest, starts, places, values, columns_whole, columns_rest, out):
    """Write x W to out for W = A^T S B: A the functions of the rows, S sparse, B those of the columns.

    x float32[n, m]; out float32[n, c]; functions as in `analyse_blocks`, S as in `sparse_gather`.
    """
    inner = np.empty((1, starts.shape[0] - 1), np.float32)
    outer = np.empty((1, _coordinates(out.shape[1], columns_whole, columns_rest)), np.float32)
    for i in range(x.shape[0]):
        analyse_blocks(x[i], rows_whole, rows_rest, inner[0])
        sparse_scatter(inner, starts, places, values, outer)
        synthesise_blocks(outer[0], columns_whole, columns_rest, out[i])


@njit(**_LAYER)
def sparse_times_transposed(x, rows_whole, rows_rest, starts, places, values, columns_whole, columns_rest, out):
    """Write x W^T to out: x float32[n, c], out float32[n, m], the others as in `sparse_times`."""
    inner = np.empty((1, _coordinates(x.shape[1], columns_whole, columns_rest)), np.float32)
    outer = np.empty((1, starts.shape[0] - 1), np.float32)
    for i in range(x.shape[0]):
        analyse_blocks(x[i], columns_whole, columns_rest, inner[0])
        sparse_gather(inner, starts, places, values, outer)
        synthesise_blocks(outer[0], rows_whole, rows_rest, out[i])


@njit(**_LAYER)
def _coordinates(size, whole, rest):
    """Coordinates of a vector of `size` numbers, over all its blocks."""
    functions, block = whole.shape
    blocks = (size - rest.shape[1]) // block if block else 0
    return blocks * functions + rest.shape[0]


@njit(**_LAYER)
def sparse_rows(ids, block, blocks, whole, rest, starts, places, values, out):
    """Rows of A^T S by number.

    ids int64[n]; `block` rows in each of the first `blocks` blocks; whole, rest the functions of the rows;
    out float32[n, k].
    """
    functions = whole.shape[0]
    for i in range(ids.shape[0]):
        number, within = ids[i] // block, ids[i] % block
        basis = whole if number < blocks else rest
        first = number * functions
        own = out[i]
        own[:] = np.float32(0)
        for u in range(basis.shape[0]):
            factor = basis[u, within]
            for e in range(starts[first + u], starts[first + u + 1]):
                own[places[e]] += factor * values[e]


@njit(**_LAYER)
def weights_at(rows, columns, row_functions, column_functions, u, v, values, out):
    """Single weights of a block: out[i] = sum of values row_functions[u, rows[i]] column_functions[v, columns[i]].

    rows, columns int64[n]; functions float32[p, height] and float32[q, width]; u, v int64 and values float32[entries];
    out float32[n].
    """
    for i in range(rows.shape[0]):
        total = np.float32(0)
        for e in range(values.shape[0]):
            total += values[e] * row_functions[u[e], rows[i]] * column_functions[v[e], columns[i]]
        out[i] = total


@njit(**_LAYER)
def layer_norm(x, gamma, beta, epsilon, out):
    """(x - mean) / sqrt(variance + epsilon) gamma + beta of every row, sums in float64.

    x, out float32[n, h]; gamma, beta float32[h].
    """
    size = x.shape[1]
    for i in range(x.shape[0]):
        row, to = x[i], out[i]
        total = np.float64(0)
        for j in range(size):
            total += np.float64(row[j])
        mean = total / size
        spread = np.float64(0)
        for j in range(size):
            centred = np.float64(row[j]) - mean
            spread += centred * centred
            to[j] = np.float32(centred)
        factor = np.float32(1 / math.sqrt(spread / size + epsilon))
        for j in range(size):
            to[j] = to[j] * factor * gamma[j] + beta[j]


@njit(**JIT)
def gelu(x, out):
    """Write x Phi(x) to out, Phi the Gaussian distribution function, worked out in float64; x, out float32[n]."""
    for i in range(x.shape[0]):
        twice = np.float32(math.erf(np.float64(x[i] * np.float32(math.sqrt(0.5))))) + np.float32(1)
        out[i] = twice * (np.float32(0.5) * x[i])


@njit(**_LAYER)
def _exponentials(x, scale):
    """Overwrite float32[n] with exp(scale (x - max x)); returns the sum.

    2^q on [-1/2, 1/2] by the polynomial of degree 6 of least relative error (1e-7), whole powers by the bits of the
    exponent: a loop without calls, which the compiler turns into vector instructions.
    """
    size = x.shape[0]
    highest = x[0]
    for j in range(1, size):
        highest = max(highest, x[j])
    whole = np.empty(size, np.int32)
    for j in range(size):
        # Below 2^-120 nothing is left of it in a sum of which the largest term is 1.
        y = max(scale * (x[j] - highest) * np.float32(1.4426950408889634), np.float32(-120))
        k = np.floor(y + np.float32(0.5))
        q = y - k
        p = np.float32(1.5353362e-4)
        p = p * q + np.float32(1.3398874e-3)
        p = p * q + np.float32(9.6184370e-3)
        p = p * q + np.float32(5.5503324e-2)
        p = p * q + np.float32(2.4022652e-1)
        p = p * q + np.float32(6.9314718e-1)
        x[j] = p * q + np.float32(1)
        whole[j] = np.int32(k) << np.int32(23)
    bits = x.view(np.int32)
    for j in range(size):
        bits[j] += whole[j]
    total = np.float32(0)
    for j in range(size):
        total += x[j]
    return total


@njit(**_LAYER)
def attend_one(queries, new_keys, new_values, keys, values, length, scale, out):
    """Add one position to the keys and values, and softmax(scale q K^T) V for one query a head.

    queries, new_keys, new_values, out float32[n, heads * size]; keys, values float32[n, heads, capacity, size], of
    which the first `length` < capacity are there; scale float32, not negative.
    """
    size = keys.shape[3]
    weights = np.empty(length + 1, np.float32)
    for b in range(queries.shape[0]):
        for h in range(keys.shape[1]):
            own = slice(h * size, (h + 1) * size)
            keys[b, h, length] = new_keys[b, own]
            values[b, h, length] = new_values[b, own]
            _dots(queries[b, own], keys[b, h, : length + 1], weights)
            total = _exponentials(weights, scale)
            to = out[b, own]
            to[:] = np.float32(0)
            _add_rows(weights, values[b, h, : length + 1], to)
            for j in range(size):
                to[j] /= total
