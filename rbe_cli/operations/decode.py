"""Decode a folder of layer files back to the checkpoint it came from."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rbe_cli import dtypes
from rbe_cli.checkpoint.reader import SUFFIX
from rbe_cli.checkpoint.writer import layout, write_safetensors
from rbe_cli.codec import lossless, trellis_codec
from rbe_cli.codec.tiles import Tile
from rbe_cli.container.atomic import atomic_folder, check_free
from rbe_cli.container.layer_file import LayerFile, TensorRecord
from rbe_cli.container.manifest import CARRIED, NAME, FileEntry, Manifest, TensorEntry
from rbe_cli.errors import CorruptFile, RBEError, UsageError, located
from rbe_cli.operations.open_folder import check_layer
from rbe_cli.operations.progress import Progress, Silent, worker_threads

#: A folder may claim this much, or PLAUSIBLE times its own size, whichever is more, unless the caller allows more.
DEFAULT_LIMIT = 4 << 30
PLAUSIBLE = 4000
#: Elements that may be decoded ahead of the one being written.
_AHEAD = 1 << 21

_Job = Callable[[], NDArray[np.uint8]]


@dataclass(frozen=True)
class Decoded:
    """What a decoding wrote.

    Attributes
    ----------
    files : list of Path
        The safetensors files.
    decoded_bytes, elements : int
        Of their tensors.
    seconds : float
        Wall time.
    nanoseconds : int
        Processor time of decoding the trellis-coded tensors, over all threads, and how many elements they have.
    """

    manifest: Manifest
    files: list[Path]
    decoded_bytes: int
    elements: int
    seconds: float
    nanoseconds: int
    trellis_elements: int


def decode(
    folder: Path,
    out: Path,
    *,
    force: bool = False,
    threads: int = 1,
    max_decoded: int | None = None,
    progress: Progress | None = None,
) -> Decoded:
    """Decode `folder` to `out`: a folder, or a single `.safetensors` file if the source was one.

    Raises CorruptFile for anything damaged, RBEError if the output is there already.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    manifest = Manifest.read(folder)
    _check_claims(folder, manifest, max_decoded)
    job = _Decoding(folder, manifest, progress)
    with worker_threads(threads) as pool:
        if out.name.endswith(SUFFIX):
            if len(manifest.sources) != 1:
                raise UsageError(f"{out}: the source has {len(manifest.sources)} files; give a folder with -o")
            if out.exists() and not force:
                raise RBEError(f"{out}: already there; use --force to replace it")
            out.parent.mkdir(parents=True, exist_ok=True)
            job.write_source(pool, 0, out)
            files = [out]
        else:
            _check_output(folder, out, force)
            with atomic_folder(out, replace=force) as partial:
                for i, source in enumerate(manifest.sources):
                    path = partial / source.path
                    path.parent.mkdir(parents=True, exist_ok=True)
                    job.write_source(pool, i, path)
                for carried in manifest.carried:
                    _restore(folder / CARRIED / carried.path, partial / carried.path, carried)
            files = [out / source.path for source in manifest.sources]
    tensors = manifest.tensors
    return Decoded(
        manifest, files, sum(t.source_bytes for t in tensors), sum(t.elements for t in tensors),
        time.perf_counter() - started, job.nanoseconds, job.trellis_elements,
    )  # fmt: skip


def _check_claims(folder: Path, manifest: Manifest, limit: int | None) -> None:
    claimed = sum(tensor.source_bytes for tensor in manifest.tensors)
    stored = sum(layer.bytes for layer in manifest.layers)
    allowed = max(DEFAULT_LIMIT, PLAUSIBLE * stored) if limit is None else limit
    if claimed > allowed:
        raise CorruptFile(
            f"{folder}: claims to decode to {claimed:,} bytes, more than the {allowed:,} allowed; "
            "if you trust it, allow that with --max-decoded-size"
        )


def _check_output(folder: Path, out: Path, force: bool) -> None:
    check_free(out, force)
    if out.resolve() == folder.resolve() or out.resolve() in folder.resolve().parents:
        raise RBEError(f"{out}: holds the compressed folder; choose another output with -o")
    if force and out.exists() and any(out.iterdir()) and not any(out.rglob(f"*{SUFFIX}")):
        raise RBEError(f"{out}: holds no checkpoint; --force replaces only what `rbe decode` wrote")
    if force and (out / NAME).exists():
        raise RBEError(f"{out}: holds compressed layers; choose another output with -o")


