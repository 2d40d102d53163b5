"""What `rbe bench` measures on: white and smooth sources, weights of RBE's own model, and those of a checkpoint."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rbe_cli import dtypes
from rbe_cli.checkpoint.reader import Checkpoint, TensorInfo, open_checkpoint
from rbe_cli.checkpoint.writer import write_safetensors
from rbe_cli.codec.source import Bytes
from rbe_cli.codec.structure.basis import functions
from rbe_cli.codec.structure.transform import dct_matrix
from rbe_cli.errors import UsageError
from rbe_cli.operations.patterns import compile_pattern
from rbe_cli.operations.settings import EXACT_BELOW

#: Waves and noise of the structured source, in units of its smooth part's RMS.
WAVES, HIGHEST_FREQUENCY, NOISE = 16, 8, 0.1


@dataclass(frozen=True, eq=False)
class BenchSource:
    """One matrix to measure on.

    Attributes
    ----------
    name : str
        Short for the synthetic ones, the tensor's own for the others.
    what : str
        Where it comes from, in words.
    raw : uint8[nbytes]
        As stored.
    dtype, shape
        Of the tensor, or of the rows of it that are taken.
    """

    name: str
    what: str
    raw: NDArray[np.uint8]
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of weights."""
        return dtypes.count(self.shape)

    def checkpoint(self, folder: Path) -> Checkpoint:
        """A checkpoint of this one tensor, written to `folder`."""
        path = folder / "source.safetensors"
        write_safetensors(path, [(self.name, self.dtype, self.shape)], iter([[self.raw]]), None)
        return open_checkpoint(path)


def gaussian(size: int = 1024) -> BenchSource:
    """White Gaussian noise: `numpy.random.default_rng(0).standard_normal((size, size))`, float32.

    >>> gaussian(8).shape
    (8, 8)
    """
    weights = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    return _synthetic("gaussian", "white Gaussian noise, numpy.random.default_rng(0)", weights)


def structured(size: int = 1024) -> BenchSource:
    """A smooth field and white noise 20 dB below it, float32, from `numpy.random.default_rng(1)`.

    The field is the sum of WAVES plane cosines with -8 to 8 and 0 to 8 periods across the matrix, random phases and
    Gaussian amplitudes, scaled to RMS 1; the noise has standard deviation 0.1. A code that finds the field has only
    the noise left to describe, so at high rate its gap tends to -20 dB.
    """
    rng = np.random.default_rng(1)
    across = np.arange(size) / size
    field = np.zeros((size, size))
    for _ in range(WAVES):
        u = rng.integers(-HIGHEST_FREQUENCY, HIGHEST_FREQUENCY + 1)
        v = rng.integers(0, HIGHEST_FREQUENCY + 1)
        phase, amplitude = rng.uniform(0, 2 * np.pi), rng.standard_normal()
        field += amplitude * np.cos(2 * np.pi * (u * across[:, None] + v * across) + phase)
    field /= np.sqrt(np.mean(field**2))
    weights = (field + NOISE * rng.standard_normal((size, size))).astype(np.float32)
    what = f"{WAVES} plane cosines of at most {HIGHEST_FREQUENCY} periods, RMS 1, and white noise of RMS {NOISE}"
    return _synthetic("structured", what, weights)


def guide_model(
    rows: int, columns: int, block: int = 128, coefficients: int = 16, seed: int = 0
) -> NDArray[np.float32]:
    """The weights RBE's own model describes, of RMS 1: smooth blocks and a few low frequencies.

    Every block x block is a sum of the 8 functions with random weights and of some random DCT coefficients among its
    lowest quarter of frequencies; blocks at the edges are cut. float32[rows, columns].
    """
    rng = np.random.default_rng(seed)
    basis, dct = functions(block, block), dct_matrix(block).astype(np.float64)
    low = max(block // 4, 1)
    down, along = -(-rows // block), -(-columns // block)
    w = np.empty((down * block, along * block), np.float32)
    for top in range(0, down * block, block):
        for left in range(0, along * block, block):
            place = rng.choice(low * low, min(coefficients, low * low), replace=False)
            strength = rng.standard_normal(place.size) * block / 4
            spectrum = np.zeros((block, block))
            spectrum[place // low, place % low] = strength
            smooth = (rng.standard_normal(8) @ basis).reshape(block, block)
            w[top : top + block, left : left + block] = smooth + dct.T @ spectrum @ dct
    w = w[:rows, :columns]
    return np.ascontiguousarray(w / np.sqrt(np.mean(w * w, dtype=np.float64)), np.float32)


def of_checkpoint(checkpoint: Checkpoint, pattern: str | None, max_elements: int) -> list[BenchSource]:
    """The matrices of a checkpoint whose names match, the largest first, cut to at most `max_elements` (whole rows).

    Without a pattern, the first of each kind: of the names that differ in numbers only (layer 0, layer 1 ...) and have
    the same shape. Raises UsageError if there is none.
    """
    matching = compile_pattern(pattern or "", "--tensors")
    kinds: set[tuple[str, tuple[int, ...]]] = set()
    sources = []
    for shard, info in checkpoint.tensors:
        if info.dtype not in dtypes.FLOATS or len(info.shape) < 2 or info.elements < EXACT_BELOW:
            continue
        kind = re.sub(r"\d+", "#", info.name), info.shape
        if not matching.search(info.name) or (pattern is None and kind in kinds):
            continue
        kinds.add(kind)
        sources.append(_cut(checkpoint.name, info, checkpoint.shards[shard].raw(info), max_elements))
    if not sources:
        raise UsageError(
            f"{checkpoint.name}: no matrix {f'matches --tensors {pattern!r}' if pattern else 'to measure'}"
        )
    return sorted(sources, key=lambda source: -source.elements)


def _cut(origin: str, info: TensorInfo, raw: Bytes, max_elements: int) -> BenchSource:
    per_row = info.elements // info.shape[0]
    rows = min(info.shape[0], max(1, max_elements // per_row))
    what = f"of {origin}" + (f", the first {rows} of {info.shape[0]} rows" if rows < info.shape[0] else "")
    return BenchSource(
        info.name, what, raw[: rows * (info.nbytes // info.shape[0])], info.dtype, (rows, *info.shape[1:])
    )


def _synthetic(name: str, what: str, weights: NDArray[np.float32]) -> BenchSource:
    return BenchSource(name, what, weights.view(np.uint8).ravel(), "F32", weights.shape)
