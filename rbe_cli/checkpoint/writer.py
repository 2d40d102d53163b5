"""Write a safetensors file tensor by tensor, so that the model is never in memory as a whole.

The safetensors library writes only what is in memory all at once; this writes the same bytes piece by piece.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from rbe_cli import dtypes
from rbe_cli.files.atomic import atomic_file

#: Types from the widest to the narrowest: the order in which the safetensors library lays tensors out.
_ORDER = (
    "U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16",
    "F8_E5M2FNUZ", "F8_E4M3FNUZ", "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8", "F6_E3M2", "F6_E2M3", "F4", "BOOL",
)  # fmt: skip

Tensor = tuple[str, str, tuple[int, ...]]
#: The bytes of each tensor, in pieces.
Data = Iterator[Iterable[NDArray[np.uint8]]]


def layout(tensors: Iterable[Tensor]) -> list[Tensor]:
    """(name, dtype, shape) in the order they stand in a file."""
    return sorted(tensors, key=lambda tensor: (_ORDER.index(tensor[1]), tensor[0].encode("utf-8", "surrogatepass")))


def write_safetensors(path: Path, tensors: list[Tensor], data: Data, metadata: dict[str, str] | None) -> None:
    """Write a file with `tensors`, which must be in `layout` order; `data` gives the bytes of each, in pieces."""
    with atomic_file(path) as file:
        stream_safetensors(file, tensors, data, metadata)


def stream_safetensors(file: BinaryIO, tensors: list[Tensor], data: Data, metadata: dict[str, str] | None) -> None:
    """The same to an open file."""
    header: dict[str, object] = {}
    if metadata is not None:
        header["__metadata__"] = dict(sorted(metadata.items()))
    at = 0
    for name, dtype, shape in tensors:
        size = dtypes.byte_length(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for pieces in data:
        for piece in pieces:
            file.write(piece.data)
