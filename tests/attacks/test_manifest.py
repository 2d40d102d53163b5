"""Manifests that lie, are not canonical or make no sense: refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbe_cli.container.manifest import Manifest
from rbe_cli.errors import CorruptFile
from tests.container.test_manifest import MANIFEST
from tests.forge import canonical, edit_manifest


def test_any_flipped_bit_is_refused_or_changes_a_value(tmp_path: Path) -> None:
    """The manifest has no checksum of its own; what parses must be canonical and of the right form."""
    MANIFEST.write(tmp_path)
    path = tmp_path / "rbe.json"
    whole = path.read_bytes()
    for place in range(0, 8 * (len(whole) - 1), 3):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(bytes(damaged))
        try:
            assert Manifest.read(tmp_path).dump() != MANIFEST.dump()
        except CorruptFile:
            continue


def test_truncation_at_every_length(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    path = tmp_path / "rbe.json"
    whole = path.read_bytes()
    for length in range(len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptFile):
            Manifest.read(tmp_path)


def at(*path: str | int) -> Callable[[Any], Callable[[Any], None]]:
    """at("layers", 0, "file")(x) is an edit that puts x there."""

    def put(new: Any) -> Callable[[Any], None]:
        def edit(value: Any) -> None:
            for key in path[:-1]:
                value = value[key]
            value[path[-1]] = new

        return edit

    return put


_FIELDS: dict[str, tuple[tuple[str | int, ...], list[Any]]] = {
    "format": (("format",), [0, 2, "1", None, [], {}]),
    "tool": (("tool",), [None, 3, []]),
    "source": (("source",), [None, 3, {}]),
    "revision": (("revision",), [3, [], {}]),
    "settings": (("settings",), [None, 3, "abc", [1]]),
    "sources": (("sources",), [None, 3, [3], [{}], [[]], []]),
    "layers": (("layers",), [None, 3, [3], [{}], "abc"]),
    "carried": (("carried",), [None, 3, [3], [{}], "abc"]),
    "metadata": (("sources", 0, "metadata"), [3, [], {"a": 1}, {"a": None}]),
    "layer size": (("layers", 0, "bytes"), [-1, 1.0, True, None, "120", 1 << 63]),
    "layer sha256": (("layers", 0, "sha256"), [None, 3]),
    "tensors": (("layers", 0, "tensors"), [None, 3, [3], [{}]]),
    "name": (("layers", 0, "tensors", 0, "name"), [None, 3, []]),
    "dtype": (("layers", 0, "tensors", 0, "dtype"), [None, 3, "F128", [], {}]),
    "shape": (("layers", 0, "tensors", 0, "shape"), [None, 3, "48", [-4], [4.0], [True], ["4"], [1 << 63], [1] * 33]),
    "shape without order": (("layers", 0, "tensors", 0, "shape"), [{}]),
    "method": (("layers", 0, "tensors", 0, "method"), [None, 3]),
    "bytes": (("layers", 0, "tensors", 0, "bytes"), [-1, 1.5, None]),
    "rmse": (("layers", 0, "tensors", 0, "rmse"), [-1, None, [], 10**400, "0.5"]),
    "nrmse": (("layers", 0, "tensors", 0, "nrmse"), [-1, None, {}, 10**400, "0.5", "inf"]),
    "source number": (("layers", 0, "tensors", 0, "source"), [2, -1, 0.0, None, 1 << 62]),
}  # fmt: skip


@pytest.mark.parametrize("what", _FIELDS)
def test_field_of_a_wrong_type_or_value(what: str, tmp_path: Path) -> None:
    path, values = _FIELDS[what]
    accepted = []
    for value in values:
        MANIFEST.write(tmp_path)
        edit_manifest(tmp_path, at(*path)(value))
        try:
            Manifest.read(tmp_path)
        except CorruptFile:
            continue
        accepted.append(value)
    assert accepted == []


def _update() -> Any:
    """The manifest as one of an update, in which the first tensor has a base."""
    value = json.loads(MANIFEST.dump())
    value |= {"format": 2, "base": {"source": "org/model", "revision": None, "sha256": "0" * 64}}
    value["layers"][0]["tensors"][0]["base"] = "0123456789abcdef"
    return value


def _edited(edit: Callable[[Any], object]) -> Any:
    value = _update()
    edit(value)
    return value


_UPDATES: dict[str, Any] = {
    "an older format": _edited(lambda value: value.update(format=1)),
    "a newer format": _edited(lambda value: value.update(format=3)),
    "no base": _edited(lambda value: value.pop("base")),
    "a format of text": _edited(lambda value: value.update(format="2")),
    "a format of a float": _edited(lambda value: value.update(format=2.0)),
    "an older format without a base": _edited(lambda value: (value.pop("base"), value.update(format=1))),
    "base is null": _edited(at("base")(None)),
    "base is text": _edited(at("base")("org/model")),
    "base is a list": _edited(at("base")([])),
    "another key in base": _edited(at("base", "more")(1)),
    "no source": _edited(lambda value: value["base"].pop("source")),
    "no revision": _edited(lambda value: value["base"].pop("revision")),
    "no sha256": _edited(lambda value: value["base"].pop("sha256")),
    "source is a number": _edited(at("base", "source")(3)),
    "source of a surrogate": _edited(at("base", "source")("\ud800")),
    "revision is a list": _edited(at("base", "revision")([])),
    "sha256 is null": _edited(at("base", "sha256")(None)),
    "a tensor's base is null": _edited(at("layers", 0, "tensors", 0, "base")(None)),
    "a tensor's base is empty": _edited(at("layers", 0, "tensors", 0, "base")("")),
    "a tensor's base is a number": _edited(at("layers", 0, "tensors", 0, "base")(3)),
    "a tensor's base is an object": _edited(at("layers", 0, "tensors", 0, "base")({})),
}


@pytest.mark.parametrize("what", _UPDATES)
def test_base_that_makes_no_sense(what: str, tmp_path: Path) -> None:
    (tmp_path / "rbe.json").write_bytes(canonical(_update()) + b"\n")
    assert Manifest.read(tmp_path).base is not None
    (tmp_path / "rbe.json").write_bytes(canonical(_UPDATES[what]) + b"\n")
    with pytest.raises(CorruptFile, match=r"rbe\.json"):
        Manifest.read(tmp_path)


_OUTSIDE = [
    "../x.rbe",
    "/tmp/x.rbe",
    "..",
    "a/../../x",
    "",
    ".hidden",
    "a\nb",
    "a\0b",
    "a\x1b[2J",
    "a\\b",
    "\ud800",
    "x" * 2000,
]


@pytest.mark.parametrize("name", _OUTSIDE)
@pytest.mark.parametrize("where", [("layers", 0, "file"), ("sources", 0, "path"), ("carried", 0, "path")])
def test_path_that_leaves_the_folder(name: str, where: tuple[str | int, ...], tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    edit_manifest(tmp_path, at(*where)(name))
    with pytest.raises(CorruptFile) as error:
        Manifest.read(tmp_path)
    assert "\n" not in str(error.value)


def test_layer_file_in_a_sub_folder(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    edit_manifest(tmp_path, at("layers", 0, "file")("files/a.rbe"))
    with pytest.raises(CorruptFile):
        Manifest.read(tmp_path)


def test_the_same_thing_twice(tmp_path: Path) -> None:
    edits: list[Callable[[Any], None]] = [
        lambda m: m["layers"].append(m["layers"][0] | {"tensors": []}),
        lambda m: m["sources"].append(m["sources"][0]),
        lambda m: m["carried"].append(m["carried"][0]),
        lambda m: m["carried"].append(m["carried"][0] | {"path": "model.safetensors"}),
        lambda m: m["layers"][0]["tensors"].append(m["layers"][0]["tensors"][0]),
    ]
    for edit in edits:
        MANIFEST.write(tmp_path)
        edit_manifest(tmp_path, edit)
        with pytest.raises(CorruptFile, match="twice"):
            Manifest.read(tmp_path)


def test_a_path_that_is_both_a_file_and_a_folder(tmp_path: Path) -> None:
    """`model.safetensors` and `model.safetensors/config.json` cannot both be written."""
    MANIFEST.write(tmp_path)
    edit_manifest(tmp_path, at("carried", 0, "path")("model.safetensors/config.json"))
    with pytest.raises(CorruptFile):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("name", ["\ud800", "__metadata__"])
def test_tensor_name_that_no_safetensors_file_can_hold(name: str, tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    edit_manifest(tmp_path, at("layers", 0, "tensors", 0, "name")(name))
    with pytest.raises(CorruptFile):
        Manifest.read(tmp_path)


def test_metadata_that_no_safetensors_file_can_hold(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    edit_manifest(tmp_path, at("sources", 0, "metadata")({"format": "\udc80"}))
    with pytest.raises(CorruptFile):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[]", b"null", b"{" * 100_000, b"\xff\xfe", b'{"format":1}', b"1" * 5000]
)
def test_text_that_is_no_manifest(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "rbe.json").write_bytes(text)
    with pytest.raises(CorruptFile):
        Manifest.read(tmp_path)


def test_spaces_are_not_canonical(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    value = json.loads((tmp_path / "rbe.json").read_bytes())
    (tmp_path / "rbe.json").write_text(json.dumps(value, indent=1))
    with pytest.raises(CorruptFile, match="canonical"):
        Manifest.read(tmp_path)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def _places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in _places(item, (*path, key)))]


@settings(max_examples=300)
@given(st.data())
def test_any_value_anywhere_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    value = json.loads(MANIFEST.dump())
    place = data.draw(st.sampled_from(_places(value)[1:]))
    at(*place)(data.draw(_JSON))(value)
    (tmp_path / "rbe.json").write_bytes(canonical(value))
    try:
        read = Manifest.read(tmp_path)
    except CorruptFile:
        return
    assert json.loads(read.dump())["sources"] is not None
    assert all(tensor.bytes >= 0 and tensor.rmse >= 0 for tensor in read.tensors)
