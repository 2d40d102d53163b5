"""Read what a folder of layer files, or one layer file, says of itself. Nothing is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rbe_cli import dtypes
from rbe_cli.codec.parameters import Parameters, recorded_error
from rbe_cli.container.headers import check_layer
from rbe_cli.container.layer_file import LayerFile, TensorRecord
from rbe_cli.container.manifest import Manifest, TensorEntry
from rbe_cli.errors import located
from rbe_cli.files.names import MANIFEST


@dataclass(frozen=True)
class Inspected:
    """What there is to know without decoding.

    Attributes
    ----------
    manifest : Manifest or None
        None for a single layer file.
    tensors : list of TensorEntry
    size : int
        Bytes of the layer files and the manifest.
    parameters : dict
        Tensor name -> Parameters of those that are trellis-coded.
    """

    manifest: Manifest | None
    tensors: list[TensorEntry]
    size: int
    parameters: dict[str, Parameters]


def inspect(path: Path) -> Inspected:
    """Inspect a folder that `rbe compress` wrote, or one of its layer files. Raises RBEError, CorruptFile."""
    if path.is_file() and path.name != MANIFEST:
        return _inspect_file(path)
    folder = path.parent if path.name == MANIFEST and path.is_file() else path
    manifest = Manifest.read(folder)
    parameters: dict[str, Parameters] = {}
    for layer in manifest.layers:
        parameters |= _parameters(check_layer(folder, layer))
    return Inspected(manifest, manifest.tensors, manifest.stored_bytes, parameters)


def _inspect_file(path: Path) -> Inspected:
    file = LayerFile(path)
    parameters = _parameters(file)
    errors = {record.name: _recorded_error(file, record) for record in file.tensors if record.lossy}
    entries = []
    for record, own_size in zip(file.tensors, file.sizes(), strict=True):
        rms, nrmse = errors.get(record.name, (0.0, 0.0))
        entries.append(
            TensorEntry(
                record.name, record.dtype, record.shape, record.method,
                own_size, rms * nrmse, nrmse, 0, base=record.base,
            )
        )  # fmt: skip
    return Inspected(None, entries, file.size, parameters)


def _parameters(file: LayerFile) -> dict[str, Parameters]:
    return {record.name: _read_parameters(file, record) for record in file.tensors if record.codec == "trellis"}


def _recorded_error(file: LayerFile, record: TensorRecord) -> tuple[float, float]:
    with located(f"{file.path}: tensor {record.name!r}"):
        return recorded_error(record.codec, file.chunk(record.first_chunk), dtypes.count(record.shape))


def _read_parameters(file: LayerFile, record: TensorRecord) -> Parameters:
    with located(f"{file.path}: tensor {record.name!r}"):
        return Parameters.unpack(file.chunk(record.first_chunk), dtypes.count(record.shape))
