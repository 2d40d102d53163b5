"""How a matrix is looked at to choose its structure and transform: as a whole, or by a sample of its rows.

The encoder looks at the whole. A forecast has little of its time, and is told by a sample what it needs to know, within
a few percent (docs/codec.md, Forecasts).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rbe_cli import metrics
from rbe_cli.codec.choice.promising import guessed_gain, mean_scale, promising
from rbe_cli.codec.choice.wish import Wish, cost_of
from rbe_cli.codec.residual import tables
from rbe_cli.codec.residual.analysis import Analysis, analyse, extent_of
from rbe_cli.codec.residual.noise_shaping import Shaping
from rbe_cli.codec.residual.scale_field import KeptField, varies
from rbe_cli.codec.source import Description, Domain, Matrix
from rbe_cli.codec.structure.components import Components, Sketch, find_components, sketch_components
from rbe_cli.codec.structure.decode_cost import decode_cost
from rbe_cli.codec.structure.low_rank import LowRank, fit_low_rank, imagine_low_rank, take_low_rank
from rbe_cli.codec.structure.pipeline import (
    BASIS_BITS,
    EIGEN_BYTES,
    Piped,
    Pipeline,
    encode_basis,
    may_have_basis,
    second_moments,
)
from rbe_cli.codec.structure.side_matrix import STATES as FACTOR_STATES
from rbe_cli.codec.structure.transform import KarhunenLoeve
from rbe_cli.codec.workspace import whole_matrices

#: Rows for each column from which on a sample says first whether a Karhunen-Loeve basis may be the best; what it says
#: is good to so many dB.
_ROWS_TO_SAMPLE, _SAMPLED_WELL = 32, 0.3
#: A first guess of what a blockwise transform gains, made of a sample of the rows and for any number of bits, is good
#: to so many dB.
_GUESS_BY_ROWS = 2.0
#: Rows of a sample, at least; its elements, at least and at most; and the rows that are taken side by side. A matrix
#: that is no larger than a sample may be is read once. Where they are many, more of them are taken side by side.
_ROWS, _ELEMENTS, _MOST, _RUN, _LONG_RUN = 128, 1 << 16, 1 << 22, 8, 32
#: Rows of blocks in a sample that is seen through a blockwise transform, at least.
_BLOCKS = 4
#: States of the trellis that codes factors to know what they take, where the rest is not known that well either: a
#: third of the time.
_QUICK_STATES = 8
#: Part of the energy above which what low rank leaves is little, and differs from row to row: all are looked at.
_MOST_ENERGY = 0.5
#: Of the runs that tell of singular vectors one of so many tells what these leave of a row.
_EVERY = 3
#: Elements that are sketched to see what low rank may gain, and that are seen through a named blockwise transform.
_SKETCH, _MANY_BLOCKS = 1 << 17, 1 << 20
#: What low rank gains, in dB, up to which a sketch tells it well enough.
_SLIGHT = 0.6
#: Rows for each column that tell enough of a matrix's singular vectors.
_ROWS_PER_COLUMN = 8


class Look(NamedTuple):
    """What a survey found of a pipeline: the analysis of what it leaves, and the dB its time to decode is worth."""

    analysis: Analysis
    time: float


class Survey(Protocol):
    """A way to look at a matrix."""

    def plain(self, shaping: Shaping) -> Analysis | None:
        """Of the matrix as it is; None if it must be kept exactly."""

    def promising(self, names: Sequence[str]) -> list[str]:
        """What of some pipelines is worth a closer look."""

    def may_beat(self, name: str, shaping: Shaping, plain: Analysis, price: float) -> bool:
        """Whether a pipeline may cost less than `price`, in dB; where only a closer look can tell, it may."""

    def through(self, name: str, shaping: Shaping) -> Look | None:
        """Of the matrix through a pipeline; None if there is none of that name to be had."""


class WholeSurvey:
    """Every weight is looked at, and what an encoding needs is made."""

    def __init__(self, matrix: Matrix, wish: Wish) -> None:
        self._matrix = matrix
        self._wish = wish

    def plain(self, shaping: Shaping) -> Analysis | None:
        """Of the matrix as it is; None if it must be kept exactly."""
        return analyse(self._matrix, shaping)

    def promising(self, names: Sequence[str]) -> list[str]:
        """All that is not blockwise, and the blockwise transforms that gain on some blocks."""
        return promising(self._matrix, names, self._wish)

    def through(self, name: str, shaping: Shaping) -> Look | None:
        """Of the matrix through a pipeline; None if there is none of that name to be had."""
        matrix = self._matrix
        if name == "lowrank":
            with whole_matrices.held(4 * matrix.rows * matrix.columns):
                structure = fit_low_rank(matrix, self._wish.nrmse)
            pipeline = Pipeline.of(structure, "none", 0, 0, matrix.columns) if structure else None
        else:
            pipeline = transform_of(matrix, name, self._wish)
        if pipeline is None:
            return None
        with Piped(matrix, pipeline).held() as piped:
            analysis = analyse(piped, shaping)
        return Look(analysis, pipeline.decode_cost) if analysis else None

    def may_beat(self, name: str, shaping: Shaping, plain: Analysis, price: float) -> bool:
        """Whether a pipeline may cost less than `price`; a sample tells where looking at the whole would take long."""
        rows, columns = self._matrix.rows, self._matrix.columns
        if name != "klt" or rows < _ROWS_TO_SAMPLE * columns:
            return True
        look = SampleSurvey(self._matrix, self._wish).through(name, shaping)
        if look is None:
            return True
        cost = cost_of(look.analysis.of_tensor(plain), self._wish, rows * columns)
        return cost + look.time < price + _SAMPLED_WELL


class _Sample(NamedTuple):
    """Some rows of a matrix: themselves, which they are, and their share of all."""

    matrix: Matrix
    rows: NDArray[np.int64]
    share: float


def _sampled(matrix: Matrix, rows: int, run: int = _RUN) -> _Sample:
    """So many rows in runs, if they are not too much to hold, evenly spread; all if that is nearly all. In float32.

    Where even a few rows are too much, the matrix itself, which is read piece by piece.
    """
    runs = max(1, min(rows, _MOST // matrix.columns) // run)
    if runs * run * 2 > matrix.rows:
        taken = np.arange(matrix.rows)
        if matrix.rows * matrix.columns > 2 * _MOST:
            return _Sample(matrix, taken, 1.0)
        values = matrix.whole()
    else:
        tops = np.arange(runs) * (matrix.rows // run) // runs * run
        taken = (tops[:, None] + np.arange(run)).ravel()
        values = matrix.some(taken)
    return _Sample(Matrix.of(values), taken, taken.size / matrix.rows)


class SampleSurvey:
    """Some of the rows are looked at, and nothing is made. All of them are only read, for their energy and outliers."""

    def __init__(self, matrix: Matrix, wish: Wish) -> None:
        if matrix.rows * matrix.columns <= _MOST:
            matrix = Matrix.of(matrix.whole())
        self._matrix = matrix
        self._wish = wish
        self._row_power = np.empty(matrix.rows, np.float32)
        self._extent = extent_of(matrix, self._row_power)
        self._few = _sampled(matrix, max(_ROWS, _ELEMENTS // matrix.columns))
        self._octaves: dict[str, float] = {}
        self._plain: Analysis | None = None
        self._sketch: Sketch | None = None

    @property
    def complete(self) -> bool:
        """Whether the matrix is so small that the sample is all of it."""
        return self._few.share == 1

    def levelled(self, analysis: Analysis, name: str) -> Analysis:
        """The analysis of a pipeline that was looked at, raised or lowered from the rows of the sample to all rows."""
        shaping = analysis.shaping.row / 16 if varies(analysis.field.rows) else 0.0
        return analysis.raised(self._octaves.get(name, 0.0), shaping, self._octaves.get("none", 0.0))

    def _level(self, name: str, analysis: Analysis, row_power: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        """Note by how many octaves the scale of all rows, whose energies are known, is above that of some.

        By the mean of the logarithms where rows have scales of their own, else by the mean of the energies.
        """
        self._octaves[name] = 0.0
        if analysis.share == 1:
            return
        power, some = row_power.astype(np.float64), row_power[rows].astype(np.float64)
        if varies(analysis.field.rows):
            means = [np.log2(part[part > 0]).mean() if part.any() else math.inf for part in (power, some)]
        else:
            means = [math.log2(part.mean()) if part.any() else math.inf for part in (power, some)]
        octaves = float(means[0] - means[1]) / 2 + _flattered(analysis)
        self._octaves[name] = octaves if math.isfinite(octaves) else 0.0

    @cached_property
    def _many(self) -> _Sample:
        """Rows enough to tell singular vectors from."""
        n = self._matrix.columns
        return _sampled(self._matrix, max(_ROWS_PER_COLUMN * n, _ELEMENTS // n), _LONG_RUN)

    @cached_property
    def _blocks(self) -> _Sample:
        """Rows of blocks, enough to see through a blockwise transform; more where it is asked for whatever it gains."""
        rows = max(self._few.rows.size, _BLOCKS * self._wish.block)
        if self._wish.transform != "auto":
            rows = max(rows, _MANY_BLOCKS // self._matrix.columns)
        return _sampled(self._matrix, rows, self._wish.block)

    @cached_property
    def _blocks_scale(self) -> float:
        return mean_scale(self._blocks.matrix.whole())

    def plain(self, shaping: Shaping) -> Analysis | None:
        """Of the matrix as it is; None if it must be kept exactly."""
        if self._extent is None:
            return None
        self._plain = self._analyse("none", self._few.matrix, self._few, shaping)
        return self._plain or analyse(self._matrix, shaping)

    def promising(self, names: Sequence[str]) -> list[str]:
        """As the encoder finds them, and low rank where a sketch says so."""
        found = promising(self._matrix, names, self._wish)
        if "lowrank" in found:
            columns = self._matrix.columns
            rows = max(self._few.rows.size, min(2 * columns, _SKETCH // columns))
            sample = _sampled(self._matrix, rows).matrix
            self._sketch = sketch_components(sample, self._wish.nrmse, self._matrix.rows)
            if self._sketch is None:
                found.remove("lowrank")
        return found

    def may_beat(self, name: str, shaping: Shaping, plain: Analysis, price: float) -> bool:
        """Of a `klt` the determinant of the second moments tells before their eigenvectors are known."""
        m, n = self._matrix.rows, self._matrix.columns
        if name in ("dct", "dwt"):
            pipeline = Pipeline.of(None, name, self._wish.block, self._wish.levels, n)
            gain = guessed_gain(self._blocks.matrix.whole(), self._blocks_scale, pipeline)
            return cost_of(plain, self._wish, m * n) - gain + pipeline.decode_cost < price + _GUESS_BY_ROWS
        if name != "klt" or self._many.matrix.rows < 2 * n:
            return True
        gain = _most_klt_bits(self._many.matrix) - n * BASIS_BITS / m
        cost = cost_of(plain, self._wish, m * n) - metrics.DB_PER_BIT * gain
        return cost + float(decode_cost(n, 0)) < price + _SAMPLED_WELL

    def through(self, name: str, shaping: Shaping) -> Look | None:
        """Of the matrix through a pipeline; None if there is none of that name to be had."""
        if name == "lowrank":
            return self._through_low_rank(shaping)
        if name == "klt":
            return self._through_klt(shaping)
        sample = self._blocks
        pipeline = Pipeline.of(None, name, self._wish.block, self._wish.levels, sample.matrix.columns)
        with Piped(sample.matrix, pipeline).held() as piped:
            analysis = self._analyse(name, piped, sample, shaping)
        return Look(analysis, pipeline.decode_cost) if analysis else None

    def _through_klt(self, shaping: Shaping) -> Look | None:
        n = self._matrix.columns
        if not may_have_basis(self._matrix.rows, n, self._wish.rate):
            return None
        if self._many.share < 1 and self._many.matrix.rows < 2 * n:
            # Too few to tell a basis from: one that is asked for all the same is made. `auto` has no use for it.
            return (
                WholeSurvey(self._matrix, self._wish).through("klt", shaping) if self._wish.transform == "klt" else None
            )
        basis = np.linalg.eigh(second_moments(self._many.matrix, np.float32))[1][:, ::-1]
        pipeline = Pipeline(None, KarhunenLoeve(basis, orthonormal=True), Description())
        return self._through_some("klt", self._few, pipeline, n * n * BASIS_BITS / 8, float(decode_cost(n, 0)), shaping)

    def _through_low_rank(self, shaping: Shaping) -> Look | None:
        m, n = self._matrix.rows, self._matrix.columns
        if self._sketch and self._plain and not self.complete and self._is_slight(self._sketch):
            return self._with_slight(self._sketch, self._plain)
        with whole_matrices.held(4 * self._many.matrix.rows * n):
            found = find_components(self._many.matrix, self._wish.nrmse, m, np.float32)
        if found is None:
            return None
        time = self._time_of(found.rank)
        sample, size, row_power = self._few, 0.0, None
        if self._many.share < 1:
            part, size = imagine_low_rank(sample.matrix, found, (m, n)), found.size
            row_power = self._power_left_of_all(found)
        else:
            taken = take_low_rank(self._many.matrix, found, FACTOR_STATES if self.complete else _QUICK_STATES)
            if taken is None:
                return None
            part = taken
            if found.part > _MOST_ENERGY:
                sample = self._many
            else:
                row_power = _power_left(self._many.matrix, part)
                part = part.of_rows(sample.rows)
        return self._through_some("lowrank", sample, Pipeline.of(part, "none", 0, 0, n), size, time, shaping, row_power)

    def _time_of(self, rank: int) -> float:
        """What the time to decode a low rank is worth, in dB."""
        m, n = self._matrix.rows, self._matrix.columns
        return float(decode_cost(rank, rank * (m + n) / (m * n)))

    def _is_slight(self, sketch: Sketch) -> bool:
        """Whether low rank gains so little, by so few components, that the sketch says near enough how much."""
        return sketch.gain(self._matrix.rows * self._matrix.columns) < _SLIGHT and sketch.saw_enough

    def _with_slight(self, sketch: Sketch, plain: Analysis) -> Look:
        """The matrix less a low rank: like itself, of a smaller scale."""
        self._octaves["lowrank"] = self._octaves["none"]
        left = Matrix.of(self._few.matrix.whole() * np.float32(2**sketch.octaves))
        field = replace(plain.field, log_sigma0=plain.field.log_sigma0 + sketch.octaves)
        size = plain.side_bytes + sketch.size
        return Look(replace(plain, matrix=left, scales=KeptField(field), side_bytes=size), self._time_of(sketch.rank))

    def _power_left_of_all(self, found: Components) -> NDArray[np.float32]:
        """About the sums of squares of all rows of what components of the many leave, float32[rows].

        Of the few rows they are known. The other rows keep as much as some of the many and some between them do, on
        average: components that are found in all rows fit these worse than the former fit the many, and better than
        those between.
        """
        runs = self._many.rows.reshape(-1, _LONG_RUN)[::_EVERY]
        left = found.part_left(self._matrix.some(np.concatenate((runs, runs + _LONG_RUN), axis=1).ravel()))
        power = self._row_power * np.float32(np.exp2(np.log2(left).mean()))
        few = self._few.rows
        power[few] = self._row_power[few] * found.part_left(self._few.matrix.whole())
        return power

    def _through_some(
        self,
        name: str,
        sample: _Sample,
        pipeline: Pipeline,
        size: float,
        time: float,
        shaping: Shaping,
        row_power: NDArray[np.float32] | None = None,
    ) -> Look | None:
        """Of some rows through a pipeline; so many bytes, about, are of its stored form that was not made.

        Most of the few are not in the larger sample that told of the pipeline, if all rows are not in both: what fits
        that one fits no other as well.
        """
        with Piped(sample.matrix, pipeline).held() as piped:
            analysis = self._analyse(name, piped, sample, shaping, row_power)
        return Look(replace(analysis, side_bytes=analysis.side_bytes + size), time) if analysis else None

    def _analyse(
        self,
        name: str,
        domain: Domain,
        sample: _Sample,
        shaping: Shaping,
        row_power: NDArray[np.float32] | None = None,
    ) -> Analysis | None:
        """Of a sample, or of what a pipeline makes of it, for all of the matrix; and note the level it is at.

        `row_power`, float32[rows], are the energies of all rows, where they are not those of the matrix.
        """
        assert self._extent is not None
        analysis = analyse(domain, shaping.of_rows(sample.rows), sample.share)
        if analysis is None:
            return None
        self._level(name, analysis, self._row_power if row_power is None else row_power, sample.rows)
        energy, largest = self._extent
        rms = math.sqrt(energy / (self._matrix.rows * self._matrix.columns))
        return replace(
            analysis,
            energy=energy,
            rms=rms,
            unit=analysis.unit if shaping.geometric else rms,
            largest=max(analysis.largest, largest),
        )


def _flattered(analysis: Analysis) -> float:
    """By how many octaves columns' scales that are told from some rows fit these better than all, on average.

    The logarithm of a sample's mean square is low by half its relative variance, (kurtosis - 1) / rows.
    """
    if not varies(analysis.field.columns):
        return 0.0
    kurtosis = tables.magnitude(analysis.family, 4)
    return (1 - analysis.share) * (kurtosis - 1) / analysis.matrix.rows / (4 * math.log(2))


def _most_klt_bits(matrix: Matrix) -> float:
    """Bits per weight that a Karhunen-Loeve basis saves at high rates, of a matrix with at least two rows per column.

    Half the mean logarithm of the second moments' diagonal over their eigenvalues. Those of a sample are too far apart;
    by how much, on average, is known for Gaussian weights (Wishart's distribution; E ln chi^2_k is about ln(k - 1)).
    """
    rows, n = 2 * matrix.columns, matrix.columns
    sample = matrix.some(np.arange(rows) * matrix.rows // rows)
    moments = second_moments(Matrix.of(sample), np.float32).astype(np.float64)
    sign, log_determinant = np.linalg.slogdet(moments)
    if sign <= 0:
        return math.inf
    chi = np.log((rows - 1 - np.arange(n)) / rows).sum()
    return float(np.log(np.diag(moments)).sum() - (log_determinant - chi)) / n / (2 * math.log(2))


def _power_left(matrix: Matrix, part: LowRank) -> NDArray[np.float32]:
    """Sums of squares of the rows of what a low-rank part leaves, float32[rows]."""
    power = np.empty(matrix.rows, np.float32)
    for top, band in matrix.bands():
        rows = slice(top, top + len(band))
        left = band - part.left[rows] @ part.right
        np.einsum("ij,ij->i", left, left, out=power[rows])
    return power


def transform_of(matrix: Matrix, name: str, wish: Wish) -> Pipeline | None:
    """A pipeline with a transform and no structure; None where a `klt` has no basis to be had."""
    if name != "klt":
        return Pipeline.of(None, name, wish.block, wish.levels, matrix.columns)
    if not may_have_basis(matrix.rows, matrix.columns, wish.rate):
        return None
    with whole_matrices.held(EIGEN_BYTES * matrix.columns**2):
        basis = encode_basis(matrix)
    return Pipeline.of(None, "klt", 0, 0, matrix.columns, basis)
