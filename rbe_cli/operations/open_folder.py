"""Check that the layer files of a folder are the ones its manifest speaks of."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rbe_cli.container.layer_file import LayerFile, TensorRecord
from rbe_cli.container.manifest import SAME_AS, LayerEntry
from rbe_cli.errors import CorruptFile


def check_layer(folder: Path, layer: LayerEntry, whole: bool) -> list[TensorRecord]:
    """Compare a layer file with its entry in the manifest: size, tensors, and with `whole` every byte.

    Returns its tensors. Raises CorruptFile.
    """
    path = folder / layer.file
    if path.is_symlink():
        raise CorruptFile(f"{path}: is a link; layer files are plain files")
    with LayerFile(path) as file:
        records = file.tensors
    if path.stat().st_size != layer.bytes:
        raise CorruptFile(f"{path}: has another size than the manifest says")
    claimed = [(tensor.name, tensor.dtype, tensor.shape, tensor.method) for tensor in layer.tensors]
    held = [
        (record.name, record.dtype, record.shape, SAME_AS + record.same_as if record.same_as else record.codec)
        for record in records
    ]
    if claimed != held:
        raise CorruptFile(f"{path}: holds other tensors than the manifest says")
    if whole:
        with path.open("rb") as handle:
            if hashlib.file_digest(handle, "sha256").hexdigest() != layer.sha256:
                raise CorruptFile(f"{path}: is not the file the manifest speaks of (SHA-256); damaged or replaced")
    return records
