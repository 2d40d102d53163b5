"""A model as the layers want it: compressed folder or checkpoint, with the files beside its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbe_cli.checkpoint.reader import Checkpoint
from rbe_cli.checkpoint.source import open_source
from rbe_cli.container.folder import Folder
from rbe_cli.container.headers import check_base, check_carried
from rbe_cli.container.manifest import Manifest
from rbe_cli.container.names import is_layer_file
from rbe_cli.container.open_base import open_base
from rbe_cli.errors import CorruptFile, RBEError
from rbe_cli.files.names import MANIFEST
from rbe_cli.files.plain_file import read_json

_MAX_JSON = 64 << 20


@dataclass(frozen=True)
class ModelFiles:
    """Exactly one of `folder` (compressed) and `checkpoint` (dense) is given.

    Attributes
    ----------
    name : str
        How the user called it.
    base : tuple of str
        What the user called the model that it may be an update of; and where that is one, the base of that, and so on.
    """

    name: str
    folder: Folder | None = None
    checkpoint: Checkpoint | None = None
    base: tuple[str, ...] = ()

    @classmethod
    def open(cls, source: str, base: Sequence[str] = ()) -> ModelFiles:
        """Open what `rbe compress` wrote, or anything it could read; an update with its base.

        Raises RBEError, CorruptFile, UsageError.
        """
        base, path = tuple(base), Path(source)
        if is_layer_file(path.name) and path.is_file():
            raise RBEError(f"{source}: is one layer; give the folder it is in")
        if not (path / MANIFEST).is_file():
            return cls(source, checkpoint=open_source(source), base=base)
        manifest = Manifest.read(path)
        opened = open_base(base, open_source) if manifest.base is not None else None
        check_base(path, manifest, opened)
        return cls(source, folder=Folder.open(path, base=opened), base=base)

    def file(self, relative: str) -> Path | None:
        """A file beside the weights, such as `config.json`; None if there is none. Raises CorruptFile."""
        if self.folder is not None:
            entry = next((entry for entry in self.folder.manifest.carried if entry.path == relative), None)
            return check_carried(self.folder.path, entry) if entry else None
        assert self.checkpoint is not None
        return next((path for path, name in self.checkpoint.carried if name == relative), None)

    def json(self, relative: str) -> dict[str, Any]:
        """A JSON object beside the weights. Raises RBEError if there is none, CorruptFile if it is not an object."""
        path = self.file(relative)
        if path is None:
            raise RBEError(f"{self.name}: no {relative} beside the weights; compress the model's whole folder")
        try:
            value = read_json(path, _MAX_JSON)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise CorruptFile(f"{path}: not a JSON object")
        return value

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights on disk: layer files and manifest, or safetensors files."""
        if self.folder is not None:
            return self.folder.manifest.stored_bytes
        assert self.checkpoint is not None
        return sum(shard.size for shard in self.checkpoint.shards)
