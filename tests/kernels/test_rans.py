"""Interleaved rANS with the trellis inside, against Python integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbe_cli.codec.residual import tables
from rbe_cli.codec.residual.trellis import POLYNOMIALS, trellis
from rbe_cli.kernels import rans
from tests import naive

CODED = tables.CLASSES
LENGTHS = [0, 1, 7, 8, 9, 16, 17, 200]


def encode(k: np.ndarray, classes: np.ndarray, unions: np.ndarray, family: tables.Family) -> np.ndarray:
    """The kernel on flat arrays in coding order: the words of the stream."""
    n = k.size
    rows = -(-n // rans.LANES)

    def dealt(values: np.ndarray, dtype: type) -> np.ndarray:
        lanes = np.zeros(rows * rans.LANES, dtype)
        lanes[:n] = values
        return lanes.reshape(rows, rans.LANES)

    words = np.zeros(4 * n + 2 * rans.LANES + 1, np.uint16)
    at = rans.encode_tile(
        n, dealt(k, np.int32), dealt(classes, np.uint8), dealt(unions, np.uint8), CODED,
        family.coding.start, family.coding.freq, family.coding.reach, words,
    )  # fmt: skip
    return words[at:].copy()


def decode(words: np.ndarray, classes: np.ndarray, states: int, family: tables.Family) -> tuple[np.ndarray, int]:
    """The kernel: points in steps, and the status."""
    out = np.full(classes.size, np.nan, np.float32)
    lanes = np.empty(2 * rans.LANES, np.uint32)
    at = np.uint64(rans.start(words, lanes))
    # In two parts, as a tile is decoded.
    middle = classes.size // 2 // rans.LANES * rans.LANES
    for part in (slice(0, middle), slice(middle, None)):
        if at <= words.size:
            after = rans.decode_points(
                words, at, lanes, classes[part].astype(np.uint8), CODED, trellis(states).step,
                family.coding.slots, family.coding.points, family.coding.reach, out[part],
            )  # fmt: skip
            at = np.uint64(after)
    return out, rans.status(words, at, lanes)


def walk(k: np.ndarray, states: int) -> np.ndarray:
    """Unions the symbols are sent in, each lane from state 0."""
    unions = np.zeros(k.size, np.uint8)
    state = [0] * rans.LANES
    for t, symbol in enumerate(k.tolist()):
        s = state[t % rans.LANES]
        unions[t] = s & 1
        state[t % rans.LANES] = naive.next_state(states, s, symbol & 1)
    return unions


def assert_like_twin(k: np.ndarray, classes: np.ndarray, states: int, index: int = 0) -> None:
    """Same words, same points, and the points are those of the symbols."""
    family = tables.family(index)
    start, freq, points = (
        table.reshape(-1, 256) for table in (family.coding.start, family.coding.freq, family.coding.points)
    )
    unions = walk(k, states)
    words = encode(k, classes, unions, family)
    expected = naive.encode_tile(k.tolist(), classes.tolist(), unions.tolist(), CODED, start, freq, family.coding.reach)
    assert words.tolist() == expected
    decoded, status = decode(words, classes, states, family)
    twin, finished = naive.decode_tile(
        expected, classes.tolist(), CODED, states, start, freq, points, family.coding.reach
    )
    assert status == rans.OK
    assert finished
    assert decoded.tobytes() == np.array(twin, np.float32).tobytes()
    nearest = 2 * k.astype(np.float64) + unions
    assert (np.abs(decoded - nearest) <= 1.0).all(), "a shift never leaves the neighbourhood of its point"


def symbols(n: int, classes: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    sigma = 2.0 ** ((classes.astype(np.float64) - 15) / 8) / 2
    return np.round(rng.standard_normal(n) * np.where(classes == 0, 0, sigma)).astype(np.int32)


@pytest.mark.parametrize("states", sorted(POLYNOMIALS))
@pytest.mark.parametrize("n", LENGTHS)
def test_like_the_twin(states: int, n: int) -> None:
    classes = np.random.default_rng(n).choice([0, 1, 15, 30, 56], n).astype(np.uint8)
    assert_like_twin(symbols(n, classes, states), classes, states)


@pytest.mark.parametrize("c", [0, 1, 2, 15, 55, 56, 57, 58, 63, 64, 65, 72, 73, 120, 183, 184])
@pytest.mark.parametrize("family", [0, 1, 2])
def test_like_the_twin_in_every_kind_of_class(c: int, family: int) -> None:
    classes = np.full(60, c, np.uint8)
    assert_like_twin(symbols(60, classes, c), classes, 8, family)


@pytest.mark.parametrize("c", [0, 1, 15, 56, 57, 64, 184])
def test_escapes_of_every_size(c: int) -> None:
    """Magnitudes around every power of two up to 2^22, both signs, in both unions."""
    sizes = [0, 1, 2, 3, *(s + d for b in range(3, 23) for s in [1 << b] for d in (-1, 0, 1))]
    k = np.array([sign * s for s in sizes for sign in (1, -1)] * 2, np.int32)
    np.random.default_rng(c).shuffle(k)
    if c == 0:
        k[k == -1] = 0  # Class 0 is for zeros; its tables have no symbol for -1.
    assert_like_twin(k, np.full(k.size, c, np.uint8), 4)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(-(1 << 22), 1 << 22) | st.integers(-3, 3), st.integers(1, 184)), max_size=30),
    st.sampled_from(sorted(POLYNOMIALS)),
    st.integers(0, 2),
)
def test_any_symbols_in_any_classes(pairs: list[tuple[int, int]], states: int, family: int) -> None:
    k = np.array([pair[0] for pair in pairs], np.int32)
    assert_like_twin(k, np.array([pair[1] for pair in pairs], np.uint8), states, family)


def test_damaged_streams_are_noticed_by_both() -> None:
    """The same status and the same points as the twin, whatever the words are."""
    family = tables.family(0)
    start, freq, points = (
        table.reshape(-1, 256) for table in (family.coding.start, family.coding.freq, family.coding.points)
    )
    rng = np.random.default_rng(4)
    classes = rng.choice([1, 15, 30, 56, 60, 184], 90).astype(np.uint8)
    k = symbols(90, classes, 4)
    words = encode(k, classes, walk(k, 8), family)
    noticed = 0
    for place in range(16 * words.size):
        damaged = words.copy()
        damaged[place // 16] ^= 1 << place % 16
        decoded, status = decode(damaged, classes, 8, family)
        twin, finished = naive.decode_tile(
            damaged.tolist(), classes.tolist(), CODED, 8, start, freq, points, family.coding.reach
        )
        assert finished == (status == rans.OK)
        noticed += status != rans.OK
        if place % 40 == 0 and np.isfinite(decoded).all() and all(abs(float(p)) < 1 << 24 for p in twin):
            assert decoded.tobytes() == np.array(twin, np.float32).tobytes()
    # Bits that are sent as they are leave the lanes where they were: those are for the CRC to notice.
    assert noticed > 8 * words.size


@pytest.mark.parametrize("extra", [-3, -1, 1, 5])
def test_stream_of_another_length_is_noticed(extra: int) -> None:
    family = tables.family(0)
    classes = np.full(100, 30, np.uint8)
    k = symbols(100, classes, 1)
    words = encode(k, classes, walk(k, 8), family)
    changed = words[:extra] if extra < 0 else np.append(words, np.zeros(extra, np.uint16))
    assert decode(changed, classes, 8, family)[1] == rans.DAMAGED


@settings(max_examples=100)
@given(st.binary(min_size=32, max_size=200), st.lists(st.integers(0, 184), max_size=40))
def test_any_words_are_decoded_within_bounds(stream: bytes, classes: list[int]) -> None:
    words = np.frombuffer(stream[: len(stream) // 2 * 2], "<u2").astype(np.uint16)
    decoded, status = decode(words, np.array(classes, np.uint8), 256, tables.family(2))
    assert status in (rans.OK, rans.DAMAGED)
    assert status == rans.DAMAGED or not np.isnan(decoded).any()
