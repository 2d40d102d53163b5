"""A decoder of the rbe format, versions 1 to 3, written from docs/FORMAT.md alone; it does not import the package.

Plain Python and numpy, slow, in the order of the page; numbers in parentheses are its sections.

    tensors = decode_folder(Path("model.rbe"))      # name -> DecodedTensor

`python tests/reference_decoder.py FOLDER [BASE]` prints the SHA-256 of every tensor.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import sys
import zlib
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

TABLES = Path(__file__).resolve().parents[1] / "rbe_cli" / "codec" / "residual" / "tables.txt"
TABLES_SHA256 = "d654b47377cd4313c82e6c93f6a1e197d0ebde458de8d9b8e28486441cdd1b1f"
BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16,
    "U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")
LOSSY = ("trellis", "sparse", "lowrank")
Floats = NDArray[np.float32]
#: A JSON object.
Entry = dict[str, Any]


class Refused(Exception):
    """A file that section 13 says must be refused."""


def check(good: bool, what: str) -> None:
    if not good:
        raise Refused(what)


class DecodedTensor(NamedTuple):
    """A tensor's bytes, as in a safetensors file, and for lossy codecs the float32 weights before rounding.

    `marks` is what its fingerprint is of (6.1), where others are stored against it.
    """

    dtype: str
    shape: list[int]
    codec: str
    data: bytes
    weights: Floats | None
    marks: bytes


# --- containers (1 to 5) ---


def canonical_json(text: bytes) -> Any:
    """Section 3."""
    try:
        value = json.loads(text.decode("ascii"))
        again = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    except (ValueError, RecursionError):
        raise Refused("not JSON") from None
    check(again.encode("ascii") == text, "not canonical JSON")
    return value


def read_layer(data: bytes) -> list[tuple[Entry, list[bytes]]]:
    """A layer file's header entries and the chunks of each (2)."""
    check(len(data) >= 24 and data[:8] == b"\x93RBE\r\n\x1a\n", "not a layer file")
    version, zero, header_size, count, crc = struct.unpack_from("<HHIII", data, 8)
    check(version in (1, 2, 3) and zero == 0, "another version")
    table_at = 24 + header_size
    at = table_at + 8 * count
    check(header_size <= 1 << 24 and at <= len(data), "cut short")
    check(zlib.crc32(data[:20] + data[24:at]) == crc, "header CRC")
    chunks = []
    for length, chunk_crc in struct.iter_unpack("<II", data[table_at:at]):
        chunks.append(data[at : at + length])
        check(len(chunks[-1]) == length and zlib.crc32(chunks[-1]) == chunk_crc, "chunk CRC")
        at += length
    check(at == len(data), "bytes after the end")
    header = canonical_json(data[24:table_at])
    check(isinstance(header, dict) and set(header) == {"tensors"}, "form of the header")
    tensors = []
    for entry in header["tensors"]:
        keys = {"chunks", "codec", "dtype", "name", "shape"} | ({"as"} if entry["codec"] == "same" else set())
        if "base" in entry:
            check(version >= 3 and entry["codec"] != "same" and is_fingerprint(entry["base"]), "base")
            keys |= {"base"}
        check(set(entry) == keys and entry["dtype"] in BITS, "form of an entry")
        check(entry["codec"] in (*LOSSY, "lossless", "same"), "codec")
        check(len(entry["shape"]) <= 32 and all(0 <= n < 1 << 63 for n in entry["shape"]), "shape")
        check(math.prod(n for n in entry["shape"] if n) < 1 << 60, "elements")
        check(0 <= entry["chunks"] <= len(chunks), "chunks")
        check(entry["codec"] != "same" or entry["chunks"] == 0, "chunks of a tensor that is the same as another")
        tensors.append((entry, chunks[: entry["chunks"]]))
        chunks = chunks[entry["chunks"] :]
    check(not chunks and len({entry["name"] for entry, _ in tensors}) == len(tensors), "chunks or names")
    return tensors