def _restore(path: Path, target: Path, entry: FileEntry) -> None:
    """Copy a carried file and check that it is what the manifest says."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or not path.is_file():
        raise CorruptFile(f"{path}: missing, or not a plain file")
    shutil.copyfile(path, target)
    with target.open("rb") as handle:
        if hashlib.file_digest(handle, "sha256").hexdigest() != entry.sha256:
            raise CorruptFile(f"{path}: is not the file that was carried along (SHA-256)")


class _Decoding:
    """One decoding under way."""

    def __init__(self, folder: Path, manifest: Manifest, progress: Progress) -> None:
        self.folder = folder
        self.manifest = manifest
        self.progress = progress
        self.nanoseconds = 0
        self.trellis_elements = 0
        self.layer_of = {tensor.name: layer for layer in manifest.layers for tensor in layer.tensors}
        self.progress.phase("checking", sum(layer.bytes for layer in manifest.layers))
        for layer in manifest.layers:
            check_layer(folder, layer, whole=True)
            self.progress.advance(layer.bytes)
        self.progress.phase("decoding", sum(tensor.elements for tensor in manifest.tensors))

    def write_source(self, pool: ThreadPoolExecutor, index: int, path: Path) -> None:
        """Write one of the source's files."""
        source = self.manifest.sources[index]
        entries = {tensor.name: tensor for tensor in self.manifest.tensors if tensor.source == index}
        order = layout((tensor.name, tensor.dtype, tensor.shape) for tensor in entries.values())
        data = (self._pieces(pool, entries[name]) for name, _, _ in order)
        write_safetensors(path, order, data, source.metadata)

    def _pieces(self, pool: ThreadPoolExecutor, tensor: TensorEntry) -> Iterator[NDArray[np.uint8]]:
        """The bytes of a tensor, in order, while threads decode what comes next."""
        with self._open(tensor.name) as (file, record):
            ahead: deque[tuple[Future[tuple[NDArray[np.uint8], int]], int]] = deque()
            under_way = 0
            for elements, job in self._jobs(file, record, tensor):
                ahead.append((pool.submit(_timed, job), elements))
                under_way += elements
                while under_way > _AHEAD:
                    under_way -= ahead[0][1]
                    yield self._collect(*ahead.popleft(), tensor, record, file)
            while ahead:
                yield self._collect(*ahead.popleft(), tensor, record, file)

    def _collect(
        self,
        future: Future[tuple[NDArray[np.uint8], int]],
        elements: int,
        tensor: TensorEntry,
        record: TensorRecord,
        file: LayerFile,
    ) -> NDArray[np.uint8]:
        with located(_place(file, tensor)):
            piece, nanoseconds = future.result()
        if record.codec == "trellis":
            self.nanoseconds += nanoseconds
            self.trellis_elements += elements
        self.progress.advance(elements)
        return piece

    def _open(self, name: str, depth: int = 0) -> _OpenTensor:
        """The file and record a tensor is stored in, also where it is stored as another one."""
        layer = self.layer_of.get(name)
        if layer is None:
            raise CorruptFile(f"{self.folder / NAME}: a tensor is stored as {name!r}, which is not there")
        file = LayerFile(self.folder / layer.file)
        record = next(record for record in file.tensors if record.name == name)
        if record.codec != "same":
            return _OpenTensor(file, record)
        file.__exit__()
        if depth:
            raise CorruptFile(f"{file.path}: tensor {name!r} is stored as one that is itself stored as another")
        return self._open(record.same_as, depth + 1)

    def _jobs(self, file: LayerFile, record: TensorRecord, tensor: TensorEntry) -> Iterator[tuple[int, _Job]]:
        """(elements, job) of every piece of a tensor. Reading happens here, decoding in the jobs."""
        where = _place(file, tensor)
        if (record.dtype, record.shape) != (tensor.dtype, tensor.shape):
            raise CorruptFile(f"{where}: stored as a tensor of another shape or type")
        if record.codec == "lossless":
            if record.chunks != lossless.chunk_count(record.dtype, record.shape):
                raise CorruptFile(f"{where}: has the wrong number of chunks")
            yield from self._lossless_jobs(file, record)
            return
        if record.dtype not in dtypes.FLOATS:
            raise CorruptFile(f"{where}: cannot be coded this way")
        with located(where):
            decoder, grid = trellis_codec.open_tensor(file.chunk(record.first_chunk), record.shape)
        if record.chunks != 1 + len(grid):
            raise CorruptFile(f"{where}: has the wrong number of chunks")
        for i, tile in enumerate(grid):
            stream = file.chunk(record.first_chunk + 1 + i)
            yield tile.size, _tile_job(decoder, stream, tile, record.dtype)

    def _lossless_jobs(self, file: LayerFile, record: TensorRecord) -> Iterator[tuple[int, _Job]]:
        left = dtypes.count(record.shape)
        for i in range(record.chunks):
            elements = min(lossless.CHUNK, left)
            left -= elements
            yield elements, _lossless_job(file.chunk(record.first_chunk + i), i, record)


class _OpenTensor:
    """A layer file open at one of its tensors."""

    def __init__(self, file: LayerFile, record: TensorRecord) -> None:
        self.file = file
        self.record = record

    def __enter__(self) -> tuple[LayerFile, TensorRecord]:
        return self.file, self.record

    def __exit__(self, *_: object) -> None:
        self.file.__exit__()


def _place(file: LayerFile, tensor: TensorEntry) -> str:
    return f"{file.path}: tensor {tensor.name!r}"


def _timed(job: _Job) -> tuple[NDArray[np.uint8], int]:
    started = time.thread_time_ns()
    piece = job()
    return piece, time.thread_time_ns() - started


def _tile_job(decoder: trellis_codec.TileDecoder, stream: bytes, tile: Tile, dtype: str) -> _Job:
    def job() -> NDArray[np.uint8]:
        return dtypes.from_float32(decoder.decode(stream, tile), dtype).view(np.uint8).ravel()

    return job


def _lossless_job(chunk: bytes, index: int, record: TensorRecord) -> _Job:
    def job() -> NDArray[np.uint8]:
        return lossless.decode_chunk(chunk, index, record.dtype, record.shape)

    return job
