"""Rate control: the one step multiplier with which everything together is as large, or as exact, as was asked.

Every tensor's step is the multiplier times its own unit (`Analysis.unit`). The forecast comes from the scale classes
without encoding; what a pass of the encoder then measures corrects it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import numpy as np

from rbe_cli.codec.source import Domain

if TYPE_CHECKING:
    from rbe_cli.codec.residual.analysis import Analysis

#: A result may be this much smaller than what was asked, relative, unless somebody wants it nearer.
TOLERANCE = 0.004
#: Where a pass aims: a little below the wish, since above is not allowed.
AIM = 0.9985
#: Times something is encoded to meet a goal, at most.
MAX_PASSES = 12
#: The multipliers that are looked at, in octaves, and where one begins.
_FINEST, _COARSEST, _FIRST = -26.0, 8.0, -2.0
#: Least relative error that is told from none, and octaves between two multipliers that are as good as one.
_LEAST, _NO_MORE = 1e-9, 1e-7
#: After so many equal figures larger steps are taken.
_STILL = 4
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


class Measured(Protocol):
    """What the encoder tells of a tensor it has encoded.

    Attributes
    ----------
    squared_error : float
        Sum over the weights.
    size : int
        Bytes.
    """

    @property
    def squared_error(self) -> float: ...  # noqa: D102
    @property
    def size(self) -> int: ...  # noqa: D102


Result = TypeVar("Result", bound=Measured)


class _Point(NamedTuple):
    """A multiplier that was tried, what it gave, and whether that is within the goal."""

    multiplier: float
    figure: float
    within: bool


class OwnGoal:
    """What is asked of one tensor for itself: a relative error, or a size, which no result may exceed.

    Parameters
    ----------
    analysis : Expected
    elements : int
    kind : str
        `nrmse` or `bits`.
    value : float
        Relative error, or bits per weight.
    tolerance : float
        How much less than that is near enough, relative.
    """

    def __init__(
        self, analysis: Expected, elements: int, kind: str, value: float, tolerance: float = TOLERANCE
    ) -> None:
        self._analysis = analysis
        self._error = kind == "nrmse"
        self._value = value
        self._tolerance = tolerance
        self._elements = elements

    def first(self) -> float:
        """The multiplier to begin with."""
        if self._error:
            return multiplier_for_error(self._analysis, self._aim)
        return multiplier_for_size([self._analysis], self._value * self._elements / 8 * AIM)

    def meet(self, multiplier: float, first: Result, encode: Callable[[float], Result | None]) -> Result | None:
        """Encode again until the goal is met, or just so; None if only exact will do.

        `first` is what `multiplier` gave; `encode` gives the result of another one, or None where there is none.
        """
        best: Result | None = None
        most = -math.inf
        tried: list[_Point] = []
        result: Result | None = first
        while result is not None:
            figure = self._figure(result)
            if figure == most:
                # Nothing more is left to be saved.
                break
            if most < figure <= self._value:
                best, most = result, figure
            tried.append(_Point(multiplier, figure, figure <= self._value))
            if self._close(figure) or len(tried) >= (2 * MAX_PASSES if best is None else MAX_PASSES):
                break
            following = self._following(tried)
            if abs(math.log2(following / multiplier)) < _NO_MORE:
                break
            multiplier = following
            result = encode(multiplier)
        return best

    def _following(self, tried: Sequence[_Point]) -> float:
        """Next multiplier after some.

        Between the last that met the goal and the last that did not: by the secant, or in the middle if the last three
        were on the same side. If all were on one side, on by what the figure still has to go, and further if it moved
        less than the multiplier did.
        """
        last = tried[-1]
        other = next((point for point in reversed(tried) if point.within != last.within), None)
        to_go = self._octaves(self._aim) - self._octaves(last.figure)
        if other is not None:
            part = 0.5
            if not all(point.within == last.within for point in tried[-3:]):
                part = to_go / (self._octaves(other.figure) - self._octaves(last.figure))
                part = min(max(part, 0.05), 0.95)
            return last.multiplier * math.pow(other.multiplier / last.multiplier, part)
        moved = 1.0
        if len(tried) > 1:
            moved = self._octaves(last.figure) - self._octaves(tried[-2].figure)
            moved /= math.log2(last.multiplier / tried[-2].multiplier)
            still = len(tried) >= _STILL and all(point.figure == last.figure for point in tried[-_STILL:])
            if still and self._error and not last.within:
                # Nothing is coded: what there is to go does not tell how far that goes on.
                return last.multiplier * math.exp2(math.copysign(1.0, to_go))
        return last.multiplier * math.exp2(min(max(to_go / min(max(moved, 0.1), 1.0), -1.0), 1.0))

    def _octaves(self, figure: float) -> float:
        """What grows with the logarithm of the multiplier, about as much: an octave of it is one of error, or a bit."""
        return math.log2(max(figure, _LEAST)) if self._error else -figure

    @property
    def _aim(self) -> float:
        """An error in the middle of what is near enough, so that one pass mostly will do; a size close to the goal."""
        return self._value * (1 - self._tolerance / (2 if self._error else 8))

    def _figure(self, result: Measured) -> float:
        """What was measured of the figure the goal is about."""
        if self._error:
            return math.sqrt(result.squared_error / self._analysis.energy)
        return 8 * result.size / self._elements

    def _close(self, figure: float) -> bool:
        """Whether a figure is within what was asked, and close to it."""
        return self._value * (1 - self._tolerance) <= figure <= self._value


class SizeSearch:
    """The multiplier with which everything takes a given size: forecast, measure, correct.

    Parameters
    ----------
    analyses : sequence of Expected
        Of the tensors that share the multiplier.
    budget : float
        Bytes everything may take.
    overhead : float
        A guess at the bytes of everything else; what is measured replaces it.
    tolerance : float
        How much smaller is near enough, relative.

    Attributes
    ----------
    multiplier : float
        The next to try.
    best : (int, float) or None
        Size and multiplier of the best measured so far that is within the budget.
    """

    def __init__(self, analyses: Sequence[Expected], budget: float, overhead: float, tolerance: float) -> None:
        self._analyses = analyses
        self._budget = budget
        self._tolerance = tolerance
        self._over, self._under = 0.0, math.inf
        self._scales: dict[float, float] = {}
        self.best: tuple[int, float] | None = None
        self._last = 0, 0, 0.0
        self.multiplier = multiplier_for_size(analyses, budget * AIM - overhead)

    def found(self, size: int) -> bool:
        """Whether a size is within the budget, and close to it."""
        return self._budget * (1 - self._tolerance) <= size <= self._budget

    def least(self) -> float:
        """About the least size there is, by what was measured last."""
        size, shares, tried = self._last
        if not shares:
            return size
        scale = shares / expected_size(self._analyses, tried)
        coarsest = multiplier_for_size(self._analyses, 0)
        return size - shares + min(scale * expected_size(self._analyses, coarsest), shares)

    def measured(self, size: int, shares: int) -> bool:
        """Take in what `multiplier` gave: the whole size, and the part that depends on it.

        Returns False when there is nothing better left to try.
        """
        tried = self.multiplier
        same_side = (size > self._budget) == (self._last[0] > self._budget)
        self._last = size, shares, tried
        if size > self._budget:
            self._over = max(self._over, tried)
        else:
            self._under = min(self._under, tried)
            if self.best is None or size > self.best[0]:
                self.best = size, tried
        room = self._budget * (1 - self._tolerance / 4) - (size - shares)
        if not shares or room <= 0:
            return False
        self._scales[tried] = shares / expected_size(self._analyses, tried)
        following = multiplier_for_size(self._analyses, room, self._scale)
        between = self._between
        # The size is no smooth function where few weights are sent at all: close in from both sides.
        if not between and not self._over < following < self._under:
            following = tried * (1.1 if size > self._budget else 1 / 1.1)
        if between and (not self._over < following < self._under or same_side):
            following = math.sqrt(self._over * self._under)
        self.multiplier = following
        if not between:
            return True
        # At most a bit per octave and weight: if what lies between makes no difference, the size jumps there.
        weights = sum(analysis.matrix.rows * analysis.matrix.columns for analysis in self._analyses)
        return math.log2(self._under / self._over) * weights / 8 > self._budget * self._tolerance / 4

    @property
    def _between(self) -> bool:
        """Whether something was measured on both sides of the budget."""
        return self._over > 0 and math.isfinite(self._under)

    def _scale(self, multiplier: float) -> float:
        """What was measured over what was forecast: the last, or between those on both sides of the budget."""
        if not self._between:
            return self._scales[self._last[2]]
        sides = self._over, self._under
        scales = [math.log2(self._scales[side]) for side in sides]
        return math.exp2(float(np.interp(math.log2(multiplier), np.log2(sides), scales)))
