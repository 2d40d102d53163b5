"""The adaptive range coder of small integers against one big integer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbe_cli.kernels import range_coder
from tests import naive

LARGEST = (1 << 31) - 1


def encode(values: np.ndarray) -> bytes:
    out = np.zeros(12 * values.size + 16, np.uint8)
    return out[: range_coder.encode_integers(values, out)].tobytes()


def decode(data: bytes, n: int) -> tuple[np.ndarray, bool]:
    values = np.full(n, 77, np.int32)
    good = range_coder.decode_integers(np.frombuffer(data, np.uint8), values)
    return values, bool(good)


def check(values: np.ndarray) -> None:
    data = encode(values)
    assert data == naive.encode_integers(values.tolist())
    back, good = decode(data, values.size)
    assert good
    assert back.tolist() == values.tolist()
    assert not data.endswith(b"\0")


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1000])
@pytest.mark.parametrize("spread", [0, 0.3, 2, 14, 1000, 1e8])
def test_like_the_twin(n: int, spread: float) -> None:
    check(np.round(np.random.default_rng(n).normal(0, spread, n)).astype(np.int32))


@pytest.mark.parametrize(
    "values", [[0], [1], [-1], [14], [15], [16], [-15], [LARGEST], [-LARGEST], [LARGEST - 1, 0, -1]]
)
def test_edges(values: list[int]) -> None:
    if LARGEST in np.abs(values) and decode(encode(np.array(values, np.int32)), len(values))[1] is False:
        pytest.fail(f"{values} is encoded but not decoded")
    check(np.array(values, np.int32))


@given(st.lists(st.integers(-LARGEST + 1, LARGEST - 1) | st.integers(-20, 20), max_size=60))
def test_any_integers(values: list[int]) -> None:
    check(np.array(values, np.int32))


def test_carries_ripple() -> None:
    """Long runs that keep the low end just below a carry."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        check((rng.random(3000) < 0.001).astype(np.int32) * rng.integers(1, 40, 3000, dtype=np.int32))


def test_zeros_take_next_to_nothing() -> None:
    assert len(encode(np.zeros(100_000, np.int32))) < 1000


@settings(max_examples=200)
@given(st.binary(max_size=60), st.integers(0, 80))
def test_any_bytes_are_decoded_within_bounds(data: bytes, n: int) -> None:
    values, good = decode(data, n)
    if good and not (np.abs(values.astype(np.int64)) >= LARGEST).any():
        assert decode(encode(values), n)[0].tolist() == values.tolist()


def test_bytes_after_the_end_are_refused() -> None:
    values = np.random.default_rng(0).integers(-5, 5, 500, dtype=np.int32)
    data = encode(values)
    assert decode(data + b"\x01" * 40, 500)[1] is False


def test_number_too_large_is_refused() -> None:
    """An Elias-gamma code that never ends."""
    assert decode(b"\xff" * 400, 20)[1] is False


@given(st.lists(st.integers(-(1 << 31), LARGEST) | st.integers(-9, 9), max_size=20))
def test_add_up(differences: list[int]) -> None:
    values = np.array(differences, np.int32)
    expected = naive.add_up(differences)
    assert bool(range_coder.add_up(values)) == (expected is not None)
    assert expected is None or values.tolist() == expected
