"""Sums of a table's figures against one element at a time."""

from __future__ import annotations

import numpy as np
import pytest

from rbe_cli.codec.residual import tables
from rbe_cli.kernels import forecast
from tests import naive

VALUES = np.array([0.25, 1.0, 3.0, 2.5])


@pytest.mark.parametrize("first", [-7.3, -1.0, -0.5, 0.0, 0.4, 1.0, 2.999, 3.0, 3.5, 40.25])
@pytest.mark.parametrize("size", [0, 1, 5])
def test_totals(first: float, size: int) -> None:
    counts = np.arange(size, dtype=np.float64)
    figures = [naive.table_at(VALUES.tolist(), first + i, 0.5, 0.125) for i in range(size)]
    assert forecast.total(VALUES, 0.5, 0.125, first, counts) == pytest.approx(counts @ np.array(figures))
    powers = np.exp2(figures)
    assert forecast.total_of_exponentials(VALUES, 0.5, 0.125, first, counts) == pytest.approx(counts @ powers)


@pytest.mark.parametrize("family", range(3))
@pytest.mark.parametrize("first", [-40.0, 0.2, 30.7, 56.0, 120.5])
def test_a_histogram_is_so_many_classes(family: int, first: float) -> None:
    table, counts = tables.family(family), np.array([3.0, 0.0, 1.5, 2.0])
    classes = first + np.arange(counts.size)
    assert table.bits_of(first, counts) == pytest.approx(table.bits_at(classes) @ counts)
    assert table.error_of(first, counts) == pytest.approx(table.distortion_at(classes) @ counts)
