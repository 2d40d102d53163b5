"""The coder of sparse blocks against one big integer, and its decoder against the one docs/FORMAT.md describes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbe_cli.kernels import block_code
from tests import naive

#: The largest number that a length of 30 bits below the leading one can say.
LARGEST = (1 << 31) - 2


def encode(blocks: list[naive.Block]) -> bytes:
    weights = np.array([own for own, _ in blocks], np.int32).reshape(len(blocks), -1)
    entries = [entry for _, coefficients in blocks for entry in sorted(coefficients.items())]
    places, values = np.array(entries, np.int32).reshape(-1, 2).T.copy()
    counts = np.array([len(coefficients) for _, coefficients in blocks], np.int32)
    out = np.zeros(16 * (weights.size + counts.size + 2 * places.size) + 64, np.uint8)
    return out[: block_code.encode_blocks(weights, counts, places, values, out)].tobytes()


def decode(data: bytes, areas: list[int], functions: int) -> list[naive.Block] | None:
    """By the kernel, each block's scan backwards."""
    weights = np.zeros((len(areas), functions), np.int32)
    coefficients = np.zeros(sum(areas), np.int32)
    orders = np.concatenate([np.arange(area)[::-1] for area in areas])
    first = np.cumsum([0, *areas])[:-1]
    if not block_code.decode_blocks(
        np.frombuffer(data, np.uint8), np.array(areas), weights, coefficients, orders, first
    ):
        return None
    parts = [coefficients[at : at + area][::-1] for at, area in zip(first, areas, strict=True)]
    return [
        (own.tolist(), {int(place): int(part[place]) for place in np.flatnonzero(part)})
        for own, part in zip(weights, parts, strict=True)
    ]


@st.composite
def tiles(draw: st.DrawFn) -> tuple[list[int], int, list[naive.Block]]:
    """Areas, basis functions, and blocks."""
    areas = draw(st.lists(st.integers(1, 30), min_size=1, max_size=5))
    functions = draw(st.integers(0, block_code.BASIS))
    number = st.integers(-LARGEST, LARGEST) | st.integers(-3, 3)
    blocks = []
    for area in areas:
        weights = draw(st.lists(number, min_size=functions, max_size=functions))
        blocks.append((weights, draw(st.dictionaries(st.integers(0, area - 1), number.filter(bool), max_size=area))))
    return areas, functions, blocks


@given(tiles())
def test_like_the_twin(tile: tuple[list[int], int, list[naive.Block]]) -> None:
    areas, functions, blocks = tile
    data = encode(blocks)
    assert data == naive.encode_blocks(blocks)
    assert decode(data, areas, functions) == naive.decode_blocks(data, areas, functions) == blocks
    assert decode(data + b"\1" * 9, areas, functions) is None


@settings(max_examples=200)
@given(st.binary(max_size=60), st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(0, 8))
def test_any_bytes_are_decoded_like_the_twin(data: bytes, areas: list[int], functions: int) -> None:
    assert decode(data, areas, functions) == naive.decode_blocks(data, areas, functions)


@pytest.mark.parametrize("places", [[], [0], [899], list(range(900)), [3, 4, 800]])
def test_places_at_the_edges(places: list[int]) -> None:
    blocks: list[naive.Block] = [([0] * 8, {place: 1 - 2 * (place % 2) for place in places})] * 3
    data = encode(blocks)
    assert data == naive.encode_blocks(blocks)
    assert decode(data, [900] * 3, 8) == blocks
