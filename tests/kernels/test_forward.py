"""The kernels of the layers against the dense matrices they never form."""

from __future__ import annotations

import numpy as np
import pytest

from rbe_cli.kernels import forward
from tests import naive

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def near(got: np.ndarray, want: np.ndarray) -> None:
    assert got.dtype == np.float32
    assert abs(got - want).max(initial=0) <= 1e-5 * max(abs(want).max(initial=0), 1)


@pytest.mark.parametrize("kind", [np.float32, np.int16])
@pytest.mark.parametrize(("m", "r", "c"), [(1, 1, 1), (7, 16, 9), (33, 5, 40), (8, 4, 8)])
def test_low_rank(m: int, r: int, c: int, kind: type) -> None:
    left, right, scale = (10 * normal(m, r)).astype(kind), (10 * normal(r, c)).astype(kind), normal(r) / 100
    dense = left.astype(float) * scale @ right
    for n in (0, 1, 3):
        x, z = normal(n, m), normal(n, c)
        out, back = np.full((n, c), 7, np.float32), np.full((n, m), 7, np.float32)
        forward.low_rank_times(x, left, scale, right, out)
        forward.low_rank_times_transposed(z, left, scale, right, back)
        near(out, x @ dense)
        near(back, z @ dense.T)


#: Functions and size of whole blocks and of the rest of each axis, and how many whole blocks.
AXES = [((5, 8), (0, 0), 2), ((5, 8), (3, 2), 1), ((0, 4), (2, 3), 3), ((9, 4), (0, 1), 2)]


def axis(whole: tuple[int, int], rest: tuple[int, int], blocks: int) -> tuple[np.ndarray, np.ndarray, int]:
    return normal(*whole), normal(*rest), blocks * whole[1] + rest[1]


@pytest.mark.parametrize("rows", AXES)
@pytest.mark.parametrize("columns", AXES)
def test_sparse(rows: tuple, columns: tuple) -> None:
    a, a_rest, m = axis(*rows)
    b, b_rest, c = axis(*columns)
    left, right = naive.blockwise(np.zeros(m), a, a_rest), naive.blockwise(np.zeros(c), b, b_rest)
    inner = np.where(RNG.random((len(left), len(right))) < 0.3, normal(len(left), len(right)), 0).astype(np.float32)
    u, places = np.nonzero(inner)
    starts = np.concatenate(([0], np.cumsum(np.bincount(u, minlength=len(left))))).astype(np.uint32)
    entries = starts, places.astype(np.uint32), inner[u, places]
    assert (naive.sparse(*entries, len(right)) == inner).all()
    dense = left.T @ inner @ right
    functions = a, a_rest, *entries, b, b_rest
    for n in (0, 1, 3):
        x, z = normal(n, m), normal(n, c)
        out, back = np.full((n, c), 7, np.float32), np.full((n, m), 7, np.float32)
        forward.sparse_times(x, *functions, out)
        forward.sparse_times_transposed(z, *functions, back)
        near(out, x @ dense)
        near(back, z @ dense.T)
        ids = RNG.integers(0, m, n)
        coordinates = np.full((n, len(right)), 7, np.float32)
        forward.sparse_rows(ids, rows[0][1], rows[2], a, a_rest, *entries, coordinates)
        near(coordinates, (left.T @ inner)[ids])


def test_weights_at() -> None:
    rows, columns, u, v, values = normal(4, 9), normal(3, 7), np.array([0, 3, 2]), np.array([2, 0, 2]), normal(3)
    core = np.zeros((4, 3))
    core[u, v] = values
    at = RNG.integers(0, 9, 20), RNG.integers(0, 7, 20)
    out = np.empty(20, np.float32)
    forward.weights_at(*at, rows, columns, u, v, values, out)
    near(out, (rows.T @ core @ columns)[at])


@pytest.mark.parametrize("hidden", [1, 3, 64, 101])
def test_layer_norm(hidden: int) -> None:
    x, gamma, beta = 3 + normal(5, hidden), normal(hidden), normal(hidden)
    out = np.empty_like(x)
    forward.layer_norm(x, gamma, beta, 1e-5, out)
    near(out, naive.layer_norm(x, gamma, beta, 1e-5))


def test_gelu() -> None:
    x = np.concatenate([4 * normal(500), np.float32([0, -0.0, 20, -20, 1e30, np.inf, np.nan])])
    out = np.empty_like(x)
    forward.gelu(x, out)
    np.testing.assert_array_equal(out, naive.gelu(x))


@pytest.mark.parametrize(("seen", "size", "spread"), [(1, 1, 1.0), (6, 5, 1.0), (9, 64, 30.0), (70, 8, 1e4)])
def test_attend_one(seen: int, size: int, spread: float) -> None:
    new = [normal(2, 3 * size) * np.float32(factor) for factor in (spread, 1, 1)]
    keys, values = normal(2, 3, 70, size), normal(2, 3, 70, size)
    out = np.empty_like(new[0])
    forward.attend_one(*new, keys, values, seen - 1, np.float32(0.5), out)
    queries, new_keys, new_values, got = (array.reshape(2, 3, size) for array in (*new, out))
    assert (keys[:, :, seen - 1] == new_keys).all()
    assert (values[:, :, seen - 1] == new_values).all()
    for b in range(2):
        for h in range(3):
            want = naive.attend(queries[b, h], keys[b, h, :seen], values[b, h, :seen], 0.5)
            assert abs(got[b, h] - want).max() < 1e-5 * max(1, spread) * abs(values).max()
