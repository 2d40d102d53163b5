"""The lossless coder: byte planes, the exponents of floats brought into one plane, each plane by what suits it.

A floating-point element is rotated left by one bit, so that its exponent fills the top byte and the sign goes to the
bottom of the mantissa. Element bytes of equal weight form a plane; a plane is constant, entropy-coded (order-0 rANS)
or stored. Tensors are cut into chunks of CHUNK elements, each on its own.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rbe_cli import dtypes
from rbe_cli.codec.residual.tables import FREQUENCY_BITS
from rbe_cli.codec.side_info import decode_integers, encode_integers, entropy
from rbe_cli.codec.source import Bytes
from rbe_cli.codec.workspace import scratch
from rbe_cli.errors import Damage
from rbe_cli.kernels import byte_planes
from rbe_cli.kernels.rans import LANES, OK

#: Elements per chunk.
CHUNK = 1 << 18
#: Elements of a sample that are side by side.
_RUN = 1 << 7
#: Elements of a sample that tell of a part of a tensor, at least.
_PART = 1 << 12
_STORED, _CONSTANT, _CODED = 0, 1, 2
_CODED_HEAD = struct.Struct("<HI")
#: Bytes a forecast counts for a coded plane beside its symbols and its frequencies (a byte each): kind, head and the
#: lanes' states, and one for a stream of whole words.
_CODED_BYTES = 2 + _CODED_HEAD.size + 4 * LANES


def _width(dtype: str) -> int:
    """Bytes per element; types smaller than a byte are coded as the bytes they are packed in."""
    return max(dtypes.BITS[dtype] // 8, 1)


def chunk_count(dtype: str, shape: tuple[int, ...]) -> int:
    """Number of chunks a tensor takes."""
    return -(-dtypes.byte_length(dtype, shape) // chunk_bytes(dtype))


def chunk_bytes(dtype: str) -> int:
    """Bytes of a tensor that each of its chunks holds, but for the last."""
    return CHUNK * _width(dtype)


class Apply(Protocol):
    """`map`, or that of an executor, whose threads begin at once."""

    def __call__(self, function: Callable[[int], bytes], starts: Iterable[int], /) -> Iterator[bytes]: ...  # noqa: D102


def encode(raw: Bytes, dtype: str, store: bool = False, apply: Apply = map) -> Iterator[bytes]:
    """Chunks of a tensor given as its bytes, each by `apply`; with `store`, not compressed at all."""
    size = chunk_bytes(dtype)
    return apply(lambda start: _encode_chunk(raw[start : start + size], dtype, store), range(0, raw.size, size))


def expected_bytes(raw: Bytes, dtype: str, sample: int) -> float:
    """About what `encode` takes, by so many elements in runs spread over the tensor: the entropies of their planes.

    Each part of the tensor has its own, as chunks have: a mask is one number here and another there.
    """
    width = _width(dtype)
    elements = raw.size // width
    if sample >= elements:
        size = chunk_bytes(dtype)
        return sum(_expected_chunk_bytes(raw[at : at + size], dtype, 1.0) for at in range(0, raw.size, size))
    # One somewhere in each of as many equal parts: evenly, but in step with nothing that comes back.
    runs = sample // _RUN
    tops = ((np.arange(runs) + np.random.default_rng(0).random(runs)) / runs * (elements - _RUN)).astype(np.int64)
    total = 0.0
    for part in np.array_split(tops, max(1, min(-(-elements // CHUNK), sample // _PART))):
        seen = np.concatenate([raw[top * width : (top + _RUN) * width] for top in part])
        total += _expected_chunk_bytes(seen, dtype, elements / (runs * _RUN))
    return total


def _expected_chunk_bytes(seen: NDArray[np.uint8], dtype: str, times: float) -> float:
    """What so many times as many elements like those seen take."""
    return sum(_expected_plane_bytes(plane, plane.size * times) for plane in planes(seen, dtype))


def _expected_plane_bytes(plane: NDArray[np.uint8], elements: float) -> float:
    chunks = elements / CHUNK if elements > CHUNK else 1.0
    counts = np.bincount(plane)
    counts = counts[counts > 0]
    if counts.size == 1:
        return 2 * chunks
    # The entropy of a few looks lower than that of all, by so much (Miller and Madow).
    unseen = (counts.size - 1) / 2 / math.log(2) * (1 - plane.size / elements)
    bits = (entropy(counts) + unseen) / plane.size
    return min(bits / 8 * elements + chunks * (counts.size + _CODED_BYTES), elements + chunks)


def decode_chunk(chunk: bytes, index: int, dtype: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The bytes of a tensor that its chunk `index` holds. Raises Damage."""
    size = chunk_bytes(dtype)
    return _decode_chunk(chunk, min(size, dtypes.byte_length(dtype, shape) - index * size), dtype)


