"""The frequency tables: integers that are part of the format, read from `tables.txt` and checked by SHA-256.

A *class* c says how large a weight is expected to be against its step: sigma / step = 2^((c - 15) / 8). Class 0 is for
weights that are exactly zero, classes 1 to 56 have a table for each union of the trellis, and above 56 the low bits of
k are sent as they are, one more for each octave, and the rest of k goes by the table of union 1, which is symmetric
about -1/2 as a floored k is. A *family* is the shape of the source the tables were made for.
"""

from __future__ import annotations

import hashlib
import math
from functools import cache, cached_property
from importlib import resources
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rbe_cli.errors import RBEError
from rbe_cli.kernels import forecast
from rbe_cli.kernels.trellis import RATE_REACH

FREQUENCY_BITS = 12
#: Classes to twice the scale, and the class of weights whose scale is one step.
PER_OCTAVE, ONE_STEP = 8, 15
#: Highest class with a table of its own; see `rbe_cli.codec.residual.tables`.
CLASSES = 56
#: Low bits of k sent as they are: at most this many, so classes end at CLASSES + 8 * MAX_RAW_BITS.
MAX_RAW_BITS = 16
MAX_CLASS = CLASSES + 8 * MAX_RAW_BITS
#: Exponents of the generalised Gaussian densities the families were made for: Gauss, in between, Laplace.
FAMILY_EXPONENTS = (2.0, 1.4, 1.0)
#: Price of a bit in squared steps the tables were made with, and the encoder's default.
LAGRANGIAN = 0.4
#: States of the trellis they were made with.
STATES = 64
#: Reconstruction shifts are multiples of 1 / SHIFT_UNIT of a step.
SHIFT_UNIT = 256
#: A symbol is stored in a byte as k + SYMBOL_ZERO; byte 0 is the escape.
SYMBOL_ZERO = 128
SHA256 = "d654b47377cd4313c82e6c93f6a1e197d0ebde458de8d9b8e28486441cdd1b1f"


def sigma_over_step(c: float) -> float:
    """Centre of class c.

    >>> sigma_over_step(15)
    1.0
    """
    return float(2.0 ** ((c - ONE_STEP) / PER_OCTAVE))


def magnitude(family: int, power: int) -> float:
    """Mean of |x|^power of the density a family was made for, with a mean square of 1.

    >>> round(magnitude(0, 4), 6), round(magnitude(2, 4), 6)
    (3.0, 6.0)
    """
    p = FAMILY_EXPONENTS[family]
    scale = math.sqrt(math.gamma(1 / p) / math.gamma(3 / p))
    return scale**power * math.gamma((power + 1) / p) / math.gamma(1 / p)


