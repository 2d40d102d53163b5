"""Canonical JSON: one text for one value."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbe_cli.container import canonical
from rbe_cli.errors import CorruptFile

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_round_trip(value: Any) -> None:
    text = canonical.dump(value)
    assert canonical.load(text, "x") == value
    assert text.isascii()


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_order_of_insertion_does_not_matter(value: dict[str, int]) -> None:
    assert canonical.dump(value) == canonical.dump(dict(reversed(value.items())))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_numbers_that_json_lacks(value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical.dump([value])


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" 1",
        b"1 ",
        b"1.00",
        b"+1",
        b'{"b":1,"a":2}',
        b'{"a":1,"a":1}',
        b"[NaN]",
        b"[1,]",
        b"\xff",
        b"1e999",
        b"'a'",
    ],
)
def test_other_spellings_are_refused(text: bytes) -> None:
    with pytest.raises(CorruptFile, match="here: not canonical"):
        canonical.load(text, "here")


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(text: bytes) -> None:
    try:
        value = canonical.load(text, "here")
    except CorruptFile:
        return
    assert canonical.dump(value) == text
