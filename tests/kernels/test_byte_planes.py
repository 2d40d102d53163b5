"""Order-0 rANS of bytes against Python integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbe_cli.kernels import byte_planes, rans
from tests import naive

TOTAL = 4096


def encode(data: np.ndarray, freq: np.ndarray) -> np.ndarray:
    words = np.zeros(data.size + 2 * rans.LANES + 1, np.uint16)
    return words[byte_planes.encode_bytes(data, freq, words) :].copy()


def decode(words: np.ndarray, freq: np.ndarray, n: int) -> tuple[np.ndarray, int]:
    out = np.zeros(n, np.uint8)
    status = byte_planes.decode_bytes(np.append(words, 0).astype(np.uint16), freq, out)
    return out, status


def check(data: np.ndarray) -> None:
    counts = np.bincount(data, minlength=256)
    freq = byte_planes.normalise(counts, TOTAL)
    assert freq.tolist() == naive.normalise(counts.tolist(), TOTAL)
    assert freq.sum() == TOTAL
    assert ((freq > 0) == (counts > 0)).all()
    words = encode(data, freq)
    assert words.tolist() == naive.encode_bytes(data.tolist(), freq.tolist())
    out, status = decode(words, freq, data.size)
    assert status == rans.OK
    assert out.tobytes() == data.tobytes()
    assert naive.decode_bytes(words.tolist(), freq.tolist(), data.size) == (data.tolist(), True)


@pytest.mark.parametrize("n", [2, 7, 8, 9, 100, 3000])
@pytest.mark.parametrize("spread", [0.5, 5, 60])
def test_like_the_twin(n: int, spread: float) -> None:
    data = np.random.default_rng(n).normal(128, spread, n).clip(0, 255).astype(np.uint8)
    data[:2] = [0, 255]
    check(data)


def test_all_bytes_equally_often() -> None:
    check(np.tile(np.arange(256, dtype=np.uint8), 4))


def test_one_byte_nearly_always() -> None:
    data = np.zeros(100_000, np.uint8)
    data[7] = 200
    counts = np.bincount(data, minlength=256)
    assert byte_planes.normalise(counts, TOTAL)[[0, 200]].tolist() == [TOTAL - 1, 1]


def test_every_byte_once_and_one_often() -> None:
    """Rounding up 255 rare bytes has to be paid for by the frequent one."""
    check(np.concatenate([np.arange(256), np.full(3000, 9)]).astype(np.uint8))


@given(st.binary(min_size=2, max_size=120).filter(lambda data: len(set(data)) > 1))
def test_any_bytes(data: bytes) -> None:
    check(np.frombuffer(data, np.uint8))


def test_damage_is_noticed() -> None:
    data = np.random.default_rng(0).normal(128, 5, 200).astype(np.uint8)
    freq = byte_planes.normalise(np.bincount(data, minlength=256), TOTAL)
    words = encode(data, freq)
    for place in range(16 * words.size):
        damaged = words.copy()
        damaged[place // 16] ^= 1 << place % 16
        assert decode(damaged, freq, data.size)[1] == rans.DAMAGED
    for changed in (words[:-1], np.append(words, 0)):
        assert decode(changed.astype(np.uint16), freq, data.size)[1] == rans.DAMAGED


@pytest.mark.parametrize("freq", [[4096], [4095], [2000, 2000], [4096, 1], [65535, 65535], [0]])
def test_impossible_frequencies(freq: list[int]) -> None:
    table = np.zeros(256, np.uint32)
    table[: len(freq)] = freq
    assert decode(np.zeros(30, np.uint16), table, 10)[1] == rans.DAMAGED
