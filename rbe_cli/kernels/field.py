"""Sums over rows and columns for the scale field, in a fixed order so that they are the same on every machine."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from rbe_cli.kernels import INNER, JIT

#: What an axis of the scale field is taken to cost beside the entropy of its integers, in bits: by itself, and for
#: each number in it but one, until it is known how often that comes.
AXIS_BITS, LEARNING_BITS = 16.0, 10.0


@njit(**INNER)
def _added_up(partial):
    """Eight running sums, float64[8], pairwise."""
    return ((partial[0] + partial[1]) + (partial[2] + partial[3])) + (
        (partial[4] + partial[5]) + (partial[6] + partial[7])
    )


@njit(**JIT)
def sweep(w, column_weight, row_power, column_sum):
    """One pass of the alternating fit over some rows.

    Parameters
    ----------
    w : float32[m, n]
    column_weight : float64[n]
        1 / c_j^2, or 0 for a column of zeros.
    row_power : float64[m]
        Written: sum over j of w_ij^2 / c_j^2.
    column_sum : float64[n]
        Added to: sum over i of w_ij^2 / (row_power_i / n), rows of zeros left out.
    """
    m, n = w.shape
    partial = np.empty(8, np.float64)
    for i in range(m):
        partial[:] = 0.0
        for block in range(n // 8):
            for q in range(8):
                v = np.float64(w[i, block * 8 + q])
                partial[q] += v * v * column_weight[block * 8 + q]
        for j in range(n // 8 * 8, n):
            v = np.float64(w[i, j])
            partial[j & 7] += v * v * column_weight[j]
        total = _added_up(partial)
        row_power[i] = total
        if total > 0.0:
            weight = n / total
            for j in range(n):
                v = np.float64(w[i, j])
                column_sum[j] += v * v * weight


@njit(**JIT)
def column_powers(w, total):
    """Add the sum of squares of every column of float32[m, n] to float64[n]."""
    for i in range(w.shape[0]):
        for j in range(w.shape[1]):
            v = np.float64(w[i, j])
            total[j] += v * v


@njit(**JIT)
def axis_costs(logs, middle, per_octave, highest, origins, others, costs):
    """What it costs, in bits, to round the logarithms of an axis to multiples of a unit, for some units and zeros.

    The entropy of the integers with some bits for learning it, about what `scale_field.encode_axis` takes; and for each
    of the `others` elements per entry what coding a Gaussian with the wrong scale costs.

    Parameters
    ----------
    logs : float64[n]
        To base 2.
    middle : float
        The first zero; the others are above it by parts of the unit.
    per_octave, highest : int
        The finest unit is 1 / per_octave; no integer goes beyond `highest` of these.
    origins : int
        Zeros for each unit.
    costs : float64[k]
        Written: for each unit, which doubles, those of its zeros.
    """
    n = logs.shape[0]
    counts = np.zeros(2 * highest + 1, np.int64)
    for c in range(costs.shape[0]):
        shift = c // origins
        unit = (1 << shift) / per_octave
        zero = middle + (c % origins) * unit / origins
        reach = highest >> shift
        low, high = reach, -reach
        loss = 0.0
        for i in range(n):
            index = int(min(max(math.floor((logs[i] - zero) / unit + 0.5), -reach), reach))
            wrong = index * unit + zero - logs[i]
            loss += 0.5 * (2.0 ** (-2.0 * wrong) - 1.0) / math.log(2.0) + wrong
            low, high = min(low, index), max(high, index)
            counts[index + highest] += 1
        bits, kinds = AXIS_BITS, 0
        for index in range(low, high + 1):
            count = counts[index + highest]
            counts[index + highest] = 0
            if count > 0:
                bits -= count * math.log2(count / n)
                kinds += 1
        costs[c] = bits + LEARNING_BITS * (kinds - 1) + loss * others


@njit(**JIT)
def unpack_exponents(stored, marked, shift, highest, zero, exponents):
    """Exponents of an axis, int32[n], from the integers of its stored form.

    stored : int32[n] exponents >> shift, or with `marked` int32[1 + n], the first the mark of those that are `zero`.
    Returns whether all are within +-highest.
    """
    for i in range(exponents.shape[0]):
        value = stored[i + marked]
        if marked and value == stored[0]:
            exponents[i] = zero
        elif -highest <= value <= highest:
            exponents[i] = value << shift
        else:
            return False
    return True


@njit(**JIT)
def shape_exponents(exponents, shaping, importance, zero, steps, classes):
    """Step exponents A = ((shaping E + 8) >> 4) + importance and class exponents E - A; of `zero`, 0 and `zero`.

    exponents, importance, steps, classes : int32[n]; `importance` may be empty.
    """
    for i in range(exponents.shape[0]):
        exponent = exponents[i]
        step = (shaping * exponent + 8) >> 4
        if importance.shape[0]:
            step += importance[i]
        steps[i] = 0 if exponent == zero else step
        classes[i] = zero if exponent == zero else exponent - step


@njit(**JIT)
def scales_of(steps, classes, zero, eighths, scales):
    """2^(A / 8), float32[n], and 0 where the class is `zero`; `eighths` are 2^(i / 8), float32[8]."""
    for i in range(steps.shape[0]):
        scale = math.ldexp(np.float64(eighths[steps[i] & 7]), steps[i] >> 3)
        scales[i] = np.float32(0) if classes[i] == zero else np.float32(scale)


@njit(**JIT)
def classify_line(outer, inner_class, highest, classes):
    """Classes of a line of the scan, to uint8[inner]: `outer` is base + class of its outer index; see `classify`."""
    for j in range(inner_class.shape[0]):
        c = np.int32(outer + inner_class[j])
        kept = min(max(c, np.int32(1)), np.int32(highest))
        classes[j] = np.uint8(kept) if c > np.int32(-(1 << 20)) else np.uint8(0)


@njit(**JIT)
def classify(outer_class, inner_class, base, highest, classes):
    """Class of every element of a tile, in coding order.

    Parameters
    ----------
    outer_class, inner_class : int32
        Exponents of sigma / step, in eighth octaves, of the outer (slow) and inner (fast) index of the scan. Below
        -(2^20) they mark a row or column of zeros, whose class is 0.
    base : int
        Added to both; other classes than 0 are kept within 1 and `highest`.
    classes : uint8[outer, inner]
        Written.
    """
    for i in range(outer_class.shape[0]):
        classify_line(np.int32(base + outer_class[i]), inner_class, highest, classes[i])


@njit(**INNER)
def _divide_line(w, outer, inner_scale, out):
    for j in range(inner_scale.shape[0]):
        step = outer * inner_scale[j]
        out[j] = w[j] / step if step > 0 else np.float32(0)


@njit(**JIT)
def multiply_line(points, outer, inner_scale, out):
    """Inverse of `divide` on a line of the scan, or a part of one."""
    for j in range(inner_scale.shape[0]):
        out[j] = points[j] * (outer * inner_scale[j])


@njit(**JIT)
def divide(w, strides, outer_scale, inner_scale, out):
    """Weights in steps, in coding order: w(i, j) / (outer_scale_i inner_scale_j), and 0 where the step is 0.

    w : float32[:], element (i, j) of the scan at w[i * strides[0] + j * strides[1]]; out : float32[n].
    """
    n = inner_scale.shape[0]
    for i in range(outer_scale.shape[0]):
        outer = outer_scale[i]
        row = out[i * n : (i + 1) * n]
        if strides[1] == 1:
            # The usual order by a loop of its own: side by side in memory, the elements fill the vector registers.
            _divide_line(w[i * strides[0] : i * strides[0] + n], outer, inner_scale, row)
        else:
            _divide_line(w[i * strides[0] :: strides[1]], outer, inner_scale, row)


@njit(**JIT)
def squared_error(a, b):
    """Sum of (a - b)^2 of two float64[n], in a fixed order: eight running sums, added up pairwise."""
    partial = np.zeros(8, np.float64)
    n = a.shape[0]
    for block in range(n // 8):
        for q in range(8):
            d = a[block * 8 + q] - b[block * 8 + q]
            partial[q] += d * d
    for i in range(n // 8 * 8, n):
        d = a[i] - b[i]
        partial[i & 7] += d * d
    return _added_up(partial)


@njit(**JIT)
def sum_of_squares(a):
    """Of float32[n], in float64 and in a fixed order: eight running sums, added up pairwise."""
    partial = np.zeros(8, np.float64)
    n = a.shape[0]
    for block in range(n // 8):
        for q in range(8):
            v = np.float64(a[block * 8 + q])
            partial[q] += v * v
    for i in range(n // 8 * 8, n):
        v = np.float64(a[i])
        partial[i & 7] += v * v
    return _added_up(partial)
