"""One .rbe file: the tensors of one layer.

    magic (8) | version u16 | 0 u16 | header length u32 | chunks u32 | crc32 u32
    header: canonical JSON, {"tensors": [{"chunks", "codec", "dtype", "name", "shape"}, ...]}, some with "as" or "base"
    chunk table: per chunk, length u32 and crc32 u32
    chunks, in the order of the table, to the end of the file

Little-endian. The CRC of the prefix covers everything before the chunks but itself, and is checked before the header
is parsed. A tensor's chunks stand together, in the order of the tensors; their place follows from the lengths, so
there is no offset to forge.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from rbe_cli import dtypes
from rbe_cli.codec.parameters import KLT_COLUMNS
from rbe_cli.container import canonical
from rbe_cli.container.fields import is_fingerprint
from rbe_cli.container.methods import CODECS, LOSSY, method_of
from rbe_cli.container.names import is_tensor_name
from rbe_cli.errors import CorruptFile
from rbe_cli.files.atomic import atomic_file
from rbe_cli.files.plain_file import PlainFile

MAGIC = b"\x93RBE\r\n\x1a\n"
#: The highest version this one reads; what it writes has the lowest that can read it.
VERSION = 3
#: The lowest that reads a tensor which is stored against a base.
BASED = 3
MAX_HEADER = 16 << 20
_PREFIX = struct.Struct("<8sHHII")
_CRC = struct.Struct("<I")
_ENTRY = struct.Struct("<II")
_START = _PREFIX.size + _CRC.size
#: Bytes of chunks that wait in memory for the header, which goes before them; more wait in a temporary file.
_SPOOLED, _COPIED = 16 << 20, 1 << 20
#: No chunk is longer than so many bytes, so many for each element of its tensor, and so many for each number of the
#: basis that a trellis-coded tensor may have: whatever is coded, its scales and factors with it, takes less.
_CHUNK, _CHUNK_ELEMENT, _BASIS_NUMBER = 1 << 16, 12, 4


@dataclass(frozen=True)
class TensorRecord:
    """A tensor as a layer file's header describes it.

    Attributes
    ----------
    first_chunk, chunks : int
        Its part of the chunk table.
    same_as : str
        For the codec `same`, the tensor it is identical to; else empty.
    base : str
        Fingerprint of the tensor that what is coded is added to (see `rbe_cli.container.base`); empty if of none.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    codec: str
    first_chunk: int
    chunks: int
    same_as: str = ""
    base: str = ""

    @property
    def method(self) -> str:
        """As the manifest names it."""
        return method_of(self.codec, self.same_as)

    @property
    def lossy(self) -> bool:
        """Whether its codec is one of `methods.LOSSY`."""
        return self.codec in LOSSY


