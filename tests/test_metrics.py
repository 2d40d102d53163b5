"""Every figure we report."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rbe_cli import metrics


def test_error_of_two_arrays() -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal(1000)
    v = w + 0.1 * rng.standard_normal(1000)
    error = metrics.Error(float(((w - v) ** 2).sum()), float((w**2).sum()), 1000)
    assert error.rmse == pytest.approx(np.sqrt(np.mean((w - v) ** 2)))
    assert error.nrmse == pytest.approx(np.linalg.norm(w - v) / np.linalg.norm(w))
    assert error.snr == pytest.approx(-20 * np.log10(error.nrmse))


def test_errors_add_up() -> None:
    total = metrics.Error(1.0, 4.0, 10) + metrics.Error(3.0, 12.0, 30)
    assert total == metrics.Error(4.0, 16.0, 40)
    assert total.nrmse == 0.5
    assert total.rmse == pytest.approx(math.sqrt(0.1))


def test_edges() -> None:
    assert metrics.Error(0.0, 0.0, 0).rmse == 0
    assert metrics.Error(0.0, 0.0, 5).nrmse == 0
    assert metrics.Error(0.0, 9.0, 5).snr == math.inf
    assert metrics.Error(1.0, 0.0, 5).nrmse == math.inf
    assert math.isnan(metrics.bits_per_weight(10, 0))
    assert math.isnan(metrics.gap_db(4.0, math.inf))
    assert metrics.gap_db(4.0, 24.0824) == pytest.approx(0, abs=1e-4)
    assert pytest.approx(6.0206, abs=1e-5) == metrics.DB_PER_BIT
    assert metrics.ratio(8, 2) == 4
