"""`rbe.json`: what a folder of layer files holds, where it came from, and how exact it is."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rbe_cli import dtypes, metrics
from rbe_cli.container import canonical
from rbe_cli.container.fields import count, number, text
from rbe_cli.container.methods import LOSSY, same_as_of
from rbe_cli.container.names import is_tensor_name
from rbe_cli.errors import CorruptFile, RBEError
from rbe_cli.files.atomic import atomic_file
from rbe_cli.files.names import MANIFEST, is_plain
from rbe_cli.files.plain_file import PlainFile

#: Folder, inside the output, of the files that are carried along.
CARRIED = "files"
#: Of a folder, and of one that is an update of another model.
FORMAT, UPDATE = 1, 2
_MAX_SIZE = 256 << 20
#: Errors are within these or 0, so that sums of their squares can be formed.
_LEAST, _MOST = 1e-60, 1e60


@dataclass(frozen=True)
class ChoiceEntry:
    """Which structure or transform a tensor is coded with, and what that is worth.

    Attributes
    ----------
    name : str
        `none`, `dct`, `dwt`, `klt`, `lowrank`, ...
    gain_db : float
        What it saves against `none`, as dB of SNR at the same size, by forecast.
    runner_up : str
        The best of the others that were tried; empty if none was.
    runner_up_db : float
        What that one would have gained.
    """

    name: str
    gain_db: float
    runner_up: str
    runner_up_db: float


@dataclass(frozen=True)
class TensorEntry:
    """One tensor.

    Attributes
    ----------
    method : str
        The codec its chunks are in, or `same as NAME`; see `methods.method_of`.
    bytes : int
        Of the layer file, those that are there for this tensor.
    rmse, nrmse : float
        Measured on the decoded weights; 0 when exact.
    source : int
        Which of the source files it belongs to.
    choice : ChoiceEntry or None
        For lossy tensors.
    base : str
        Fingerprint of the base's tensor it is stored against; empty if of none.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    method: str
    bytes: int
    rmse: float
    nrmse: float
    source: int
    choice: ChoiceEntry | None = None
    base: str = ""

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> TensorEntry:
        """The way back from `dataclasses.asdict`, through JSON. Raises ValueError, KeyError, TypeError."""
        choice = value["choice"]
        names = [item.name for item in dataclasses.fields(ChoiceEntry)]
        return _tensor_from_json(value, None if choice is None else [choice[name] for name in names])

    @property
    def lossy(self) -> bool:
        """Whether its weights are not those of the source; of one that is stored as another, not told."""
        return self.method in LOSSY

    @property
    def same_as(self) -> str:
        """Name of the tensor it is identical to and stored as; empty if it is stored itself."""
        return same_as_of(self.method)

    @property
    def elements(self) -> int:
        """Number of weights."""
        return dtypes.count(self.shape)

    @property
    def source_bytes(self) -> int:
        """Size in the source."""
        return dtypes.byte_length(self.dtype, self.shape)

    @property
    def bpw(self) -> float:
        """Bits per weight."""
        return metrics.bits_per_weight(self.bytes, self.elements)

    @property
    def snr(self) -> float:
        """In dB; infinite when exact."""
        return metrics.snr_db(self.nrmse)

    @property
    def gap(self) -> float:
        """Distance to the Shannon bound in dB; NaN when exact."""
        return metrics.gap_db(self.bpw, self.snr)


@dataclass(frozen=True)
class LayerEntry:
    """One layer file."""

    file: str
    bytes: int
    sha256: str
    tensors: tuple[TensorEntry, ...]


