"""Open the base of an update: a checkpoint, or a folder that `rbe compress` wrote."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache, partial
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rbe_cli import dtypes
from rbe_cli.checkpoint.reader import Checkpoint
from rbe_cli.codec.workspace import apart
from rbe_cli.container.base import BaseTensor
from rbe_cli.container.folder import Folder, Piece, StoredTensor
from rbe_cli.container.manifest import BaseEntry
from rbe_cli.errors import RBEError, UsageError
from rbe_cli.files.names import MANIFEST, is_text

#: Bases in a row at most: each takes time and memory, and some frames of the stack.
MOST_BASES = 32
#: Tensors of a compressed base whose chunks are in memory at once, and decoded pieces of any.
_TENSORS, _PIECES = 4, 8


class CheckpointBase:
    """A checkpoint as a `Base`.

    Attributes
    ----------
    name : str
    files : list of Path
        With what it is made of.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.files = [shard.path for shard in checkpoint.shards]
        self._tensors = {info.name: (checkpoint.shards[shard], info) for shard, info in checkpoint.tensors}
        self.name = checkpoint.name

    def find(self, name: str) -> BaseTensor | None:
        """The tensor of a name, if there is one."""
        if name not in self._tensors:
            return None
        shard, info = self._tensors[name]
        return BaseTensor(info.dtype, info.shape, shard.raw(info))

    @cached_property
    def entry(self) -> BaseEntry:
        """What a manifest says of it; all of it is read."""
        sums = [shard.sha256() for shard in self._checkpoint.shards]
        return BaseEntry(self.name, self._checkpoint.revision, _sha256_of(sums))


class CompressedBase:
    """A folder that `rbe compress` wrote as a `Base`: its tensors are what they decode to.

    Attributes
    ----------
    name : str
    files : list of Path
        With what it is made of.
    """

    def __init__(self, folder: Folder, base: AnyBase | None = None) -> None:
        """`base` is that of the folder, which was opened with it, where it is an update itself."""
        manifest = folder.manifest
        self._folder = folder
        self._names = set(folder.names())
        self.name = folder.path.resolve().name
        if not is_text(self.name):
            raise RBEError(f"{folder.path}: its name is no UTF-8; rename it")
        self.files = [folder.path / name for name in (MANIFEST, *(layer.file for layer in manifest.layers))]
        self.files += base.files if base else []
        self._pieces = lru_cache(_TENSORS)(self._open)
        self._decoded = lru_cache(_PIECES)(self._decode)

    def find(self, name: str) -> BaseTensor | None:
        """The tensor of a name, if there is one."""
        if name not in self._names:
            return None
        stored = self._folder.open_tensor(name)
        record = stored.record
        decoded = _Decoded(self, name, dtypes.byte_length(record.dtype, record.shape))
        chunks = None if record.codec == "lossless" else partial(_coded, stored)
        return BaseTensor(record.dtype, record.shape, decoded, chunks)

    @cached_property
    def entry(self) -> BaseEntry:
        """What a manifest says of it."""
        return BaseEntry(self.name, None, _sha256_of([layer.sha256 for layer in self._folder.manifest.layers]))

    def read(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Some bytes of a tensor, decoded. Raises CorruptFile."""
        # Perhaps in the middle of an encoding.
        with apart():
            ends, _ = self._pieces(name)
            first, last = np.searchsorted(ends, [start, stop - 1], side="right")
            parts = [self._decoded(name, i) for i in range(int(first), int(last) + 1)]
        at = int(ends[first]) - parts[0].size
        return np.concatenate(parts)[start - at : stop - at]

    def _open(self, name: str) -> tuple[NDArray[np.int64], list[Piece]]:
        """Where the pieces of a tensor end, in its bytes, and they themselves."""
        stored = self._folder.open_tensor(name)
        pieces, bits = list(stored.pieces()), dtypes.BITS[stored.record.dtype]
        return np.array([(n * bits + 7) // 8 for n in accumulate(piece.elements for piece in pieces)]), pieces

    def _decode(self, name: str, index: int) -> NDArray[np.uint8]:
        return self._pieces(name)[1][index].decode()


class _Decoded:
    """The bytes of a tensor of a compressed base: a slice of them is decoded when it is taken."""

    def __init__(self, base: CompressedBase, name: str, size: int) -> None:
        self._base = base
        self._name = name
        self.size = size

    def __getitem__(self, part: slice) -> NDArray[np.uint8]:
        start, stop, _ = part.indices(self.size)
        return self._base.read(self._name, start, stop) if start < stop else np.empty(0, np.uint8)


def _coded(stored: StoredTensor) -> Iterator[bytes]:
    """What a tensor is decoded from: its chunks, and the fingerprint of what these are added to."""
    yield from stored.file.chunks(stored.record)
    yield stored.record.base.encode()


def _sha256_of(fingerprints: list[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in fingerprints).encode()).hexdigest()


AnyBase = CheckpointBase | CompressedBase


def open_base(sources: Sequence[str], open_source: Callable[[str], Checkpoint]) -> AnyBase | None:
    """Open what the user called a base, the first of `sources`; where that is an update, its base is the next of them.

    `open_source` opens a checkpoint. Raises RBEError, CorruptFile, UsageError.
    """
    if len(sources) > MOST_BASES:
        raise UsageError(
            f"{sources[0]}: more than {MOST_BASES} bases in a row; compress a version since the first, or by itself"
        )
    base: AnyBase | None = None
    for source in reversed(sources):
        path = Path(source)
        folder = Folder.open(path, base=base) if source and (path / MANIFEST).is_file() else None
        claimed = folder.manifest.base if folder else None
        if claimed and base is None:
            raise UsageError(f"{source}: is an update itself, of {claimed.source}; give that in a --base after it")
        if base and claimed is None:
            raise UsageError(f"{source}: is no update, it needs no --base after it")
        base = CompressedBase(folder, base) if folder else CheckpointBase(open_source(source))
    return base
