"""Profile a checkpoint that is not compressed: what its weights are like, and what compressing them would take."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rbe_cli import dtypes, metrics
from rbe_cli.checkpoint.reader import Checkpoint, TensorInfo
from rbe_cli.codec.residual.analysis import analyse
from rbe_cli.codec.residual.forecast import multiplier_for_error
from rbe_cli.codec.residual.noise_shaping import Shaping
from rbe_cli.codec.source import Matrix, view_shape
from rbe_cli.codec.tiles import Tile
from rbe_cli.operations.progress import Progress, Silent, worker_threads
from rbe_cli.operations.settings import EXACT_BELOW

RANK = 16
#: Largest matrix whose low rank is looked for, in elements: it has to be in memory as a whole.
_LOW_RANK_ELEMENTS = 1 << 26
_POWER_STEPS = 3


@dataclass(frozen=True)
class TensorProfile:
    """What one tensor is like; the figures are None for tensors that are kept exactly.

    Attributes
    ----------
    deviation : float
        Standard deviation.
    kurtosis : float
        Fourth moment over the square of the second, 3 for a Gaussian.
    largest : float
        Largest magnitude, in standard deviations.
    field_gain_db : float
        What knowing each row's and column's scale is worth, in dB of SNR at the same size.
    low_rank_energy : float
        Share of the energy in the RANK largest singular values, at least; 1 is all.
    bits : float
        Bits per weight for the SNR that was asked about, without a transform.
    """

    info: TensorInfo
    deviation: float | None = None
    kurtosis: float | None = None
    largest: float | None = None
    field_gain_db: float | None = None
    low_rank_energy: float | None = None
    bits: float | None = None


def profile(
    checkpoint: Checkpoint, snr: float, *, threads: int = 1, progress: Progress | None = None
) -> list[TensorProfile]:
    """Profile every tensor, in the order of the files; `snr` in dB is what `bits` is for."""
    progress = progress or Silent()
    progress.phase("reading", sum(info.elements for _, info in checkpoint.tensors))

    def job(entry: tuple[int, TensorInfo]) -> TensorProfile:
        shard, info = entry
        found = _profile_tensor(
            Matrix(checkpoint.shards[shard].raw(info), info.dtype, *view_shape(info.shape)), info, snr
        )
        progress.advance(info.elements)
        return found

    with worker_threads(threads) as pool:
        return list(pool.map(job, checkpoint.tensors))


def _profile_tensor(matrix: Matrix, info: TensorInfo, snr: float) -> TensorProfile:
    if info.dtype not in dtypes.FLOATS or not info.elements:
        return TensorProfile(info)
    sums = np.zeros(4)
    largest = 0.0
    for top, band in matrix.bands():
        values = matrix.exact(Tile(top, top + len(band), 0, matrix.columns)).ravel()
        with np.errstate(all="ignore"):
            squares = values * values
            sums += values.sum(), squares.sum(), squares @ values, squares @ squares
        largest = max(largest, float(np.abs(values).max()))
    if not np.isfinite(sums).all():
        return TensorProfile(info)
    mean, second, third, fourth = (float(value) for value in sums / info.elements)
    variance = second - mean * mean
    if not variance > 0:
        return TensorProfile(info, 0.0)
    central = fourth - 4 * mean * third + 6 * mean * mean * second - 3 * mean**4
    deviation = math.sqrt(variance)
    moments = deviation, central / variance**2, largest / deviation
    analysis = None
    if len(info.shape) > 1 and info.elements >= EXACT_BELOW:
        analysis = analyse(matrix, Shaping(geometric=True))
    if analysis is None:
        return TensorProfile(info, *moments)
    step = multiplier_for_error(analysis, 10 ** (-snr / 20)) * analysis.unit
    return TensorProfile(
        info,
        *moments,
        20 * math.log10(analysis.rms / analysis.unit),
        _low_rank_energy(matrix),
        metrics.bits_per_weight(round(analysis.expected_bytes(step)), info.elements),
    )


def _low_rank_energy(matrix: Matrix) -> float | None:
    """Share of the energy a rank of RANK holds, by subspace iteration (Halko, Martinsson, Tropp 2011)."""
    if min(matrix.rows, matrix.columns) <= RANK or matrix.rows * matrix.columns > _LOW_RANK_ELEMENTS:
        return None
    a = matrix.band(0, matrix.rows)
    peak = float(np.abs(a).max())
    a = a / np.float32(peak)
    basis = np.random.default_rng(0).standard_normal((matrix.columns, RANK + 8)).astype(np.float32)
    for _ in range(_POWER_STEPS):
        basis, _ = np.linalg.qr(a.T @ (a @ basis))
    values = np.linalg.svd(a @ basis, compute_uv=False)[:RANK].astype(np.float64)
    return float(values @ values / np.einsum("ij,ij->", a, a, dtype=np.float64))