def class_of(ratio: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of `sigma_over_step`, element by element."""
    return np.asarray(PER_OCTAVE * np.log2(ratio) + ONE_STEP)


def symbol_bits(freq: list[int], union: int) -> NDArray[np.float32]:
    """Bits of every k from -RATE_REACH to RATE_REACH under one table [escape, f(0), f(1), ...], in 1/1024 bit."""
    k = np.arange(-RATE_REACH, RATE_REACH + 1)
    magnitude = np.abs(k) if union == 0 else np.where(k >= 0, k, -1 - k)
    reach = len(freq) - 2
    beyond = np.maximum(magnitude - reach, 1)
    escape = FREQUENCY_BITS - np.log2(freq[0]) + 6 + np.floor(np.log2(beyond))
    inside = FREQUENCY_BITS - np.log2(np.array(freq[1:])[np.minimum(magnitude, reach)])
    bits = np.where(magnitude <= reach, inside, escape)
    rounded: NDArray[np.float32] = (np.round(bits * 1024) / 1024).astype(np.float32)
    return rounded


class Coding(NamedTuple):
    """The tables of one family, as the kernels that code take them.

    Attributes
    ----------
    price : float32[(CLASSES + 1) * (2 * RATE_REACH + 1) * 2 * 2]
        For the encoder, per class, k and union: displacement of the reconstruction point in steps, and LAGRANGIAN
        times the symbol's bits.
    start, freq : uint32[2 * (CLASSES + 1) * 256]
        Cumulative and own frequency of each symbol byte, per context 2 x class + union.
    reach : int32[2 * (CLASSES + 1)]
        Largest magnitude with a symbol of its own.
    slots : uint32[2 * (CLASSES + 1) * 4096]
        For the decoder: symbol << 24 | (slot - start) << 12 | frequency.
    points : float32[2 * (CLASSES + 1) * 256]
        Reconstruction point of each symbol byte, in steps.
    """

    price: NDArray[np.float32]
    start: NDArray[np.uint32]
    freq: NDArray[np.uint32]
    reach: NDArray[np.int32]
    slots: NDArray[np.uint32]
    points: NDArray[np.float32]


class Family:
    """What the tables of one family say of bits and error, and the tables themselves.

    Attributes
    ----------
    bits, distortion : float64[CLASSES + 1]
        Measured when the tables were made: bits per weight and mean squared error in squared steps. Not normative.
    """

    def __init__(self, index: int) -> None:
        """Of family 0, 1 or 2. Raises RBEError if the tables are not those of this version."""
        self._parsed = _parsed()[index]
        numbers = [self._parsed[c][0] for c in range(1, CLASSES + 1)]
        self.bits = np.array([0.0, *(both[0] / 1e5 for both in numbers)])
        self.distortion = np.array([0.0, *(both[1] / 1e6 for both in numbers)])

    @cached_property
    def coding(self) -> Coding:
        """What coders take, made when the first one asks."""
        return _coding_of(self._parsed)

    def bits_at(self, c: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bits a weight of class c takes, c any real number."""
        raw = np.maximum(c - CLASSES, 0) / 8
        return np.asarray(np.interp(np.clip(c, 1, CLASSES), np.arange(1, CLASSES + 1), self.bits[1:]) + raw)

    def distortion_at(self, c: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean squared error of a weight of class c, in squared steps."""
        log_d = np.interp(np.clip(c, 1, CLASSES), np.arange(1, CLASSES + 1), self._log_distortion)
        log_d += np.minimum(c - 1, 0) / 4
        return np.asarray(np.exp2(log_d))

    def bits_of(self, first: float, elements: NDArray[np.float64]) -> float:
        """Bits of so many elements, float64[n], of class `first`, first + 1, ..."""
        return float(forecast.total(self.bits[1:], 0.0, 1 / 8, first - 1, elements))

    def error_of(self, first: float, weights: NDArray[np.float64]) -> float:
        """Squared error of elements of class `first`, first + 1, ..., in squared steps, weighted."""
        return float(forecast.total_of_exponentials(self._log_distortion, 1 / 4, 0.0, first - 1, weights))

    def error_at(self, step: float) -> float:
        """Relative error of weights that are coded with a step, in units of their scale."""
        c = class_of(np.array(1 / step))
        return step * math.sqrt(float(self.distortion_at(c)))

    def step_at(self, error: float) -> float:
        """Inverse of `error_at`, for errors below 1."""
        classes = np.arange(1.0, CLASSES + 1)
        logs = self._log_distortion / 2 - (classes - ONE_STEP) / PER_OCTAVE
        # Beyond the highest class the error goes by the step.
        over = max(logs[-1] - math.log2(error), 0.0)
        c = float(np.interp(-math.log2(error), -logs, classes)) + PER_OCTAVE * over
        return 1 / sigma_over_step(c)

    @cached_property
    def _log_distortion(self) -> NDArray[np.float64]:
        return np.asarray(np.log2(self.distortion[1:]))


def _lines() -> list[str]:
    text = resources.files("rbe_cli.codec.residual").joinpath("tables.txt").read_bytes()
    if hashlib.sha256(text).hexdigest() != SHA256:
        raise RBEError(
            "rbe_cli/codec/residual/tables.txt is not the file this version was built with: reinstall the package"
        )
    return [line for line in text.decode("ascii").splitlines() if not line.startswith("#")]


#: Class -> ([bits, distortion, shifts...], [table of union 0, table of union 1]).
_Classes = dict[int, tuple[list[int], list[list[int]]]]


@cache
def _parsed() -> dict[int, _Classes]:
    """Those of every family."""
    parsed: dict[int, _Classes] = {}
    for line in _lines():
        kind, family, c, *numbers = line.split()
        values = [int(v) for v in numbers]
        if kind == "C":
            parsed.setdefault(int(family), {})[int(c)] = (values, [])
        else:
            parsed[int(family)][int(c)][1].append(values[1:])
    return parsed


@cache
def family(index: int) -> Family:
    """The tables of family 0 (Gaussian), 1 (in between) or 2 (Laplace)."""
    return Family(index)


def _coding_of(parsed: _Classes) -> Coding:
    classes = CLASSES + 1
    rate = np.zeros((classes, 2, 2 * RATE_REACH + 1), np.float32)
    shift = np.zeros_like(rate)
    freq = np.zeros((classes, 2, 256), np.uint32)
    reach = np.zeros((classes, 2), np.int32)
    points = np.zeros((classes, 2, 256), np.float32)
    k_of_byte = np.arange(256) - SYMBOL_ZERO
    magnitudes = np.abs(k_of_byte), np.where(k_of_byte >= 0, k_of_byte, -1 - k_of_byte)
    for c in range(classes):
        # Class 0: one symbol of nearly all the probability, and its points are never looked at (the step is 0).
        numbers, tables = parsed[c] if c else ([0, 0], [[1, 4095], [1, 4095]])
        for union in (0, 1):
            table = tables[union]
            reach[c, union] = len(table) - 2
            if c:
                rate[c, union] = symbol_bits(table, union)
                inside = magnitudes[union] <= reach[c, union]
                freq[c, union, inside] = np.array(table[1:])[magnitudes[union][inside]]
                freq[c, union, 0] = table[0]
            else:
                freq[c, union, SYMBOL_ZERO], freq[c, union, 0] = 4095, 1
            # The numerators are those of |2k + union| = 1, 2, ...
            for j, numerator in enumerate(numbers[2:], start=1):
                for n in (-j, j):
                    if n % 2 == union:
                        k, moved = (n - union) // 2, numerator / SHIFT_UNIT * (1 if n > 0 else -1)
                        shift[c, union, k + RATE_REACH] = points[c, union, k + SYMBOL_ZERO] = moved
    points += np.stack([(2 * k_of_byte + union).astype(np.float32) for union in (0, 1)])
    start = (np.cumsum(freq, axis=2, dtype=np.uint32) - freq).astype(np.uint32)
    # A byte's entry in its first slot, less what the number of the slot adds; a context has all slots, a byte those of
    # its frequency.
    entries = (np.arange(256, dtype=np.uint32) << np.uint32(24)) + freq - (start << np.uint32(12))
    slots = np.repeat(entries.ravel(), freq.ravel()).reshape(2 * classes, -1)
    slots += np.arange(1 << FREQUENCY_BITS, dtype=np.uint32) << np.uint32(12)
    price = price_of(rate, shift)
    return Coding(price, start.ravel(), freq.ravel(), reach.ravel(), slots.ravel(), points.ravel())


def price_of(rate: NDArray[np.float32], shift: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bits and shifts [C, 2, k] as the search takes them: [C, k, 2, (shift, LAGRANGIAN x bits)], flat."""
    both = np.stack((shift, np.float32(LAGRANGIAN) * rate), axis=-1)
    return np.ascontiguousarray(both.transpose(0, 2, 1, 3), np.float32).ravel()
