"""The lossless coder: every bit of every type."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbe_cli import dtypes
from rbe_cli.codec import lossless
from rbe_cli.errors import Damage
from tests.codec import battery
from tests.codec.battery import lossless_round_trip, raw_bytes


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_bit_pattern_of_two_bytes(dtype: str) -> None:
    """All NaN payloads, infinities, zeros of both signs, denormals."""
    raw = np.arange(1 << 16, dtype="<u2").view(np.uint8)
    back, _ = lossless_round_trip(raw, dtype, (1 << 16,))
    assert back == raw.tobytes()


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_every_exponent_and_special_mantissas(dtype: str) -> None:
    mantissa, exponent, word = {"F32": (23, 8, "<u4"), "F64": (52, 11, "<u8")}[dtype]
    mantissas = [0, 1, (1 << mantissa) - 1, 1 << (mantissa - 1), 0x2AAAA]
    patterns = [
        sign << (mantissa + exponent) | e << mantissa | m
        for sign in (0, 1)
        for e in range(1 << exponent)
        for m in mantissas
    ]
    raw = np.array(patterns, np.uint64).astype(word).view(np.uint8)
    back, _ = lossless_round_trip(raw, dtype, (len(patterns),))
    assert back == raw.tobytes()


@pytest.mark.parametrize("dtype", battery.DTYPES)
@pytest.mark.parametrize("name", battery.MATRICES)
def test_battery(name: str, dtype: str) -> None:
    w = battery.cast(name, dtype)
    back, size = lossless_round_trip(raw_bytes(w), dtype, w.shape)
    assert back == w.tobytes()
    assert size <= w.nbytes + 8 * len(list(lossless.encode(raw_bytes(w), dtype)))


@pytest.mark.parametrize("dtype", sorted(dtypes.BITS))
@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 9, 100, (1 << 18) - 1, 1 << 18, (1 << 18) + 1])
def test_every_type_and_chunk_boundary(dtype: str, n: int) -> None:
    size = dtypes.byte_length(dtype, (n,))
    raw = np.random.default_rng(n).integers(0, 256, size, np.uint8)
    raw[: size // 2] >>= 4
    back, _ = lossless_round_trip(raw, dtype, (n,))
    assert back == raw.tobytes()


@given(
    st.sampled_from(["F64", "F32", "F16", "BF16", "I64", "I32", "U16", "I8", "BOOL", "F8_E4M3", "C64"]),
    st.binary(max_size=400),
)
def test_any_bytes(dtype: str, data: bytes) -> None:
    width = dtypes.BITS[dtype] // 8
    raw = np.frombuffer(data[: len(data) // width * width], np.uint8)
    back, _ = lossless_round_trip(raw, dtype, (raw.size // width,))
    assert back == raw.tobytes()


@given(st.lists(st.floats(width=32), max_size=60))
def test_any_floats(values: list[float]) -> None:
    w = np.array(values, np.float32)
    assert lossless_round_trip(raw_bytes(w), "F32", w.shape)[0] == w.tobytes()


def test_rates() -> None:
    """Gaussian weights: sign and mantissa are noise, the exponent has about 2.6 bits."""
    w = np.random.default_rng(0).standard_normal((512, 512)) * 0.05
    for dtype, array, bound in (
        ("F32", w.astype(np.float32), 26.7),
        ("BF16", w.astype(ml_dtypes.bfloat16), 10.7),
        ("F16", w.astype(np.float16), 14.5),
        ("F64", w, 56.1),
    ):
        _, size = lossless_round_trip(raw_bytes(array), dtype, array.shape)
        assert 8 * size / w.size < bound


def test_what_is_constant_takes_no_room() -> None:
    for array in (np.zeros((512, 512), np.float32), np.full(10**5, 7, np.int64), np.ones(10**6, bool)):
        dtype = {"f": "F32", "i": "I64", "b": "BOOL"}[array.dtype.kind]
        assert lossless_round_trip(raw_bytes(array), dtype, array.shape)[1] < 100


def test_noise_is_stored() -> None:
    raw = np.random.default_rng(0).integers(0, 256, 10**5, np.uint8)
    assert lossless_round_trip(raw, "U8", raw.shape)[1] <= raw.size + 8


def test_damaged_chunks() -> None:
    """Cut anywhere, anything appended, any byte of the head changed: Damage, or bytes of the right size."""
    w = (np.random.default_rng(0).standard_normal(700) * 0.05).astype(np.float32)
    (chunk,) = lossless.encode(raw_bytes(w), "F32")
    for length in range(len(chunk)):
        with pytest.raises(Damage):
            lossless.decode_chunk(chunk[:length], 0, "F32", w.shape)
    for tail in (b"\0", b"\x01", chunk):
        with pytest.raises(Damage):
            lossless.decode_chunk(chunk + tail, 0, "F32", w.shape)
    rng = np.random.default_rng(1)
    for _ in range(600):
        damaged = bytearray(chunk)
        damaged[rng.integers(len(chunk))] = rng.integers(256)
        try:
            assert lossless.decode_chunk(bytes(damaged), 0, "F32", w.shape).size == w.nbytes
        except Damage:
            continue
    for shape in ((699,), (701,), (0,), (1,)):
        with pytest.raises(Damage):
            lossless.decode_chunk(chunk, 0, "F32", shape)


def test_a_short_plane_is_coded_where_that_is_shorter() -> None:
    """The sign and exponent of a few hundred weights; of their mantissas not even the frequencies are worked out."""
    w = np.random.default_rng(0).standard_normal(384).astype(np.float32)
    (chunk,) = lossless.encode(w.view(np.uint8), "F32")
    planes = w.size + 1
    assert 3 * planes < len(chunk) < 3 * planes + 0.6 * w.size
    assert lossless.decode_chunk(chunk, 0, "F32", w.shape).tobytes() == w.tobytes()


@pytest.mark.parametrize("every", [1, 2, 7, 11])
@pytest.mark.parametrize("shape", [(338, 346), (700, 512), (300, 1000)])
def test_a_sample_tells_what_encoding_takes(shape: tuple[int, int], every: int) -> None:
    """Also where a row in so many is all there is."""
    w = np.random.default_rng(1).standard_normal(shape).astype(np.float16)
    w[np.arange(shape[0]) % every != 0] = 0
    raw = w.view(np.uint8).ravel()
    taken = sum(map(len, lossless.encode(raw, "F16")))
    assert lossless.expected_bytes(raw, "F16", raw.size) == pytest.approx(taken, rel=0.01)
    assert lossless.expected_bytes(raw, "F16", 1 << 16) == pytest.approx(taken, rel=0.02 if every == 1 else 0.15)


@pytest.mark.parametrize(("sample", "near"), [(1 << 22, 0.01), (1 << 16, 0.06)])
def test_size_of_a_mask_is_told_from_its_parts(sample: int, near: float) -> None:
    """It is zeros in some chunks and ones in others; the entropy of the whole is a third more."""
    raw = np.tril(np.ones((2048, 2048), np.uint8)).reshape(-1)
    taken = sum(map(len, lossless.encode(raw, "BOOL")))
    assert lossless.expected_bytes(raw, "BOOL", sample) == pytest.approx(taken, rel=near)


def test_threads_make_the_same_chunks(pool: ThreadPoolExecutor) -> None:
    raw = raw_bytes(np.random.default_rng(2).standard_normal(3 * lossless.CHUNK + 5).astype(np.float32))
    chunks = list(lossless.encode(raw, "F32"))
    assert len(chunks) == 4
    assert list(lossless.encode(raw, "F32", apply=pool.map)) == chunks
