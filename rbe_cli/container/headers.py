"""Check that the files of a folder are those its manifest speaks of, as far as can be told without reading them."""

from __future__ import annotations

from pathlib import Path

from rbe_cli.container.layer_file import LayerFile
from rbe_cli.container.manifest import CARRIED, FileEntry, LayerEntry, Manifest
from rbe_cli.errors import CorruptFile, UsageError

#: A folder may claim to decode to this much, or PLAUSIBLE times its own size, whichever is more.
DEFAULT_LIMIT = 4 << 30
PLAUSIBLE = 4000


def check_claims(folder: Path, manifest: Manifest, limit: int | None = None) -> None:
    """Compare what a folder claims to decode to with `limit` bytes, or what is plausible. Raises CorruptFile."""
    claimed = sum(tensor.source_bytes for tensor in manifest.tensors)
    stored = sum(layer.bytes for layer in manifest.layers)
    allowed = max(DEFAULT_LIMIT, PLAUSIBLE * stored) if limit is None else limit
    if claimed > allowed:
        raise CorruptFile(
            f"{folder}: claims to decode to {claimed:,} bytes, more than the {allowed:,} allowed; "
            "if you trust it, allow that with --max-decoded-size"
        )


def check_base(folder: Path, manifest: Manifest, base: object | None) -> None:
    """Raise UsageError if a folder is an update and there is no base to decode it with, or the other way round."""
    if manifest.base is not None and base is None:
        raise UsageError(f"{folder}: is an update of {manifest.base.source}; give that with --base")
    if manifest.base is None and base is not None:
        raise UsageError(f"{folder}: is no update, it needs no --base")


def check_layer(folder: Path, layer: LayerEntry) -> LayerFile:
    """Compare a layer file's size and tensors with its entry in the manifest. Raises CorruptFile."""
    path = folder / layer.file
    if path.is_symlink():
        raise CorruptFile(f"{path}: is a link; layer files are plain files")
    file = LayerFile(path)
    if file.size != layer.bytes:
        raise CorruptFile(f"{path}: has another size than the manifest says")
    claimed = [(t.name, t.dtype, t.shape, t.method, t.base, t.bytes) for t in layer.tensors]
    held = [
        (record.name, record.dtype, record.shape, record.method, record.base, size)
        for record, size in zip(file.tensors, file.sizes(), strict=True)
    ]
    if claimed != held:
        raise CorruptFile(f"{path}: holds other tensors than the manifest says")
    return file


def check_carried(folder: Path, entry: FileEntry) -> Path:
    """Where a carried file is, which no link may lead to. Raises CorruptFile if it is missing or has another size."""
    path = folder / CARRIED / entry.path
    way = [path, *path.parents][: len(path.relative_to(folder).parts)]
    if any(map(Path.is_symlink, way)) or not path.is_file():
        raise CorruptFile(f"{path}: missing, or not a plain file")
    if path.stat().st_size != entry.bytes:
        raise CorruptFile(f"{path}: has another size than the manifest says")
    return path
