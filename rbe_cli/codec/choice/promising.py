"""What of structures and transforms is worth a closer look: by a matrix' shape, and by first guesses at some blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rbe_cli import metrics
from rbe_cli.codec.choice.wish import Wish, cost_of
from rbe_cli.codec.residual.analysis import Analysis, analyse
from rbe_cli.codec.source import Matrix
from rbe_cli.codec.structure.pipeline import ROWS_PER_KLT_COLUMN, Piped, Pipeline
from rbe_cli.codec.structure.transform import Blockwise
from rbe_cli.codec.tiles import LONG_ROW

#: Largest matrix whose low rank is looked for, in elements: it has to be in memory as a whole.
_LOW_RANK_ELEMENTS = 1 << 25
#: Elements of the sample the blockwise transforms are tried on, about.
_BLOCKWISE_SAMPLE = 1 << 15
#: Widest matrix that `auto` tries a Karhunen-Loeve basis on: it takes an encoder minutes for one of 4096 columns, and a
#: decoder so long that it would have to gain 13 dB.
_KLT_COLUMNS = 1024
#: A first guess of what a blockwise transform gains is good to so many dB; above its price by so many, it needs no
#: closer look.
_GUESS, _CLEARLY = 0.15, 3.0


def candidates(matrix: Matrix, shaped: bool) -> list[str]:
    """What is worth a closer look for a matrix of this shape."""
    rows, columns = matrix.rows, matrix.columns
    names = []
    if min(rows, columns) >= 16 and rows * columns <= _LOW_RANK_ELEMENTS:
        names.append("lowrank")
    if shaped or columns > LONG_ROW or min(rows, columns) < 16:
        return names
    if columns <= _KLT_COLUMNS and rows >= ROWS_PER_KLT_COLUMN * columns:
        names.append("klt")
    return [*names, "dct", "dwt"]


def promising(matrix: Matrix, names: Sequence[str], wish: Wish) -> list[str]:
    """What of `names` is worth a closer look.

    The blockwise transforms are tried on some blocks of the middle first: on most matrices they gain nothing.
    """
    blockwise = [name for name in names if name in ("dct", "dwt")]
    if not blockwise:
        return list(names)
    part = _middle(matrix, wish)
    sample, scale = Matrix.of(part), mean_scale(part)
    plain: Analysis | None = None

    def gains(name: str) -> bool:
        nonlocal plain
        pipeline = Pipeline.of(None, name, wish.block, wish.levels, part.shape[1])
        # Half the price: a sample may be unlucky.
        price = pipeline.decode_cost / 2
        guess = guessed_gain(part, scale, pipeline)
        if guess < price - _GUESS:
            return False
        if price + _CLEARLY < guess < math.inf:
            return True
        plain = plain or analyse(sample)
        if plain is None:
            return True
        with Piped(sample, pipeline).held() as piped:
            other = analyse(piped)
        elements = part.size
        return other is None or cost_of(other.of_tensor(plain), wish, elements) + price < cost_of(plain, wish, elements)

    return [name for name in names if name not in blockwise or gains(name)]


def _middle(matrix: Matrix, wish: Wish) -> NDArray[np.float32]:
    """Some blocks of the middle, side by side, that the blockwise transforms are tried on."""
    top = max(matrix.rows - wish.block, 0) // 2 // wish.block * wish.block
    band = matrix.band(top, min(top + wish.block, matrix.rows))
    return np.ascontiguousarray(band[:, : max(_BLOCKWISE_SAMPLE // wish.block, wish.block)])


def guessed_gain(part: NDArray[np.float32], scale: float, pipeline: Pipeline) -> float:
    """About what a blockwise transform gains on some blocks, in dB: the change of their `mean_scale`, now `scale`."""
    assert isinstance(pipeline.transform, Blockwise)
    gain = scale - mean_scale(pipeline.transform.roughly(part))
    return metrics.DB_PER_BIT * gain if math.isfinite(gain) else math.inf


def mean_scale(x: NDArray[np.float32]) -> float:
    """Mean logarithm, in octaves, of the scales of rows and columns."""
    with np.errstate(all="ignore"):
        squares = np.square(x)
        rows = squares @ np.full(x.shape[1], 1 / x.shape[1], np.float32)
        columns = (1 / rows) @ squares / np.float32(len(x))
        return float(np.log2(rows).mean() + np.log2(columns).mean()) / 2
