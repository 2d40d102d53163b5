"""Open a checkpoint: one safetensors file, a folder of them, or a shard index. Tensors are read piece by piece."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from rbe_cli import dtypes
from rbe_cli.checkpoint.weight_files import INDEX_SUFFIX, SUFFIX, WeightFiles, folder_weights, indexed
from rbe_cli.errors import CorruptFile, RBEError, first_line
from rbe_cli.files.names import LAYER_SUFFIX, MANIFEST, is_plain, is_text
from rbe_cli.files.plain_file import PlainFile

#: Other frameworks' weights and archives: never carried along.
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".tflite", ".ot", ".pkl", ".npz")
_ONLY = f"rbe reads safetensors checkpoints, {SUFFIX} files; convert the weights first"
_COMPRESSED = "is compressed already; give the original, or what `rbe decode` makes of it"
_MAX_CARRIED = 256 << 20
#: Bytes that are read at once where a whole file or tensor passes by.
_PIECE = 1 << 22


@dataclass(frozen=True)
class TensorHeader:
    """One tensor, as its file's header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return dtypes.byte_length(self.dtype, self.shape)

    @property
    def elements(self) -> int:
        """Number of weights."""
        return dtypes.count(self.shape)


@dataclass(frozen=True)
class TensorInfo(TensorHeader):
    """One tensor of a shard, and where in the file its bytes begin."""

    offset: int


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
    _file: PlainFile
    _stamp: tuple[int, int]

    def raw(self, tensor: TensorInfo) -> TensorBytes:
        """A tensor's bytes, which stay in the file until they are asked for."""
        return TensorBytes(self, tensor)

    def read(self, offset: int, size: int) -> NDArray[np.uint8]:
        """Some bytes of the file. Safe in any thread. Raises RBEError if it is not the file that was opened."""
        data = self._file.read(offset, size)
        # Afterwards: what was read before the file changed is what was opened, however late the change is seen.
        if len(data) < size or self._file.stamp() != self._stamp:
            raise RBEError(f"{self.path}: changed while it was read; run again when nothing writes to it")
        return np.frombuffer(data, np.uint8)

    def sha256(self) -> str:
        """Fingerprint of the whole file."""
        digest = hashlib.sha256()
        for at in range(0, self.size, _PIECE):
            digest.update(self.read(at, min(_PIECE, self.size - at)).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class TensorBytes:
    """A tensor's bytes in its file: a slice of them is read when it is taken, and is an array of its own."""

    shard: Shard
    tensor: TensorInfo

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.tensor.nbytes

    def __getitem__(self, part: slice) -> NDArray[np.uint8]:
        start, stop, _ = part.indices(self.size)
        return self.shard.read(self.tensor.offset + start, max(stop - start, 0))

    def sha256(self) -> bytes:
        """Their fingerprint."""
        digest = hashlib.sha256()
        for at in range(0, self.size, _PIECE):
            digest.update(self[at : at + _PIECE].data)
        return digest.digest()


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
    left_out : list of str
        Paths of files beside it that are neither: other weights, and what is too large to be carried.
    """

    name: str
    shards: list[Shard]
    revision: str | None = None
    carried: list[tuple[Path, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def tensors(self) -> list[tuple[int, TensorInfo]]:
        """(number of the shard, tensor), shard by shard."""
        return [(i, tensor) for i, shard in enumerate(self.shards) for tensor in shard.tensors]

    def check_output(self, path: Path) -> None:
        """Raise RBEError if a file to be written is one of the checkpoint's own, which would be gone."""
        own = [shard.path for shard in self.shards] + [file for file, _ in self.carried]
        if path.exists() and any(file.exists() and path.samefile(file) for file in own):
            raise RBEError(f"{path}: is a file of {self.name} itself; name another")


def open_checkpoint(path: Path, files: WeightFiles | None = None) -> Checkpoint:
    """Open a `.safetensors` file, a folder with some, or a `.safetensors.index.json`.

    Of a folder, `files` are its weights, where that is known already.

    Raises RBEError if there is nothing to open, CorruptFile if what is there is damaged.
    """
    if path.is_dir():
        checkpoint = _open_files(path, files or folder_weights(path))
        checkpoint.carried, checkpoint.left_out = _others(path, {shard.relative for shard in checkpoint.shards})
    elif path.name.endswith(INDEX_SUFFIX):
        checkpoint = _open_files(path.parent, indexed(path))
        checkpoint.carried = [(path, path.name)]
    elif path.name.endswith(LAYER_SUFFIX):
        raise RBEError(f"{path}: {_COMPRESSED}")
    elif path.is_file():
        checkpoint = Checkpoint(path.name, [open_shard(path, path.name)])
    else:
        raise RBEError(f"{path}: no such file or folder")
    _check_names(checkpoint)
    return checkpoint


def _open_files(folder: Path, files: WeightFiles) -> Checkpoint:
    if not files.main:
        raise _nothing_in(folder)
    for path in sorted(set(files.index.values())):
        if not (folder / path).is_file():
            raise RBEError(f"{folder}: shard {path} is missing, which the index names; fetch it and try again")
    shards = {path: open_shard(folder / path, path) for path in files.paths}
    names = {path: {tensor.name for tensor in shard.tensors} for path, shard in shards.items()}
    for name, path in files.index.items():
        if name not in names[path]:
            raise CorruptFile(f"{folder}: tensor {name!r} is not in {path}, where the index says it is")
    return Checkpoint(_called(folder), [shards[path] for path in files.distinct(names)])


def _nothing_in(folder: Path) -> RBEError:
    """What to do with a folder that has no weights."""
    if (folder / MANIFEST).is_file():
        return RBEError(f"{folder}: {_COMPRESSED}")
    below = sorted({file.parent.name for file in folder.glob(f"*/*{SUFFIX}")})
    inside = f"give one of the folders in it: {', '.join(below)}"
    return RBEError(f"{folder}: no {SUFFIX} files here; {inside if below else _ONLY}")


def _called(folder: Path) -> str:
    """What a folder is called where it was given: a link keeps its name, `.` has one too."""
    return folder.name if folder.name not in ("", "..") else folder.resolve().name


def open_shard(path: Path, relative: str) -> Shard:
    """Open one safetensors file. The safetensors library checks its header; we take the offsets from it."""
    try:
        return _shard(path, relative, PlainFile(path))
    except FileNotFoundError:
        raise RBEError(f"{path}: no such file") from None
    except PermissionError:
        raise RBEError(f"{path}: may not be read (permission denied)") from None
    except OSError as error:
        raise RBEError(f"{path}: cannot be read ({error.strerror})") from None
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if not path.name.endswith(SUFFIX):
            raise RBEError(f"{path}: {_ONLY}") from None
        raise CorruptFile(f"{path}: not a sound safetensors file ({first_line(error)})") from None


def _shard(path: Path, relative: str, file: PlainFile) -> Shard:
    with safetensors.safe_open(path, "np"):
        pass
    stamp = file.stamp()
    length = int.from_bytes(file.read(0, 8), "little")
    header: dict[str, Any] = json.loads(file.read(8, length))
    metadata = header.pop("__metadata__", None)
    tensors = []
    for name, entry in header.items():
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        if len(shape) > dtypes.MAX_DIMENSIONS:
            raise RBEError(f"{path}: tensor {name!r} has {len(shape)} dimensions, more than {dtypes.MAX_DIMENSIONS}")
        if not dtypes.is_possible(shape):
            raise CorruptFile(f"{path}: tensor {name!r} has an impossible shape")
        if dtype not in dtypes.BITS:
            raise RBEError(f"{path}: tensor {name!r} has dtype {dtype}, which this rbe does not know")
        info = TensorInfo(name, dtype, shape, 8 + length + begin)
        if end - begin != info.nbytes or info.offset + info.nbytes > stamp[0]:
            raise CorruptFile(f"{path}: tensor {name!r} has a wrong size")
        tensors.append(info)
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.name))
    return Shard(path, relative, metadata, tensors, stamp[0], file, stamp)


