"""Rate control: encode, measure, correct the step multiplier, until the size or the error is what was asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from rbe_cli.codec.residual.forecast import Expected, expected_size, multiplier_for_error, multiplier_for_size

#: A result may be this much smaller than what was asked, relative, unless somebody wants it nearer.
TOLERANCE = 0.004
#: Where a pass aims: a little below the wish, since above is not allowed.
AIM = 0.9985
#: Times something is encoded to meet a goal, at most.
MAX_PASSES = 12
#: How many times coarser one goes on where all that was tried was too large.
_FAR_COARSER = 4.0
#: Least relative error that is told from none, and octaves between two multipliers that are as good as one.
_LEAST, _NO_MORE = 1e-9, 1e-7
#: After so many equal figures larger steps are taken.
_STILL = 4


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

    def coarser(self) -> bool:
        """Go on at far coarser steps where nothing was within the budget though something may be; whether that is so.

        Where the size hardly changes, one comes no nearer by what is left to go.
        """
        if self.best is not None or self.least() > self._budget:
            return False
        self.multiplier = _FAR_COARSER * self._over
        return True

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
