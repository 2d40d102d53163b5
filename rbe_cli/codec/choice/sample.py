"""Some rows of a tensor, to be coded for a forecast where the tables alone tell too little."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import replace

import numpy as np

from rbe_cli.codec.residual import tables
from rbe_cli.codec.residual.analysis import Analysis, Corrections
from rbe_cli.codec.residual.scale_field import encode_axis, inverse_power
from rbe_cli.codec.residual.trellis_codec import GROUP, Encoding
from rbe_cli.codec.source import Matrix
from rbe_cli.codec.tiles import TILE
from rbe_cli.codec.workspace import Findings, Inline
from rbe_cli.kernels.rans import LANES

#: Bits per weight below which single weights matter more than the tables know; where no table knows their distribution;
#: and for a matrix of up to so many elements, of which there are too few to be like the tables' (and which takes no
#: time).
_FEW_BITS, _FEW_BITS_OF_ODD, _FEW_BITS_OF_SMALL, _SMALL = 0.7, 1.6, 2.2, 1 << 16
#: How far the mean magnitude, against the root mean square, may be from that of a distribution that is known, relative.
_LIKE = 0.04
#: Bits of a weight below which it is coded worse than the tables say if most of those it is coded between are larger,
#: and the share of such weights from which on that counts.
_SMALL_BITS, _SMALL_SHARE = 1.0, 0.15
#: Share of zeros, in rows and columns that are not all zero, from which on weights have no distribution that the tables
#: know: they were pruned.
_PRUNED = 0.01
#: And how far off the step may be that is forecast before it is known, in octaves: about so many bits per weight.
_MARGIN = 0.2
#: Elements that are kept, at most.
_MOST = 1 << 22
#: Elements of a tile of a sample, at least.
_TILE = 1 << 14
#: Octaves between two steps that are as good as one.
_SAME_STEP = 0.05


class Sample:
    """Some rows of a tensor, as they look through its pipeline, and what is known of all of them.

    Parameters
    ----------
    analysis : Analysis
        Of these rows, of which it has the values.
    raised : Analysis
        The same at the level of all rows.
    states : int
        Of the trellis.
    few : float
        Bits per weight below which coding tells more than the tables.
    """

    def __init__(self, analysis: Analysis, raised: Analysis, states: int, few: float) -> None:
        self._values = Findings(analysis.matrix.some(np.arange(analysis.matrix.rows)))
        # Coded values are compared in float32.
        self._analysis = replace(analysis, matrix=raised.matrix, rounding=None)
        self._raised = raised
        self._states = states
        #: Of every coding: the logarithm of its step, and what size and error were of what the tables say.
        self._found: list[tuple[float, float, float]] = []
        self._few = few

    @classmethod
    def of(cls, analysis: Analysis, raised: Analysis, states: int, step: float) -> Sample | None:
        """Rows that may be worth keeping: at a step that is not quite known yet they may want to be coded."""
        if analysis.matrix.rows * analysis.matrix.columns > _MOST:
            return None
        coarse = step * 2.0**_MARGIN
        if _is_pruned(analysis):
            few = math.inf
        elif raised.matrix.rows * raised.matrix.columns <= _SMALL:
            few = _FEW_BITS_OF_SMALL
        elif _are_few(raised, coarse, _FEW_BITS_OF_ODD) and _is_odd(analysis):
            few = _FEW_BITS_OF_ODD
        else:
            few = _FEW_BITS
        return cls(analysis, raised, states, few) if _are_few(raised, coarse, few) else None

    def set_aside(self) -> None:
        """Put by what grows with the tensor. Raises RBEError if there is no room for it."""
        self._values.set_aside()
        self._analysis.set_aside()
        self._raised.set_aside()

    def of_tensor(self, plain: Analysis) -> Sample:
        """The same, of the difference of a tensor to its base: errors are the tensor's, of which `plain` is."""
        sample = copy(self)
        sample._raised = self._raised.of_tensor(plain)
        return sample

    def wants(self, step: float) -> bool:
        """Whether coding the rows at a step would tell more than is known."""
        if self._found:
            return min(abs(math.log2(step) - octave) for octave, _, _ in self._found) > _SAME_STEP
        return _are_few(self._raised, step, self._few)

    def coded(self, step: float) -> Analysis:
        """What is known of all rows, corrected by what the coder makes of some at a step, and made at others."""
        # Where these rows are of the same classes as all are at the step.
        own_step = step * math.exp2((self._analysis.first_offset - self._raised.first_offset) / 8)
        (values,) = self._values.arrays()
        analysis = replace(self._analysis, matrix=Matrix.of(values))
        # As many tiles as are searched side by side: in the time of one.
        tile = min(TILE, max(_TILE, values.size // GROUP + 1))
        encoding = Encoding(analysis, own_step, self._states, Inline(), tile)
        result = encoding.result()
        bits = 8 * sum(len(chunk) - 4 * LANES for chunk in result.chunks[1:])
        size = bits / (analysis.symbol_bits(own_step) * analysis.share)
        error = result.squared_error / (analysis.expected_error(own_step) * analysis.share)
        scales = (encoding.parameters.row_bytes - len(encode_axis(analysis.field.rows))) / analysis.share
        self._found = sorted([*self._found, (math.log2(step), size, error)])
        corrections = Corrections(*zip(*self._found, strict=True))
        return replace(self._raised, corrections=corrections, side_bytes=self._raised.side_bytes + scales)


def _are_few(analysis: Analysis, step: float, few: float) -> bool:
    """Whether bits at a step are so few, of all weights or of many, that the tables do not tell what they are."""
    bits = analysis.symbol_bits(step) / (analysis.matrix.rows * analysis.matrix.columns)
    return bits < few or analysis.share_below(_SMALL_BITS, step) > _SMALL_SHARE


def _is_odd(analysis: Analysis) -> bool:
    """Whether weights, in units of their scales, are like no distribution the tables know."""
    field = analysis.field
    w = analysis.matrix.some(np.arange(analysis.matrix.rows))
    rows, columns = inverse_power(field.rows), inverse_power(field.columns)
    square = float(rows @ np.square(w) @ columns) * np.count_nonzero(rows) * np.count_nonzero(columns)
    mean = float(np.sqrt(rows) @ np.abs(w) @ np.sqrt(columns))
    known = tables.magnitude(analysis.family, 1)
    return bool(square > 0 and abs(mean / math.sqrt(square) / known - 1) > _LIKE)


def _is_pruned(analysis: Analysis) -> bool:
    if not isinstance(analysis.matrix, Matrix):
        return False
    live = float(analysis.elements.sum())
    return bool(live - np.count_nonzero(analysis.matrix.whole()) > _PRUNED * live)
