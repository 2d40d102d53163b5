"""The journal of a compression: what a later run needs to go on after a kill, and to come to the same bytes.

A file of records: first what the work depends on, then every layer file as it is finished and every pass as it is
measured, each with the multiplier it was made with. A layer counts only if its file has the SHA-256 the journal says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rbe_cli.container import canonical
from rbe_cli.container.fields import count, number, text
from rbe_cli.container.manifest import LayerEntry, TensorEntry
from rbe_cli.errors import CorruptFile
from rbe_cli.files.atomic import remove
from rbe_cli.files.plain_file import PlainFile
from rbe_cli.operations import records


class Journal:
    """The journal of a folder that is being filled.

    Parameters
    ----------
    path : Path
        Of the journal.
    folder : Path
        With the layer files. Of what is in it, only finished layers of the same work are kept.
    work : dict
        What the bytes depend on, by what a user would call it.

    Attributes
    ----------
    fresh : str
        Why the work begins at the beginning; empty if it goes on.
    """

    def __init__(self, path: Path, folder: Path, work: Mapping[str, Any]) -> None:
        self._path = path
        self._folder = folder
        self._layers: dict[str, tuple[float, LayerEntry]] = {}
        self._passes: dict[float, tuple[int, int]] = {}
        self._work: dict[str, Any] = {}
        work = json.loads(canonical.dump(work))
        self.fresh = self._read(work)
        if self.fresh:
            self._layers, self._passes = {}, {}
            if self._path.is_symlink() or self._path.exists():
                remove(self._path)
            records.add(self._path, {"work": work})
        for file in folder.iterdir():
            if file.name not in self._layers or file.is_symlink() or not file.is_file():
                remove(file)

    def _read(self, work: Mapping[str, Any]) -> str:
        """Take in what is there; why it cannot be used, if so."""
        try:
            return self._resumed(work)
        except FileNotFoundError:
            return "there is nothing to go on from"
        except CorruptFile:
            return "the journal of what is there is damaged"

    def _resumed(self, work: Mapping[str, Any]) -> str:
        if self._path.is_symlink():
            raise CorruptFile(f"{self._path}: is a link")
        records.read(self._path, self._take)
        if not self._work:
            raise CorruptFile(f"{self._path}: does not say what it is of")
        other = [what for what in work if self._work.get(what) != work[what]]
        return f"what is there was made with another {' and another '.join(other)}" if other else ""

    def _take(self, value: dict[str, Any]) -> None:
        if "work" in value:
            self._work = dict(value["work"])
        elif "layer" in value:
            layer = value["layer"]
            tensors = tuple(map(TensorEntry.of, layer["tensors"]))
            entry = LayerEntry(text(layer["file"]), count(layer["bytes"]), text(layer["sha256"]), tensors)
            self._layers[entry.file] = number(value["multiplier"]), entry
        else:
            self._passes[number(value["multiplier"])] = count(value["bytes"]), count(value["lossy"])

    def layer(self, file: str, multiplier: float) -> LayerEntry | None:
        """A layer that is finished with this multiplier, its file checked; None if there is none."""
        made_with, entry = self._layers.get(file, (None, None))
        path = self._folder / file
        if entry is None or made_with != multiplier or not path.is_file():
            return None
        return entry if PlainFile(path).sha256() == entry.sha256 else None

    def add_layer(self, multiplier: float, entry: LayerEntry) -> None:
        """A layer's file is finished."""
        self._layers[entry.file] = multiplier, entry
        records.add(self._path, {"layer": asdict(entry), "multiplier": multiplier})

    def measured(self, multiplier: float) -> tuple[int, int] | None:
        """Bytes of everything, and of what depends on the step, that a pass with this multiplier came to."""
        return self._passes.get(multiplier)

    def add_pass(self, multiplier: float, size: int, lossy: int) -> None:
        """A pass is measured."""
        self._passes[multiplier] = size, lossy
        records.add(self._path, {"multiplier": multiplier, "bytes": size, "lossy": lossy})
