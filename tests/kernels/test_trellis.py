"""The Viterbi search against dynamic programming and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbe_cli.codec.residual import tables
from rbe_cli.codec.residual.trellis import POLYNOMIALS, trellis
from rbe_cli.kernels import trellis as kernel
from tests import naive

CODED = tables.CLASSES
PRICE = tables.family(0).coding.price.reshape(CODED + 1, -1, 2, 2)


def search(x: np.ndarray, classes: np.ndarray, states: int, price: np.ndarray = PRICE) -> tuple[np.ndarray, np.ndarray]:
    """The kernel: symbols and unions of float32[T, L]."""
    t = trellis(states)
    steps, lanes = x.shape
    symbols, unions = np.zeros((steps, lanes), np.int32), np.zeros((steps, lanes), np.uint8)
    kernel.search(
        np.ascontiguousarray(x, np.float32), np.ascontiguousarray(classes, np.uint8), CODED, price.ravel(),
        t.butterflies, t.back, np.zeros((steps, -(-states // 32), lanes), np.uint32),
        np.zeros((steps, lanes), np.uint8), symbols, unions,
    )  # fmt: skip
    return symbols, unions


def sample(steps: int, lanes: int, classes: list[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian weights in steps, each as large as its class says."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(classes, (steps, lanes)).astype(np.uint8)
    sigma = 2.0 ** ((chosen.astype(np.float64) - 15) / 8)
    return (rng.standard_normal((steps, lanes)) * np.where(chosen == 255, 1, sigma)).astype(np.float32), chosen


def assert_like_twin(x: np.ndarray, classes: np.ndarray, states: int, price: np.ndarray = PRICE) -> None:
    symbols, unions = search(x, classes, states, price)
    for lane in range(x.shape[1]):
        expected = naive.search_lane(list(x[:, lane]), classes[:, lane].tolist(), CODED, price, states)
        assert symbols[:, lane].tolist() == expected[0]
        assert unions[:, lane].tolist() == expected[1]


@pytest.mark.parametrize("states", sorted(POLYNOMIALS))
def test_like_the_twin_for_every_number_of_states(states: int) -> None:
    x, classes = sample(70 if states <= 64 else 12, 2, [1, 9, 15, 30, 56], states)
    assert_like_twin(x, classes, states)


@pytest.mark.parametrize(
    "classes", [[1], [10, 20], [56], [57, 58, 63, 64, 65], [100, 184], [0], [255], [20, 255], [0, 1, 30, 57]]
)
def test_like_the_twin_in_every_kind_of_class(classes: list[int]) -> None:
    assert_like_twin(*sample(40, 5, classes, sum(classes)), 8)


@pytest.mark.parametrize("family", [0, 1, 2])
def test_like_the_twin_in_every_family(family: int) -> None:
    price = tables.family(family).coding.price.reshape(CODED + 1, -1, 2, 2)
    assert_like_twin(*sample(40, 4, list(range(1, 60, 7)), family), 16, price)


@pytest.mark.parametrize("steps", [0, 1, 2, 63, 64, 65, 129])
def test_like_the_twin_for_every_length(steps: int) -> None:
    assert_like_twin(*sample(steps, 3, [12, 25], steps), 4)


def test_like_the_twin_for_outliers() -> None:
    """76 sigma, and all the way to the largest index: symbols beyond any table."""
    x, classes = sample(30, 3, [15, 40], 1)
    x[3, 0], x[4, 0], x[5, 1], x[6, 1], x[7, 2] = 1e3, -1e3, 8e6, -8e6, 223.99
    x[8:14, 2] = [-222, -223.5, 215.9, 216.0, 224, -224]
    assert_like_twin(x, classes, 8)


def test_like_the_twin_on_ties() -> None:
    """Numbers exactly between points, and all alike: the first of equals is taken on both sides."""
    x = np.tile(np.float32([0, 0.5, 1, -0.5, -1, 2, 1.5, -3, 4, -4, 8]), (4, 1)).T.copy()
    assert_like_twin(x, np.full(x.shape, 20, np.uint8), 8)
    flat = np.zeros_like(PRICE)
    assert_like_twin(x, np.full(x.shape, 20, np.uint8), 32, flat)
    assert_like_twin(np.zeros((20, 2), np.float32), np.full((20, 2), 5, np.uint8), 4)


@pytest.mark.parametrize("states", [4, 8, 32, 256])
def test_no_path_is_cheaper(states: int) -> None:
    x, classes = sample(9, 4, [5, 15, 30, 60], 100 + states)
    symbols, unions = search(x, classes, states)
    for lane in range(4):
        arguments = list(x[:, lane]), classes[:, lane].tolist(), CODED, PRICE, states
        assert naive.path_cost(symbols[:, lane].tolist(), *arguments) == pytest.approx(
            naive.search_by_brute_force(*arguments), rel=1e-5, abs=1e-5
        )
        s = 0
        for k, union in zip(symbols[:, lane].tolist(), unions[:, lane].tolist(), strict=True):
            assert union == s & 1
            s = naive.next_state(states, s, k & 1)


@pytest.mark.parametrize("states", sorted(POLYNOMIALS))
def test_zeros_among_others_get_symbols_that_can_be_coded(states: int) -> None:
    """Rows of zeros have class 0, whose tables have a single symbol: whatever the state, the search must choose it."""
    family = tables.family(0)
    freq, reach = family.coding.freq.reshape(-1, 256), family.coding.reach
    x, classes = sample(200, 8, [0, 20, 35], states)
    x[classes == 0] = 0
    symbols, unions = search(x, classes, states)
    for k, c, union in zip(symbols.ravel().tolist(), classes.ravel().tolist(), unions.ravel().tolist(), strict=True):
        magnitude = k if k >= 0 else -k - union
        assert magnitude > reach[2 * c + union] or freq[2 * c + union, k + 128] > 0, (k, c, union)


def test_lanes_do_not_see_each_other() -> None:
    x, classes = sample(50, 32, [3, 15, 30, 255], 9)
    together = search(x, classes, 64)
    for lane in (0, 13, 31):
        alone = search(x[:, lane : lane + 1], classes[:, lane : lane + 1], 64)
        assert np.array_equal(alone[0][:, 0], together[0][:, lane])
        assert np.array_equal(alone[1][:, 0], together[1][:, lane])


def test_more_states_cost_less() -> None:
    x, classes = sample(2000, 8, [24], 3)
    costs = []
    for states in (4, 16, 64, 256):
        symbols, unions = search(x, classes, states)
        costs.append(float(((x - (2 * symbols + unions)) ** 2).mean()))
    assert costs == sorted(costs, reverse=True)


@pytest.mark.parametrize("states", sorted(POLYNOMIALS))
def test_tables_of_the_trellis(states: int) -> None:
    """The step table is the formula; every state has one way in by each parity, from states of one union."""
    step = trellis(states).step.tolist()
    assert step == [naive.next_state(states, s, z) for s in range(states) for z in (0, 1)]
    for z in (0, 1):
        assert sorted(step[2 * s + z] for s in range(states)) == list(range(states))
    for to in range(states):
        unions = {s & 1 for s in range(states) for z in (0, 1) if step[2 * s + z] == to}
        assert len(unions) == 1


@given(st.floats(-1e4, 1e4, width=32) | st.integers(-9, 9).map(float), st.sampled_from([0, 1, 56, 100, 184, 255]))
def test_symbol_of(v: float, c: int) -> None:
    for r in range(4):
        for higher in (False, True):
            k = kernel.symbol_of(np.float32(v), np.uint64(c), np.int64(r), higher)
            assert k == naive.symbol_of(np.float32(v), c, r, higher)
            if c not in (0, 255):
                point = 2 * k + r % 2
                assert point % 4 == r
                assert v - 4.01 < point - 4 * higher < v + 0.01
