"""Open a checkpoint: one safetensors file, a folder of them, or a shard index. Tensors are memory-mapped."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from rbe_cli import dtypes
from rbe_cli.container.names import is_plain
from rbe_cli.errors import CorruptFile, RBEError

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
#: Other frameworks' weights and archives: never carried along.
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".tflite", ".ot", ".pkl", ".npz")
_MAX_CARRIED = 256 << 20


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a shard: where its bytes are."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return dtypes.byte_length(self.dtype, self.shape)

    @property
    def elements(self) -> int:
        """Number of weights."""
        return dtypes.count(self.shape)


@dataclass
class Shard:
    """One safetensors file.

    Attributes
    ----------
    path : Path
    relative : str
        Its path within the checkpoint.
    metadata : dict or None
    tensors : list of TensorInfo
        In the order of the file.
    """

    path: Path
    relative: str
    metadata: dict[str, str] | None
    tensors: list[TensorInfo]
    size: int
    _stamp: tuple[int, int] = (0, 0)

    def raw(self, tensor: TensorInfo) -> NDArray[np.uint8]:
        """A tensor's bytes, memory-mapped, read only. Its pages go with the array."""
        if not tensor.nbytes:
            return np.zeros(0, np.uint8)
        start = tensor.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        with self.path.open("rb") as file:
            self.check_unchanged(os.fstat(file.fileno()))
            mapped = mmap.mmap(
                file.fileno(), tensor.offset - start + tensor.nbytes, access=mmap.ACCESS_READ, offset=start
            )
        return np.frombuffer(mapped, np.uint8, tensor.nbytes, tensor.offset - start)

    def check_unchanged(self, stat: os.stat_result) -> None:
        """Raise RBEError if the file is not the one that was opened."""
        if (stat.st_size, stat.st_mtime_ns) != self._stamp:
            raise RBEError(f"{self.path}: changed while it was read; run again when nothing writes to it")

    def sha256(self) -> str:
        """Fingerprint of the whole file."""
        with self.path.open("rb") as file:
            self.check_unchanged(os.fstat(file.fileno()))
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            self.check_unchanged(os.fstat(file.fileno()))
        return digest


@dataclass
class Checkpoint:
    """A checkpoint open for reading.

    Attributes
    ----------
    name : str
        How the user called it: a repository or the last part of a path.
    shards : list of Shard
    carried : list of (Path, str)
        The other files that belong to it, and their paths within it.
    """

    name: str
    shards: list[Shard]
    revision: str | None = None
    carried: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def tensors(self) -> list[tuple[int, TensorInfo]]:
        """(number of the shard, tensor), shard by shard."""
        return [(i, tensor) for i, shard in enumerate(self.shards) for tensor in shard.tensors]


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a `.safetensors` file, a folder with some, or a `.safetensors.index.json`.

    Raises RBEError if there is nothing to open, CorruptFile if what is there is damaged.
    """
    if path.is_dir():
        indices = sorted(path.glob(f"*{INDEX_SUFFIX}"))
        files = sorted(path.glob(f"*{SUFFIX}"))
        if len(indices) == 1:
            checkpoint = _from_index(indices[0])
        elif files:
            checkpoint = Checkpoint(path.resolve().name, [open_shard(file, file.name) for file in files])
        else:
            raise RBEError(f"{path}: no {SUFFIX} files here; rbe reads safetensors checkpoints")
        checkpoint.carried = _carried(path, {shard.relative for shard in checkpoint.shards})
    elif path.name.endswith(INDEX_SUFFIX):
        checkpoint = _from_index(path)
        checkpoint.carried = [(path, path.name)]
    elif path.is_file():
        checkpoint = Checkpoint(path.name, [open_shard(path, path.name)])
    else:
        raise RBEError(f"{path}: no such file or folder")
    _check_names(checkpoint)
    return checkpoint


def _from_index(path: Path) -> Checkpoint:
    try:
        weight_map = json.loads(path.read_bytes())["weight_map"]
        names = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CorruptFile(f"{path}: not a shard index (a JSON object with a weight_map)") from None
    for name in names:
        if not isinstance(name, str) or not is_plain(name):
            raise CorruptFile(f"{path}: names a shard outside its folder: {name!r}")
        if not (path.parent / name).is_file():
            raise RBEError(f"{path}: shard {name} is missing; fetch it and try again")
    checkpoint = Checkpoint(path.parent.resolve().name, [open_shard(path.parent / name, name) for name in names])
    held = {tensor.name: shard.relative for shard in checkpoint.shards for tensor in shard.tensors}
    wrong = next((name for name, shard in weight_map.items() if held.get(name) != shard), None)
    if wrong is not None:
        raise CorruptFile(f"{path}: tensor {wrong!r} is not in {weight_map[wrong]}, where the index says it is")
    return checkpoint


def open_shard(path: Path, relative: str) -> Shard:
    """Open one safetensors file. The safetensors library checks its header; we take the offsets from it."""
    try:
        with safetensors.safe_open(path, "np"):
            pass
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(length))
    except FileNotFoundError:
        raise RBEError(f"{path}: no such file") from None
    except PermissionError:
        raise RBEError(f"{path}: may not be read (permission denied)") from None
    except (safetensors.SafetensorError, ValueError, RecursionError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorruptFile(f"{path}: not a sound safetensors file ({reason})") from None
    metadata = header.pop("__metadata__", None)
    tensors = []
    for name, entry in header.items():
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        if dtype not in dtypes.BITS:
            raise RBEError(f"{path}: tensor {name!r} has dtype {dtype}, which this rbe does not know")
        info = TensorInfo(name, dtype, shape, 8 + length + begin)
        if end - begin != info.nbytes or info.offset + info.nbytes > stat.st_size:
            raise CorruptFile(f"{path}: tensor {name!r} has a wrong size")
        tensors.append(info)
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.name))
    return Shard(path, relative, metadata, tensors, stat.st_size, (stat.st_size, stat.st_mtime_ns))


def _check_names(checkpoint: Checkpoint) -> None:
    seen: dict[str, str] = {}
    for shard in checkpoint.shards:
        for tensor in shard.tensors:
            if tensor.name in seen:
                raise RBEError(
                    f"{shard.path}: tensor {tensor.name!r} is also in {seen[tensor.name]}; give one of the two files"
                )
            seen[tensor.name] = shard.relative


def _carried(folder: Path, shards: set[str]) -> list[tuple[Path, str]]:
    """The files of a folder that belong to the model and are not weights: configuration, tokenizer, model card.

    What an earlier `rbe compress` wrote into the folder is not among them.
    """
    carried = []
    compressed = {manifest.parent for manifest in folder.rglob("rbe.json")}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if compressed.intersection(path.parents):
            continue
        weights = path.name.endswith((SUFFIX, *_OTHER_WEIGHTS))
        if relative in shards or weights or not is_plain(relative) or not path.is_file():
            continue
        if path.stat().st_size <= _MAX_CARRIED:
            carried.append((path, relative))
    return carried
