"""Which files of a folder, or of a repository, are a checkpoint's weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rbe_cli.errors import CorruptFile
from rbe_cli.files.names import is_plain
from rbe_cli.files.plain_file import read_json

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
#: Bytes of a shard index, and of the list of a sentence-transformers model's modules.
_MAX_INDEX, _MAX_MODULES = 256 << 20, 1 << 16
_MODULES = "modules.json"


@dataclass(frozen=True)
class WeightFiles:
    """The safetensors files that are a checkpoint's weights, by their paths within it.

    Attributes
    ----------
    main : list of str
        Those of the model itself.
    modules : list of list of str
        Those of each further module.
    index : dict
        In which file each tensor is, if an index says so.
    """

    main: list[str]
    modules: list[list[str]] = field(default_factory=list)
    index: dict[str, str] = field(default_factory=dict)

    @property
    def paths(self) -> list[str]:
        """All of them."""
        return self.main + [path for module in self.modules for path in module]

    def distinct(self, names: Mapping[str, Collection[str]]) -> list[str]:
        """Without modules that name a tensor as an earlier file does: a checkpoint has each name once.

        `names` are those of the tensors in each file.

        >>> files = WeightFiles(["model"], [["2_Dense"], ["3_Dense"]])
        >>> files.distinct({"model": ["wte"], "2_Dense": ["linear"], "3_Dense": ["linear"]})
        ['model', '2_Dense']
        """
        taken = list(self.main)
        seen = {name for path in taken for name in names[path]}
        for module in self.modules:
            own = {name for path in module for name in names[path]}
            if seen.isdisjoint(own):
                taken += module
                seen |= own
        return taken


def weight_files(names_in: Callable[[str], Iterable[str]], locate: Callable[[str], Path]) -> WeightFiles:
    """Which files are a checkpoint's weights: the one rule, for a folder and for a repository.

    The shards, if there is an index of them, else `model.safetensors`, else all at the top. None is a variant like
    `x.fp16.safetensors` beside `x.safetensors`: the same weights in another type. Where a `modules.json` of
    sentence-transformers names sub-folders, theirs are further ones, or the model itself if it is in the first.

    `names_in` gives the names in a folder (the top is ""), `locate` a small file at the top. Raises CorruptFile.
    """
    top = list(names_in(""))
    indices = _of_model(top, INDEX_SUFFIX)
    found = indexed(locate(indices[0])) if len(indices) == 1 else WeightFiles(_of_model(top, SUFFIX))
    folders = _module_folders(locate(_MODULES)) if _MODULES in top else []
    modules = [
        [f"{folder}/{name}" for name in _of_model(names_in(folder), SUFFIX)] if folder else found.main
        for folder in folders
    ]
    # Without the weights of the first module the model itself is not there.
    main = found.main or (modules[0] if modules else [])
    further = [[path for path in module if path not in main] for module in modules if main]
    return WeightFiles(main, further, found.index)


def folder_weights(folder: Path) -> WeightFiles:
    """Which files of a folder are its weights. Raises CorruptFile."""

    def names_in(inside: str) -> list[str]:
        place = folder / inside
        way = [place, *place.parents][: len(place.relative_to(folder).parts)]
        return [] if any(map(Path.is_symlink, way)) else [file.name for file in place.glob("*")]

    return weight_files(names_in, folder.joinpath)


def _of_model(names: Iterable[str], suffix: str) -> list[str]:
    """Of the names that end so, that of `model` if it is there, else all but variants."""
    found = sorted(name for name in names if name.endswith(suffix))
    if f"model{suffix}" in found:
        return [f"model{suffix}"]
    plain = tuple(f"{name.removesuffix(suffix)}." for name in found)
    return [name for name in found if not name.removesuffix(suffix).startswith(plain)]


def indexed(path: Path) -> WeightFiles:
    """What an index names."""
    try:
        index = read_json(path, _MAX_INDEX)["weight_map"]
        names = sorted(set(index.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CorruptFile(f"{path}: not a shard index (a JSON object with a weight_map)") from None
    if not names:
        raise CorruptFile(f"{path}: not a shard index (it names no shard)")
    for name in names:
        if not isinstance(name, str) or not is_plain(name):
            raise CorruptFile(f"{path}: names a shard outside its folder: {name!r}")
    return WeightFiles(names, index=index)


def _module_folders(path: Path) -> list[str]:
    """The folders that a `modules.json` names, the top as ""; none of one of another form, as others may write."""
    try:
        folders = [module["path"] for module in read_json(path, _MAX_MODULES)]
    except (OSError, ValueError, KeyError, TypeError, CorruptFile):
        return []
    sound = all(isinstance(folder, str) and (not folder or is_plain(folder)) for folder in folders)
    return list(dict.fromkeys(folders)) if sound else []
