"""Bounds a user sets on figures, and which of them were kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rbe_cli.errors import OverBudget


@dataclass(frozen=True)
class Budget:
    """One bound.

    Attributes
    ----------
    option : str
        As on the command line, `--max-kl`; `--max-` bounds from above, `--min-` from below.
    bound, figure : float
    """

    option: str
    bound: float
    figure: float

    @property
    def kept(self) -> bool:
        """Whether the figure is within the bound; a figure that is not a number never is.

        >>> Budget("--max-kl", 0.1, 0.1).kept, Budget("--min-top1", 0.9, 0.8).kept
        (True, False)
        """
        if math.isnan(self.figure):
            return False
        return self.figure >= self.bound if self.option.startswith("--min-") else self.figure <= self.bound

    @property
    def verdict(self) -> str:
        """`kept` or `over`, `under`."""
        if self.kept:
            return "kept"
        return "under" if self.option.startswith("--min-") else "over"


def check(path: str, budgets: Sequence[Budget]) -> None:
    """Raise OverBudget naming every broken bound with its figure."""
    broken = [f"{b.option} {b.bound:g} (is {b.figure:.5g})" for b in budgets if not b.kept]
    if broken:
        raise OverBudget(f"{path}: broken budget: " + ", ".join(broken))
