"""Presets: settings of a compression in a TOML file, by the names the Settings have."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from rbe_cli.errors import UsageError
from rbe_cli.operations.settings import Settings
from rbe_cli.operations.sizes import parse_size
from rbe_cli.operations.toml import STDIN, read_toml, unknown_key

#: Settings that each say how far; one on the command line replaces whichever a preset has.
RATES = ("bits", "ratio", "size", "nrmse", "rmse", "lossless")
SUFFIX = ".toml"


def folder() -> Path:
    """Where the presets are: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def names() -> list[str]:
    """Names of the presets that ship with rbe."""
    return sorted(path.stem for path in folder().glob(f"*{SUFFIX}"))


def read_preset(preset: str) -> dict[str, Any]:
    """The settings of a preset, by its name or its file's, `-` for standard input.

    Raises UsageError, or RBEError if it cannot be read.
    """
    is_file = preset.endswith(SUFFIX) or Path(preset) == STDIN
    path = Path(preset) if is_file else folder() / f"{preset}{SUFFIX}"
    if not is_file and preset not in names():
        near = difflib.get_close_matches(preset, names(), 1, 0.5)
        advice = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names())}; or give a {SUFFIX} file"
        raise UsageError(f"--preset {preset!r}: no such preset; {advice}")
    values = read_toml(path)
    if not values:
        raise UsageError(f"{path}: holds no settings")
    kinds = {key: kind for key, kind in get_type_hints(Settings).items() if key in _keys()}
    for key in values:
        if key not in kinds:
            raise unknown_key(key, list(kinds), str(path))
    return {key: _value(key, value, kinds[key], path) for key, value in values.items()}


def read_overrides(path: Path) -> tuple[str, ...]:
    """The `overrides` of a TOML file, in order. Raises UsageError, or RBEError if it cannot be read."""
    values = read_toml(path)
    for key in values:
        if key != "overrides":
            raise unknown_key(key, ["overrides"], str(path))
    overrides = _value("overrides", values.get("overrides"), tuple[str, ...], path)
    assert isinstance(overrides, tuple)
    return overrides


def _keys() -> list[str]:
    """Names of the settings, without those a machine decides."""
    return [item.name for item in fields(Settings) if item.init and item.name != "jobs"]


def _value(key: str, value: Any, kind: Any, path: Path) -> Any:
    if key == "size" and isinstance(value, str):
        return parse_size(value, f"{path}: {key}")
    kinds = [kind] if get_origin(kind) is not UnionType else [one for one in get_args(kind) if one is not type(None)]
    for one in kinds:
        if get_origin(one) is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        if one is float and type(value) in (int, float):
            return float(value)
        if one in (int, bool, str) and type(value) is one:
            return value
        if one is Path and isinstance(value, str):
            return path.parent / value
    raise UsageError(f"{path}: {key} = {value!r} has the wrong type; see `rbe compress --show-config`")


def resolve(preset: str | None, given: Mapping[str, Any]) -> Settings:
    """Settings of a preset and a command line, which wins; `given` has None for what it does not say."""
    return Settings(**merged(preset, given))


def merged(preset: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The same by their names, without those that neither says."""
    wishes = {key: value for key, value in given.items() if value is not None}
    values = {} if preset is None else read_preset(preset)
    if any(key in wishes for key in RATES):
        values = {key: value for key, value in values.items() if key not in RATES}
    if wishes.get("lossless"):
        values = {key: value for key, value in values.items() if key not in ("transform", "structure_only")}
    return values | wishes


def as_toml(settings: Settings) -> str:
    """Settings in the form of a preset.

    >>> print(as_toml(Settings(ratio=8.0)).splitlines()[0])
    ratio = 8.0
    """
    lines = []
    for key in _keys():
        value = getattr(settings, key)
        if value is not None and not (key in RATES and value is False):
            plain = list(value) if isinstance(value, tuple) else value
            lines.append(f"{key} = {json.dumps(plain, default=str, ensure_ascii=False)}\n")
    return "".join(lines)
