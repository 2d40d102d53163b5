"""One tensor, whole: choose structure and transform, then code what is left; and the way back.

prepare     -> Choice (the analysis of the best pipeline, what it gains, and the runner-up)
start       -> the encoding of a choice with a step
open_tensor -> TileDecoder, the weights of any tile
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rbe_cli import dtypes, metrics
from rbe_cli.codec.analysis import Analysis, analyse
from rbe_cli.codec.low_rank_codec import (
    MOST_COMPONENTS,
    LowRankAnalysis,
    LowRankDecoder,
    LowRankEncoding,
    open_low_rank,
)
from rbe_cli.codec.noise_shaping import Shaping
from rbe_cli.codec.parameters import Parameters
from rbe_cli.codec.pipeline import KLT_COLUMNS, Piped, Pipeline, encode_basis
from rbe_cli.codec.rate_control import Forecast, multiplier_for_error, multiplier_for_size
from rbe_cli.codec.source import Matrix
from rbe_cli.codec.sparse_codec import SparseAnalysis, SparseDecoder, SparseEncoding, open_sparse, sparse_form
from rbe_cli.codec.structure import fit_low_rank
from rbe_cli.codec.tiles import LONG_ROW, Grid, Tile
from rbe_cli.codec.trellis_codec import Encoding, ValueDecoder, open_values
from rbe_cli.codec.workspace import whole_matrices
from rbe_cli.errors import Damage

#: Structure and transform have to gain so many dB to be chosen, beside what their time to decode is worth:
#: forecasts are good to about that.
_WORTH = 0.01
#: Largest matrix whose low rank is looked for, in elements: it has to be in memory as a whole.
_LOW_RANK_ELEMENTS = 1 << 25
#: Elements of the sample the blockwise transforms are tried on, about.
_SAMPLE = 1 << 16
#: Below this many bits per weight `auto` also looks at low rank without a coded residual.
_FEW_BITS = 1.0
#: Below this many bits the trellis coder's forecast is too kind: it keeps this share of the energy it says it will
#: (0.88 to 0.95 on MiniLM's matrices).
_KIND_BELOW, _KINDNESS = 0.6, 0.9
#: The name of that choice.
FACTORS = "lowrank only"


@dataclass(frozen=True)
class Choice:
    """How a tensor is coded.

    Attributes
    ----------
    analysis : Forecast
    codec : str
        In which the layer file holds it: `trellis`, or without a coded residual `sparse` or `lowrank`.
    name : str
        Of the pipeline: one of `parameters.CHOICES` but `auto`, or FACTORS.
    gain_db : float
        What it saves against `none`, as dB at the same size.
    runner_up : str
        The best of the others that were tried, empty if none was.
    runner_up_db : float
        What that one would gain.
    """

    analysis: Forecast
    codec: str = "trellis"
    name: str = "none"
    gain_db: float = 0.0
    runner_up: str = ""
    runner_up_db: float = 0.0


class _Candidate(NamedTuple):
    """A way of coding, what it costs in dB (see `_cost`), and that with what its time to decode is worth."""

    name: str
    analysis: Forecast
    cost: float
    price: float


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


def prepare(matrix: Matrix, shaping: Shaping, wish: Wish) -> Choice | None:
    """Choose how to code a matrix; None if it must be kept exactly (see `analyse`).

    A named transform is obeyed. `auto` takes what needs the fewest bytes at the wish's error, the time to decode
    weighed in (`rbe_cli.codec.decode_cost`). Where the error is shaped, which happens in the domain of the weights, it
    looks at low rank only.
    """
    shaped = shaping.shaped
    if wish.transform in ("dct", "dwt", "klt"):
        shaping = Shaping(geometric=shaping.geometric)
    plain = analyse(matrix, shaping)
    if plain is None:
        return None
    if wish.structure_only:
        return _prepare_structure(matrix, plain, wish)
    names = [wish.transform]
    if wish.transform == "auto":
        names = _promising(matrix, candidates(matrix, shaped), wish)
    reference = _cost(plain, wish)
    found = [_Candidate("none", plain, reference, reference)]
    for name in names:
        if name == "none":
            continue
        pipeline = _pipeline(matrix, name, wish)
        if pipeline is None:
            continue
        with Piped(matrix, pipeline).held() as piped:
            analysis = analyse(piped, shaping)
        if analysis is not None:
            # The unit is a property of the tensor, not of how it is coded: the same multiplier, the same error.
            analysis = analysis.of_tensor(plain)
            cost = _cost(analysis, wish)
            found.append(_Candidate(name, analysis, cost, cost + _WORTH + pipeline.decode_cost))
    if wish.transform == "auto" and wish.bits < _FEW_BITS and min(matrix.rows, matrix.columns) >= 16:
        factors = LowRankAnalysis(matrix, plain.energy, wish.rank)
        cost = _cost(factors, wish)
        found.append(_Candidate(FACTORS, factors, cost, cost))
    if wish.transform not in ("auto", "none") and len(found) > 1:
        found = [found[1], found[0]]
    else:
        found.sort(key=lambda candidate: candidate.price)

    def gain(candidate: _Candidate) -> float:
        return reference - candidate.cost if math.isfinite(reference - candidate.cost) else 0.0

    best = found[0]
    if len(found) == 1:
        return Choice(best.analysis)
    codec = "lowrank" if best.name == FACTORS else "trellis"
    return Choice(best.analysis, codec, best.name, gain(best), found[1].name, gain(found[1]))


def _prepare_structure(matrix: Matrix, plain: Analysis, wish: Wish) -> Choice:
    """Low rank, or sparse blocks with the basis functions: what has the least error at the size."""
    names = ["dct", "dwt", "lowrank"] if wish.transform in ("auto", "none", "klt") else [wish.transform]
    size = wish.bits * matrix.rows * matrix.columns / 8
    found: list[tuple[float, str, Forecast]] = []
    for name in names:
        analysis: Forecast
        if name == "lowrank":
            analysis = LowRankAnalysis(matrix, plain.energy, wish.rank)
        else:
            form = sparse_form(matrix, name, wish.block, wish.levels, with_basis=True)
            analysis = SparseAnalysis(matrix, form, plain.energy, wish.threshold)
        error = analysis.expected_error(multiplier_for_size([analysis], size) * analysis.unit)
        found.append((min(error / plain.energy, 1.0), name, analysis))
    found.sort(key=lambda item: item[0])
    residual = plain.expected_error(multiplier_for_size([plain], size) * plain.unit) / plain.energy

    def gain(item: tuple[float, str, Forecast]) -> float:
        return 10 * math.log10(min(residual, 1.0) / max(item[0], 1e-30))

    best = found[0]
    codec = "lowrank" if best[1] == "lowrank" else "sparse"
    second = found[1] if len(found) > 1 else (residual, "none", plain)
    return Choice(best[2], codec, best[1], gain(best), second[1], gain(second))


def start(choice: Choice, step: float, states: int, executor: Executor) -> AnyEncoding:
    """Begin to encode a tensor as chosen; `result()` waits for it."""
    if isinstance(choice.analysis, SparseAnalysis):
        return SparseEncoding(choice.analysis, step, executor)
    if isinstance(choice.analysis, LowRankAnalysis):
        return LowRankEncoding(choice.analysis, step, executor)
    assert isinstance(choice.analysis, Analysis)
    return Encoding(choice.analysis, step, states, executor)


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


def _cost(analysis: Forecast, wish: Wish) -> float:
    """What a way of coding costs, in dB: of size at the wish's error, or of error at the wish's size.

    The two are the same at all but low rates, where the size counts: the wish's error says little there.
    """
    elements = analysis.matrix.rows * analysis.matrix.columns
    if wish.bits >= _FEW_BITS:
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


def _promising(matrix: Matrix, names: Sequence[str], wish: Wish) -> list[str]:
    """What of `names` is worth a closer look.

    The blockwise transforms are tried on some blocks of the middle first: on most matrices they gain nothing.
    """
    blockwise = [name for name in names if name in ("dct", "dwt")]
    if not blockwise:
        return list(names)
    top = max(matrix.rows - wish.block, 0) // 2 // wish.block * wish.block
    band = matrix.band(top, min(top + wish.block, matrix.rows))[:, : max(_SAMPLE // wish.block, wish.block)]
    part = np.ascontiguousarray(band)
    sample = Matrix(part.view(np.uint8).ravel(), "F32", *part.shape)
    plain = analyse(sample)
    if plain is None:
        return list(names)
    reference = _cost(plain, wish)

    def gains(name: str) -> bool:
        pipeline = Pipeline.of(None, name, wish.block, wish.levels, part.shape[1])
        with Piped(sample, pipeline).held() as piped:
            other = analyse(piped)
        # Half the price: a sample may be unlucky.
        return other is None or _cost(other.of_tensor(plain), wish) + pipeline.decode_cost / 2 < reference

    return [name for name in names if name not in blockwise or gains(name)]


def _pipeline(matrix: Matrix, name: str, wish: Wish) -> Pipeline | None:
    if name == "lowrank":
        with whole_matrices.held(4 * matrix.rows * matrix.columns):
            structure = fit_low_rank(matrix)
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

    def decode(self, stream: bytes, tile: Tile, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Weights of a tile, float32[rows, columns], in `out` or else good until this thread's next call.

        Raises Damage.
        """
        if self._pipeline is None:
            return self._values.values(stream, tile, out)
        return self._pipeline.inverse(self._values.values(stream, tile), tile.top, out)


