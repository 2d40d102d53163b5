"""What is asked of the choice of structure and transform, and what a way of coding costs by it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from rbe_cli import metrics
from rbe_cli.codec.residual import tables
from rbe_cli.codec.residual.analysis import Analysis
from rbe_cli.codec.residual.forecast import Forecast, multiplier_for_error, multiplier_for_size
from rbe_cli.codec.structure.low_rank_codec import MOST_COMPONENTS

#: Below this many bits per weight `auto` also looks at low rank without a coded residual.
FEW_BITS = 1.0
#: Below this many bits the trellis coder's forecast is too kind: it keeps this share of the energy it says it will
#: (0.88 to 0.95 on MiniLM's matrices).
_KIND_BELOW, _KINDNESS = 0.6, 0.9
#: How many times finer or coarser steps may turn out than was thought before structures are chosen anew, and how often
#: they are chosen at most.
OTHERWISE, LOOKS = 1.4, 5
#: Relative error of Gaussian weights over Shannon's 2^-bits: the trellis the tables are for, of 64 states, is 0.32 dB
#: above it.
_ABOVE_SHANNON = 1.038
#: Relative error to compare pipelines at, at most and at least: that of 64 bits, as many as a weight can have.
_MOST_ERROR, _LEAST_ERROR = 0.98, 2.0**-64


@dataclass(frozen=True)
class Wish:
    """What is asked of the choice.

    Attributes
    ----------
    transform : str
        One of `parameters.CHOICES`.
    block, levels : int
        For `dct` and `dwt`.
    nrmse : float
        The relative error to compare at, about the one that will be.
    bits : float
        Bits per weight to compare at, without a coded residual.
    structure_only : bool
        No coded residual.
    threshold : float
        Coefficients below this times the RMS are not stored.
    rank : int
        Components of a low rank without a coded residual, at most.
    """

    transform: str
    block: int
    levels: int
    nrmse: float
    bits: float = 4.0
    structure_only: bool = False
    threshold: float = 0.0
    rank: int = MOST_COMPONENTS

    @property
    def step(self) -> float:
        """The step with which a matrix of Gaussian weights has the error, in units of their scale."""
        return tables.family(0).step_at(self.nrmse)

    @property
    def rate(self) -> float:
        """Bits per weight that such a matrix takes at the error, about."""
        return math.log2(_ABOVE_SHANNON / self.nrmse)

    def at_step(self, step: float) -> Wish:
        """The same for a step that turned out to be another one."""
        return replace(self, nrmse=min(tables.family(0).error_at(step), _MOST_ERROR))


def cost_of(analysis: Forecast, wish: Wish, elements: int) -> float:
    """What a way of coding so many elements costs, in dB: of size at the wish's error, or of error at the wish's size.

    The two are the same at all but low rates, where the size counts: the wish's error says little there.
    """
    if wish.bits >= FEW_BITS:
        size = analysis.expected_bytes(multiplier_for_error(analysis, wish.nrmse) * analysis.unit)
        misfit = analysis.misfit() if isinstance(analysis, Analysis) else 0.0
        return metrics.DB_PER_BIT * (8 * size / elements + misfit)
    step = multiplier_for_size([analysis], wish.bits * elements / 8) * analysis.unit
    if analysis.expected_bytes(step) > wish.bits * elements / 8:
        return math.inf
    error = min(analysis.expected_error(step) / analysis.energy, 1.0)
    if isinstance(analysis, Analysis) and wish.bits < _KIND_BELOW:
        error = 1 - _KINDNESS * (1 - error)
    return 10 * math.log10(max(error, 1e-30))


def reference_error(bits: float | None, nrmse: float | None) -> float:
    """The relative error to compare pipelines at, from what is asked of a tensor.

    >>> round(reference_error(4.0, None), 4)
    0.0649
    """
    if nrmse is not None:
        return nrmse
    return min(max(math.exp2(-(bits or 4.0)) * _ABOVE_SHANNON, _LEAST_ERROR), _MOST_ERROR)
