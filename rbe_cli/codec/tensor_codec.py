"""One tensor, whole: choose structure and transform, then code what is left; and the way back.

prepare     -> Choice (the analysis of the best pipeline, what it gains, and the runner-up)
for_size    -> the same where the size is what is asked
start       -> the encoding of a choice with a step
open_tensor -> Decoder, the weights of any tile
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rbe_cli import dtypes, metrics
from rbe_cli.codec.choice.promising import candidates
from rbe_cli.codec.choice.sample import Sample
from rbe_cli.codec.choice.survey import SampleSurvey, Survey, WholeSurvey
from rbe_cli.codec.choice.wish import FEW_BITS, LOOKS, OTHERWISE, Wish, cost_of
from rbe_cli.codec.parameters import Parameters
from rbe_cli.codec.residual import tables
from rbe_cli.codec.residual.analysis import Analysis, Corrections
from rbe_cli.codec.residual.forecast import Forecast, multiplier_for_error, multiplier_for_size
from rbe_cli.codec.residual.noise_shaping import Shaping
from rbe_cli.codec.residual.rounding import Rounding
from rbe_cli.codec.residual.trellis_codec import Encoded, Encoding, ValueDecoder, open_values
from rbe_cli.codec.source import Description, Difference, Matrix
from rbe_cli.codec.structure.components import may_have_factors
from rbe_cli.codec.structure.low_rank_codec import LowRankAnalysis, LowRankDecoder, open_low_rank
from rbe_cli.codec.structure.pipeline import Pipeline
from rbe_cli.codec.structure.sparse_analysis import SparseAnalysis
from rbe_cli.codec.structure.sparse_codec import SparseDecoder, open_sparse
from rbe_cli.codec.structure.sparse_form import sparse_form
from rbe_cli.codec.structure.structure_only import StructureAnalysis
from rbe_cli.codec.tiles import Tile
from rbe_cli.errors import Damage

#: Structure and transform have to gain so many dB to be chosen, beside what their time to decode is worth:
#: forecasts are good to about that.
_WORTH = 0.01
#: A difference, in dB, that is too small to be told without coding what the pipelines store.
_CLOSE = 0.2
#: What is as large as it should be, relative.
_ABOUT = 1.001
#: Gap to the Shannon bound, in dB, by the states of the trellis (docs/codec.md).
_GAPS = {4: 0.58, 8: 0.49, 16: 0.43, 32: 0.36, 64: 0.32, 128: 0.28, 256: 0.25}
#: The name of the choice of low rank without a coded residual, and of a base.
FACTORS, BASE = "lowrank only", "base"


@dataclass(frozen=True)
class Choice:
    """How a tensor is coded.

    Attributes
    ----------
    analysis : Forecast
    codec : str
        In which the layer file holds it: `trellis`, or without a coded residual `sparse` or `lowrank`.
    name : str
        Of the pipeline: one of `parameters.CHOICES` but `auto`, or FACTORS; with BASE, where there is one.
    gain_db : float
        What it saves against `none`, as dB at the same size.
    runner_up : str
        The best of the others that were tried, empty if none was.
    runner_up_db : float
        What that one would gain.
    lead_db : float
        How much more that one costs, its time to decode weighed in.
    sample : Sample or None
        Of a forecast at few bits: some rows.
    based : bool
        Whether what is coded is the difference to a base.
    """

    analysis: Forecast
    codec: str = "trellis"
    name: str = "none"
    gain_db: float = 0.0
    runner_up: str = ""
    runner_up_db: float = 0.0
    lead_db: float = math.inf
    sample: Sample | None = None
    based: bool = False

    def of_tensor(self, plain: Analysis, saved_db: float) -> Choice:
        """The same, of the difference of a tensor to its base: errors are relative to the tensor, of which `plain` is.

        `saved_db` is what the difference alone saves.
        """
        return replace(
            self,
            analysis=self.analysis.of_tensor(plain),
            name=BASE if self.name == "none" else f"{self.name} on {BASE}",
            gain_db=self.gain_db + saved_db,
            runner_up_db=self.runner_up_db + saved_db if self.runner_up else 0.0,
            sample=self.sample and self.sample.of_tensor(plain),
            based=True,
        )


class _Candidate(NamedTuple):
    """A way of coding, what it costs in dB (see `cost_of`), and that with what its time to decode is worth."""

    name: str
    analysis: Forecast
    cost: float
    price: float


def prepare(matrix: Matrix, shaping: Shaping, wish: Wish, base: Matrix | None = None) -> Choice | None:
    """Choose how to code a matrix; None if it must be kept exactly (see `extent_of`).

    A named transform is obeyed. `auto` takes what needs the fewest bytes at the wish's error, the time to decode
    weighed in (`structure.decode_cost`). Where the error is shaped, which happens in the domain of the weights, it
    looks at low rank only. With a base all that is done with the difference to it, if that takes fewer bytes.
    """
    if base is not None:
        return _against(
            base, matrix, wish, lambda m, w: prepare(m, shaping, w), lambda m: WholeSurvey(m, wish).plain(shaping)
        )
    return _choose(matrix, shaping, wish, WholeSurvey(matrix, wish))


def estimate(matrix: Matrix, shaping: Shaping, wish: Wish, states: int, base: Matrix | None = None) -> Choice | None:
    """What `prepare` is going to choose, and what a trellis of so many states will make of it, by a sample of the rows.

    Only a forecast can be made of it.
    """
    if base is not None:

        def look(m: Matrix) -> Analysis | None:
            survey = SampleSurvey(m, wish)
            plain = survey.plain(shaping)
            return plain and survey.levelled(plain, "none")

        return _against(base, matrix, wish, lambda m, w: estimate(m, shaping, w, states), look)
    survey = SampleSurvey(matrix, wish)
    choice = _choose(matrix, shaping, wish, survey)
    if choice and choice.lead_db < _CLOSE and survey.complete:
        choice = prepare(matrix, shaping, wish)
    if choice is None or not isinstance(choice.analysis, Analysis):
        return choice
    analysis = choice.analysis
    raised = replace(survey.levelled(analysis, choice.name), matrix=matrix)
    step = multiplier_for_error(raised, wish.nrmse) * raised.unit
    sample = None if shaping.feedback else Sample.of(analysis, raised, states, step)
    return coded_with(replace(choice, analysis=raised, sample=sample), states)


def _against(
    base: Matrix,
    matrix: Matrix,
    wish: Wish,
    choose: Callable[[Matrix, Wish], Choice | None],
    look: Callable[[Matrix], Analysis | None],
) -> Choice | None:
    """What is chosen for the difference of a matrix to a base; for the matrix itself if that takes fewer bytes."""
    plain = look(matrix)
    if plain is None:
        return None
    plain = replace(plain, rounding=Rounding.of(matrix))
    with Difference(matrix, base).held() as difference:
        left = look(difference)
        if left is not None:
            elements = matrix.rows * matrix.columns
            saved = cost_of(plain, wish, elements) - cost_of(left.of_tensor(plain), wish, elements)
            if saved > 0:
                choice = choose(difference, wish.at_step(wish.step * plain.scale / left.scale))
                if choice is not None:
                    return choice.of_tensor(plain, saved if math.isfinite(saved) else 0.0)
        elif not any(band.any() for _, band in difference.bands()):
            return _unchanged(difference, plain, wish)
    return choose(matrix, wish)


def _unchanged(difference: Difference, plain: Analysis, wish: Wish) -> Choice:
    """That of a tensor which is its base to the last digit of float32: sparse blocks with nothing in them."""
    form = sparse_form(difference, "dct", wish.block, wish.levels)
    choice = Choice(SparseAnalysis(difference, form, 0.0, 0.0), "sparse")
    rate = 8 * plain.expected_bytes(multiplier_for_error(plain, wish.nrmse) * plain.unit)
    return choice.of_tensor(plain, metrics.DB_PER_BIT * rate / (difference.rows * difference.columns))


def for_size(choose: Callable[[Wish], Choice | None], wish: Wish, size: float) -> Choice | None:
    """What is chosen for a tensor that is to take so many bytes: again where these make for other steps than thought.

    Structure saves bytes that go into finer steps, at which more structure may be worth its bytes; or be more than the
    size. Of all that was looked at, it is what has the least error.
    """
    best, least = None, math.inf
    for _ in range(LOOKS):
        choice = choose(wish)
        if choice is None:
            break
        analysis = choice.analysis
        step = multiplier_for_size([analysis], size) * analysis.unit
        error = analysis.expected_error(step) if analysis.expected_bytes(step) <= size * _ABOUT else math.inf
        if best is None or error < least:
            best, least = choice, error
        if not isinstance(analysis, Analysis):
            break
        relative = analysis.relative_step(step)
        if 1 / OTHERWISE < wish.step / relative < OTHERWISE:
            break
        wish = wish.at_step(relative)
    return best


def coded_with(choice: Choice, states: int) -> Choice:
    """What is expected of a choice when it is coded with a trellis of so many states."""
    if not isinstance(choice.analysis, Analysis):
        return choice
    more = 10 ** ((_GAPS[states] - _GAPS[tables.STATES]) / 10)
    return replace(choice, analysis=replace(choice.analysis, corrections=Corrections(errors=(more,))))


def _choose(matrix: Matrix, shaping: Shaping, wish: Wish, survey: Survey) -> Choice | None:
    shaped = shaping.shaped
    if wish.transform in ("dct", "dwt", "klt"):
        shaping = Shaping(geometric=shaping.geometric)
    plain = survey.plain(shaping)
    if plain is None:
        return None
    plain = replace(plain, rounding=Rounding.of(matrix.weights()))
    if wish.structure_only:
        return _prepare_structure(matrix, plain, wish)
    names = [wish.transform]
    if wish.transform == "auto":
        names = survey.promising(candidates(matrix, shaped))
    elements = matrix.rows * matrix.columns
    factors_alone = (
        wish.transform == "auto"
        and wish.bits < FEW_BITS
        and min(matrix.rows, matrix.columns) >= 16
        and may_have_factors(plain.rms)
    )
    if not names and not factors_alone:
        return Choice(plain)
    reference = cost_of(plain, wish, elements)
    found = [_Candidate("none", plain, reference, reference)]
    for name in names:
        price = min(candidate.price for candidate in found)
        if name == "none" or (wish.transform == "auto" and not survey.may_beat(name, shaping, plain, price)):
            continue
        look = survey.through(name, shaping)
        if look is not None:
            # The unit is a property of the tensor, not of how it is coded: the same multiplier, the same error.
            analysis = look.analysis.of_tensor(plain)
            cost = cost_of(analysis, wish, elements)
            found.append(_Candidate(name, analysis, cost, cost + _WORTH + look.time))
    if factors_alone:
        factors = LowRankAnalysis(matrix, plain.energy, wish.rank)
        cost = cost_of(factors, wish, elements)
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
    lead = found[1].price - best.price if wish.transform == "auto" else math.inf
    return Choice(best.analysis, codec, best.name, gain(best), found[1].name, gain(found[1]), lead)


def _prepare_structure(matrix: Matrix, plain: Analysis, wish: Wish) -> Choice | None:
    """Low rank, or sparse blocks with the basis functions: what has the least error at the size.

    None where low rank alone is asked for and cannot be had.
    """
    names = ["dct", "dwt", "lowrank"] if wish.transform in ("auto", "none", "klt") else [wish.transform]
    # A factor of one number alone cannot be coded.
    factors = min(matrix.rows, matrix.columns) > 1 and may_have_factors(plain.rms)
    names = [name for name in names if name != "lowrank" or factors]
    if not names:
        return None
    size = wish.bits * matrix.rows * matrix.columns / 8
    found: list[tuple[float, str, Forecast]] = []
    for name in names:
        analysis: Forecast
        if name == "lowrank":
            analysis = LowRankAnalysis(matrix, plain.energy, wish.rank)
        else:
            form = sparse_form(matrix, name, wish.block, wish.levels)
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
    if isinstance(choice.analysis, StructureAnalysis):
        return executor.submit(choice.analysis.encode, step)
    assert isinstance(choice.analysis, Analysis)
    return Encoding(choice.analysis, step, states, executor)


class TileDecoder:
    """Turns the streams of one tensor's tiles back into weights.

    Attributes
    ----------
    grid : Grid
    streams : int
        One for each tile.
    """

    def __init__(self, values: ValueDecoder, pipeline: Pipeline | None) -> None:
        self._values = values
        self._pipeline = pipeline
        self.grid = values.parameters.grid
        self.streams = len(self.grid)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays it holds for itself, such as the scale field; tables that all share are not counted."""
        return self._values.geometry.nbytes + (self._pipeline.nbytes if self._pipeline is not None else 0)

    def decode(self, stream: bytes, tile: Tile, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Weights of a tile, float32[rows, columns], in `out` or else good until this thread's next call.

        Raises Damage.
        """
        if self._pipeline is None:
            return self._values.values(stream, tile, out)
        return self._pipeline.inverse(self._values.values(stream, tile), tile.top, out)


def open_tensor(first_chunk: bytes, shape: tuple[int, ...], codec: str = "trellis") -> Decoder:
    """The decoder of a tensor, from its first chunk. Raises Damage."""
    if codec == "sparse":
        return open_sparse(first_chunk, dtypes.count(shape))
    if codec == "lowrank":
        return open_low_rank(first_chunk, dtypes.count(shape))
    parameters = Parameters.unpack(first_chunk, dtypes.count(shape))
    values, rest = open_values(first_chunk, parameters)
    if not (parameters.structure or parameters.transform):
        if rest:
            raise Damage("side information is too long")
        return TileDecoder(values, None)
    with np.errstate(all="ignore"):
        grid = parameters.grid
        description = Description(parameters.structure, parameters.transform, parameters.block, parameters.levels, rest)
        return TileDecoder(values, Pipeline.unpack(description, grid.rows, grid.columns))


#: `result` waits for what is encoded.
AnyEncoding = Encoding | Future[Encoded]
#: Each has a `grid` of tiles, the number of `streams` that follow the first chunk, and decodes a stream to a tile.
Decoder = TileDecoder | SparseDecoder | LowRankDecoder
