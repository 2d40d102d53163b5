"""A compressed checkpoint on disk: the manifest, its layer files, and the way from a name to a tensor's weights.

folder = Folder.open(path)          # manifest and headers checked, nothing decoded
w = folder.tensor("h.0.attn.c_attn.weight")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbe_cli import dtypes, elements
from rbe_cli.codec import lossless, tensor_codec
from rbe_cli.codec.source import Matrix
from rbe_cli.codec.tensor_codec import Decoder, TileDecoder
from rbe_cli.codec.tiles import Tile
from rbe_cli.container.base import Base, BaseTensor
from rbe_cli.container.headers import check_carried, check_claims, check_layer
from rbe_cli.container.layer_file import LayerFile, TensorRecord
from rbe_cli.container.manifest import FileEntry, LayerEntry, Manifest, TensorEntry
from rbe_cli.errors import CorruptFile, RBEError, located
from rbe_cli.files.names import MANIFEST
from rbe_cli.files.plain_file import PlainFile


@dataclass(frozen=True)
class Piece:
    """A part of a tensor that decodes alone: a tile, or a chunk of the lossless coder.

    Attributes
    ----------
    elements : int
    decode : callable
        Gives its bytes, uint8[n], in the tensor's dtype. Safe to call in any thread. Raises CorruptFile.
    """

    elements: int
    decode: Callable[[], NDArray[np.uint8]]


class _Latest:
    """What was opened last, if others are the same as it: a thousand tensors of some bytes may be the same as one that
    needs a basis of 4096 x 4096. Never more than one.
    """

    def __init__(self, shared: set[str]) -> None:
        self._shared = shared
        self._kept: tuple[str, Decoder] | None = None

    def get(self, name: str, open_: Callable[[], Decoder]) -> Decoder:
        """What `open_` gives for a tensor that is stored under this name."""
        kept = self._kept
        if kept is None or kept[0] != name:
            self._kept = None
            kept = (name, open_())
            self._kept = kept if name in self._shared else None
        return kept[1]


class StoredTensor:
    """One tensor of a folder.

    Attributes
    ----------
    entry : TensorEntry
    record : TensorRecord
        Where it is stored; another tensor's if it is identical to that one.
    """

    def __init__(
        self,
        file: LayerFile,
        entry: TensorEntry,
        record: TensorRecord,
        latest: _Latest | None = None,
        base: BaseTensor | None = None,
    ) -> None:
        """`base` is what the record's fingerprint is of, if it has one."""
        self.file = file
        self.entry = entry
        self.record = record
        self._base = base
        self._latest = latest or _Latest(set())
        self.where = f"{file.path}: tensor {entry.name!r}"
        if (record.dtype, record.shape) != (entry.dtype, entry.shape):
            raise CorruptFile(f"{self.where}: stored as a tensor of another shape or type")

    def pieces(self) -> Iterator[Piece]:
        """All pieces in order: put together, they are the tensor's bytes. Reading happens here, decoding in them."""
        if self.record.codec == "lossless":
            return self._chunks()
        return self._tiles()

    def decoder(self) -> Decoder:
        """What turns the streams of a lossily coded tensor into weights. Raises CorruptFile."""
        return self._open(self.file.chunk(self.record.first_chunk))

    def _open(self, first_chunk: bytes) -> Decoder:
        record = self.record
        with located(self.where), np.errstate(all="ignore"):
            decoder = self._latest.get(
                record.name, lambda: tensor_codec.open_tensor(first_chunk, record.shape, record.codec)
            )
        if record.chunks != 1 + decoder.streams:
            raise CorruptFile(f"{self.where}: has the wrong number of chunks")
        return decoder

    def stream(self, index: int) -> bytes:
        """The bytes of tile `index`, checked against their CRC; none where a tensor is all in its first chunk."""
        if self.record.chunks == 1:
            return b""
        return self.file.chunk(self.record.first_chunk + 1 + index)

    def _tiles(self) -> Iterator[Piece]:
        if self.record.dtype not in dtypes.FLOATS:
            raise CorruptFile(f"{self.where}: cannot be coded this way")
        chunks = self.file.chunks(self.record)
        decoder = self._open(next(chunks, b""))
        grid = decoder.grid
        base = None if self._base is None else self._base.matrix(grid.rows, grid.columns)
        for tile in grid:
            yield Piece(tile.size, self._tile_job(decoder, next(chunks, b""), tile, base))

    def _tile_job(
        self, decoder: Decoder, stream: bytes, tile: Tile, base: Matrix | None
    ) -> Callable[[], NDArray[np.uint8]]:
        def decode() -> NDArray[np.uint8]:
            # What no encoder writes may overflow on the way; it stays what it is.
            with located(self.where), np.errstate(all="ignore"):
                if base is not None:
                    weights = decoder.decode(stream, tile) + base.piece(tile)
                    return elements.from_float32(weights, self.record.dtype).view(np.uint8).ravel()
                if self.record.dtype == "F32" and isinstance(decoder, TileDecoder):
                    # As decoded: into an array of its own, which saves the copy.
                    out = np.empty((tile.bottom - tile.top, tile.right - tile.left), np.float32)
                    return decoder.decode(stream, tile, out).view(np.uint8).ravel()
                weights = decoder.decode(stream, tile)
                return elements.from_float32(weights, self.record.dtype).view(np.uint8).ravel()

        return decode

    def _chunks(self) -> Iterator[Piece]:
        record = self.record
        if record.chunks != lossless.chunk_count(record.dtype, record.shape):
            raise CorruptFile(f"{self.where}: has the wrong number of chunks")
        left = dtypes.count(record.shape)
        for i, chunk in enumerate(self.file.chunks(record)):
            elements = min(lossless.CHUNK, left)
            left -= elements
            yield Piece(elements, self._chunk_job(chunk, i))

    def _chunk_job(self, chunk: bytes, index: int) -> Callable[[], NDArray[np.uint8]]:
        def decode() -> NDArray[np.uint8]:
            with located(self.where):
                values = lossless.decode_chunk(chunk, index, self.record.dtype, self.record.shape)
            if self._base is None:
                return values
            at = index * lossless.chunk_bytes(self.record.dtype)
            return values ^ self._base.raw[at : at + values.size]

        return decode


