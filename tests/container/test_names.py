"""File names: one for every layer, none that leaves the folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbe_cli.container.names import file_names, layer_of
from rbe_cli.files.names import is_plain

NASTY = [
    "", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "con", "a:b", "-rf", ".hidden", "a\0b", "a\nb", "é", "E\u0301",
    "a" * 5000, "a" * 5000 + "b", "A", "a", "%41", "~", "\ud800", "\N{PILE OF POO}" * 60, "rbe.json",
]  # fmt: skip


def check_names(layers: list[str]) -> None:
    names = file_names(layers)
    assert list(names) == list(dict.fromkeys(layers))
    assert len({name.casefold() for name in names.values()}) == len(names)
    for name in names.values():
        assert is_plain(name)
        assert "/" not in name
        assert name.isascii()
        assert name.endswith(".rbe")
        assert len(name) < 250
        assert Path(name).name == name


def test_nasty_names() -> None:
    check_names(NASTY)


@given(st.lists(st.text(max_size=300), max_size=8, unique=True))
def test_any_names(layers: list[str]) -> None:
    check_names(layers)


def test_usual_names_stay_as_they_are() -> None:
    assert file_names(["transformer.h.0.attn.c_attn"]) == {
        "transformer.h.0.attn.c_attn": "transformer.h.0.attn.c_attn.rbe"
    }


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [("a.b.weight", "a.b"), ("weight", "weight"), ("", ""), (".weight", ".weight"), ("a.", "a"), ("a..b", "a.")],
)
def test_layer_of(tensor: str, layer: str) -> None:
    assert layer_of(tensor) == layer


@pytest.mark.parametrize(
    "path", ["a", "a/b.json", "1_Pooling/config.json", "ä/ö", "a b", "a..b", "model.safetensors", 255 * "x"]
)
def test_plain_paths(path: str) -> None:
    assert is_plain(path)


@pytest.mark.parametrize(
    "path",
    ["", "/", "/a", "..", "../a", "a/..", "a/../b", ".", "./a", "a/./b", "a//b", "a/", ".hidden", "a/.hidden", "a\\b",
     "C:a", "C:\\a", "a\0", "a\nb", "a\x1b[31m", "\ud800", " a", "a ", "a/ b", "x" * 1025, "a/" + 256 * "x",
     "\u202eabc"],
)  # fmt: skip
def test_paths_that_are_not_plain(path: str) -> None:
    assert not is_plain(path)


@given(st.text(max_size=30))
def test_plain_paths_stay_in_their_folder(path: str) -> None:
    if is_plain(path):
        root = Path("/somewhere/out")
        assert (root / path).resolve().is_relative_to(root)
