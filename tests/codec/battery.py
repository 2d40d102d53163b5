"""The battery of matrices every codec has to survive, and one way to run each codec on them."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from rbe_cli.codec import lossless
from rbe_cli.codec.residual import trellis_codec
from rbe_cli.codec.residual.analysis import Analysis, analyse
from rbe_cli.codec.residual.noise_shaping import Shaping
from rbe_cli.codec.source import Matrix, view_shape
from rbe_cli.codec.tensor_codec import open_tensor
from rbe_cli.elements import FLOATS, from_float32

DTYPES = sorted(FLOATS)
#: (gr, gc) in sixteenths, and whether the unit is that of a shaped error.
SHAPINGS = {
    "mse": Shaping(),
    "balanced": Shaping(8, 8, geometric=True),
    "columns": Shaping(0, 16, geometric=True),
}


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _scaled(rows: int, columns: int, spread: float) -> np.ndarray:
    rng = _rng(rows * columns)
    w = rng.standard_normal((rows, columns))
    return w * np.exp(spread * rng.standard_normal((rows, 1))) * np.exp(spread * rng.standard_normal((1, columns)))


def _with(w: np.ndarray, **places: float) -> np.ndarray:
    for place, value in places.items():
        w.ravel()[int(place.removeprefix("at_"))] = value
    return w


def _zero_bands(w: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    w[rows], w[:, columns] = 0, 0
    return w


def _only(shape: tuple[int, ...], value: float) -> np.ndarray:
    w = np.zeros(shape)
    w[tuple(n // 2 for n in shape)] = value
    return w


#: Matrices as float64; each test casts them to its type.
MATRICES: dict[str, np.ndarray] = {
    "gaussian": _rng(0).standard_normal((150, 90)),
    "laplace": _rng(1).laplace(0, 0.02, (150, 90)),
    "uniform": _rng(2).uniform(-1, 1, (64, 64)),
    "positive": _rng(3).uniform(1, 2, (64, 64)),
    "scaled rows and columns": _scaled(120, 100, 0.5),
    "wildly scaled": _scaled(120, 100, 2.0),
    "zeros": np.zeros((40, 50)),
    "constant": np.full((40, 50), 0.7),
    "minus zero": np.full((40, 50), -0.0),
    "two values": _rng(4).choice([-1.0, 1.0], (64, 64)),
    "mostly zero": _rng(5).standard_normal((100, 100)) * (_rng(6).random((100, 100)) < 0.02),
    "one nonzero": _only((60, 50), 3.0),
    "one nonzero in a vector": _only((1, 5000), -3.0),
    "rows of zeros": _zero_bands(_rng(7).standard_normal((100, 60)), slice(10, 90, 3), slice(0, 0)),
    "columns of zeros": _zero_bands(_rng(8).standard_normal((60, 100)), slice(0, 0), slice(5, 80, 2)),
    "rows and columns of zeros": _zero_bands(_rng(9).standard_normal((64, 96)), slice(0, 40), slice(30, 60)),
    "half empty": _zero_bands(_rng(10).standard_normal((200, 16)), slice(100, 200), slice(0, 0)),
    "outlier of 76 sigma": _with(_rng(11).standard_normal((150, 90)), at_4321=76.0),
    "outliers": _with(_rng(12).standard_normal((100, 90)), at_0=-1000.0, at_1=1000.0, at_8999=500.0),
    "large": _rng(13).standard_normal((50, 50)) * 1e4,
    "small": _rng(14).standard_normal((50, 50)) * 1e-5,
    "denormals of float16": _rng(15).standard_normal((50, 50)) * 1e-7,
    "huge": _rng(16).standard_normal((50, 50)) * 1e17,
    "tiny": _rng(17).standard_normal((50, 50)) * 1e-17,
    "beyond any scale": _rng(18).standard_normal((50, 50)) * 1e30,
    "denormals": _rng(19).standard_normal((50, 50)) * 1e-39,
    "one row": _rng(20).standard_normal((1, 3000)),
    "one column": _rng(21).standard_normal((3000, 1)),
    "primes": _rng(22).standard_normal((97, 101)),
    "single": np.array([[2.5]]),
    "seven": _rng(23).standard_normal((1, 7)),
    "eight": _rng(24).standard_normal((2, 4)),
    "nine": _rng(25).standard_normal((3, 3)),
    "a tile and one row": _rng(26).standard_normal((257, 256)),
    "five tiles": _rng(27).standard_normal((1037, 256)),
    "a very long row": _rng(28).standard_normal((2, (1 << 18) + 5)),
    "3-d": _rng(29).standard_normal((20, 9, 11)),
    "4-d": _rng(30).standard_normal((16, 8, 3, 3)),
    "vector": _rng(31).standard_normal(2000),
}


def cast(name: str, dtype: str) -> np.ndarray:
    """A matrix of the battery in a type, clipped to what it can hold."""
    with np.errstate(over="ignore"):
        rounded = from_float32(MATRICES[name].astype(np.float32), dtype)
    return MATRICES[name] if dtype == "F64" else rounded


class Coded(NamedTuple):
    """What the trellis coder made of a matrix."""

    analysis: Analysis
    chunks: list[bytes]
    squared_error: float


def raw_bytes(w: np.ndarray) -> np.ndarray:
    """A tensor's bytes as uint8."""
    return np.frombuffer(w.tobytes(), np.uint8)


def analysed(w: np.ndarray, dtype: str, shaping: str) -> Analysis | None:
    """What the encoder knows of a matrix; None where it has to be exact."""
    return analyse(Matrix(raw_bytes(w), dtype, *view_shape(w.shape)), SHAPINGS[shaping])


def trellis_encode(
    w: np.ndarray, dtype: str, *, step: float = 0.3, states: int = 8, shaping: str = "mse", threads: int = 2
) -> Coded | None:
    """Encode with a step relative to the unit; None where it has to be exact."""
    analysis = analysed(w, dtype, shaping)
    if analysis is None or analysis.largest / (step * analysis.unit) > trellis_codec.MAX_INDEX:
        return None
    with ThreadPoolExecutor(threads) as pool:
        encoded = trellis_codec.Encoding(analysis, step * analysis.unit, states, pool).result()
    return Coded(analysis, encoded.chunks, encoded.squared_error)


def trellis_decode(chunks: list[bytes], shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """The weights in their type, tiles in any order put where they belong."""
    decoder = open_tensor(chunks[0], shape)
    grid = decoder.grid
    out = np.zeros((grid.rows, grid.columns), FLOATS[dtype])
    assert len(grid) == len(chunks) - 1
    for i in reversed(range(len(grid))):
        tile = grid[i]
        out[tile.top : tile.bottom, tile.left : tile.right] = from_float32(decoder.decode(chunks[1 + i], tile), dtype)
    return out.reshape(shape)


def lossless_round_trip(raw: np.ndarray, dtype: str, shape: tuple[int, ...]) -> tuple[bytes, int]:
    """The bytes that come back, and how many were stored."""
    chunks = list(lossless.encode(raw, dtype))
    assert len(chunks) == lossless.chunk_count(dtype, shape)
    back = b"".join(lossless.decode_chunk(chunk, i, dtype, shape).tobytes() for i, chunk in enumerate(chunks))
    return back, sum(map(len, chunks))


def measured_error(w: np.ndarray, back: np.ndarray) -> float:
    """Sum of squared errors in float64, exactly rounded."""
    difference = w.astype(np.float64).ravel() - back.astype(np.float64).ravel()
    return math.fsum((difference * difference).tolist())
