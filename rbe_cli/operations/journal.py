"""The journal of a compression: what a later run needs to go on after a kill, and to come to the same bytes.

One JSON object a line: first what the work depends on, then every layer file as it is finished and every pass as it is
measured, each with the multiplier it was made with. A line that a kill cut short is the last, and is ignored; a layer
counts only if its file has the SHA-256 the journal says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rbe_cli.container import canonical
from rbe_cli.container.atomic import remove
from rbe_cli.container.manifest import LayerEntry, TensorEntry
from rbe_cli.container.plain_file import PlainFile
from rbe_cli.errors import CorruptFile

#: What reading something that is no journal may raise.
_NOT_OURS = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, CorruptFile)


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
        work = json.loads(canonical.dump(work))
        self.fresh = self._read(work)
        if self.fresh:
            self._layers, self._passes = {}, {}
            if self._path.is_symlink() or self._path.exists():
                remove(self._path)
            self._path.write_bytes(canonical.dump({"work": work}) + b"\n")
        for file in folder.iterdir():
            if file.name not in self._layers or file.is_symlink() or not file.is_file():
                remove(file)

    def _read(self, work: Mapping[str, Any]) -> str:
        """Take in what is there; why it cannot be used, if so."""
        try:
            return self._resumed(work)
        except FileNotFoundError:
            return "there is nothing to go on from"
        except _NOT_OURS:
            return "the journal of what is there is damaged"

    def _resumed(self, work: Mapping[str, Any]) -> str:
        if self._path.is_symlink():
            raise CorruptFile(f"{self._path}: is a link")
        file = PlainFile(self._path)
        lines = bytes(file.read(0, file.stamp()[0])).split(b"\n")
        known = json.loads(lines[0])["work"]
        other = [what for what in work if known[what] != work[what]]
        if other:
            return f"what is there was made with another {' and another '.join(other)}"
        # What follows the last line's end is what a kill left of a line.
        for line in lines[1:-1]:
            self._take(json.loads(line))
        if lines[-1]:
            self._path.write_bytes(b"\n".join([*lines[:-1], b""]))
        return ""

    def _take(self, value: dict[str, Any]) -> None:
        if "layer" in value:
            layer = value["layer"]
            tensors = tuple(map(TensorEntry.of, layer["tensors"]))
            entry = LayerEntry(str(layer["file"]), int(layer["bytes"]), str(layer["sha256"]), tensors)
            self._layers[entry.file] = float(value["multiplier"]), entry
        else:
            self._passes[float(value["multiplier"])] = int(value["bytes"]), int(value["lossy"])

    def layer(self, file: str, multiplier: float) -> LayerEntry | None:
        """A layer that is finished with this multiplier, its file checked; None if there is none."""
        made_with, entry = self._layers.get(file, (None, None))
        path = self._folder / file
        if entry is None or made_with != multiplier or not path.is_file():
            return None
        with path.open("rb") as handle:
            return entry if hashlib.file_digest(handle, "sha256").hexdigest() == entry.sha256 else None

    def add_layer(self, multiplier: float, entry: LayerEntry) -> None:
        """A layer's file is finished."""
        self._layers[entry.file] = multiplier, entry
        self._add({"layer": asdict(entry), "multiplier": multiplier})

    def measured(self, multiplier: float) -> tuple[int, int] | None:
        """Bytes of everything, and of what depends on the step, that a pass with this multiplier came to."""
        return self._passes.get(multiplier)

    def add_pass(self, multiplier: float, size: int, lossy: int) -> None:
        """A pass is measured."""
        self._passes[multiplier] = size, lossy
        self._add({"multiplier": multiplier, "bytes": size, "lossy": lossy})

    def _add(self, value: Mapping[str, Any]) -> None:
        with self._path.open("ab") as file:
            file.write(canonical.dump(value) + b"\n")