@dataclass(frozen=True)
class FileEntry:
    """A file, by its path relative to the checkpoint, its size and SHA-256."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SourceFile(FileEntry):
    """A safetensors file of the source, with its metadata."""

    metadata: dict[str, str] | None = None


@dataclass(frozen=True)
class BaseEntry:
    """The model that a folder is an update of.

    Attributes
    ----------
    source : str
        What it was called.
    revision : str or None
        Of a repository.
    sha256 : str
        Of its files' fingerprints, a line each. What is decoded is compared tensor by tensor, however it is stored.
    """

    source: str
    revision: str | None
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything `rbe.json` says."""

    tool: str
    source: str
    revision: str | None
    settings: dict[str, Any]
    sources: tuple[SourceFile, ...]
    layers: tuple[LayerEntry, ...]
    carried: tuple[FileEntry, ...] = field(default=())
    base: BaseEntry | None = None

    @property
    def tensors(self) -> list[TensorEntry]:
        """All tensors, layer by layer."""
        return [tensor for layer in self.layers for tensor in layer.tensors]

    @property
    def stored_bytes(self) -> int:
        """Of the layer files and the manifest itself; what else a folder holds counts for nothing."""
        return len(self.dump()) + sum(layer.bytes for layer in self.layers)

    def dump(self) -> bytes:
        """Canonical JSON."""
        value = {
            "format": UPDATE if self.base else FORMAT,
            "tool": self.tool,
            "source": self.source,
            "revision": self.revision,
            "settings": self.settings,
            "sources": [dataclasses.asdict(source) for source in self.sources],
            "layers": [
                {
                    "file": layer.file,
                    "bytes": layer.bytes,
                    "sha256": layer.sha256,
                    "tensors": [_tensor_json(tensor) for tensor in layer.tensors],
                }
                for layer in self.layers
            ],
            "carried": [dataclasses.asdict(file) for file in self.carried],
        } | ({"base": dataclasses.asdict(self.base)} if self.base else {})
        return canonical.dump(value) + b"\n"

    def write(self, folder: Path) -> int:
        """Write it into a folder; returns its size."""
        data = self.dump()
        with atomic_file(folder / MANIFEST) as file:
            file.write(data)
        return len(data)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check the manifest of a folder. Raises RBEError if there is none, CorruptFile if it is damaged."""
        path = folder / MANIFEST
        try:
            data = bytes(PlainFile(path).read(0, _MAX_SIZE + 1))
        except (FileNotFoundError, NotADirectoryError):
            what = f"no {MANIFEST} here" if folder.is_dir() else "is a file" if folder.exists() else "no such folder"
            raise RBEError(f"{folder}: {what}; give a folder that `rbe compress` wrote") from None
        if len(data) > _MAX_SIZE:
            raise CorruptFile(f"{path}: too large to be a manifest")
        value = canonical.load(data.removesuffix(b"\n"), str(path))
        try:
            manifest = cls._from_json(value)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise CorruptFile(f"{path}: has the wrong form") from None
        manifest._check(path)
        # What follows from other figures (bits per weight, SNR) has to follow from them; nothing may be left over.
        if manifest.dump() != data:
            raise CorruptFile(f"{path}: contradicts itself")
        return manifest

    @classmethod
    def _from_json(cls, value: Any) -> Manifest:
        if value["format"] not in (FORMAT, UPDATE):
            raise CorruptFile(f"{MANIFEST}: format {value['format']!r} is not one this rbe reads ({FORMAT}, {UPDATE})")
        return cls(
            tool=text(value["tool"]),
            source=text(value["source"]),
            revision=None if value["revision"] is None else text(value["revision"]),
            settings=_settings(value["settings"]),
            sources=tuple(
                SourceFile(*_file_json(source), metadata=_metadata(source["metadata"])) for source in value["sources"]
            ),
            layers=tuple(
                LayerEntry(
                    text(layer["file"]),
                    count(layer["bytes"]),
                    text(layer["sha256"]),
                    tuple(_tensor_from_json(tensor, tensor.get("choice")) for tensor in layer["tensors"]),
                )
                for layer in value["layers"]
            ),
            carried=tuple(FileEntry(*_file_json(file)) for file in value["carried"]),
            base=_base_from_json(value["base"]) if value["format"] == UPDATE else None,
        )

    def _check(self, path: Path) -> None:
        """Names that stay in the folder and stand once, tensors that have a source."""
        layers = [layer.file for layer in self.layers]
        outputs = [file.path for file in (*self.sources, *self.carried)]
        names = [tensor.name for tensor in self.tensors]
        for what in (layers, outputs, names):
            if len(set(what)) != len(what):
                raise CorruptFile(f"{path}: names something twice")
        if not all(map(is_plain, layers + outputs)) or any("/" in layer or not layer.isascii() for layer in layers):
            raise CorruptFile(f"{path}: names a file outside its folder")
        # In this order what lies in a folder comes right after whatever has the folder's name.
        parts = sorted(output.split("/") for output in outputs)
        if any(inner[: len(outer)] == outer for outer, inner in itertools.pairwise(parts)):
            raise CorruptFile(f"{path}: names something that is both a file and a folder")
        if not all(map(is_tensor_name, names)):
            raise CorruptFile(f"{path}: names a tensor as no safetensors file can")
        if any(tensor.source >= len(self.sources) for tensor in self.tensors):
            raise CorruptFile(f"{path}: a tensor belongs to no file")
        if not self.base and any(tensor.base for tensor in self.tensors):
            raise CorruptFile(f"{path}: a tensor has a base where there is none")


def _round(value: float) -> float:
    """Six significant digits are enough for a report."""
    return float(f"{value:.6g}")


def _tensor_json(tensor: TensorEntry) -> dict[str, Any]:
    # From the figure as it is written, so that a reader can check it.
    snr = metrics.snr_db(_round(tensor.nrmse))
    choice = tensor.choice
    chosen: list[Any] = []
    if choice is not None:
        chosen = [choice.name, _round(choice.gain_db), choice.runner_up, _round(choice.runner_up_db)]
    return (
        ({"choice": chosen} if chosen else {})
        | ({"base": tensor.base} if tensor.base else {})
        | {
            "name": tensor.name,
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "method": tensor.method,
            "bytes": tensor.bytes,
            "bpw": _round(tensor.bpw) if tensor.elements else 0,
            "rmse": _round(tensor.rmse),
            "nrmse": _round(tensor.nrmse),
            "snr": _round(snr) if math.isfinite(snr) else None,
            "source": tensor.source,
        }
    )


def _tensor_from_json(value: Any, chosen: Any) -> TensorEntry:
    if not isinstance(value["shape"], list):
        raise TypeError
    shape = tuple(count(n) for n in value["shape"])
    if value["dtype"] not in dtypes.BITS or not dtypes.is_possible(shape):
        raise ValueError
    rmse, nrmse = number(value["rmse"]), number(value["nrmse"])
    if not (rmse == nrmse == 0 or (_LEAST <= rmse <= _MOST and _LEAST <= nrmse <= _MOST)):
        raise ValueError
    choice = None
    if chosen is not None:
        name, gain, runner_up, runner_up_gain = chosen
        choice = ChoiceEntry(text(name), number(gain), text(runner_up), number(runner_up_gain))
    return TensorEntry(
        text(value["name"]), value["dtype"], shape, text(value["method"]), count(value["bytes"]), rmse, nrmse,
        count(value["source"]), choice, text(value.get("base", "")),
    )  # fmt: skip


def _base_from_json(value: Any) -> BaseEntry:
    revision = None if value["revision"] is None else text(value["revision"])
    return BaseEntry(text(value["source"]), revision, text(value["sha256"]))


def _file_json(value: Any) -> tuple[str, int, str]:
    return text(value["path"]), count(value["bytes"]), text(value["sha256"])


def _settings(value: Any) -> dict[str, Any]:
    text(json.dumps(value, ensure_ascii=False))
    return dict(value)


def _metadata(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    return {text(key): text(item) for key, item in value.items()}
