"""One tensor, whole: choose structure and transform, then code what is left; and the way back.

prepare     -> Choice (the analysis of the best pipeline, what it gains, and the runner-up)
open_tensor -> TileDecoder, the weights of any tile
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rbe_cli import dtypes, metrics
from rbe_cli.codec.analysis import Analysis, analyse
from rbe_cli.codec.parameters import SIZE, Parameters
from rbe_cli.codec.pipeline import KLT_COLUMNS, Piped, Pipeline, encode_basis
from rbe_cli.codec.rate_control import multiplier_for_error
from rbe_cli.codec.source import Matrix
from rbe_cli.codec.structure import fit_low_rank
from rbe_cli.codec.tiles import LONG_ROW, Grid, Tile
from rbe_cli.codec.trellis_codec import ValueDecoder, open_values
from rbe_cli.errors import Damage

#: What a user may ask for; `auto` chooses.
CHOICES = ("auto", "none", "dct", "dwt", "klt", "lowrank")
#: Structure and transform have to save this share of the size to be chosen: they cost time to decode.
_WORTH = 0.005
#: Largest matrix whose low rank is looked for, in elements: it has to be in memory as a whole.
_LOW_RANK_ELEMENTS = 1 << 26
_SAMPLE_ROWS = 2048


@dataclass(frozen=True)
class Choice:
    """How a tensor is coded.

    Attributes
    ----------
    analysis : Analysis
    name : str
        Of the pipeline: one of CHOICES but `auto`.
    gain_db : float
        What it saves against `none`, as dB at the same size.
    runner_up : str
        The best of the others that were tried, empty if none was.
    runner_up_db : float
        What that one would gain.
    """

    analysis: Analysis
    name: str = "none"
    gain_db: float = 0.0
    runner_up: str = ""
    runner_up_db: float = 0.0


@dataclass(frozen=True)
class Wish:
    """What is asked of the choice.

    Attributes
    ----------
    transform : str
        One of CHOICES.
    block, levels : int
        For `dct` and `dwt`.
    nrmse : float
        The relative error to compare at, about the one that will be.
    """

    transform: str
    block: int
    levels: int
    nrmse: float


def prepare(matrix: Matrix, row_shaping: int, column_shaping: int, shape_unit: bool, wish: Wish) -> Choice | None:
    """Choose how to code a matrix; None if it must be kept exactly (see `analyse`).

    A named transform is obeyed. `auto` takes what needs the fewest bytes at the wish's error. Where the error is
    shaped, which happens in the domain of the weights, `auto` looks at low rank only.
    """
    shaped = bool(row_shaping or column_shaping)
    if wish.transform not in ("auto", "none") and wish.transform != "lowrank":
        row_shaping = column_shaping = 0
    plain = analyse(matrix, row_shaping, column_shaping, shape_unit)
    if plain is None:
        return None
    names = candidates(matrix, shaped) if wish.transform == "auto" else [wish.transform]
    size = _expected(plain, wish.nrmse)
    found: list[tuple[float, str, Analysis]] = [(size, "none", plain)]
    for name in names:
        if name == "none" or (wish.transform == "auto" and not _promising(matrix, name, wish)):
            continue
        pipeline = _pipeline(matrix, name, wish)
        analysis = analyse(Piped(matrix, pipeline), row_shaping, column_shaping, shape_unit) if pipeline else None
        if analysis is not None:
            # The unit is a property of the tensor, not of how it is coded: the same multiplier, the same error.
            analysis = analysis.of_tensor(plain)
            found.append((_expected(analysis, wish.nrmse), name, analysis))
    if wish.transform not in ("auto", "none") and len(found) > 1:
        found = [found[1], found[0]]
    else:
        found.sort(key=lambda item: item[0] * (1 if item[1] == "none" else 1 + _WORTH))

    def gain(item: tuple[float, str, Analysis]) -> float:
        return metrics.DB_PER_BIT * 8 * (size - item[0]) / (matrix.rows * matrix.columns)

    best = found[0]
    if len(found) == 1:
        return Choice(best[2])
    return Choice(best[2], best[1], gain(best), found[1][1], gain(found[1]))


def candidates(matrix: Matrix, shaped: bool) -> list[str]:
    """What is worth a closer look for a matrix of this shape."""
    rows, columns = matrix.rows, matrix.columns
    names = []
    if min(rows, columns) >= 16 and rows * columns <= _LOW_RANK_ELEMENTS:
        names.append("lowrank")
    if shaped or columns > LONG_ROW or min(rows, columns) < 16:
        return names
    if columns <= KLT_COLUMNS and rows >= 8 * columns:
        names.append("klt")
    return [*names, "dct", "dwt"]


def _expected(analysis: Analysis, nrmse: float) -> float:
    return analysis.expected_bytes(multiplier_for_error(analysis, nrmse) * analysis.unit)


def _promising(matrix: Matrix, name: str, wish: Wish) -> bool:
    """For the blockwise transforms, try some rows first: on most matrices they gain nothing."""
    if name not in ("dct", "dwt") or matrix.rows <= _SAMPLE_ROWS // 2:
        return True
    top = (matrix.rows - _SAMPLE_ROWS // 2) // 2 // wish.block * wish.block
    bottom = min(top + _SAMPLE_ROWS // 2, matrix.rows)
    part = np.ascontiguousarray(matrix.band(top, bottom))
    sample = Matrix(part.view(np.uint8).ravel(), "F32", bottom - top, matrix.columns)
    plain = analyse(sample, 0, 0, False)
    other = analyse(Piped(sample, Pipeline.of(None, name, wish.block, wish.levels, matrix.columns)), 0, 0, False)
    if plain is None or other is None:
        return True
    return _expected(other.of_tensor(plain), wish.nrmse) < _expected(plain, wish.nrmse)


def _pipeline(matrix: Matrix, name: str, wish: Wish) -> Pipeline | None:
    if name == "lowrank":
        structure = fit_low_rank(matrix.band(0, matrix.rows))
        return Pipeline.of(structure, "none", 0, 0, matrix.columns) if structure else None
    if name == "klt":
        basis = encode_basis(matrix) if matrix.columns <= KLT_COLUMNS else None
        return Pipeline.of(None, "klt", 0, 0, matrix.columns, basis) if basis else None
    return Pipeline.of(None, name, wish.block, wish.levels, matrix.columns)


class TileDecoder:
    """Turns the streams of one tensor's tiles back into weights.

    Attributes
    ----------
    parameters : Parameters
    """

    def __init__(self, values: ValueDecoder, pipeline: Pipeline | None) -> None:
        self._values = values
        self._pipeline = pipeline
        self.parameters = values.parameters

    def decode(self, stream: bytes, tile: Tile) -> NDArray[np.float32]:
        """Weights of a tile, float32[rows, columns], good until this thread's next call. Raises Damage."""
        values = self._values.values(stream, tile)
        return values if self._pipeline is None else self._pipeline.inverse(values, tile.top)


def open_tensor(first_chunk: bytes, shape: tuple[int, ...]) -> tuple[TileDecoder, Grid]:
    """Read a tensor's first chunk: its decoder and the grid of its tiles. Raises Damage."""
    parameters = Parameters.unpack(first_chunk, dtypes.count(shape))
    values = open_values(first_chunk, parameters)
    rest = first_chunk[SIZE + parameters.row_bytes + parameters.column_bytes :]
    if not (parameters.structure or parameters.transform):
        if rest:
            raise Damage("side information is too long")
        return TileDecoder(values, None), parameters.grid
    with np.errstate(all="ignore"):
        return TileDecoder(values, Pipeline.unpack(parameters, rest)), parameters.grid


def reference_error(bits: float | None, nrmse: float | None) -> float:
    """The relative error to compare pipelines at, from what is asked of a tensor.

    >>> round(reference_error(4.0, None), 4)
    0.0649
    """
    if nrmse is not None:
        return nrmse
    return min(math.exp2(-(bits or 4.0)) * 1.038, 0.98)