@dataclass(frozen=True)
class EncodedTensor:
    """A tensor ready to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    codec: str
    chunks: list[bytes]
    same_as: str = ""
    version: int = 1
    base: str = ""

    @property
    def method(self) -> str:
        """As the manifest names it."""
        return method_of(self.codec, self.same_as)

    def header(self) -> dict[str, Any]:
        """Its entry in the header."""
        entry: dict[str, Any] = {
            "chunks": len(self.chunks),
            "codec": self.codec,
            "dtype": self.dtype,
            "name": self.name,
            "shape": list(self.shape),
        }
        return entry | {key: text for key, text in (("as", self.same_as), ("base", self.base)) if text}

    def size(self) -> int:
        """Bytes of the layer file that are there for this tensor alone."""
        return len(canonical.dump(self.header())) + sum(len(chunk) + _ENTRY.size for chunk in self.chunks)


def write_layer(path: Path, tensors: Iterable[EncodedTensor]) -> None:
    """Write a layer file, whole or not at all. One tensor at a time is taken of `tensors`."""
    headers, table, version = [], bytearray(), 1
    with tempfile.SpooledTemporaryFile(_SPOOLED, dir=str(path.parent)) as chunks:
        for tensor in tensors:
            headers.append(tensor.header())
            version = max(version, BASED if tensor.base else tensor.version)
            for chunk in tensor.chunks:
                table += _ENTRY.pack(len(chunk), zlib.crc32(chunk))
                chunks.write(chunk)
        header = canonical.dump({"tensors": headers})
        prefix = _PREFIX.pack(MAGIC, version, 0, len(header), len(table) // _ENTRY.size)
        with atomic_file(path) as file:
            file.write(prefix + _CRC.pack(zlib.crc32(prefix + header + table)) + header + table)
            chunks.seek(0)
            shutil.copyfileobj(chunks, file, _COPIED)


class LayerFile:
    """A layer file whose header has been read. Everything that can be wrong with it raises CorruptFile.

    Attributes
    ----------
    tensors : list of TensorRecord
    size : int
        Bytes of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._read_header(PlainFile(path))
        except FileNotFoundError:
            raise CorruptFile(f"{path}: missing") from None

    def _fail(self, what: str) -> CorruptFile:
        return CorruptFile(f"{self.path}: {what}")

    def _read_header(self, file: PlainFile) -> None:
        self.size = file.stamp()[0]
        start = file.read(0, _START)
        if start[: len(MAGIC)] != MAGIC:
            raise self._fail("not an rbe layer file" if self.size else "empty file")
        if len(start) < _START:
            raise self._fail("cut short")
        _, version, zero, header_size, chunk_count = _PREFIX.unpack_from(start)
        if version > VERSION:
            raise self._fail(f"format {version} is newer than this rbe reads ({VERSION}): upgrade rbe, or damaged")
        end = _START + header_size + chunk_count * _ENTRY.size
        if header_size > MAX_HEADER or end > self.size or zero or version < 1:
            raise self._fail("cut short or damaged")
        rest = file.read(_START, end - _START)
        if zlib.crc32(rest, zlib.crc32(start[: _PREFIX.size])) != _CRC.unpack_from(start, _PREFIX.size)[0]:
            raise self._fail("header is damaged (checksum)")
        table = array("I", bytes(rest[header_size:]))
        self._lengths, self._crcs = table[::2], table[1::2]
        self._offsets = array("q", accumulate(self._lengths, initial=end))
        if self._offsets[-1] != self.size:
            raise self._fail("cut short" if self._offsets[-1] > self.size else "has bytes after its end")
        self.tensors = self._records(canonical.load(bytes(rest[:header_size]), str(self.path)))
        if version < BASED and any(record.base for record in self.tensors):
            raise self._fail("header has an entry that makes no sense")

    def _records(self, header: Any) -> list[TensorRecord]:
        if not isinstance(header, dict) or set(header) != {"tensors"} or not isinstance(header["tensors"], list):
            raise self._fail("header has the wrong form")
        records: list[TensorRecord] = []
        at = 0
        for entry in header["tensors"]:
            record = self._record(entry, at)
            at += record.chunks
            self._check_lengths(record)
            records.append(record)
        if at != len(self._lengths):
            raise self._fail("header and chunk table disagree")
        if len({record.name for record in records}) != len(records):
            raise self._fail("names a tensor twice")
        return records

    def _record(self, entry: Any, at: int) -> TensorRecord:
        keys = {"chunks", "codec", "dtype", "name", "shape"}
        if not isinstance(entry, dict) or not keys <= set(entry) <= keys | {"as", "base"}:
            raise self._fail("header has the wrong form")
        name, dtype, shape, codec, chunks = (entry[key] for key in ("name", "dtype", "shape", "codec", "chunks"))
        same_as, base = entry.get("as", ""), entry.get("base", "")
        good = (
            isinstance(name, str)
            and is_tensor_name(name)
            and isinstance(same_as, str)
            and codec in CODECS
            and (codec == "same") == bool(same_as) == ("as" in entry)
            and ("base" not in entry or (codec != "same" and is_fingerprint(base)))
            and isinstance(dtype, str)
            and dtype in dtypes.BITS
            and isinstance(shape, list)
            and all(type(n) is int and 0 <= n < 1 << 63 for n in shape)
            and dtypes.is_possible(tuple(shape))
            and type(chunks) is int
            and 0 <= chunks <= len(self._lengths) - at
            and (codec not in LOSSY or chunks > 0)
            and (codec != "same" or chunks == 0)
        )
        if not good:
            raise self._fail("header has an entry that makes no sense")
        return TensorRecord(name, dtype, tuple(shape), codec, at, chunks, same_as, base)

    def _check_lengths(self, record: TensorRecord) -> None:
        elements = dtypes.count(record.shape)
        basis = _BASIS_NUMBER * min(elements, KLT_COLUMNS) ** 2 if record.codec == "trellis" else 0
        lengths = self._lengths[record.first_chunk : record.first_chunk + record.chunks]
        if max(lengths, default=0) > _CHUNK + _CHUNK_ELEMENT * elements + basis:
            raise self._fail(f"tensor {record.name!r}: has a chunk longer than its shape can need")

    def chunks(self, record: TensorRecord) -> Iterator[bytes]:
        """A tensor's chunks, each checked against its CRC. The file stays open until the last one."""
        # Not for longer: a model has more layers than a process may have files open.
        file = PlainFile(self.path)
        for i in range(record.first_chunk, record.first_chunk + record.chunks):
            yield self._chunk(i, file)
        file.close()

    def chunk(self, index: int) -> bytes:
        """One chunk, checked against its CRC."""
        file = PlainFile(self.path)
        data = self._chunk(index, file)
        file.close()
        return data

    def _chunk(self, index: int, file: PlainFile) -> bytes:
        data = file.read_bytes(self._offsets[index], self._lengths[index])
        if len(data) != self._lengths[index] or zlib.crc32(data) != self._crcs[index]:
            raise self._fail(f"chunk {index} is damaged (checksum)")
        return data

    def sizes(self) -> list[int]:
        """Bytes of each tensor, the part of the file that belongs to none counted with the first."""
        own = [self.size_of(record) for record in self.tensors]
        return [own[0] + self.size - sum(own), *own[1:]] if own else []

    def size_of(self, record: TensorRecord) -> int:
        """Bytes of the file that are there for one tensor alone (its header entry, its table, its chunks)."""
        lengths = self._lengths[record.first_chunk : record.first_chunk + record.chunks]
        empty = EncodedTensor(
            record.name,
            record.dtype,
            record.shape,
            record.codec,
            [b""] * record.chunks,
            record.same_as,
            base=record.base,
        )
        return empty.size() + sum(lengths)
