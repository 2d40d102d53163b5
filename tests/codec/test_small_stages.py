"""Views, tiles, tables, side information, parameters: the small stages."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rbe_cli.codec.parameters import SIZE, Parameters
from rbe_cli.codec.residual import tables
from rbe_cli.codec.side_info import decode_integers, encode_integers
from rbe_cli.codec.source import Matrix, view_shape
from rbe_cli.codec.tiles import LONG_ROW, TILE, Grid, Tile
from rbe_cli.errors import Damage
from tests.codec import battery


@pytest.mark.parametrize(
    ("shape", "view"),
    [((), (1, 1)), ((7,), (1, 7)), ((3, 4), (3, 4)), ((3, 4, 5), (3, 20)), ((0, 4), (1, 0)), ((4, 0), (1, 0)),
     ((8, 4096, 4096), (32768, 4096)), ((2, LONG_ROW + 1), (2, LONG_ROW + 1)), ((1, 1, 1, 1), (1, 1))],
)  # fmt: skip
def test_view_of_a_shape(shape: tuple[int, ...], view: tuple[int, int]) -> None:
    assert view_shape(shape) == view
    assert math.prod(view) == math.prod(shape)


@pytest.mark.parametrize("dtype", battery.DTYPES)
def test_matrix_gives_its_rows(dtype: str) -> None:
    w = battery.cast("primes", dtype)
    matrix = Matrix(battery.raw_bytes(w), dtype, *w.shape)
    assert np.array_equal(matrix.band(3, 50), w[3:50].astype(np.float32))
    bands = list(matrix.bands())
    assert np.array_equal(np.concatenate([band for _, band in bands]), w.astype(np.float32))
    assert [top for top, _ in bands] == np.cumsum([0, *(len(band) for _, band in bands)])[:-1].tolist()


class _Counted:
    """Bytes of which it is noted how many were read."""

    def __init__(self, raw: NDArray[np.uint8]) -> None:
        self.raw, self.size, self.read = raw, raw.size, 0

    def __getitem__(self, part: slice) -> NDArray[np.uint8]:
        self.read += self.raw[part].size
        return self.raw[part]


@pytest.mark.parametrize("dtype", battery.DTYPES)
@pytest.mark.parametrize("tile", [Tile(1, 2, 3, 40), Tile(2, 3, 90, 97), Tile(1, 4, 0, 97), Tile(0, 0, 0, 97)])
def test_a_tile_is_read_without_the_rest_of_its_row(dtype: str, tile: Tile) -> None:
    w = battery.cast("primes", dtype)[:5, :97]
    raw = _Counted(battery.raw_bytes(w))
    matrix = Matrix(raw, dtype, *w.shape)
    part = w[tile.top : tile.bottom, tile.left : tile.right].astype(np.float64)
    np.testing.assert_array_equal(matrix.piece(tile), part.astype(np.float32))
    np.testing.assert_array_equal(matrix.exact(tile), part)
    assert matrix.squared_error(matrix.piece(tile), tile) == pytest.approx(0, abs=1e-9)
    assert raw.read == 4 * tile.size * w.itemsize


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_tiles_cover_a_matrix_once(rows: int, columns: int) -> None:
    grid = Grid.of(rows, columns)
    tiles = list(grid)
    assert len(tiles) == len(grid)
    assert sum(tile.size for tile in tiles) == rows * columns
    assert all((tile.left, tile.right) == (0, columns) for tile in tiles), "whole rows"
    assert [tile.top for tile in tiles] == [0, *(tile.bottom for tile in tiles[:-1])]
    assert all(tile.size <= max(TILE, columns) for tile in tiles)


@pytest.mark.parametrize("columns", [LONG_ROW, LONG_ROW + 1, LONG_ROW * 3 + 7])
def test_tiles_of_long_rows_are_pieces(columns: int) -> None:
    grid = Grid.of(3, columns)
    seen = np.zeros((3, columns), np.uint8)
    for tile in grid:
        seen[tile.top : tile.bottom, tile.left : tile.right] += 1
        assert tile.size <= LONG_ROW
    assert (seen == 1).all()


@pytest.mark.parametrize("index", [0, 1, 2])
def test_tables_are_probabilities(index: int) -> None:
    """Every context a decoder can be in has frequencies that fill 12 bits, and slots that say the same."""
    family = tables.family(index)
    freq, start = (
        family.coding.freq.reshape(-1, 256).astype(np.int64),
        family.coding.start.reshape(-1, 256).astype(np.int64),
    )
    slots = family.coding.slots.reshape(-1, 4096).astype(np.int64)
    assert (freq.sum(axis=1) == 4096).all()
    assert (freq[:, 0] > 0).all(), "every context has an escape"
    assert (freq < 4096).all()
    assert np.array_equal(start, np.cumsum(freq, axis=1) - freq)
    for context in range(freq.shape[0]):
        symbol = slots[context] >> 24
        assert np.array_equal(np.bincount(symbol, minlength=256), freq[context])
        assert np.array_equal(slots[context] & 4095, freq[context][symbol])
        assert np.array_equal((slots[context] >> 12) & 4095, np.arange(4096) - start[context][symbol])


@pytest.mark.parametrize("index", [0, 1, 2])
def test_points_and_reach(index: int) -> None:
    family = tables.family(index)
    freq, points = family.coding.freq.reshape(-1, 256), family.coding.points.reshape(-1, 256)
    k = np.arange(256) - 128
    for context in range(2, freq.shape[0]):
        union = context & 1
        magnitude = np.where(k >= 0, k, -k - union)
        inside = np.flatnonzero(freq[context, 1:] > 0) + 1
        assert magnitude[inside].max() == family.coding.reach[context]
        assert (freq[context, 1:][magnitude[1:] <= family.coding.reach[context]] > 0).all()
        # Where little is sent at all, what is sent stands for something larger.
        assert (np.abs(points[context] - (2 * k + union)) < (1 if context > 33 else 2)).all()
        assert (np.sign(points[context]) == np.sign(2 * k + union)).all()
    assert (np.diff(family.bits[1:]) >= 0).all(), "larger classes take more bits"
    assert (family.distortion[1:] > 0).all()


def test_tables_are_the_ones_of_the_format() -> None:
    """Golden: the checksum is part of the format, and the file has it."""
    assert tables.SHA256 == "d654b47377cd4313c82e6c93f6a1e197d0ebde458de8d9b8e28486441cdd1b1f"
    assert tables.family(0).coding.freq.sum() == 2 * (tables.CLASSES + 1) * 4096


@given(st.lists(st.integers(-(2**29), 2**29), max_size=60), st.booleans())
def test_side_information(values: list[int], delta: bool) -> None:
    array = np.array(values, np.int32)
    assert decode_integers(encode_integers(array, delta), array.size).tolist() == values


@pytest.mark.parametrize("data", [b"", b"\x02", b"\xff\xff", b"\x00" + b"\xff" * 100, b"\x01" + b"\xff" * 100])
def test_side_information_that_is_damaged(data: bytes) -> None:
    with pytest.raises(Damage):
        decode_integers(data, 10)


def test_differences_that_overflow_are_refused() -> None:
    rising = np.full(40, 2**30, np.int32)
    data = b"\x01" + encode_integers(rising, False)[1:]
    with pytest.raises(Damage):
        decode_integers(data, 40)


def parameters() -> Parameters:
    coded = battery.trellis_encode(battery.cast("gaussian", "F32"), "F32")
    assert coded is not None
    return Parameters.unpack(coded.chunks[0], 150 * 90)


def test_parameters_come_back() -> None:
    one = parameters()
    assert (one.grid.rows, one.grid.columns) == (150, 90)
    for changed in (
        one,
        replace(one, by_columns=True, states=256, family=2, row_shaping=16, column_shaping=0, base=-300),
        replace(one, rms=0.0, nrmse=0.0, row_bytes=0),
    ):
        data = changed.pack()
        assert len(data) == SIZE
        assert Parameters.unpack(data + bytes(1000), 150 * 90) == changed


@given(st.binary(min_size=SIZE - 2, max_size=SIZE + 20), st.integers(0, 10**9))
def test_any_parameters_make_sense_or_are_refused(data: bytes, elements: int) -> None:
    try:
        read = Parameters.unpack(data, elements)
    except Damage:
        return
    assert read.grid.rows * read.grid.columns == elements
    assert read.states in (4, 8, 16, 32, 64, 128, 256)
    assert read.step > 0