def is_fingerprint(text: Any) -> bool:
    """16 hexadecimal digits (6.1)."""
    return isinstance(text, str) and len(text) == 16 and set(text) <= set("0123456789abcdef")


def is_plain(path: str) -> bool:
    """The paths of section 4."""
    good = all(0 < len(part) <= 255 and not part.startswith(".") and part == part.strip() for part in path.split("/"))
    return good and len(path) <= 1024 and path.isprintable() and not set(path) & set("\\:")


def read_base(path: Path, *bases: Path) -> dict[str, DecodedTensor]:
    """The tensors of a base, a folder of the format or a safetensors file (6.1)."""
    if path.is_dir():
        return decode_folder(path, *bases)
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            start, end = (8 + length + at for at in entry["data_offsets"])
            tensors[name] = DecodedTensor(entry["dtype"], entry["shape"], "", data[start:end], None, data[start:end])
    return tensors


def decode_folder(folder: Path, *bases: Path) -> dict[str, DecodedTensor]:
    """Every tensor of a folder, all of it checked (1, 4); of an update, with what it is one of, and that, and so on."""
    text = (folder / "rbe.json").read_bytes()
    check(text.endswith(b"\n"), "manifest")
    manifest = canonical_json(text[:-1])
    check(manifest["format"] in (1, 2) and ("base" in manifest) == (manifest["format"] == 2), "another format")
    files = [layer["file"] for layer in manifest["layers"]]
    paths = [file["path"] for file in manifest["sources"] + manifest["carried"]]
    check(len(set(files)) == len(files) and len(set(paths)) == len(paths), "names something twice")
    check(all(map(is_plain, files + paths)) and not any("/" in file or not file.isascii() for file in files), "path")
    stored: dict[str, tuple[Entry, list[bytes]]] = {}
    for entry in [file | {"path": f"files/{file['path']}"} for file in manifest["carried"]]:
        read_checked(folder, entry["path"], entry)
    for layer in manifest["layers"]:
        tensors = read_layer(read_checked(folder, layer["file"], layer))
        check(len(tensors) == len(layer["tensors"]), "tensors")
        for (entry, chunks), claim in zip(tensors, layer["tensors"], strict=True):
            method = f"same as {entry['as']}" if entry["codec"] == "same" else entry["codec"]
            check(all(entry[key] == claim[key] for key in ("name", "dtype", "shape")), "tensor")
            check(entry.get("base") == claim.get("base") and ("base" not in entry or "base" in manifest), "base")
            check(method == claim["method"] and 0 <= claim["source"] < len(manifest["sources"]), "method or source")
            check(entry["name"] not in stored, "tensor that stands twice")
            stored[entry["name"]] = entry, chunks
    against = read_base(*bases) if bases else {}
    return {name: decode_tensor(name, stored, against) for name in stored}


def read_checked(folder: Path, name: str, claim: Entry) -> bytes:
    path = folder / name
    links = [part for part in (path, *path.parents) if folder in part.parents and part.is_symlink()]
    check(path.is_file() and not links, "missing file, or a link")
    data = path.read_bytes()
    check(len(data) == claim["bytes"] and hashlib.sha256(data).hexdigest() == claim["sha256"], "another file")
    return data


