"""The search for the steps that structure is chosen for: those that it then leaves the bytes for."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rbe_cli.codec.tensor_codec import Choice
from rbe_cli.operations.plan import Plan

#: How many octaves finer than was thought steps are believed to turn out.
_MOST_OCTAVES = 20.0
#: More octaves coarser are not believed, but so many gone: structure takes about all the bytes there are.
_MOST_BACK, _BACK = 4.0, 2.0


class Looks:
    """The structures that were chosen for some steps, and which of them leave room for the finest."""

    def __init__(self) -> None:
        self._best: tuple[float, list[tuple[Plan, Choice | None]]] = (math.inf, [])
        self._coarse, self._fine = -math.inf, math.inf

    def __bool__(self) -> bool:
        return bool(self._best[1])

    def add(self, multiplier: float, plans: Sequence[Plan]) -> None:
        """Note what is chosen for plans, with which they have steps of this multiplier at the size asked for."""
        if multiplier <= self._best[0]:
            self._best = multiplier, [(plan, plan.choice) for plan in plans]

    def next(self, thought: float, octaves: float) -> float:
        """How many times finer steps to think of after those `thought` times as fine turned out `octaves` finer.

        Between those that turned out finer and coarser: structure for far too fine steps takes all the bytes there are.
        """
        at = math.log2(thought)
        if octaves > 0:
            self._coarse = max(self._coarse, at)
        else:
            self._fine = min(self._fine, at)
        to = at + (min(octaves, _MOST_OCTAVES) if octaves >= -_MOST_BACK else -_BACK)
        return math.exp2(to if self._coarse < to < self._fine else (self._coarse + self._fine) / 2)

    def take_best(self) -> None:
        """Have the plans what was best for them."""
        for plan, choice in self._best[1]:
            plan.choice = choice
