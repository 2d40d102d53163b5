"""A tile from its stream to its weights, against the slow twins of what it is made of."""

from __future__ import annotations

import numpy as np
import pytest

from rbe_cli.codec.residual import tables
from rbe_cli.codec.residual.trellis import trellis
from rbe_cli.kernels import rans, tile
from tests import naive

STATES = 8
#: Lines that begin within a group of lanes, lines longer than a piece, more pieces than one.
SHAPES = [(1, 1), (1, 100), (100, 1), (7, 13), (64, 384), (2, 3 * tile.PIECE + 5), (tile.PIECE + 1, 2)]


def encoded(shape: tuple[int, int], base: int) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]:
    """Classes of the lines of a scan, the words of a tile of such classes, and its points by the twin."""
    rng = np.random.default_rng(shape[1])
    lines = tuple(rng.integers(-9, 9, n).astype(np.int32) for n in shape)
    if shape[0] > 3:
        lines[0][2] = -(1 << 24)
    family = tables.family(0)
    start, freq, points = (
        table.reshape(-1, 256) for table in (family.coding.start, family.coding.freq, family.coding.points)
    )
    classes = np.array(naive.classify(*lines, base, tables.MAX_CLASS)).ravel()
    scale = np.where(classes == 0, 0, 2.0 ** ((classes - 15) / 8) / 2)
    k = np.round(rng.standard_normal(classes.size) * scale).astype(np.int64).tolist()
    unions, states = [], [0] * rans.LANES
    for t, symbol in enumerate(k):
        s = states[t % rans.LANES]
        unions.append(s & 1)
        states[t % rans.LANES] = naive.next_state(STATES, s, symbol & 1)
    words = naive.encode_tile(k, classes.tolist(), unions, tables.CLASSES, start, freq, family.coding.reach)
    twin, _ = naive.decode_tile(
        words, classes.tolist(), tables.CLASSES, STATES, start, freq, points, family.coding.reach
    )
    return lines, np.array(words, np.uint16), np.array(twin, np.float32).reshape(shape)


def decode(
    words: np.ndarray, classes: tuple[np.ndarray, ...], base: int, scales: tuple[np.ndarray, ...], by_columns: bool
) -> tuple[np.ndarray, int]:
    """The kernel: weights, by rows, and the status."""
    coding, shape = tables.family(0).coding, (classes[0].size, classes[1].size)
    out = np.full(shape[0] * shape[1], np.nan, np.float32)
    status = tile.decode_tile(
        words, classes, base, tables.MAX_CLASS, tables.CLASSES, trellis(STATES).step,
        coding.slots, coding.points, coding.reach, scales, (1, shape[0]) if by_columns else (shape[1], 1), out,
    )  # fmt: skip
    return out, status


# At the second base nearly all classes are above those with a table, at the third some are.
@pytest.mark.parametrize("base", [30, 70, 56])
@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_like_the_twins(shape: tuple[int, int], by_columns: bool, base: int) -> None:
    classes, words, points = encoded(shape, base)
    rng = np.random.default_rng(1)
    scales = tuple(np.exp2(rng.normal(0, 3, n)).astype(np.float32) for n in shape)
    expected = points * (scales[0][:, None] * scales[1])
    weights, status = decode(words, classes, base, scales, by_columns)
    assert status == rans.OK
    assert weights.tobytes() == (expected.T if by_columns else expected).tobytes("C")


def test_damage_is_noticed_wherever_it_is() -> None:
    shape = (3, tile.PIECE)
    classes, words, _ = encoded(shape, 30)
    scales = tuple(np.ones(n, np.float32) for n in shape)
    for place in range(0, words.size, 97):
        damaged = words.copy()
        damaged[place] ^= 0x5A5A
        assert decode(damaged, classes, 30, scales, False)[1] == rans.DAMAGED
    for cut in (words[:-1], words[: words.size // 2], words[: 2 * rans.LANES], np.append(words, np.uint16(0))):
        assert decode(cut, classes, 30, scales, False)[1] == rans.DAMAGED