def _rotated(dtype: str) -> bool:
    return dtype in dtypes.FLOATS


def _encode_chunk(raw: NDArray[np.uint8], dtype: str, store: bool) -> bytes:
    return b"".join(_encode_plane(plane, store) for plane in planes(raw, dtype))


def planes(raw: NDArray[np.uint8], dtype: str) -> list[NDArray[np.uint8]]:
    """The bytes of some elements apart by their place in the element, each of which is coded alone."""
    width = _width(dtype)
    elements = np.ascontiguousarray(raw).view(f"<u{width}")
    if _rotated(dtype):
        elements = (elements << np.array(1, elements.dtype)) | (elements >> np.array(8 * width - 1, elements.dtype))
    table = elements.view(np.uint8).reshape(-1, width)
    return [np.ascontiguousarray(table[:, p]) for p in range(width)]


def _encode_plane(plane: NDArray[np.uint8], store: bool) -> bytes:
    if store:
        return bytes([_STORED]) + plane.tobytes()
    counts = np.bincount(plane, minlength=256)
    different = np.count_nonzero(counts)
    if different == 1:
        return bytes([_CONSTANT, int(plane[0])])
    freq = byte_planes.normalise(counts, 1 << FREQUENCY_BITS)
    words = scratch("words", (plane.size + 2 * LANES + 1,), np.uint16)
    stream = words[byte_planes.encode_bytes(plane, freq, words) :].astype("<u2").tobytes()
    # Frequencies take most of a byte each, and longer to code than the bytes themselves of short planes.
    if len(stream) + different // 2 < plane.size:
        side = min((encode_integers(freq.astype(np.int32), delta) for delta in (False, True)), key=len)
        coded = bytes([_CODED]) + _CODED_HEAD.pack(len(side), len(stream)) + side + stream
        if len(coded) <= plane.size:
            return coded
    return bytes([_STORED]) + plane.tobytes()


def _decode_chunk(chunk: bytes, size: int, dtype: str) -> NDArray[np.uint8]:
    width = _width(dtype)
    table = np.empty((size // width, width), np.uint8)
    at = 0
    for p in range(width):
        plane, at = _decode_plane(chunk, at, size // width)
        table[:, p] = plane
    if at != len(chunk):
        raise Damage("lossless chunk is too long")
    elements = table.view(f"<u{width}").ravel()
    if _rotated(dtype):
        elements = (elements >> np.array(1, elements.dtype)) | (elements << np.array(8 * width - 1, elements.dtype))
    return elements.view(np.uint8)


def _take(chunk: bytes, at: int, size: int) -> bytes:
    if at + size > len(chunk):
        raise Damage("lossless chunk is cut short")
    return chunk[at : at + size]


def _decode_plane(chunk: bytes, at: int, n: int) -> tuple[NDArray[np.uint8], int]:
    mode = _take(chunk, at, 1)[0]
    at += 1
    if mode == _STORED:
        return np.frombuffer(_take(chunk, at, n), np.uint8), at + n
    if mode == _CONSTANT:
        return np.full(n, _take(chunk, at, 1)[0], np.uint8), at + 1
    if mode != _CODED:
        raise Damage("lossless chunk has an unknown plane")
    side_size, stream_size = _CODED_HEAD.unpack(_take(chunk, at, _CODED_HEAD.size))
    at += _CODED_HEAD.size
    freq = decode_integers(_take(chunk, at, side_size), 256)
    at += side_size
    stream = _take(chunk, at, stream_size)
    whole = 1 << FREQUENCY_BITS
    if freq.min() < 0 or freq.max() >= whole or freq.astype(np.int64).sum() != whole or stream_size % 2:
        raise Damage("lossless chunk has impossible frequencies")
    if stream_size < 4 * LANES:
        raise Damage("lossless chunk is cut short")
    out = np.empty(n, np.uint8)
    words = np.zeros(stream_size // 2 + 1, np.uint16)
    words[:-1] = np.frombuffer(stream, "<u2")
    if byte_planes.decode_bytes(words, freq.astype(np.uint32), out) != OK:
        raise Damage("lossless chunk is damaged")
    return out, at + stream_size
