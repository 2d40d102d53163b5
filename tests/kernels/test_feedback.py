"""The search with error feedback, against its slow twin and against what it is for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbe_cli.codec.residual import tables
from rbe_cli.codec.residual.noise_shaping import Inputs
from rbe_cli.codec.residual.trellis import trellis
from rbe_cli.kernels import feedback, rans
from tests import naive

LANES = rans.LANES


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 12), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_add_fed_back_is_a_sum_of_products(j: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    errors = rng.normal(size=(13, width)).astype(np.float32)
    factor = rng.normal(size=(13, 13)).astype(np.float32)
    start = rng.normal(size=width).astype(np.float32)
    out = start.copy()
    feedback.add_fed_back(errors, factor, j, out)
    assert (out == naive.add_fed_back(errors, factor, j, start)).all()


@pytest.mark.parametrize(("inputs", "widths", "states"), [(5, (24,), 4), (4, (37, 32), 8), (3, (16, 19, 17), 16)])
def test_search_is_its_twin(inputs: int, widths: tuple[int, ...], states: int) -> None:
    """Windows, columns that end in the middle of a step, and tiles of different widths."""
    rng = np.random.default_rng(inputs)
    w = np.zeros((len(widths), inputs, max(widths)), np.float32)
    classes = np.full((-(-inputs * max(widths) // LANES), len(widths) * LANES), 255, np.uint8)
    for g, width in enumerate(widths):
        w[g, :, :width] = rng.normal(size=(inputs, width)) * 3
        for t in range(inputs * width):
            classes[t // LANES, g * LANES + t % LANES] = 24 + t % 3
    factor = np.tril(rng.normal(size=(inputs, inputs)), -1).astype(np.float32) / 4
    outer = np.exp2(rng.integers(-2, 3, (len(widths), inputs)) / 4).astype(np.float32)
    inner = np.ones((len(widths), max(widths)), np.float32)
    window = min(widths) // LANES
    symbols, unions = np.empty(classes.shape, np.int32), np.empty(classes.shape, np.uint8)
    t, family = trellis(states), tables.family(0)
    feedback.search(
        w.copy(), 0, factor, outer, inner, np.array(widths), classes, tables.CLASSES, family.coding.price,
        t.butterflies, t.back, window // 3, LANES, np.empty((window, classes.shape[1]), np.float32),
        np.empty((window, -(-states // 32), classes.shape[1]), np.uint32),
        np.empty((window, classes.shape[1]), np.uint8), symbols, unions,
    )  # fmt: skip
    for g, width in enumerate(widths):
        part = slice(g * LANES, (g + 1) * LANES)
        steps = -(-inputs * width // LANES)
        price = family.coding.price.reshape(tables.CLASSES + 1, -1, 2, 2)
        expected = naive.fed_search(
            w[g, :, :width], factor, outer[g], classes[:, part], tables.CLASSES, price, states, window, window // 3
        )
        assert (classes[steps:, part] == 255).all()
        count = inputs * width
        assert symbols[:, part].ravel()[:count].tolist() == expected


def test_the_factor_takes_the_moments_apart() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(200, 12)) @ rng.normal(size=(12, 12))
    moments = x.T @ x / 200
    known = Inputs(1, np.diag(moments), lambda: moments)
    damped = moments + np.eye(12) * known.damping * np.diag(moments).mean()
    back = known.factor().astype(np.float64) + np.eye(12)
    left = np.linalg.inv(back.T) @ damped @ np.linalg.inv(back)
    assert np.abs(left - np.diag(np.diag(left))).max() < 2e-3 * np.diag(damped).max()
    steps = np.exp2(known.exponents.exponents / 8)
    spread = np.diag(left) * steps**2
    assert spread.max() / spread.min() < 1.5