class Folder:
    """A folder that `rbe compress` wrote, its manifest and every layer file's header checked.

    Attributes
    ----------
    path : Path
    manifest : Manifest
    base : Base or None
        What it is an update of.
    """

    def __init__(self, path: Path, manifest: Manifest, files: list[LayerFile], base: Base | None = None) -> None:
        """`files` are those of the manifest's layers, in their order."""
        self.path = path
        self.manifest = manifest
        self.base = base
        self._fitting: set[str] = set()
        self._tensors = {
            entry.name: (file, entry, record)
            for layer, file in zip(manifest.layers, files, strict=True)
            for entry, record in zip(layer.tensors, file.tensors, strict=True)
        }
        self._latest = _Latest({record.same_as for _, _, record in self._tensors.values() if record.same_as})

    @classmethod
    def open(
        cls,
        path: Path,
        whole: bool = False,
        max_decoded: int | None = None,
        done: Callable[[int], None] | None = None,
        base: Base | None = None,
    ) -> Folder:
        """Open a folder and check it; with `whole`, every byte of it against its SHA-256.

        `max_decoded` bounds what it may claim to decode to; None is what is plausible. `done` is told the size of each
        layer file as it has been checked. `base` is what it is an update of; without it no tensor can be had that is
        stored against it. Raises RBEError if there is no manifest, CorruptFile if anything is damaged.
        """
        manifest = Manifest.read(path)
        check_claims(path, manifest, max_decoded)
        files = []
        for layer in manifest.layers:
            files.append(check_layer(path, layer))
            if whole:
                check_bytes(path, layer)
            if done:
                done(layer.bytes)
        return cls(path, manifest, files, base)

    def names(self) -> list[str]:
        """Names of all tensors, layer by layer."""
        return list(self._tensors)

    def open_tensor(self, name: str) -> StoredTensor:
        """A tensor, ready to be read. Raises RBEError if there is none of that name, CorruptFile."""
        if name not in self._tensors:
            raise RBEError(f"{self.path}: has no tensor {name!r}")
        file, entry, record = self._tensors[name]
        if record.codec == "same" and record.same_as in self._tensors:
            file, _, record = self._tensors[record.same_as]
        if record.codec == "same":
            raise CorruptFile(f"{self.path / MANIFEST}: tensor {name!r} is stored as another one that is not there")
        return StoredTensor(file, entry, record, self._latest, self._base_of(record) if record.base else None)

    def _base_of(self, record: TensorRecord) -> BaseTensor:
        """The base's tensor that one is stored against. Raises RBEError if that is not there, or another."""
        where = f"{self.path}: tensor {record.name!r}"
        claimed = self.manifest.base.source if self.manifest.base else "its base"
        if self.base is None:
            raise RBEError(f"{where}: is stored as what changed since {claimed}; open it with that as its base")
        found = self.base.find(record.name)
        other = RBEError(f"{where}: was made against another model than {self.base.name}; its base is {claimed}")
        if found is None or found.shape != record.shape:
            raise other
        lossy, exact = found.dtype in dtypes.FLOATS, found.exact and found.dtype == record.dtype
        if not (lossy if record.lossy else exact):
            raise other
        if record.name not in self._fitting and found.fingerprint != record.base:
            raise other
        self._fitting.add(record.name)
        return found

    def tensor(self, name: str) -> NDArray[Any]:
        """A tensor's decoded weights (or exact values), in its own dtype and shape.

        Types numpy has no equal of (float8 and smaller) come as their bytes, uint8[nbytes].
        """
        stored = self.open_tensor(name)
        entry = stored.entry
        raw = np.empty(entry.source_bytes, np.uint8)
        at = 0
        for piece in stored.pieces():
            values = piece.decode()
            raw[at : at + values.size] = values
            at += values.size
        dtype = elements.NUMPY.get(entry.dtype)
        return raw if dtype is None else raw.view(dtype).reshape(entry.shape)


def check_bytes(folder: Path, layer: LayerEntry) -> None:
    """Compare every byte of a layer file with the SHA-256 in the manifest. Raises CorruptFile."""
    path = folder / layer.file
    if PlainFile(path).sha256() != layer.sha256:
        raise CorruptFile(f"{path}: is not the file the manifest speaks of (SHA-256); damaged or replaced")


def check_carried_bytes(folder: Path, entry: FileEntry) -> None:
    """The same of a file that was carried along. Raises CorruptFile."""
    path = check_carried(folder, entry)
    if PlainFile(path).sha256() != entry.sha256:
        raise CorruptFile(f"{path}: is not the file that was carried along (SHA-256)")
