"""What rounding to a narrow type makes of an error, against doing it."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from rbe_cli.codec.residual import rounding
from rbe_cli.codec.residual.analysis import analyse
from rbe_cli.codec.residual.rounding import Rounding
from rbe_cli.codec.residual.trellis_codec import Encoding
from rbe_cli.codec.source import Matrix
from rbe_cli.elements import FLOATS, from_float32, to_float32


def half(dtype: str, scale: float = 1.0) -> Matrix:
    """Normal weights of a type."""
    w = scale * np.random.default_rng(3).standard_normal((256, 256)).astype(np.float32)
    return Matrix(from_float32(w, dtype).view(np.uint8).ravel(), dtype, *w.shape)


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_wide_types_have_none(dtype: str) -> None:
    w = np.ones((4, 4), FLOATS[dtype])
    assert Rounding.of(Matrix(w.view(np.uint8).ravel(), dtype, 4, 4)) is None


@pytest.mark.parametrize("scale", [1.0, 3e-6, 0.0])
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_spacings_are_those_of_the_type(dtype: str, scale: float) -> None:
    """Denormal numbers (3e-6 in F16) and zero are as far apart as the least normal ones."""
    matrix = half(dtype, scale)
    found = Rounding.of(matrix)
    assert found is not None
    assert found.shares.sum() == pytest.approx(1)
    rows = matrix.some(np.linspace(0, matrix.rows - 1, rounding._ROWS).astype(np.int64))
    apart = np.log2(np.spacing(np.abs(from_float32(rows, dtype))).astype(np.float64))
    logs, counts = np.unique(apart, return_counts=True)
    expected = dict(zip(logs.tolist(), (counts / counts.sum()).tolist(), strict=True))
    got: dict[float, float] = {}
    for spacing, share in zip(found.spacings.tolist(), found.shares.tolist(), strict=True):
        got[spacing] = got.get(spacing, 0.0) + share
    assert got == pytest.approx(expected)


@pytest.mark.parametrize("error", [1e-4, 5e-4, 1e-3, 2e-3, 1e-2, 0.1])
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_an_error_after_rounding(dtype: str, error: float) -> None:
    """Of errors with the kurtosis that the coder's have, a sum of three uniform ones and a normal one."""
    matrix, rng = half(dtype), np.random.default_rng(4)
    w = matrix.whole()
    parts = [rng.uniform(-1, 1, w.shape) * math.sqrt(3) for _ in range(3)]
    noise = sum(parts) * math.sqrt(0.29) + rng.standard_normal(w.shape) * math.sqrt(1 - 3 * 0.29)
    assert float((noise**4).mean()) == pytest.approx(rounding._KURTOSIS, abs=0.05)
    back = to_float32(from_float32((w + error * noise).astype(np.float32), dtype).view(np.uint8).ravel(), dtype)
    found = Rounding.of(matrix)
    assert found is not None
    measured = float(((back.reshape(w.shape) - w) ** 2).mean())
    assert measured == pytest.approx(found.after(error**2), rel=0.05, abs=1e-10)


@pytest.mark.parametrize("step", [0.1, 0.01])
def test_errors_of_the_coder_are_as_they_are_thought_to_be(step: float) -> None:
    """Those beyond some multiples of their root mean square."""
    w = np.random.default_rng(5).standard_normal((256, 512)).astype(np.float32)
    analysis = analyse(Matrix.of(w))
    assert analysis is not None
    errors: list[np.ndarray] = []

    class Watched(Matrix):
        def squared_error(self, values: np.ndarray, tile: object) -> float:
            errors.append(values.ravel() - w[tile.top : tile.bottom, tile.left : tile.right].ravel())  # type: ignore[attr-defined]
            return super().squared_error(values, tile)  # type: ignore[arg-type]

    watched = Watched(w.view(np.uint8).ravel(), "F32", *w.shape)
    with ThreadPoolExecutor(1) as pool:
        Encoding(replace(analysis, matrix=watched), step, 64, pool).result()
    x = np.abs(np.concatenate(errors))
    x /= math.sqrt(float((x**2).mean()))
    for t in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0):
        assert float((x > t).mean()) == pytest.approx(rounding._beyond(t), abs=0.005 if t < 2 else 0.002)


@pytest.mark.parametrize("nrmse", [3e-3, 1e-3, 5e-4])
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_an_analysis_expects_it(dtype: str, nrmse: float) -> None:
    matrix = half(dtype)
    plain = analyse(matrix)
    assert plain is not None
    analysis = replace(plain, rounding=Rounding.of(matrix))
    step = nrmse * 2 * analysis.unit
    with ThreadPoolExecutor(1) as pool:
        result = Encoding(analysis, step, 64, pool).result()
    assert result.squared_error == pytest.approx(analysis.expected_error(step), rel=0.06)
