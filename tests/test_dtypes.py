"""Types of elements: sizes and rounding."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbe_cli import dtypes, elements
from tests.synthetic import NUMPY_TYPES


@pytest.mark.parametrize("name", sorted(NUMPY_TYPES))
def test_sizes(name: str) -> None:
    assert dtypes.BITS[name] == 8 * NUMPY_TYPES[name].itemsize
    assert dtypes.byte_length(name, (3, 5)) == 15 * NUMPY_TYPES[name].itemsize
    assert dtypes.byte_length(name, ()) == NUMPY_TYPES[name].itemsize
    assert dtypes.byte_length(name, (0, 5)) == 0


def test_types_narrower_than_a_byte() -> None:
    assert dtypes.byte_length("F4", (5,)) == 3
    assert dtypes.byte_length("F6_E2M3", (4,)) == 3


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_every_value_of_two_bytes_comes_back(name: str) -> None:
    raw = np.arange(1 << 16, dtype="<u2").view(np.uint8)
    values = elements.to_float32(raw, name)
    finite = np.isfinite(values)
    back = elements.from_float32(values[finite], name)
    assert np.array_equal(back.view(np.uint16), np.arange(1 << 16, dtype=np.uint16)[finite])


@given(st.floats(width=32, allow_nan=False))
def test_rounding_is_to_nearest_and_never_overflows(value: float) -> None:
    array = np.array([value], np.float32)
    for name, kind in (("F16", np.float16), ("BF16", ml_dtypes.bfloat16)):
        largest = float(ml_dtypes.finfo(kind).max)
        back = float(elements.from_float32(array, name)[0])
        if abs(value) <= largest:
            assert back == float(array.astype(kind)[0]) or abs(back) == largest
        else:
            assert back == np.copysign(largest, value)


def test_float64_beyond_float32_becomes_infinite_without_a_warning() -> None:
    raw = np.array([1e300, -1e300, 1e-300]).view(np.uint8)
    assert elements.to_float32(raw, "F64").tolist() == [np.inf, -np.inf, 0.0]
