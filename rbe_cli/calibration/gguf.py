"""Where the tensors of a GGUF file are. Read here and not by the gguf package: that maps the file into memory, and for
a list that claims 2^60 entries it has no end.

Little-endian: "GGUF", u32 version (2 or 3), u64 tensors, u64 values; each value a name, u32 type and what it is; each
tensor a name, u32 dimensions, u64 each, u32 type, u64 offset; padding; and the data. Names are u64 bytes, then UTF-8.
Source: ggml, docs/gguf.md.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from rbe_cli.files.plain_file import PlainFile

MAGIC = b"GGUF"
F32 = 0
_VERSIONS = (2, 3)
#: Bytes of a number, by its type; what is neither is a string or a list.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _LIST, _U32 = 8, 9, 4
_ALIGNMENT = "general.alignment"
#: An importance matrix has some kilobytes of values and some dozen bytes for each tensor.
_MOST_HEADER, _LONGEST_NAME, _MOST_DIMENSIONS = 16 << 20, 1 << 12, 4


class GgufTensor(NamedTuple):
    """A tensor of a file: dimensions, the slowest first, type, and where its data begin."""

    shape: tuple[int, ...]
    kind: int
    begin: int


class _Header:
    """Bytes that are read one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def skip(self, size: int) -> int:
        """Go on; returns where one was. Raises ValueError at the end."""
        if not 0 <= size <= len(self._data) - self.at:
            raise ValueError
        self.at += size
        return self.at - size

    def number(self, form: str) -> int:
        """An unsigned integer, by its letter for `struct`."""
        begin = self.skip(struct.calcsize("<" + form))
        return int(struct.unpack_from("<" + form, self._data, begin)[0])

    def name(self) -> str:
        """The name of a value or a tensor."""
        size = self.number("Q")
        if size > _LONGEST_NAME:
            raise ValueError
        begin = self.skip(size)
        return self._data[begin : self.at].decode("utf-8", "replace")

    def skip_value(self, kind: int) -> None:
        """Go past a value. Lists of lists, which nothing writes, are refused."""
        if kind == _STRING:
            self.skip(self.number("Q"))
        elif kind == _LIST:
            kind, count = self.number("I"), self.number("Q")
            if kind in _SIZES:
                self.skip(count * _SIZES[kind])
                return
            if kind != _STRING:
                raise ValueError
            # Each takes its eight bytes, so the end is near.
            for _ in range(min(count, len(self._data))):
                self.skip(self.number("Q"))
        elif kind in _SIZES:
            self.skip(_SIZES[kind])
        else:
            raise ValueError


def tensors_of(file: PlainFile) -> dict[str, GgufTensor]:
    """The tensors of a GGUF file by name. Raises ValueError if it is none, or one that nothing here would write."""
    header = _Header(bytes(file.read(0, _MOST_HEADER)))
    if header.skip(len(MAGIC)) or header.number("I") not in _VERSIONS:
        raise ValueError
    count, values = header.number("Q"), header.number("Q")
    alignment = 32
    for _ in range(min(values, _MOST_HEADER)):
        name, kind = header.name(), header.number("I")
        if name == _ALIGNMENT and kind == _U32:
            alignment = header.number("I")
        else:
            header.skip_value(kind)
    found: dict[str, GgufTensor] = {}
    for _ in range(min(count, _MOST_HEADER)):
        name, dimensions = header.name(), header.number("I")
        if dimensions > _MOST_DIMENSIONS or name in found:
            raise ValueError
        shape = tuple(header.number("Q") for _ in range(dimensions))[::-1]
        found[name] = GgufTensor(shape, header.number("I"), header.number("Q"))
    if not alignment:
        raise ValueError
    data = -(-header.at // alignment) * alignment
    return {name: tensor._replace(begin=data + tensor.begin) for name, tensor in found.items()}
