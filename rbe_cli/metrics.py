"""Every figure we report, defined once.

Bits are all bits: the bytes given to these functions include headers, side information and checksums. Quality is
measured on decoded weights.
"""

from __future__ import annotations

import math
from typing import NamedTuple

#: dB per bit: an i.i.d. Gaussian source cannot have a higher SNR than this many dB per bit per weight (Shannon 1948).
DB_PER_BIT = 20 * math.log10(2)


def bits_per_weight(size: int, elements: int) -> float:
    """All bytes written, in bits, per element. NaN for no elements.

    >>> bits_per_weight(1000, 2000)
    4.0
    """
    return 8 * size / elements if elements else math.nan


def ratio(source: int, size: int) -> float:
    """Source bytes over all bytes written.

    >>> ratio(4000, 500)
    8.0
    """
    return source / size if size else math.nan


class Error(NamedTuple):
    """How far decoded weights are from the originals.

    Attributes
    ----------
    squared_error, energy : float
        Sums over the elements of (w - w')^2 and w^2.
    elements : int
    """

    squared_error: float
    energy: float
    elements: int

    @property
    def rmse(self) -> float:
        """sqrt(mean (w - w')^2), in the weights' own unit."""
        return math.sqrt(self.squared_error / self.elements) if self.elements else 0.0

    @property
    def nrmse(self) -> float:
        """||w - w'|| / ||w||: 0 is exact, 1 is all lost."""
        if not self.squared_error:
            return 0.0
        return math.sqrt(self.squared_error / self.energy) if self.energy else math.inf

    @property
    def snr(self) -> float:
        """-20 log10 NRMSE, in dB; infinite when exact."""
        return snr_db(self.nrmse)

    def __add__(self, other: object) -> Error:
        """The error of both together."""
        if not isinstance(other, Error):
            return NotImplemented
        return Error(*(a + b for a, b in zip(self, other, strict=True)))  # type: ignore[arg-type]


def snr_db(nrmse: float) -> float:
    """Signal-to-noise ratio of a relative error.

    >>> round(snr_db(0.1), 6), snr_db(0.0)
    (20.0, inf)
    """
    return -20 * math.log10(nrmse) if nrmse > 0 else math.inf


def gap_db(bpw: float, snr: float) -> float:
    """6.0206 x bits per weight - SNR: the distance, in dB, to the Shannon bound of an i.i.d. Gaussian source.

    0 is the bound. Below 0 is possible for a real matrix, whose rows and columns differ in scale; NaN when exact.
    """
    return DB_PER_BIT * bpw - snr if math.isfinite(snr) else math.nan
