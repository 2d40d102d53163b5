"""Structure only, block by block: the analysis of a matrix before it has a step, and its encoding with one.

    w = sum_j q_j B_j + T^-1(sparse)        per block of block x block, T a DCT or DWT

The functions B_j are not orthogonal to T, so weights and coefficients are fitted together: the weights by a robust fit
for which the few large coefficients are outliers, the coefficients from what that leaves. All numbers are multiples of
one step; `sparse_codec` stores them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rbe_cli.codec.parameters import SPARSE_HEAD as HEAD
from rbe_cli.codec.residual.trellis_codec import Encoded
from rbe_cli.codec.source import Matrix
from rbe_cli.codec.structure.basis import orthonormal
from rbe_cli.codec.structure.sparse_codec import SparseDecoder, encode_tile, part_of
from rbe_cli.codec.structure.sparse_form import SparseForm
from rbe_cli.codec.structure.structure_only import StructureAnalysis
from rbe_cli.codec.structure.transform import Blockwise
from rbe_cli.codec.tiles import Tile
from rbe_cli.codec.workspace import Findings, whole_matrices

#: A coefficient smaller than this many steps costs more bits than it is worth.
_DEAD_ZONE = 1.15
#: Coefficients of a block that the fit of the weights looks at; how often it is sharpened, and by what factor.
_LEVERAGE = 1536
_SHARPENINGS = 40
_SHARPER = 0.6
#: Blocks are fitted together up to so many elements; bytes that this takes for each of them.
_FITTED, _FIT_BYTES = 1 << 17, 56
#: Bytes that a tile takes for each of its elements while it is fitted, and while it is encoded and decoded again.
_ANALYSIS_BYTES, _ENCODE_BYTES = 4, 24
#: How many of the coefficients' magnitudes a forecast goes by; coefficients that are summed up at once.
_RANKS, _PIECE = 1 << 14, 1 << 17
#: What a forecast counts. Bits: of a function's weight, beyond the logarithm of what it is in steps, and of one that is
#: rounded to 0; of a coefficient, beyond those of what it is in steps and of how far it is from the one before. Bytes:
#: of a tile, for how its stream begins and ends. Nominal: on the guide's own model and on white noise, 512 x 512, the
#: sum is from 2 % below to 13 % above what is written.
_WEIGHT_BITS, _ZERO_BITS, _COEFFICIENT_BITS, _TILE_BYTES = 2.5, 0.3, 3.7, 6


class _Tables(NamedTuple):
    """What a forecast goes by: the logarithms of all weights, and of the largest coefficients of some numbers, how
    large the least of them is, and the energy and logarithms of all.

    Attributes
    ----------
    weight_logs : float64[w]
    magnitudes : float64[n]
        Ascending.
    ranks : int64[n + 1]; energy, logs : float64[n + 1]
        Those of no coefficients first.
    """

    weight_logs: NDArray[np.float64]
    magnitudes: NDArray[np.float64]
    ranks: NDArray[np.int64]
    energy: NDArray[np.float64]
    logs: NDArray[np.float64]


class SparseAnalysis(StructureAnalysis):
    """A matrix fitted block by block."""

    def __init__(self, matrix: Matrix, form: SparseForm, energy: float, threshold: float) -> None:
        """`energy` is that of the matrix; coefficients below `threshold` times its RMS are never kept."""
        super().__init__(matrix, energy)
        self.form = form
        self._threshold = threshold * self.rms
        self._transform = form.transform()
        self.largest = self._left_energy = 0.0
        size = 4 * matrix.rows * matrix.columns + _ANALYSIS_BYTES * form.grid[0].size
        with whole_matrices.held(size + _FIT_BYTES * max(form.block**2, _FITTED)):
            weights, magnitudes = self._fitted()
            ranked = self._ranked(magnitudes)
        self._weights = Findings(weights)
        self._tables = Findings(np.log2(np.abs(weights.ravel()) + 1e-30), *ranked)

    def set_aside(self) -> None:
        """Put by what only the encoder needs, and the forecast's tables, which are read again each time."""
        self._weights.set_aside()
        self._tables.set_aside()

    def _tiles(self) -> Iterator[tuple[Tile, NDArray[np.float64]]]:
        """The tiles, and the weights of the basis functions of each one's blocks, float64[blocks, b]."""
        (weights,) = self._weights.arrays()
        first = 0
        for tile in self.form.grid:
            last = first + len(self.form.blocks(tile))
            yield tile, weights[first:last]
            first = last

    def _fitted(self) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Weights of the basis functions of all blocks, float64[blocks, b], and magnitudes of all coefficients that
        they leave, float32[elements].
        """
        fitted = []
        magnitudes, at = np.empty(self.matrix.rows * self.matrix.columns, np.float32), 0
        for tile in self.form.grid:
            coefficients = self._coefficients(tile)
            weights = self._fit(tile, coefficients)
            left = self._remainders(tile, coefficients, weights, 1.0)
            np.abs(left, out=left)
            fitted.append(weights)
            self._left_energy += float(np.einsum("ij,ij->", left, left, dtype=np.float64))
            self.largest = max(self.largest, float(left.max()), float(np.abs(weights).max(initial=0)))
            magnitudes[at : at + left.size] = left.ravel()
            at += left.size
        return np.concatenate(fitted), magnitudes

    def _ranked(self, magnitudes: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
        """All of `_Tables` but the weights.

        Of all numbers up to _RANKS, then a thousandth apart: that is near enough for a forecast, and all of them would
        be more than the matrix.
        """
        magnitudes.sort()
        count = magnitudes.size - int(np.searchsorted(magnitudes, np.float32(1e-7 * self.rms), side="right"))
        top = magnitudes[magnitudes.size - count :]
        few = count <= _RANKS
        ranks = np.arange(1, count + 1) if few else np.unique(np.round(np.geomspace(1, count, _RANKS)).astype(np.int64))
        energy, logs = np.zeros(ranks.size + 1), np.zeros(ranks.size + 1)
        energy_before = logs_before = 0.0
        for first in range(0, count, _PIECE):
            largest = top[count - min(first + _PIECE, count) : count - first][::-1].astype(np.float64)
            here = np.flatnonzero((ranks > first) & (ranks <= first + _PIECE))
            sums, log_sums = energy_before + np.cumsum(largest**2), logs_before + np.cumsum(np.log2(largest))
            energy[here + 1], logs[here + 1] = sums[ranks[here] - first - 1], log_sums[ranks[here] - first - 1]
            energy_before, logs_before = float(sums[-1]), float(log_sums[-1])
        return top[count - ranks][::-1].astype(np.float64), np.concatenate(([0], ranks)), energy, logs

    def _coefficients(self, tile: Tile) -> NDArray[np.float32]:
        """The matrix in the transform domain, of a tile's rows."""
        return self._transform.forward(self.matrix.band(tile.top, tile.bottom))

    def _fit(self, tile: Tile, coefficients: NDArray[np.float32]) -> NDArray[np.float64]:
        """Weights of the basis functions of a tile's blocks, float64[blocks, b]."""
        blocks = self.form.blocks(tile)
        if not self.form.with_basis:
            return np.zeros((len(blocks), 0))
        weights = np.zeros((len(blocks), 8))
        by_shape: dict[tuple[int, int], list[int]] = {}
        for i, block in enumerate(blocks):
            by_shape.setdefault((block.bottom - block.top, block.right - block.left), []).append(i)
        for shape, members in by_shape.items():
            a = _transformed(self.form.kind, self.form.block, self.form.levels, shape)
            together = max(1, _FITTED // a.shape[1])
            for first in range(0, len(members), together):
                some = members[first : first + together]
                parts = [part_of(coefficients, tile, blocks[i]) for i in some]
                weights[some, : a.shape[0]] = _robust_weights(parts, a)
        return weights

    def _remainders(
        self, tile: Tile, coefficients: NDArray[np.float32], weights: NDArray[np.float64], step: float
    ) -> NDArray[np.float32]:
        """Coefficients of a tile less what weights x step of the basis functions account for, in their place."""
        if self.form.with_basis:
            for block, own in zip(self.form.blocks(tile), weights, strict=True):
                shape = (block.bottom - block.top, block.right - block.left)
                a = _transformed(self.form.kind, self.form.block, self.form.levels, shape)
                part = part_of(coefficients, tile, block)
                part -= (own[: a.shape[0]] * step @ a).reshape(shape).astype(np.float32)
        return coefficients

    def _limit(self, step: float) -> float:
        """What a coefficient has to be above to be kept."""
        return max(_DEAD_ZONE * step, self._threshold)

    def _kept(self, tables: _Tables, step: float) -> int:
        """How many of the ranks are kept."""
        return int(tables.magnitudes.size - np.searchsorted(tables.magnitudes, self._limit(step)))

    def expected_bytes(self, step: float) -> float:
        """Size of the chunks at a step."""
        tables = _Tables(*self._tables.arrays())
        rank = self._kept(tables, step)
        kept = int(tables.ranks[rank])
        log_step = math.log2(step)
        bits = float(np.maximum(tables.weight_logs - log_step + _WEIGHT_BITS, _ZERO_BITS).sum())
        if kept:
            apart = math.log2(self.matrix.rows * self.matrix.columns / kept)
            bits += tables.logs[rank] - kept * log_step + kept * (apart + _COEFFICIENT_BITS)
        return bits / 8 + len(self.form.grid) * _TILE_BYTES + HEAD.size

    def expected_error(self, step: float) -> float:
        """Sum of squared errors at a step."""
        tables = _Tables(*self._tables.arrays())
        rank = self._kept(tables, step)
        rounding = (tables.ranks[rank] + tables.weight_logs.size) * step * step / 12
        return max(self._left_energy - float(tables.energy[rank]), 0.0) + float(rounding)

    def encode(self, step: float) -> Encoded:
        """Code it with a step, rounded to float32, tile by tile."""
        with whole_matrices.held(_ENCODE_BYTES * self.form.grid[0].size):
            return self._encoded(float(np.float32(step)))

    def _encoded(self, step: float) -> Encoded:
        started = time.thread_time_ns()
        chunks, error = [b""], 0.0
        decoder = SparseDecoder(self.form, step)
        for tile, exact in self._tiles():
            weights = np.round(exact / step)
            left = self._remainders(tile, self._coefficients(tile), weights, step)
            small = np.abs(left) <= self._limit(step)
            left /= step
            np.round(left, out=left)
            left[small] = 0
            indices = left.astype(np.int32)
            del left, small
            chunks.append(encode_tile(self.form, tile, weights.astype(np.int32), indices))
            error += self.matrix.squared_error(decoder.decode(chunks[-1], tile), tile)
        chunks[0] = self.form.pack(step, self.rms, math.sqrt(error / self.energy))
        return Encoded(chunks, error, time.thread_time_ns() - started)


@lru_cache(maxsize=2)
def _transformed(kind: str, block: int, levels: int, shape: tuple[int, int]) -> NDArray[np.float64]:
    """The basis functions of a block in the transform domain, float64[b, area]."""
    transform = Blockwise(kind, block, levels, shape[1])
    functions = (f.reshape(shape).astype(np.float32) for f in orthonormal(*shape))
    return np.stack([transform.forward(f).ravel() for f in functions]).astype(np.float64)


def _robust_weights(parts: list[NDArray[np.float32]], a: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights q that leave most of y - q a small, for the blocks y and a float64[b, area] orthonormal.

    Iteratively reweighted least squares with the weights of Geman and McClure, made sharper step by step down to the
    level of the noise (graduated non-convexity, Blake and Zisserman 1987), so that the few large coefficients that
    belong to the sparse part have no say. Only the rows in which the functions show are looked at.
    """
    rows = np.argsort(-np.abs(a).max(axis=0), kind="stable")[:_LEVERAGE]
    y = np.empty((len(parts), a.shape[1]))
    for row, own in zip(y, parts, strict=True):
        row[:] = own.ravel()
    part, seen = np.ascontiguousarray(a[:, rows]), y[:, rows]
    q = y @ a.T
    del y
    functions = part.shape[0]
    pairs = (part[:, None] * part).reshape(functions**2, -1)
    scale = np.abs(seen).max(axis=1, initial=1e-30)
    for _ in range(_SHARPENINGS):
        left = seen - q @ part
        noise = 2 * np.median(np.abs(left), axis=1)
        trust = np.maximum(scale, np.maximum(noise, 1e-30))[:, None]
        weight = (trust**2 / (trust**2 + left**2)) ** 2
        gram = (weight @ pairs.T).reshape(-1, functions, functions)
        moments = (seen * weight) @ part.T
        gram += 1e-12 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(functions)
        q = np.linalg.solve(gram, moments[:, :, None])[:, :, 0]
        scale *= _SHARPER
    return np.asarray(q, np.float64)
