"""Hostile but well-formed files: every checksum right, what it protects wrong."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rbe_cli.container.layer_file import LayerFile
from rbe_cli.errors import CorruptFile

MAGIC = b"\x93RBE\r\n\x1a\n"
_PREFIX = struct.Struct("<8sHHII")


def canonical(value: Any) -> bytes:
    """Sorted keys, no spaces, ASCII; NaN and infinity as Python writes them."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def layer_bytes(
    header: Any,
    chunks: list[bytes],
    *,
    magic: bytes = MAGIC,
    version: int | None = None,
    zero: int = 0,
    table: list[tuple[int, int]] | None = None,
    count: int | None = None,
    tail: bytes = b"",
) -> bytes:
    """A layer file with right checksums. `header` is JSON, or bytes as they are; `table` replaces (length, crc).

    `version` is 1, or 3 where a tensor has a base, unless another is given.
    """
    text = header if isinstance(header, bytes) else canonical(header)
    if version is None:
        version = 3 if b'"base":' in text else 1
    entries = [(len(chunk), zlib.crc32(chunk)) for chunk in chunks] if table is None else table
    packed = b"".join(struct.pack("<II", *entry) for entry in entries)
    prefix = _PREFIX.pack(magic, version, zero, len(text), len(entries) if count is None else count)
    crc = struct.pack("<I", zlib.crc32(prefix + text + packed))
    return prefix + crc + text + packed + b"".join(chunks) + tail


def split_layer(data: bytes) -> tuple[Any, list[bytes]]:
    """Header and chunks of a sound layer file."""
    _, _, _, header_size, count = _PREFIX.unpack_from(data)
    at = _PREFIX.size + 4
    header = json.loads(data[at : at + header_size])
    at += header_size
    lengths = [length for length, _ in struct.iter_unpack("<II", data[at : at + 8 * count])]
    at += 8 * count
    chunks = []
    for length in lengths:
        chunks.append(data[at : at + length])
        at += length
    return header, chunks


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest of a compressed folder, with what follows from other figures, and write it canonically."""
    path = folder / "rbe.json"
    value = json.loads(path.read_bytes())
    edit(value)
    with contextlib.suppress(KeyError, TypeError, AttributeError, ValueError):
        settle_figures(value)
    path.write_bytes(canonical(value) + b"\n")


def settle_figures(manifest: dict[str, Any]) -> None:
    """Bits per weight and SNR of every tensor, from its size, shape and NRMSE."""
    for layer in manifest["layers"]:
        for tensor in layer["tensors"]:
            elements = math.prod(tensor["shape"])
            tensor["bpw"] = float(f"{8 * tensor['bytes'] / elements:.6g}") if elements else 0
            snr = -20 * math.log10(tensor["nrmse"]) if tensor["nrmse"] else math.inf
            tensor["snr"] = float(f"{snr:.6g}") if math.isfinite(snr) else None


def replace_layer(folder: Path, file: str, data: bytes) -> None:
    """Put other bytes in a layer file and make the manifest's size and SHA-256 fit them."""
    (folder / file).write_bytes(data)

    def edit(manifest: dict[str, Any]) -> None:
        for layer in manifest["layers"]:
            if layer["file"] == file:
                layer["bytes"], layer["sha256"] = len(data), hashlib.sha256(data).hexdigest()
                with contextlib.suppress(CorruptFile):
                    sizes = LayerFile(folder / file).sizes()
                    for tensor, size in zip(layer["tensors"], sizes, strict=len(sizes) == len(layer["tensors"])):
                        tensor["bytes"] = size

    edit_manifest(folder, edit)


def edit_chunk(folder: Path, file: str, index: int, edit: Callable[[bytearray], bytes | bytearray | None]) -> None:
    """Change one chunk of a layer file, with every checksum and the manifest made to fit."""
    header, chunks = split_layer((folder / file).read_bytes())
    chunk = bytearray(chunks[index])
    changed = edit(chunk)
    chunks[index] = bytes(chunk if changed is None else changed)
    replace_layer(folder, file, layer_bytes(header, chunks))
