"""The scale field: what is fitted, and what of it is stored."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbe_cli.codec.residual import scale_field
from rbe_cli.codec.residual.scale_field import MAX_EXPONENT, ZERO, Axis
from rbe_cli.codec.source import Matrix
from rbe_cli.errors import Damage
from tests.codec import battery


def fit(w: np.ndarray, **options: bool) -> scale_field.ScaleField:
    w = w.astype(np.float32)
    return scale_field.fit(Matrix(battery.raw_bytes(w), "F32", *w.shape), **options)


def sigma(field: scale_field.ScaleField) -> np.ndarray:
    """The scale of every element; 0 where a row or column is zero."""
    rows, columns = field.rows.exponents.astype(np.int64), field.columns.exponents.astype(np.int64)
    exponents = rows[:, None] + columns[None, :]
    live = (rows != ZERO)[:, None] & (columns != ZERO)[None, :]
    return np.where(live, np.exp2(np.where(live, exponents, 0) / 8 + field.log_sigma0), 0)


@pytest.mark.parametrize("spread", [0.3, 1.0, 2.0])
def test_scales_are_found(spread: float) -> None:
    rng = np.random.default_rng(0)
    rows, columns = np.exp(spread * rng.standard_normal((300, 1))), np.exp(spread * rng.standard_normal((1, 200)))
    found = sigma(fit(rng.standard_normal((300, 200)) * rows * columns))
    wrong = np.log2(found / (rows * columns))
    assert np.sqrt(np.mean(wrong**2)) < 0.2, "octaves"


def test_no_scales_where_there_are_none() -> None:
    field = fit(np.random.default_rng(0).standard_normal((200, 200)))
    assert not field.rows.exponents.any()
    assert not field.columns.exponents.any()
    assert field.log_sigma0 == pytest.approx(0, abs=0.02)
    assert len(scale_field.encode_axis(field.rows)) < 20


def test_an_axis_that_is_ruled_out_stays_flat() -> None:
    w = battery.MATRICES["scaled rows and columns"]
    assert not fit(w, use_rows=False).rows.exponents.any()
    assert not fit(w, use_columns=False).columns.exponents.any()


def test_zero_rows_and_columns_are_marked() -> None:
    w = battery.MATRICES["rows and columns of zeros"]
    found = sigma(fit(w))
    assert ((found == 0) == ((w == 0).all(axis=1)[:, None] | (w == 0).all(axis=0)[None, :])).all()


def test_all_zero() -> None:
    assert not sigma(fit(np.zeros((10, 20)))).any()


def test_extreme_scales_are_clamped() -> None:
    rng = np.random.default_rng(0)
    field = fit(rng.standard_normal((100, 50)) * np.logspace(-17, 17, 100)[:, None])
    for axis in (field.rows, field.columns):
        assert np.abs(axis.exponents).max() <= MAX_EXPONENT
        assert scale_field.decode_axis(scale_field.encode_axis(axis), axis.exponents.size).exponents.tolist() == (
            axis.exponents.tolist()
        )


@given(st.integers(0, 3), st.lists(st.none() | st.integers(-64, 64), min_size=1, max_size=80))
def test_any_axis_comes_back(shift: int, multiples: list[int | None]) -> None:
    exponents = np.array([ZERO if k is None else k << shift for k in multiples], np.int32)
    data = scale_field.encode_axis(Axis(exponents, shift))
    back = scale_field.decode_axis(data, exponents.size)
    assert back.exponents.tolist() == exponents.tolist()


@pytest.mark.parametrize("n", [1, 7, 1000])
def test_flat_axis_takes_a_few_bytes(n: int) -> None:
    data = scale_field.encode_axis(Axis.flat(n))
    assert len(data) < 30
    assert not scale_field.decode_axis(data, n).exponents.any()


@pytest.mark.parametrize("data", [b"", b"\x08", b"\xff\0", b"\0\x02", b"\0"])
def test_axis_of_an_unknown_form(data: bytes) -> None:
    with pytest.raises(Damage):
        scale_field.decode_axis(data, 10)


def test_exponents_out_of_range_are_refused() -> None:
    for shift in range(4):
        data = scale_field.encode_axis(Axis(np.array([0, 600 << shift], np.int32), shift))
        with pytest.raises(Damage):
            scale_field.decode_axis(data, 2)


@given(st.binary(max_size=50), st.integers(1, 40))
def test_any_bytes_are_an_axis_in_range_or_damage(data: bytes, n: int) -> None:
    try:
        axis = scale_field.decode_axis(data, n)
    except Damage:
        return
    live = axis.exponents[axis.exponents != ZERO].astype(np.int64)
    assert axis.exponents.size == n
    assert np.abs(live).max(initial=0) <= MAX_EXPONENT << 3
