"""Verify a folder: every byte against its checksums, every tile decoded, and the errors measured anew."""

from __future__ import annotations

import math
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rbe_cli import dtypes, elements, metrics
from rbe_cli.checkpoint.reader import Checkpoint, Shard, TensorInfo
from rbe_cli.container.folder import Folder, Piece
from rbe_cli.container.headers import check_carried
from rbe_cli.container.manifest import FileEntry, TensorEntry
from rbe_cli.container.plain_file import PlainFile
from rbe_cli.errors import CorruptFile, RBEError
from rbe_cli.operations.progress import Progress, Silent, worker_threads

#: A measured error may differ from the manifest's by this much, relative: it is written with six digits.
_TOLERANCE = 1e-4
#: Elements that may be decoded ahead of the ones waited for.
_AHEAD = 1 << 21


@dataclass(frozen=True)
class Verified:
    """What was checked. Nothing was damaged, or there would have been an exception.

    Attributes
    ----------
    tensors : list of TensorEntry
        As the manifest has them.
    size : int
        Bytes of the layer files and the manifest.
    elements : int
        Decoded.
    measured : dict
        Tensor -> its Error against the original; empty without one.
    same_files : bool or None
        Whether the original's files are, byte for byte, those that were compressed.
    seconds : float
        Wall time.
    nanoseconds : int
        Processor time of decoding the trellis-coded tensors, over all threads, and how many elements they have.
    """

    tensors: list[TensorEntry]
    size: int
    elements: int
    measured: dict[str, metrics.Error]
    same_files: bool | None
    seconds: float
    nanoseconds: int
    trellis_elements: int


