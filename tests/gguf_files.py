"""GGUF files byte by byte, so that tests need no package for them and hostile ones can be made."""

from __future__ import annotations

import struct

import numpy as np


def text(words: str) -> bytes:
    """A string as GGUF has it."""
    return struct.pack("<Q", len(words.encode())) + words.encode()


def gguf_bytes(
    arrays: dict[str, np.ndarray], values: bytes = b"", count: int = 0, alignment: int = 32, version: int = 3
) -> bytes:
    """A file of float32 tensors, with so many `values` as bytes besides."""
    values += text("general.type") + struct.pack("<I", 8) + text("imatrix")
    values += text("imatrix.datasets") + struct.pack("<IIQ", 9, 8, 1) + text("text.txt")
    values += text("imatrix.chunk_count") + struct.pack("<II", 4, 1)
    head = b"GGUF" + struct.pack("<IQQ", version, len(arrays), count + 3) + values
    data = b""
    for name, array in arrays.items():
        head += text(name) + struct.pack("<I", array.ndim) + struct.pack(f"<{array.ndim}Q", *array.shape[::-1])
        head += struct.pack("<IQ", 0, len(data))
        data += array.astype("<f4").tobytes()
        data += bytes(-len(data) % alignment)
    return head + bytes(-len(head) % alignment) + data