def decode_tensor(
    name: str, stored: dict[str, tuple[Entry, list[bytes]]], bases: dict[str, DecodedTensor]
) -> DecodedTensor:
    entry, chunks = stored[name]
    if entry["codec"] == "same":
        check(entry["as"] in stored, "same as nothing")
        other, chunks = stored[entry["as"]]
        check(other["codec"] != "same" and all(other[key] == entry[key] for key in ("dtype", "shape")), "same")
        entry = other
    base = None
    if "base" in entry:
        check(entry["name"] in bases, "base is not there")
        base = bases[entry["name"]]
        check(base.shape == entry["shape"], "base of another shape")
        check(hashlib.sha256(base.marks).hexdigest()[:16] == entry["base"], "another base")
    dtype, shape, codec = entry["dtype"], entry["shape"], entry["codec"]
    elements = math.prod(shape)
    if codec == "lossless":
        size = (elements * BITS[dtype] + 7) >> 3
        data = decode_lossless(chunks, dtype, size)
        if base is not None:
            check(base.dtype == dtype and base.marks == base.data, "base of another type, or not exact")
            data = bytes(a ^ b for a, b in zip(data, base.data, strict=True))
        return DecodedTensor(dtype, shape, codec, data, None, data)
    check(dtype in FLOATS and elements > 0 and bool(chunks), "lossy codec")
    decoders = {"trellis": decode_trellis, "sparse": decode_sparse, "lowrank": decode_low_rank_tensor}
    weights = decoders[codec](chunks, elements)
    if base is not None:
        check(base.dtype in FLOATS, "base of another type")
        weights = weights + from_type(base.data, base.dtype).reshape(weights.shape)
    marks = b"".join(chunks) + entry.get("base", "").encode()
    return DecodedTensor(dtype, shape, codec, to_type(weights, dtype), weights, marks)


def from_type(data: bytes, dtype: str) -> Floats:
    """A tensor's type to float32 (5)."""
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).astype(np.float32)


def to_type(weights: Floats, dtype: str) -> bytes:
    """Float32 to the tensor's type (5)."""
    if dtype == "F16":
        return np.clip(weights, np.float32(-65504), np.float32(65504)).astype("<f2").tobytes()
    if dtype == "BF16":
        largest = np.float32(2.0**127 * (2 - 2.0**-7))
        bits = np.clip(weights, -largest, largest).view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return weights.astype({"F32": "<f4", "F64": "<f8"}[dtype]).tobytes()


# --- lossless (6) ---


