"""What is expected of a tensor at any step, and the step multiplier with which it is as large, or as exact, as wanted.

Every tensor's step is the multiplier times its own unit (`Analysis.unit`). The forecast comes from the scale classes
without encoding; what a pass of the encoder then measures corrects it (`rate_control`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rbe_cli.codec.source import Domain

if TYPE_CHECKING:
    from rbe_cli.codec.residual.analysis import Analysis

#: The multipliers that are looked at, in octaves, and where one begins.
_FINEST, _COARSEST, _FIRST = -26.0, 8.0, -2.0
#: Cells of their range, as a power of 2, and how often one goes on where less than half of what is left was ruled out.
_BISECTIONS, _SLOW = 27, 3


class Expected(Protocol):
    """What is expected of a tensor at any step.

    Attributes
    ----------
    matrix : Domain
        What is coded.
    unit : float
        Steps are multiples of it.
    energy : float
        Of the tensor.
    """

    @property
    def matrix(self) -> Domain: ...  # noqa: D102
    @property
    def unit(self) -> float: ...  # noqa: D102
    @property
    def energy(self) -> float: ...  # noqa: D102

    def expected_bytes(self, step: float) -> float:
        """Size of the chunks at a step."""

    def expected_error(self, step: float) -> float:
        """Sum of squared errors at a step."""


class Forecast(Expected, Protocol):
    """What is known of a tensor before it has a step.

    Attributes
    ----------
    rms : float
        Of the tensor.
    largest : float
        Largest number to be quantised.
    """

    @property
    def rms(self) -> float: ...  # noqa: D102
    @property
    def largest(self) -> float: ...  # noqa: D102

    def set_aside(self) -> None:
        """Put by what grows with the tensor, so that there may be any number of them."""

    def of_tensor(self, plain: Analysis, /) -> Forecast:
        """The same with errors relative to a tensor, of which `plain` is, and of which it is of the difference to a
        base.
        """


@dataclass(frozen=True)
class AtMost:
    """What is expected of a tensor that is kept exactly where that takes less, or steps are finer than can be coded.

    Attributes
    ----------
    coded : Expected
        Of the tensor where it is coded.
    most : float
        Bytes it takes kept exactly, about.
    finest : float
        Step.
    """

    coded: Expected
    most: float
    finest: float

    @property
    def matrix(self) -> Domain:
        """What is coded."""
        return self.coded.matrix

    @property
    def unit(self) -> float:
        """Steps are multiples of it."""
        return self.coded.unit

    @property
    def energy(self) -> float:
        """Of the tensor."""
        return self.coded.energy

    def expected_bytes(self, step: float) -> float:
        """Size of the chunks at a step."""
        return min(self.coded.expected_bytes(step), self.most) if step >= self.finest else self.most

    def expected_error(self, step: float) -> float:
        """Sum of squared errors at a step, if it is not kept exactly."""
        return self.coded.expected_error(step)


def _crossing(excess: Callable[[float], float], bottom: float, top: float, first: float) -> float:
    """Smallest exponent e in a range, to 2^-27 of it, for which `excess(2^e)` is not above 0; the top if none.

    One begins to look at `first`.

    `excess` falls. Where it falls by about 1 for each octave it is evaluated some ten times: by the secant, and by
    halves where that makes no way.
    """
    cell = (top - bottom) / (1 << _BISECTIONS)
    low, high = 0, 1 << _BISECTIONS
    at, slope, slow = int((first - bottom) / cell), -1.0, 0
    before: tuple[int, float] | None = None
    while high - low > 1:
        found, width = excess(2.0 ** (bottom + at * cell)), high - low
        low, high = (at, high) if found > 0 else (low, at)
        slow = slow + 1 if 2 * (high - low) > width else 0
        if before:
            slope = (found - before[1]) / ((at - before[0]) * cell)
        before = at, found
        following = -1
        if slow < _SLOW and slope < 0 and math.isfinite(found / slope):
            following = round(at - found / slope / cell)
            if following == at:
                following += 1 if found > 0 else -1
        if not low < following < high:
            following, slow = (low + high) // 2, 0
        at = following
    return bottom + high * cell


def expected_size(analyses: Sequence[Expected], multiplier: float) -> float:
    """Bytes of the chunks of tensors that share a multiplier."""
    return sum(analysis.expected_bytes(multiplier * analysis.unit) for analysis in analyses)


def multiplier_for_size(
    analyses: Sequence[Expected], size: float, scale: Callable[[float], float] = lambda _: 1.0
) -> float:
    """The multiplier with which the forecast size, times `scale` of it, is `size` bytes.

    `scale` is what was measured over what was forecast.
    """
    bits = 8 / max(sum(a.matrix.rows * a.matrix.columns for a in analyses), 1)

    def excess(m: float) -> float:
        """In bits per weight."""
        return bits * (scale(m) * expected_size(analyses, m) - size)

    return math.exp2(_crossing(excess, _FINEST, _COARSEST, _FIRST))


def multiplier_for_error(analysis: Expected, nrmse: float) -> float:
    """The multiplier with which one tensor's forecast relative error is `nrmse`."""
    wanted = nrmse * nrmse * analysis.energy

    def excess(m: float) -> float:
        """In octaves."""
        error = analysis.expected_error(analysis.unit / m)
        return math.log2(error / wanted) / 2 if min(error, wanted) > 0 else error - wanted

    # The error grows with the step, so look for the largest multiplier that is good enough.
    return 1 / math.exp2(_crossing(excess, -_COARSEST, -_FINEST, -_FIRST))
