"""Sums, classes and steps of the scale field against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from rbe_cli.kernels import field
from tests import naive

SHAPES = [(1, 1), (1, 7), (1, 8), (1, 9), (9, 1), (3, 5), (8, 16), (13, 31)]
ZERO = -(1 << 24)


def matrix(shape: tuple[int, int]) -> np.ndarray:
    """Gaussian with a row and a column of zeros where there is room."""
    w = np.random.default_rng(shape[0] * 100 + shape[1]).standard_normal(shape).astype(np.float32)
    if shape[0] > 2:
        w[1] = 0
    if shape[1] > 2:
        w[:, 2] = 0
    return w


@pytest.mark.parametrize("shape", SHAPES)
def test_sweep(shape: tuple[int, int]) -> None:
    w = matrix(shape)
    column_weight = np.random.default_rng(1).random(shape[1]) * (np.arange(shape[1]) != 3)
    row_power, column_sum = np.full(shape[0], np.nan), np.linspace(0, 1, shape[1])
    expected = naive.sweep(w, column_weight, column_sum)
    field.sweep(w, column_weight, row_power, column_sum)
    assert row_power.tolist() == expected[0]
    assert column_sum.tolist() == expected[1]
    assert row_power == pytest.approx((w.astype(np.float64) ** 2) @ column_weight)


@pytest.mark.parametrize("shape", SHAPES)
def test_column_powers(shape: tuple[int, int]) -> None:
    w = matrix(shape)
    total = np.ones(shape[1])
    field.column_powers(w, total)
    expected = [1.0] * shape[1]
    for row in w.astype(np.float64).tolist():
        expected = [old + v * v for old, v in zip(expected, row, strict=True)]
    assert total.tolist() == expected


@pytest.mark.parametrize("n", [1, 2, 100])
@pytest.mark.parametrize("spread", [0.0, 0.3, 100.0])
def test_axis_costs(n: int, spread: float) -> None:
    logs = spread * np.random.default_rng(n).standard_normal(n) - 3
    costs = np.empty(16)
    field.axis_costs(logs, float(np.median(logs)), 8, 512, 4, 50, costs)
    assert costs.tolist() == pytest.approx(naive.axis_costs(logs, float(np.median(logs)), 8, 512, 4, 50, 4), rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_sum_of_squares(shape: tuple[int, int]) -> None:
    w = matrix(shape).ravel()
    assert field.sum_of_squares(w) == naive.squared_error(w.astype(np.float64), np.zeros(w.size))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("base", [-32768, -5, 0, 15, 60, 180, 32767])
def test_classify(shape: tuple[int, int], base: int) -> None:
    rng = np.random.default_rng(base & 0xFFFF)
    outer = rng.integers(-600, 600, shape[0], dtype=np.int32)
    inner = rng.integers(-600, 600, shape[1], dtype=np.int32)
    outer[rng.random(shape[0]) < 0.2], inner[rng.random(shape[1]) < 0.2] = ZERO, ZERO
    classes = np.full(shape, 99, np.uint8)
    field.classify(outer, inner, base, 184, classes)
    assert classes.tolist() == naive.classify(outer.tolist(), inner.tolist(), base, 184)


@pytest.mark.parametrize("stored", [[], [3], [-2, 5, -2, 0, -2, 6], [0, 512, -512], [7, 513, 7], [-600, 1, -600]])
@pytest.mark.parametrize("marked", [False, True])
def test_unpack_exponents(stored: list[int], marked: bool) -> None:
    expected = naive.unpack_exponents(stored, marked, 2, 512, ZERO)
    exponents = np.full(max(len(stored) - marked, 0), 77, np.int32)
    good = field.unpack_exponents(np.array(stored, np.int32), int(marked), 2, 512, ZERO, exponents)
    assert good == (expected is not None)
    assert not good or exponents.tolist() == expected


@pytest.mark.parametrize("shaping", [0, 1, 8, 16])
@pytest.mark.parametrize("important", [False, True])
def test_steps_and_scales_of_an_axis(shaping: int, important: bool) -> None:
    rng = np.random.default_rng(shaping)
    exponents = rng.integers(-4096, 4097, 300).astype(np.int32)
    exponents[[0, 17]] = ZERO
    importance = rng.integers(-600, 600, 300 if important else 0).astype(np.int32)
    steps, classes = np.empty(300, np.int32), np.empty(300, np.int32)
    field.shape_exponents(exponents, shaping, importance, ZERO, steps, classes)
    expected = naive.shape_exponents(exponents.tolist(), shaping, importance.tolist(), ZERO)
    assert (steps.tolist(), classes.tolist()) == expected
    eighths = np.exp2(np.arange(8) / 8).astype(np.float32)
    # All that fits float32, and what is subnormal there or beyond it.
    steps[1:] = rng.integers(-1300, 1200, 299)
    scales = np.full(300, np.nan, np.float32)
    field.scales_of(steps, classes, ZERO, eighths, scales)
    assert scales.tobytes() == naive.scales_of(steps.tolist(), classes.tolist(), ZERO, eighths).tobytes()
    for kind in (np.isinf(scales), scales == 0, (scales > 0) & (scales < 2.0**-126)):
        assert kind.any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("by_columns", [False, True])
def test_divide(shape: tuple[int, int], by_columns: bool) -> None:
    w = matrix(shape)
    rng = np.random.default_rng(2)
    rows, columns = (np.exp2(rng.normal(0, 3, n)).astype(np.float32) for n in shape)
    rows[0] = 0 if shape[0] > 1 else rows[0]
    outer, inner, strides = (columns, rows, (1, shape[1])) if by_columns else (rows, columns, (shape[1], 1))
    steps = rows[:, None] * columns[None, :]
    expected = np.divide(w, steps, out=np.zeros_like(w), where=steps > 0)
    divided = np.full(w.size, np.nan, np.float32)
    field.divide(w.ravel(), strides, outer, inner, divided)
    assert divided.tobytes() == (expected.T if by_columns else expected).tobytes("C")


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1000])
def test_squared_error(n: int) -> None:
    a, b = np.random.default_rng(n).standard_normal((2, n))
    assert field.squared_error(a, b) == naive.squared_error(a, b)
    assert field.squared_error(a, a) == 0
    assert field.squared_error(a, b) == pytest.approx(float(((a - b) ** 2).sum()))


@pytest.mark.parametrize("n", [0, 1, 8, 17])
def test_multiply_line(n: int) -> None:
    rng = np.random.default_rng(n)
    points, inner = rng.standard_normal((2, n)).astype(np.float32)
    outer, out = np.float32(rng.random()), np.empty(n, np.float32)
    field.multiply_line(points, outer, inner, out)
    assert out.tolist() == naive.multiply_line(points, outer, inner)