def decode_lossless(chunks: list[bytes], dtype: str, size: int) -> bytes:
    width = max(BITS[dtype] // 8, 1)
    piece = width << 18
    check(len(chunks) == -(-size // piece), "number of chunks")
    out = b""
    for i, chunk in enumerate(chunks):
        n = min(piece, size - i * piece) // width
        planes, at = np.empty((n, width), np.uint8), 0
        for p in range(width):
            plane, at = decode_plane(chunk, at, n)
            planes[:, p] = np.frombuffer(plane, np.uint8)
        check(at == len(chunk), "bytes after the last plane")
        elements = planes.view(f"<u{width}").ravel()
        if dtype in FLOATS:
            one, rest = elements.dtype.type(1), elements.dtype.type(8 * width - 1)
            elements = (elements >> one) | (elements << rest)
        out += elements.tobytes()
    return out


def decode_plane(chunk: bytes, at: int, n: int) -> tuple[bytes, int]:
    mode, at = chunk[at], at + 1
    if mode == 0:
        return chunk[at : at + n], at + n
    if mode == 1:
        return chunk[at : at + 1] * n, at + 1
    check(mode == 2, "plane")
    length, stream_size = struct.unpack_from("<HI", chunk, at)
    at += 6
    frequencies = decode_integers(chunk[at : at + length], 256)
    check(min(frequencies) >= 0 and max(frequencies) < 4096 and sum(frequencies) == 4096, "frequencies")
    at += length
    table = slot_table(frequencies)
    rans = Rans(chunk[at : at + stream_size])
    plane = bytes(rans.symbol(t & 7, table) for t in range(n))
    rans.finish()
    return plane, at + stream_size


# --- range coder (7) ---


class RangeDecoder:
    def __init__(self, data: bytes, contexts: int) -> None:
        self.data, self.at = data, 0
        self.range, self.code = 0xFFFFFFFF, 0
        self.p = [1024] * contexts
        for _ in range(4):
            self._next_byte()

    def _next_byte(self) -> None:
        byte = self.data[self.at] if self.at < len(self.data) else 0
        self.code = ((self.code << 8) | byte) & 0xFFFFFFFF
        self.at += 1

    def _normalise(self) -> None:
        while self.range < 1 << 24:
            self.range <<= 8
            self._next_byte()

    def bit(self, context: int) -> int:
        p = self.p[context]
        bound = (self.range >> 11) * p
        result = int(self.code >= bound)
        if result:
            self.code -= bound
            self.range -= bound
            self.p[context] -= p >> 4
        else:
            self.range = bound
            self.p[context] += (2048 - p) >> 4
        self._normalise()
        return result

    def plain(self) -> int:
        self.range >>= 1
        result = int(self.code >= self.range)
        if result:
            self.code -= self.range
        self._normalise()
        return result

    def finish(self) -> None:
        check(self.at >= len(self.data), "range coder: bytes left")


def decode_integers(data: bytes, n: int) -> list[int]:
    """An integer array."""
    check(len(data) > 0 and data[0] <= 1, "mode of an integer array")
    coder = RangeDecoder(data[1:], 18)
    numbers, before = [], 0
    for _ in range(n):
        v = 0
        if coder.bit(before):
            negative = coder.bit(2 + before)
            rest = 0
            while rest < 14 and coder.bit(4 + rest):
                rest += 1
            if rest == 14:
                b = 0
                while coder.plain():
                    b += 1
                    check(b <= 30, "integer is too long")
                rest = 1
                for _ in range(b):
                    rest = (rest << 1) | coder.plain()
                rest += 13
            check(rest < (1 << 31) - 1, "integer is too large")
            v = -(rest + 1) if negative else rest + 1
        before = int(v != 0)
        if data[0] and numbers:
            v += numbers[-1]
            check(-(1 << 31) <= v < 1 << 31, "integer is too large")
        numbers.append(v)
    coder.finish()
    return numbers


# --- rANS and tables (8.5 to 8.7) ---

#: Per slot: symbol, frequency, slot - cumulative.
Slots = list[tuple[int, int, int]]
#: Reach and slots.
Table = tuple[int, Slots]


def slot_table(frequencies: list[int]) -> Slots:
    return [(symbol, f, i) for symbol, f in enumerate(frequencies) for i in range(f)]


class Rans:
    def __init__(self, stream: bytes) -> None:
        check(len(stream) >= 32 and len(stream) % 2 == 0, "stream is cut short")
        self.words: list[int] = np.frombuffer(stream, "<u2").tolist()
        self.x = [self.words[2 * i] | (self.words[2 * i + 1] << 16) for i in range(8)]
        self.at = 16

    def _refill(self, lane: int) -> None:
        if self.x[lane] < 65536:
            check(self.at < len(self.words), "stream is cut short")
            self.x[lane] = (self.x[lane] << 16) | self.words[self.at]
            self.at += 1

    def symbol(self, lane: int, table: Slots) -> int:
        x = self.x[lane]
        symbol, frequency, offset = table[x & 4095]
        self.x[lane] = frequency * (x >> 12) + offset
        self._refill(lane)
        return symbol

    def raw(self, lane: int, bits: int) -> int:
        value = self.x[lane] & ((1 << bits) - 1)
        self.x[lane] >>= bits
        self._refill(lane)
        return value

    def finish(self) -> None:
        check(self.at == len(self.words) and all(x == 65536 for x in self.x), "stream does not end where it should")


@cache
def load_tables() -> tuple[dict[tuple[int, int, int], Table], dict[tuple[int, int], list[int]]]:
    """(family, class, union) -> table; (family, class) -> shifts (8.7)."""
    text = TABLES.read_bytes()
    check(hashlib.sha256(text).hexdigest() == TABLES_SHA256, "tables.txt")
    tables, shifts = {}, {}
    for line in text.decode("ascii").splitlines():
        if line.startswith("#"):
            continue
        kind, *rest = line.split()
        numbers = list(map(int, rest))
        if kind == "C":
            shifts[numbers[0], numbers[1]] = numbers[4:]
            continue
        family, c, union, escape, *f = numbers
        frequencies = [0] * 256
        frequencies[0] = escape
        for j, frequency in enumerate(f):
            frequencies[128 + j] = frequencies[128 - j - union] = frequency
        tables[family, c, union] = (len(f) - 1, slot_table(frequencies))
    zero = (0, slot_table([1] + [0] * 127 + [4095] + [0] * 127))
    for family in range(3):
        tables[family, 0, 0] = tables[family, 0, 1] = zero
        shifts[family, 0] = [0, 0, 0, 0]
    return tables, shifts


# --- trellis (8) ---

POLYNOMIALS = {
    4: (0o5, 0o2), 8: (0o13, 0o4), 16: (0o23, 0o4), 32: (0o45, 0o10), 64: (0o103, 0o24), 128: (0o235, 0o126),
    256: (0o515, 0o362),
}  # fmt: skip
#: Class exponents, None for ZERO.
Classes = list[int | None]
EIGHTH = np.array(
    [0x3F800000, 0x3F8B95C2, 0x3F9837F0, 0x3FA5FED7, 0x3FB504F3, 0x3FC5672A, 0x3FD744FD, 0x3FEAC0C7], np.uint32
).view(np.float32)


def decode_exponents(data: bytes, n: int) -> list[int | None]:
    """The exponents of an axis, None for ZERO (8.2)."""
    check(len(data) > 0 and data[0] < 8, "form of an axis")
    shift, marked = data[0] & 3, data[0] >> 2
    numbers = decode_integers(data[1:], n + marked)
    marker = numbers.pop(0) if marked else None
    check(all(number == marker or abs(number) <= 512 for number in numbers), "exponent")
    return [None if number == marker else number << shift for number in numbers]


def decode_axis(data: bytes, n: int, shaping: int, importance: list[int]) -> tuple[Classes, Floats]:
    """Class exponent (None for ZERO) and power of the step exponent of every entry (8.2)."""
    classes: Classes = [None] * n
    powers = np.zeros(n, np.float32)
    for i, exponent in enumerate(decode_exponents(data, n)):
        if exponent is not None:
            step = ((shaping * exponent + 8) >> 4) + importance[i]
            classes[i] = exponent - step
            powers[i] = np.ldexp(EIGHTH[step & 7], step >> 3)
    return classes, powers


def read_importance(data: bytes, at: int, there: bool, n: int) -> tuple[list[int], int]:
    """The importance of n rows or columns, and where it ends (8.1)."""
    if not there:
        return [0] * n, at
    check(at + 4 <= len(data), "importance is cut short")
    (length,) = struct.unpack_from("<I", data, at)
    check(at + 4 + length <= len(data), "importance is cut short")
    exponents = decode_exponents(data[at + 4 : at + 4 + length], n)
    check(None not in exponents, "importance of ZERO")
    return [exponent for exponent in exponents if exponent is not None], at + 4 + length


def decode_points(rans: Rans, classes: tuple[Classes, Classes], states_count: int, family: int) -> Floats:
    """The points of one tile in coding order, outer by inner (8.4, 8.6); classes of the outer and inner index."""
    tables, shifts = load_tables()
    h0, h1 = (h >> 1 for h in POLYNOMIALS[states_count])
    states: list[int] = [0] * 8
    points: list[float] = []
    for c in (0 if a is None or b is None else min(max(a + b, 1), 184) for a in classes[0] for b in classes[1]):
        lane = len(points) & 7
        s = states[lane]
        u = s & 1
        m = 0 if c <= 56 else (c - 49) >> 3
        union = 1 if m else u
        reach, slots = tables[family, c - 8 * m, union]
        byte = rans.symbol(lane, slots)
        k = byte - 128 if byte else decode_escape(rans, lane, reach, union)
        if m:
            k = (k << m) | rans.raw(lane, m)
        n = 2 * k + u
        shift = shifts[family, c][abs(n) - 1] if byte and not m and 1 <= abs(n) <= 4 else 0
        points.append(n + (shift if n > 0 else -shift) / 256)
        states[lane] = (s >> 1) ^ (h1 if k & 1 else 0) ^ (h0 if u else 0)
    rans.finish()
    return np.array(points, np.float32).reshape(len(classes[0]), len(classes[1]))


def decode_escape(rans: Rans, lane: int, reach: int, union: int) -> int:
    head = rans.raw(lane, 6)
    bits = head >> 1
    check(bits <= 28, "escape")
    low = rans.raw(lane, bits - 12) << 12 if bits > 12 else 0
    low += rans.raw(lane, min(bits, 12))
    magnitude = reach + (1 << bits) + low
    return -magnitude - union if head & 1 else magnitude


def decode_trellis(chunks: list[bytes], elements: int) -> Floats:
    head = chunks[0]
    check(len(head) >= 48, "first chunk is cut short")
    (
        structure, transform, flags, log_states, family, gr, gc, levels, base, block, step, rows, height, width,
        rms, nrmse, row_bytes, column_bytes,
    ) = struct.unpack_from("<BBBBBBBBhHfQIIffII", head)  # fmt: skip
    check(structure <= 1 and transform <= 3 and flags <= 7, "structure, transform or flags")
    check(2 <= log_states <= 8 and family <= 2 and gr <= 16 and gc <= 16, "parameters")
    check(bool(block) == (transform in (1, 2)) and block <= 1024 and levels <= 16 * (transform == 2), "block")
    check(0 < step < math.inf and 0 <= rms < math.inf and 0 <= nrmse < math.inf, "step")
    check(rows >= 1 and elements % rows == 0, "rows")
    columns = elements // rows
    check(max(rows, columns) <= 1 << 26, "rows or columns")
    check(1 <= height <= rows and 1 <= width <= columns and (height == 1 or width == columns), "tile")
    check(not (structure or transform) or width == columns, "tile")
    check(not block or height == rows or height % block == 0, "tile")
    check(height * width <= (1 << 22) + block * columns, "tile")
    middle, end = 48 + row_bytes, 48 + row_bytes + column_bytes
    check(end <= len(head), "first chunk is cut short")
    row_importance, at = read_importance(head, end, bool(flags & 2), rows)
    column_importance, at = read_importance(head, at, bool(flags & 4), columns)
    row_class, row_power = decode_axis(head[48:middle], rows, gr, row_importance)
    column_class, column_power = decode_axis(head[middle:end], columns, gc, column_importance)
    row_class = [None if c is None else base + c for c in row_class]
    row_scale = np.float32(step) * row_power
    left = right = basis = None
    if structure:
        left, right, at = read_low_rank(head, rows, columns, at)
    if transform == 3:
        check(columns <= 4096, "klt")
        basis, at = read_side_matrix(head, at, columns, columns)
    check(at == len(head), "bytes after the side information")
    w = np.empty((rows, columns), np.float32)
    cut = tiles(rows, columns, height, width)
    check(len(chunks) == 1 + len(cut), "number of chunks")
    for (down, across), stream in zip(cut, chunks[1:], strict=True):
        outer_inner = row_class[down], column_class[across]
        classes = outer_inner[::-1] if flags & 1 else outer_inner
        points = decode_points(Rans(stream), classes, 1 << log_states, family)
        w[down, across] = (points.T if flags & 1 else points) * (row_scale[down, None] * column_power[across])
    if block:
        w = inverse_blocks(w, transform, block, levels)
    if basis is not None:
        w = w @ basis.T
    if left is not None and right is not None:
        add_product(w, left, right)
    return w.ravel()


def tiles(rows: int, columns: int, height: int, width: int) -> list[tuple[slice, slice]]:
    """The tiles of a matrix in order (8.3); also the blocks of a tile."""
    return [
        (slice(top, min(top + height, rows)), slice(left, min(left + width, columns)))
        for top in range(0, rows, height)
        for left in range(0, columns, width)
    ]


# --- structure and transform (9, 10) ---


def read_side_matrix(data: bytes, at: int, rows: int, columns: int) -> tuple[Floats, int]:
    """A side matrix that begins at `at`, and where it ends."""
    check(at + 4 <= len(data), "side matrix is cut short")
    (count,) = struct.unpack_from("<I", data, at)
    at += 4
    check(2 <= count <= 65536 and at + 4 * count <= len(data), "side matrix")
    lengths = struct.unpack_from(f"<{count}I", data, at)
    at += 4 * count
    check(at + sum(lengths) <= len(data), "side matrix is cut short")
    chunks = []
    for length in lengths:
        chunks.append(data[at : at + length])
        at += length
    check(chunks[0][:2] == b"\0\0" and chunks[0][2] <= 1, "side matrix has structure, transform or importance")
    check(struct.unpack_from("<Q", chunks[0], 16)[0] in (1, rows), "side matrix")
    return decode_trellis(chunks, rows * columns).reshape(rows, columns), at


def read_low_rank(data: bytes, rows: int, columns: int, at: int) -> tuple[Floats, Floats, int]:
    """Left and right factor of a low-rank part, and where it ends (9.1)."""
    rank, size = struct.unpack_from("<HH", data, at)
    check(1 <= rank <= min(1024, rows, columns) and at + 4 + size <= len(data), "rank")
    exponents = np.array(decode_integers(data[at + 4 : at + 4 + size], rank))
    check(np.abs(exponents).max() <= 1024, "exponent of the low rank part")
    p, at = read_side_matrix(data, at + 4 + size, rows, rank)
    q, at = read_side_matrix(data, at, rank, columns)
    return p * np.exp2(-exponents / 8).astype(np.float32), q, at


def add_product(w: Floats, left: Floats, right: Floats) -> None:
    for k in range(left.shape[1]):
        w += left[:, k, None] * right[None, k]


def decode_low_rank_tensor(chunks: list[bytes], elements: int) -> Floats:
    check(len(chunks) == 1 and len(chunks[0]) >= 16, "chunks of a low rank tensor")
    rows, rms, nrmse = struct.unpack_from("<Qff", chunks[0])
    check(rows >= 1 and elements % rows == 0 and 0 <= rms < math.inf and 0 <= nrmse < math.inf, "head")
    left, right, at = read_low_rank(chunks[0], rows, elements // rows, 16)
    check(at == len(chunks[0]), "bytes after the low rank part")
    w = np.zeros((rows, elements // rows), np.float32)
    add_product(w, left, right)
    return w.ravel()


@cache
def transform_matrix(kind: int, n: int, levels: int) -> Floats:
    """M_n of the dct (1) or dwt (2)."""
    if kind == 1:
        u, i = np.mgrid[:n, :n]
        m = np.sqrt(2 / n) * np.cos(np.pi * ((2 * i + 1) * u % (4 * n)) / (2 * n))
        m[0] /= np.sqrt(2)
        return m.astype(np.float32)
    r = math.sqrt(3)
    g = [tap / (4 * math.sqrt(2)) for tap in (1 + r, 3 + r, 3 - r, 1 - r)]
    q = [g[3], -g[2], g[1], -g[0]]
    m, length = np.eye(n), n
    for _ in range(min(levels, n.bit_length() - 1)):
        if length < 2:
            break
        half = length >> 1
        even, x = 2 * half, m[:length].copy()
        low = [sum(g[t] * x[(2 * i + t) % even] for t in range(4)) for i in range(half)]
        high = [sum(q[t] * x[(2 * i + t) % even] for t in range(4)) for i in range(half)]
        m[:length] = [*low, *x[even:], *high]
        length -= half
    return m.astype(np.float32)


def inverse_blocks(y: Floats, kind: int, block: int, levels: int) -> Floats:
    """M_h^T Y M_v of every block (9.2)."""
    half, out = np.zeros_like(y), np.zeros_like(y)
    for top in range(0, y.shape[0], block):
        rows = slice(top, min(top + block, y.shape[0]))
        add_product(half[rows], transform_matrix(kind, rows.stop - top, levels).T, y[rows])
    for left in range(0, y.shape[1], block):
        columns = slice(left, min(left + block, y.shape[1]))
        add_product(out[:, columns], half[:, columns], transform_matrix(kind, columns.stop - left, levels))
    return out


# --- sparse (11) ---


def read_number(coder: RangeDecoder, context_set: int) -> int:
    more = 128 * context_set
    tree = more + 32
    length = 0
    while coder.bit(more + length):
        length += 1
        check(length <= 30, "number is too long")
    v, node = 1, 0
    for i in range(length - 1, -1, -1):
        if i >= length - 2:
            b = coder.bit(tree + 3 * length + node)
            node = 1 + b
        else:
            b = coder.plain()
        v = (v << 1) | b
    return v - 1


@cache
def basis_functions(height: int, width: int) -> list[NDArray[np.float64]]:
    across = np.linspace(-1, 1, width) if width > 1 else np.zeros(1)
    down = np.linspace(-1, 1, height) if height > 1 else np.zeros(1)
    x, y = across[None, :] + 0 * down[:, None], 0 * across[None, :] + down[:, None]
    d = np.sqrt(x * x + y * y)
    pi = np.pi
    functions = [1 + 0 * d, d, d * d, np.cos(pi * x), np.cos(pi * y), np.cos(2 * pi * x), np.cos(2 * pi * y)]
    made: list[NDArray[np.float64]] = []
    for function in [*functions, np.cos(pi * x) * np.cos(pi * y)]:
        left = function.copy()
        for _ in range(2):
            for other in made:
                left -= other * (other * left).sum()
        norm = math.sqrt((left * left).sum())
        if norm > 1e-6 * math.sqrt(height * width):
            made.append(left / norm)
    return made


@cache
def scan(height: int, width: int) -> list[tuple[int, int]]:
    places = [(u, v) for u in range(height) for v in range(width)]
    return sorted(places, key=lambda place: (max(place), place))


def decode_sparse(chunks: list[bytes], elements: int) -> Floats:
    check(len(chunks[0]) == 32, "first chunk of a sparse tensor")
    kind, levels, basis, zero, block, zeros, step, rms, nrmse, rows, height = struct.unpack("<BBBBHHfffQI", chunks[0])
    check(kind in (1, 2) and levels <= 16 * (kind == 2) and basis <= 1 and not zero and not zeros, "parameters")
    check(4 <= block <= 1024 and 0 < step < math.inf, "parameters")
    check(0 <= rms < math.inf and 0 <= nrmse < math.inf, "parameters")
    check(rows >= 1 and elements % rows == 0 and 1 <= height <= rows, "rows")
    check(height == rows or height % block == 0, "tile")
    columns = elements // rows
    check(height * columns <= (1 << 22) + block * columns, "tile")
    cut = tiles(rows, columns, height, columns)
    check(len(chunks) == 1 + len(cut), "number of chunks")
    y = np.zeros((rows, columns), np.float32)
    smooth = np.zeros((rows, columns), np.float32)
    for (down, _), stream in zip(cut, chunks[1:], strict=True):
        coder = RangeDecoder(stream, 11 * 128)
        for part in tiles(down.stop - down.start, columns, block, block):
            decode_block(coder, np.float32(step), y[down][part], smooth[down][part] if basis else None)
        coder.finish()
    return (inverse_blocks(y, kind, block, levels) + smooth).ravel()


def decode_block(coder: RangeDecoder, step: np.float32, y: Floats, smooth: Floats | None) -> None:
    height, width = y.shape
    if smooth is not None:
        weights = []
        for j in range(8):
            q = read_number(coder, j)
            weights.append(-q if q and coder.plain() else q)
        total = np.zeros(y.shape)
        for q, function in zip(weights, basis_functions(height, width), strict=False):
            total += q * float(step) * function
        smooth[...] = total
    count, place = read_number(coder, 8), -1
    check(count <= height * width, "count of coefficients")
    for _ in range(count):
        place += 1 + read_number(coder, 9)
        value = read_number(coder, 10) + 1
        check(place < height * width, "place of a coefficient")
        y[scan(height, width)[place]] = np.float32(-value if coder.plain() else value) * step


if __name__ == "__main__":
    for tensor_name, decoded in decode_folder(*map(Path, sys.argv[1:])).items():
        print(hashlib.sha256(decoded.data).hexdigest(), tensor_name)
