"""What time to decode is worth: the exchange rate by which `auto` weighs a smaller error against a slower decoder."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Nanoseconds a core takes for a multiplication and an addition per weight: a rank, a column of a klt, half a row of a
#: block. Nominal (docs/codec.md has what was measured), so that the choice is the same on every machine.
NS_PER_PRODUCT = 0.016
#: And for a number that is decoded, such as those of the factors of a low-rank part.
NS_PER_NUMBER = 5.0
#: dB a nanosecond per weight has to gain.
DB_PER_NS = 0.2


def decode_cost(products: float | NDArray[np.float64], numbers: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """What a decoder's products per weight, and further numbers per weight, have to gain, in dB.

    >>> round(float(decode_cost(384, 0)), 2)
    1.23
    """
    nanoseconds = NS_PER_PRODUCT * np.asarray(products, np.float64) + NS_PER_NUMBER * np.asarray(numbers, np.float64)
    return DB_PER_NS * nanoseconds