def verify(
    path: Path,
    original: Checkpoint | None = None,
    *,
    threads: int = 1,
    max_decoded: int | None = None,
    progress: Progress | None = None,
) -> Verified:
    """Check every byte of a folder and decode everything in it, without keeping or writing it.

    With `original`, the errors are measured and compared with what the manifest claims.

    Raises CorruptFile for anything damaged or any claim that is not true, RBEError if `original` is another model.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    progress.phase("checking", _stored_bytes(path))
    folder = Folder.open(path, whole=True, max_decoded=max_decoded, done=progress.advance)
    for file in folder.manifest.carried:
        _check_carried(path, file)
    originals = {} if original is None else _originals(original, folder)
    tensors = folder.manifest.tensors
    progress.phase("decoding", sum(tensor.elements for tensor in tensors))
    measured: dict[str, metrics.Error] = {}
    nanoseconds = trellis_elements = 0
    with worker_threads(threads) as pool:
        for tensor in tensors:
            job = _Job(folder, tensor, originals.get(tensor.name), pool, progress)
            error = job.run()
            if original is not None:
                measured[tensor.name] = error
                _compare(path, tensor, error)
            nanoseconds += job.nanoseconds
            trellis_elements += tensor.elements if job.trellis else 0
        same = None
        if original is not None:
            sums = list(pool.map(lambda shard: shard.sha256(), original.shards))
            same = sorted(sums) == sorted(source.sha256 for source in folder.manifest.sources)
    size = _stored_bytes(path)
    return Verified(
        tensors, size, sum(tensor.elements for tensor in tensors), measured, same, time.perf_counter() - started,
        nanoseconds, trellis_elements,
    )  # fmt: skip


def _stored_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file()) if path.is_dir() else 0


def _check_carried(folder: Path, entry: FileEntry) -> None:
    path = check_carried(folder, entry)
    if PlainFile(path).sha256() != entry.sha256:
        raise CorruptFile(f"{path}: is not the file that was carried along (SHA-256)")


def _originals(original: Checkpoint, folder: Folder) -> dict[str, tuple[Shard, TensorInfo]]:
    """The tensors of the original by name. Raises RBEError unless it has those of the folder, and no others."""
    found = {info.name: (original.shards[shard], info) for shard, info in original.tensors}
    wanted = {tensor.name: tensor for tensor in folder.manifest.tensors}
    for name, tensor in wanted.items():
        if name not in found:
            raise RBEError(f"{original.name}: has no tensor {name!r}; give the checkpoint {folder.path} was made from")
        info = found[name][1]
        if (info.dtype, info.shape) != (tensor.dtype, tensor.shape):
            raise RBEError(f"{original.name}: tensor {name!r} has another shape or type than in {folder.path}")
    left = next((name for name in found if name not in wanted), None)
    if left is not None:
        raise CorruptFile(f"{folder.path}: tensor {left!r} of {original.name} is not there")
    return found


def _compare(path: Path, tensor: TensorEntry, error: metrics.Error) -> None:
    if math.isclose(error.nrmse, tensor.nrmse, rel_tol=_TOLERANCE, abs_tol=1e-12):
        return
    raise CorruptFile(
        f"{path}: tensor {tensor.name!r}: NRMSE is {error.nrmse:.6g}, the manifest claims {tensor.nrmse:.6g}; "
        "this is not the checkpoint it was made from, or the manifest is not true"
    )


class _Job:
    """One tensor being decoded and measured."""

    def __init__(
        self,
        folder: Folder,
        tensor: TensorEntry,
        original: tuple[Shard, TensorInfo] | None,
        pool: ThreadPoolExecutor,
        progress: Progress,
    ) -> None:
        self.folder, self.tensor, self.original = folder, tensor, original
        self.pool, self.progress = pool, progress
        self.nanoseconds = 0
        self.trellis = False

    def run(self) -> metrics.Error:
        """Decode all pieces; their error against the original, or none."""
        total = metrics.Error(0.0, 0.0, 0)
        raw = None if self.original is None else self.original[0].raw(self.original[1])
        ahead: deque[tuple[int, Future[tuple[int, metrics.Error]]]] = deque()
        under_way = at = 0
        stored = self.folder.open_tensor(self.tensor.name)
        self.trellis = stored.record.codec == "trellis"
        for piece in stored.pieces():
            size = (piece.elements * dtypes.BITS[self.tensor.dtype] + 7) // 8
            part = None if raw is None else raw[at : at + size]
            at += size
            ahead.append((piece.elements, self.pool.submit(_check_piece, piece, part, self.tensor.dtype)))
            under_way += piece.elements
            while under_way > _AHEAD:
                under_way -= ahead[0][0]
                total += self._collect(*ahead.popleft())
        while ahead:
            total += self._collect(*ahead.popleft())
        return total

    def _collect(self, elements: int, future: Future[tuple[int, metrics.Error]]) -> metrics.Error:
        nanoseconds, error = future.result()
        if self.trellis:
            self.nanoseconds += nanoseconds
        self.progress.advance(elements)
        return error


def _check_piece(piece: Piece, original: NDArray[np.uint8] | None, dtype: str) -> tuple[int, metrics.Error]:
    """Decode a piece: the processor time in ns, and its error against the original's bytes."""
    started = time.thread_time_ns()
    decoded = piece.decode()
    taken = time.thread_time_ns() - started
    if original is None:
        return taken, metrics.Error(0.0, 0.0, piece.elements)
    # What is no original may be NaN, or as large as it likes.
    with np.errstate(all="ignore"):
        return taken, _error(original, decoded, dtype)


def _error(original: NDArray[np.uint8], decoded: NDArray[np.uint8], dtype: str) -> metrics.Error:
    """The error of some elements, given as bytes; infinite where types that are carried exactly differ."""
    elements = original.size * 8 // dtypes.BITS[dtype]
    if np.array_equal(original, decoded):
        energy = 0.0
        if dtype in dtypes.FLOATS:
            values = _float64(original, dtype)
            energy = float(values @ values) if np.isfinite(values).all() else 0.0
        return metrics.Error(0.0, energy, elements)
    if dtype not in dtypes.FLOATS:
        return metrics.Error(math.inf, 0.0, elements)
    values = _float64(original, dtype)
    difference = values - _float64(decoded, dtype)
    squared = float(difference @ difference)
    return metrics.Error(squared if math.isfinite(squared) else math.inf, float(values @ values), elements)


def _float64(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float64]:
    return np.ascontiguousarray(raw).view(elements.FLOATS[dtype]).astype(np.float64)
