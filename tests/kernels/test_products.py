"""Matrix products in a fixed order of additions, against loops over numpy scalars."""

from __future__ import annotations

import numpy as np
import pytest

from rbe_cli.kernels import products
from tests import naive

SHAPES = [(1, 1, 1), (1, 7, 3), (8, 8, 8), (3, 9, 17), (16, 5, 1)]


def arrays(*shapes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(sum(a * 100 + b for a, b in shapes))
    return [(rng.standard_normal(shape) * np.exp(rng.normal(0, 3, shape))).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize(("h", "n"), [(1, 1), (4, 7), (8, 8), (5, 17)])
def test_multiply_left(h: int, n: int) -> None:
    matrix, x = arrays((h, h), (h, n))
    out = np.full((h + 2, n), 7, np.float32)
    products.multiply_left(matrix, x, out)
    expected = naive.product(matrix, x)
    assert out[:h].tobytes() == expected.tobytes()
    assert (out[h:] == 7).all()
    assert expected == pytest.approx(matrix.astype(np.float64) @ x, rel=1e-3, abs=1e-2)


@pytest.mark.parametrize(("w", "m", "left"), [(1, 1, 0), (4, 7, 2), (8, 8, 0), (5, 17, 3)])
def test_multiply_right(w: int, m: int, left: int) -> None:
    matrix, x = arrays((w, w), (m, left + w + 2))
    out = np.full_like(x, 7)
    products.multiply_right(x, matrix, left, out)
    expected = naive.product(np.ascontiguousarray(x[:, left : left + w]), matrix)
    assert out[:, left : left + w].tobytes() == expected.tobytes()
    assert (out[:, :left] == 7).all()
    assert (out[:, left + w :] == 7).all()


@pytest.mark.parametrize(("m", "r", "n"), SHAPES)
@pytest.mark.parametrize("sign", [1, -1])
def test_add_product(m: int, r: int, n: int, sign: int) -> None:
    a, b, out = arrays((m, r), (r, n), (m, n))
    expected = naive.add_product(a, b, np.float32(sign), out)
    products.add_product(a, b, np.float32(sign), out)
    assert out.tobytes() == expected.tobytes()