def open_tensor(first_chunk: bytes, shape: tuple[int, ...], codec: str = "trellis") -> tuple[Decoder, Grid]:
    """Read a tensor's first chunk: its decoder and the grid of its tiles. Raises Damage."""
    if codec == "sparse":
        sparse = open_sparse(first_chunk, dtypes.count(shape))[0]
        return sparse, sparse.form.grid
    if codec == "lowrank":
        return open_low_rank(first_chunk, dtypes.count(shape))[:2]
    parameters = Parameters.unpack(first_chunk, dtypes.count(shape))
    values, rest = open_values(first_chunk, parameters)
    if not (parameters.structure or parameters.transform):
        if rest:
            raise Damage("side information is too long")
        return TileDecoder(values, None), parameters.grid
    with np.errstate(all="ignore"):
        return TileDecoder(values, Pipeline.unpack(parameters, rest)), parameters.grid


AnyEncoding = Encoding | SparseEncoding | LowRankEncoding
Decoder = TileDecoder | SparseDecoder | LowRankDecoder


def reference_error(bits: float | None, nrmse: float | None) -> float:
    """The relative error to compare pipelines at, from what is asked of a tensor.

    >>> round(reference_error(4.0, None), 4)
    0.0649
    """
    if nrmse is not None:
        return nrmse
    return min(math.exp2(-(bits or 4.0)) * 1.038, 0.98)
