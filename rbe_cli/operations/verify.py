"""Verify a folder: every byte against its checksums, every tile decoded, and the errors measured anew."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rbe_cli import metrics
from rbe_cli.checkpoint.reader import Checkpoint, Shard, TensorInfo
from rbe_cli.container.folder import Folder, check_bytes, check_carried_bytes
from rbe_cli.container.headers import check_base, check_claims, check_layer
from rbe_cli.container.layer_file import LayerFile
from rbe_cli.container.manifest import CARRIED, LayerEntry, Manifest, TensorEntry
from rbe_cli.container.open_base import AnyBase
from rbe_cli.errors import CorruptFile, RBEError
from rbe_cli.files.names import MANIFEST
from rbe_cli.files.plain_file import files_below
from rbe_cli.operations.decoding import LossyTime, decode_ahead, error_of
from rbe_cli.operations.progress import Progress, Silent, worker_threads

#: A measured error may differ from the manifest's by this much, relative: it is written with six digits.
_TOLERANCE = 1e-4
#: Relative error of what was decoded on another machine, more than which float32 does not lose.
_LAST_BITS = 1e-6
#: What has so many problems is not read any further: a hostile manifest names what takes hours to look for.
_MOST_PROBLEMS = 100
#: So many unknown files are named in a note; the list has all.
_NAMED = 8


@dataclass
class Verified:
    """What was checked, and what is wrong with it.

    Attributes
    ----------
    tensors : list of TensorEntry
        As the manifest has them.
    size : int
        Bytes of the layer files and the manifest.
    measured : dict
        Tensor -> its Error against the original; empty without one.
    same_files : bool or None
        Whether the original's files are, byte for byte, those that were compressed.
    problems : list of str
        What is damaged or not true, a line each that names the file or tensor; empty if all is well. At 100 the rest
        is not looked at.
    untrue : set of str
        Tensors whose measured error is not the one the manifest claims.
    unknown_files : list of str
        Files in the folder that the manifest does not name, which count for nothing; links among them.
    seconds : float
        Wall time.
    decode_ns_per_weight : float or None
        Processor time of decoding the tensors that are not stored exactly; None if all are.
    """

    tensors: list[TensorEntry] = field(default_factory=list)
    size: int = 0
    measured: dict[str, metrics.Error] = field(default_factory=dict)
    same_files: bool | None = None
    problems: list[str] = field(default_factory=list)
    untrue: set[str] = field(default_factory=set)
    unknown_files: list[str] = field(default_factory=list)
    seconds: float = 0.0
    decode_ns_per_weight: float | None = None

    @property
    def elements(self) -> int:
        """Of all tensors."""
        return sum(tensor.elements for tensor in self.tensors)

    def require_sound(self) -> None:
        """Raise CorruptFile, with the first of the problems, if there is any."""
        if self.problems:
            more = f" (problems in all: {len(self.problems)})" if len(self.problems) > 1 else ""
            raise CorruptFile(self.problems[0] + more)


def verify(
    path: Path,
    original: Checkpoint | None = None,
    *,
    threads: int = 1,
    max_decoded: int | None = None,
    progress: Progress | None = None,
    base: AnyBase | None = None,
) -> Verified:
    """Check every byte of a folder and decode everything in it, without keeping or writing it.

    With `original`, the errors are measured and compared with what the manifest claims. Anything damaged and any claim
    that is not true is among the problems of what is returned; layer files that are damaged are not decoded.

    `base` is the model it is an update of, if it is one.

    Raises RBEError if there is no manifest, or `original` or `base` is another model.
    """
    started = time.perf_counter()
    done = Verified()
    with suppress(_Enough), _noted(done):
        _verify(path, original, base, threads, max_decoded, progress or Silent(), done)
    done.seconds = time.perf_counter() - started
    return done


class _Enough(Exception):
    """There are so many problems that no more are looked for."""


@contextmanager
def _noted(done: Verified) -> Iterator[None]:
    """What is damaged inside is one of the problems."""
    try:
        yield
    except CorruptFile as error:
        done.problems.append(str(error))
        if len(done.problems) == _MOST_PROBLEMS:
            raise _Enough from None


def _verify(
    path: Path,
    original: Checkpoint | None,
    base: AnyBase | None,
    threads: int,
    max_decoded: int | None,
    progress: Progress,
    done: Verified,
) -> None:
    manifest = Manifest.read(path)
    check_base(path, manifest, base)
    done.tensors, done.size = manifest.tensors, manifest.stored_bytes
    done.unknown_files = _unknown_files(path, manifest)
    if done.unknown_files:
        some = ", ".join(done.unknown_files[:_NAMED]) + (", ..." if len(done.unknown_files) > _NAMED else "")
        progress.note(f"the manifest does not name, and nothing counts: {some}")
    check_claims(path, manifest, max_decoded)
    progress.phase("checking", sum(layer.bytes for layer in manifest.layers))
    sound: list[tuple[LayerEntry, LayerFile]] = []
    for layer in manifest.layers:
        with _noted(done):
            file = check_layer(path, layer)
            check_bytes(path, layer)
            sound.append((layer, file))
        progress.advance(layer.bytes)
    for carried in manifest.carried:
        with _noted(done):
            check_carried_bytes(path, carried)
    originals = {} if original is None else _originals(original, path, manifest)
    found = replace(manifest, layers=tuple(layer for layer, _ in sound))
    folder = Folder(path, found, [file for _, file in sound], base)
    progress.phase("decoding", sum(tensor.elements for tensor in folder.manifest.tensors))
    lossy = LossyTime()
    with worker_threads(threads) as pool:
        for tensor in folder.manifest.tensors:
            with _noted(done):
                error = _decode(folder, tensor, originals.get(tensor.name), pool, lossy, progress)
                if original is not None:
                    done.measured[tensor.name] = error
                    _compare(path, tensor, error, done)
        if original is not None:
            sums = list(pool.map(lambda shard: shard.sha256(), original.shards))
            done.same_files = sorted(sums) == sorted(source.sha256 for source in manifest.sources)
    done.decode_ns_per_weight = lossy.per_weight


def _unknown_files(path: Path, manifest: Manifest) -> list[str]:
    named = {MANIFEST, *(layer.file for layer in manifest.layers)}
    named |= {f"{CARRIED}/{file.path}" for file in manifest.carried}
    return sorted(set(files_below(path)) - named)


def _originals(original: Checkpoint, path: Path, manifest: Manifest) -> dict[str, tuple[Shard, TensorInfo]]:
    """The tensors of the original by name. Raises RBEError unless it has those of the folder, and no others."""
    found = {info.name: (original.shards[shard], info) for shard, info in original.tensors}
    wanted = {tensor.name: tensor for tensor in manifest.tensors}
    for name, tensor in wanted.items():
        if name not in found:
            raise RBEError(f"{original.name}: has no tensor {name!r}; give the checkpoint {path} was made from")
        info = found[name][1]
        if (info.dtype, info.shape) != (tensor.dtype, tensor.shape):
            raise RBEError(f"{original.name}: tensor {name!r} has another shape or type than in {path}")
    left = next((name for name in found if name not in wanted), None)
    if left is not None:
        raise CorruptFile(f"{path}: tensor {left!r} of {original.name} is not there")
    return found


def _compare(path: Path, tensor: TensorEntry, error: metrics.Error, done: Verified) -> None:
    for what, found, claimed, least in (
        ("NRMSE", error.nrmse, tensor.nrmse, 1e-12),
        ("RMSE", error.rmse, tensor.rmse, 0.0),
    ):
        # What is coded on a base that is coded itself, and has not changed, has the last bits of that.
        unchanged = tensor.base and tensor.lossy and not claimed and error.nrmse < _LAST_BITS
        if not unchanged and not math.isclose(found, claimed, rel_tol=_TOLERANCE, abs_tol=least):
            done.untrue.add(tensor.name)
            raise CorruptFile(
                f"{path}: tensor {tensor.name!r}: {what} is {found:.6g}, the manifest claims {claimed:.6g}; "
                "this is not the checkpoint it was made from, or the manifest is not true"
            )


def _decode(
    folder: Folder,
    tensor: TensorEntry,
    original: tuple[Shard, TensorInfo] | None,
    pool: ThreadPoolExecutor,
    lossy: LossyTime,
    progress: Progress,
) -> metrics.Error:
    """Decode all of a tensor; its error against the original, or none."""
    raw = None if original is None else original[0].raw(original[1])

    def compare(decoded: NDArray[np.uint8], at: int) -> metrics.Error:
        if raw is None:
            return metrics.Error(0.0, 0.0, 0)
        return error_of(raw[at : at + decoded.size], decoded, tensor.dtype)

    errors = decode_ahead(folder.open_tensor(tensor.name), pool, lossy, progress, compare)
    return sum(errors, metrics.Error(0.0, 0.0, 0))
