"""Decode a folder of layer files back to the checkpoint it came from."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from rbe_cli.checkpoint.weight_files import SUFFIX
from rbe_cli.checkpoint.writer import layout, stream_safetensors
from rbe_cli.container.folder import Folder
from rbe_cli.container.headers import check_base, check_carried
from rbe_cli.container.manifest import FileEntry, Manifest, SourceFile
from rbe_cli.container.open_base import AnyBase
from rbe_cli.errors import CorruptFile, RBEError, UsageError
from rbe_cli.files.atomic import atomic_file, atomic_folder, check_apart, check_file, check_free, check_own
from rbe_cli.files.names import MANIFEST
from rbe_cli.files.plain_file import PlainFile, copy
from rbe_cli.operations.decoding import LossyTime, decode_ahead
from rbe_cli.operations.progress import Progress, Silent, worker_threads


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
    decode_ns_per_weight : float or None
        Processor time of decoding the tensors that are not stored exactly; None if all are.
    """

    manifest: Manifest
    files: list[Path]
    decoded_bytes: int
    elements: int
    seconds: float
    decode_ns_per_weight: float | None


def decode(
    folder: Path,
    out: Path | BinaryIO,
    *,
    force: bool = False,
    threads: int = 1,
    max_decoded: int | None = None,
    progress: Progress | None = None,
    base: AnyBase | None = None,
) -> Decoded:
    """Decode `folder` to `out`: a folder, or a single `.safetensors` file, or a stream, if the source was one.

    `base` is the model it is an update of, if it is one. Raises CorruptFile for anything damaged, RBEError if the
    output is there already or the base is another.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    manifest = Manifest.read(folder)
    check_base(folder, manifest, base)
    one_file = not isinstance(out, Path) or out.name.endswith(SUFFIX)
    if one_file and len(manifest.sources) != 1:
        raise UsageError(f"{folder}: was made of {len(manifest.sources)} files; give a folder with -o")
    if isinstance(out, Path):
        _check_output(folder, manifest, out, force)
        check_apart(out, base.files if base else (), "the base")
    progress.phase("checking", sum(layer.bytes for layer in manifest.layers))
    opened = Folder.open(folder, whole=True, max_decoded=max_decoded, done=progress.advance, base=base)
    job = _Decoding(opened, progress)
    with worker_threads(threads) as pool:
        _check_base_tensors(opened, pool, progress)
        progress.phase("decoding", sum(tensor.elements for tensor in manifest.tensors))
        if not isinstance(out, Path) or one_file:
            files = _write_file(job, pool, out)
        else:
            with atomic_folder(out, replace=force) as partial:
                for i, source in enumerate(manifest.sources):
                    path = partial / source.path
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with atomic_file(path) as file:
                        job.write_source(pool, i, file)
                for carried in manifest.carried:
                    _restore(folder, partial / carried.path, carried)
            files = [out / source.path for source in manifest.sources]
    tensors = manifest.tensors
    return Decoded(
        manifest, files, sum(t.source_bytes for t in tensors), sum(t.elements for t in tensors),
        time.perf_counter() - started, job.lossy.per_weight,
    )  # fmt: skip


def _check_base_tensors(opened: Folder, pool: ThreadPoolExecutor, progress: Progress) -> None:
    """Raise RBEError, before anything is written, if a tensor is stored against another base than there is."""
    stored = [tensor for tensor in opened.manifest.tensors if tensor.base]
    if not stored:
        return
    progress.phase("checking the base", sum(tensor.elements for tensor in stored))
    for tensor, _ in zip(stored, pool.map(lambda tensor: opened.open_tensor(tensor.name), stored), strict=True):
        progress.advance(tensor.elements)


def _write_file(job: _Decoding, pool: ThreadPoolExecutor, out: Path | BinaryIO) -> list[Path]:
    """Write the only file of the source."""
    if not isinstance(out, Path):
        job.write_source(pool, 0, out)
        out.flush()
        return []
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out) as file:
        job.write_source(pool, 0, file)
    return [out]


def _check_output(folder: Path, manifest: Manifest, out: Path, force: bool) -> None:
    """Raise RBEError if `out` is there, unless `force` and it holds nothing but what is written anew."""
    if out.name.endswith(SUFFIX):
        if out.parent.is_dir():
            check_file(out, force)
            _check_original(manifest.sources[0], out, manifest)
        return
    check_free(out, force)
    check_apart(out, [folder], "the compressed folder")
    if (out / MANIFEST).exists():
        raise RBEError(f"{out}: holds compressed layers; choose another output with -o")
    written = {file.path for file in (*manifest.sources, *manifest.carried)}
    check_own(out, written.__contains__)
    for source in manifest.sources:
        _check_original(source, out / source.path, manifest)


def _check_original(source: SourceFile, path: Path, manifest: Manifest) -> None:
    """Raise RBEError if the file at `path` is what was compressed, and would be replaced by less exact weights."""
    may_be = any(tensor.rmse for tensor in manifest.tensors) and path.is_file() and path.stat().st_size == source.bytes
    if may_be and PlainFile(path).sha256() == source.sha256:
        raise RBEError(f"{path}: is the original, which is more exact; choose another output with -o")


def _restore(folder: Path, target: Path, entry: FileEntry) -> None:
    """Copy a carried file of a folder and check that it is what the manifest says."""
    path = check_carried(folder, entry)
    target.parent.mkdir(parents=True, exist_ok=True)
    if copy(path, target) != entry.sha256:
        raise CorruptFile(f"{path}: is not the file that was carried along (SHA-256)")


class _Decoding:
    """One decoding under way."""

    def __init__(self, folder: Folder, progress: Progress) -> None:
        self.folder = folder
        self.progress = progress
        self.lossy = LossyTime()

    def write_source(self, pool: ThreadPoolExecutor, index: int, file: BinaryIO) -> None:
        """Write one of the source's files."""
        source = self.folder.manifest.sources[index]
        order = layout(
            (tensor.name, tensor.dtype, tensor.shape)
            for tensor in self.folder.manifest.tensors
            if tensor.source == index
        )
        data = (self._bytes(pool, name) for name, _, _ in order)
        stream_safetensors(file, order, data, source.metadata)

    def _bytes(self, pool: ThreadPoolExecutor, name: str) -> Iterator[NDArray[np.uint8]]:
        """The bytes of a tensor, in order, while threads decode what comes next."""
        stored = self.folder.open_tensor(name)
        return decode_ahead(stored, pool, self.lossy, self.progress, lambda decoded, _: decoded)
