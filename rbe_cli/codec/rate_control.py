"""Rate control: the one step multiplier with which everything together is as large, or as exact, as was asked.

Every tensor's step is the multiplier times its own unit (`Analysis.unit`). The forecast comes from the scale classes
without encoding; what a pass of the encoder then measures corrects it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from rbe_cli.codec.trellis_codec import Analysis

#: A result may be this much smaller than what was asked, relative.
TOLERANCE = 0.004
#: Where a pass aims: a little below the wish, since above is not allowed.
AIM = 0.9985
#: Errors are aimed at from below, too.
AIM_ERROR = 0.9995
_LOG_RANGE = (-26.0, 8.0)
_BISECTIONS = 60


def _bisect(too_large: Callable[[float], bool]) -> float:
    """Smallest exponent e in range, to 2^-54 of it, for which `too_large(2^e)` is false; the top if none."""
    low, high = _LOG_RANGE
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if too_large(2.0**middle):
            low = middle
        else:
            high = middle
    return high


def multiplier_for_size(analyses: list[Analysis], size: float, scale: float = 1.0) -> float:
    """The multiplier with which the forecast size, times `scale`, is `size` bytes.

    `scale` is what an earlier pass measured over what was forecast for it.
    """
    return math.exp2(_bisect(lambda m: scale * sum(a.expected_bytes(m * a.unit) for a in analyses) > size))


def multiplier_for_error(analysis: Analysis, nrmse: float) -> float:
    """The multiplier with which one tensor's forecast relative error is `nrmse`."""
    wanted = nrmse * nrmse * analysis.energy
    # The error grows with the step, so look for the largest multiplier that is good enough.
    return 1 / math.exp2(_bisect(lambda m: analysis.expected_error(analysis.unit / m) > wanted))


def corrected_for_error(multiplier: float, measured: float, wanted: float) -> float:
    """Next multiplier after one gave the relative error `measured`; the error is nearly proportional to it."""
    return multiplier * min(max(wanted * AIM_ERROR / max(measured, 1e-9), 0.5), 2.0)


def corrected_for_bits(multiplier: float, measured: float, wanted: float) -> float:
    """Next multiplier after one gave so many bits per weight; an octave of step is a bit."""
    return multiplier * math.exp2(min(max(measured - wanted * AIM_ERROR, -1.0), 1.0))


def close(measured: float, wanted: float) -> bool:
    """Whether a figure is within what was asked, and close to it."""
    return wanted * (1 - TOLERANCE) <= measured <= wanted
