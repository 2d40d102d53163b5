"""Rate control: the one step multiplier with which everything together is as large, or as exact, as was asked.

Every tensor's step is the multiplier times its own unit (`Analysis.unit`). The forecast comes from the scale classes
without encoding; what a pass of the encoder then measures corrects it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from rbe_cli.codec.source import Domain

#: A result may be this much smaller than what was asked, relative.
TOLERANCE = 0.004
#: Where a pass aims: a little below the wish, since above is not allowed.
AIM = 0.9985
#: Errors are aimed at from below, too.
AIM_ERROR = 0.9995
_LOG_RANGE = (-26.0, 8.0)
_BISECTIONS = 60


class Forecast(Protocol):
    """What is known of a tensor before it has a step.

    Attributes
    ----------
    matrix : Domain
        What is coded.
    unit : float
        Steps are multiples of it.
    rms, energy : float
        Of the tensor.
    largest : float
        Largest number to be quantised.
    """

    @property
    def matrix(self) -> Domain: ...  # noqa: D102
    @property
    def unit(self) -> float: ...  # noqa: D102
    @property
    def rms(self) -> float: ...  # noqa: D102
    @property
    def energy(self) -> float: ...  # noqa: D102
    @property
    def largest(self) -> float: ...  # noqa: D102

    def expected_bytes(self, step: float) -> float:
        """Size of the chunks at a step."""

    def expected_error(self, step: float) -> float:
        """Sum of squared errors at a step."""


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


def multiplier_for_size(analyses: Sequence[Forecast], size: float, scale: float = 1.0) -> float:
    """The multiplier with which the forecast size, times `scale`, is `size` bytes.

    `scale` is what an earlier pass measured over what was forecast for it.
    """
    return math.exp2(_bisect(lambda m: scale * sum(a.expected_bytes(m * a.unit) for a in analyses) > size))


def multiplier_for_error(analysis: Forecast, nrmse: float) -> float:
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


class SizeSearch:
    """The multiplier with which everything takes a given size: forecast, measure, correct.

    Parameters
    ----------
    analyses : sequence of Forecast
        Of the tensors that share the multiplier.
    budget : float
        Bytes everything may take.
    overhead : float
        A guess at the bytes of everything else; what is measured replaces it.

    Attributes
    ----------
    multiplier : float
        The next to try.
    best : (int, float) or None
        Size and multiplier of the best measured so far that is within the budget.
    """

    def __init__(self, analyses: Sequence[Forecast], budget: float, overhead: float) -> None:
        self._analyses = analyses
        self._budget = budget
        self._over, self._under = 0.0, math.inf
        self.best: tuple[int, float] | None = None
        self.multiplier = multiplier_for_size(analyses, budget * AIM - overhead)

    def found(self, size: int) -> bool:
        """Whether a size is within the budget, and close to it."""
        return self._budget * (1 - TOLERANCE) <= size <= self._budget

    def measured(self, size: int, lossy: int) -> bool:
        """Take in what `multiplier` gave: the whole size, and the part that depends on it.

        Returns False when there is nothing better left to try.
        """
        tried = self.multiplier
        if size > self._budget:
            self._over = max(self._over, tried)
        else:
            self._under = min(self._under, tried)
            if self.best is None or size > self.best[0]:
                self.best = size, tried
        room = self._budget * (1 - TOLERANCE / 4) - (size - lossy)
        if not lossy or room <= 0:
            return False
        scale = lossy / sum(analysis.expected_bytes(tried * analysis.unit) for analysis in self._analyses)
        following = multiplier_for_size(self._analyses, room, scale)
        if not self._over < following < self._under:
            # The size is no smooth function where few weights are sent at all: close in from both sides.
            if not self._over or math.isinf(self._under):
                following = tried * (1.1 if size > self._budget else 1 / 1.1)
            else:
                following = math.sqrt(self._over * self._under)
        self.multiplier = following
        return not (self._over and self._under / self._over < 1 + 1e-7)