def _check_names(checkpoint: Checkpoint) -> None:
    """Raise RBEError for what no compressed folder could hold."""
    if not is_text(checkpoint.name):
        raise RBEError(f"{checkpoint.name}: its name is no UTF-8; rename it")
    seen: dict[str, str] = {}
    for path, relative in [(shard.path, shard.relative) for shard in checkpoint.shards] + checkpoint.carried:
        if not is_plain(relative):
            raise RBEError(f"{path}: no compressed folder can hold a file of such a name; rename it")
    for shard in checkpoint.shards:
        for tensor in shard.tensors:
            if tensor.name in seen:
                raise RBEError(
                    f"{shard.path}: tensor {tensor.name!r} is also in {seen[tensor.name]}; give one of the two files"
                )
            seen[tensor.name] = shard.relative


def _others(folder: Path, shards: set[str]) -> tuple[list[tuple[Path, str]], list[str]]:
    """The files of a folder that belong to the model and are not weights (configuration, tokenizer, model card).

    And the paths of those that are left out. What is hidden, or what an earlier `rbe compress` wrote into the folder,
    is in neither.
    """
    carried, left_out = [], []
    compressed = {manifest.parent for manifest in folder.rglob(MANIFEST)}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        relative = inside.as_posix()
        hidden = any(part.startswith(".") for part in inside.parts)
        if relative in shards or hidden or compressed.intersection(path.parents) or not path.is_file():
            continue
        weights = path.name.endswith((SUFFIX, *_OTHER_WEIGHTS))
        if weights or not is_plain(relative) or path.stat().st_size > _MAX_CARRIED:
            left_out.append(relative)
        else:
            carried.append((path, relative))
    return carried, left_out
