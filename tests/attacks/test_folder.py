"""Folders of layer files that are damaged, incomplete or lie: decode and inspect refuse them and write nothing."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rbe_cli.errors import CorruptFile, RBEError
from rbe_cli.operations.inspect import inspect
from tests.forge import edit_manifest, layer_bytes, replace_layer, split_layer
from tests.synthetic import decode_to

LAYER = "h.0.attn.rbe"


def expect_refused(folder: Path, out: Path, kind: type[RBEError] = CorruptFile) -> str:
    with pytest.raises(kind) as error:
        decode_to(folder, out)
    assert not out.exists()
    assert not [p for p in out.parent.iterdir() if "partial" in p.name]
    assert "\n" not in str(error.value)
    return str(error.value)


def test_any_flipped_bit_of_a_layer_file(compressed: Path, tmp_path: Path) -> None:
    """At 250 places: everywhere in the prefix and header, then anywhere."""
    path = compressed / LAYER
    whole = path.read_bytes()
    rng = random.Random(11)
    places = [*range(0, 8 * 60, 8), *(rng.randrange(8 * len(whole)) for _ in range(190))]
    for place in places:
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(bytes(damaged))
        assert LAYER in expect_refused(compressed, tmp_path / "back")


def test_layer_file_cut_anywhere(compressed: Path, tmp_path: Path) -> None:
    path = compressed / LAYER
    whole = path.read_bytes()
    rng = random.Random(12)
    for length in [0, 1, 23, 24, 25, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(60))]:
        path.write_bytes(whole[:length])
        assert LAYER in expect_refused(compressed, tmp_path / "back")


def test_bytes_after_a_layer_file(compressed: Path, tmp_path: Path) -> None:
    path = compressed / LAYER
    path.write_bytes(path.read_bytes() + b"\0")
    expect_refused(compressed, tmp_path / "back")


def test_missing_layer_file(compressed: Path, tmp_path: Path) -> None:
    (compressed / LAYER).unlink()
    assert f"{LAYER}: missing" in expect_refused(compressed, tmp_path / "back")


def test_folder_in_place_of_a_layer_file(compressed: Path, tmp_path: Path) -> None:
    (compressed / LAYER).unlink()
    (compressed / LAYER).mkdir()
    expect_refused(compressed, tmp_path / "back")


def test_link_in_place_of_a_layer_file(compressed: Path, tmp_path: Path) -> None:
    (compressed / LAYER).rename(tmp_path / "elsewhere.rbe")
    (compressed / LAYER).symlink_to(tmp_path / "elsewhere.rbe")
    assert "link" in expect_refused(compressed, tmp_path / "back")


def test_fifo_in_place_of_a_carried_file(compressed: Path, tmp_path: Path) -> None:
    (compressed / "files" / "config.json").unlink()
    os.mkfifo(compressed / "files" / "config.json")
    expect_refused(compressed, tmp_path / "back")


def test_swapped_layer_files(compressed: Path, tmp_path: Path) -> None:
    a, b = compressed / LAYER, compressed / "conv.rbe"
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    expect_refused(compressed, tmp_path / "back")


def test_sound_layer_file_of_another_compression(compressed: Path, tmp_path: Path) -> None:
    """Same tensors, same size, other weights: only the manifest's SHA-256 can tell."""
    header, chunks = split_layer((compressed / LAYER).read_bytes())
    changed = bytearray(chunks[0])
    changed[16] ^= 1
    (compressed / LAYER).write_bytes(layer_bytes(header, [bytes(changed), *chunks[1:]]))
    assert "SHA-256" in expect_refused(compressed, tmp_path / "back")


def test_carried_file_missing_changed_or_a_link(compressed: Path, tmp_path: Path) -> None:
    path = compressed / "files" / "1_Pooling" / "config.json"
    right = path.read_bytes()
    path.write_bytes(right + b" ")
    assert "size" in expect_refused(compressed, tmp_path / "back")
    path.write_bytes(right[:-1] + b"?")
    assert "SHA-256" in expect_refused(compressed, tmp_path / "back")
    path.unlink()
    assert "missing" in expect_refused(compressed, tmp_path / "back")
    (tmp_path / "secret").write_text("{}")
    path.symlink_to(tmp_path / "secret")
    expect_refused(compressed, tmp_path / "back")


def tensor_of(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    return next(t for layer in manifest["layers"] for t in layer["tensors"] if t["name"] == name)


def layer_in(manifest: dict[str, Any]) -> dict[str, Any]:
    return next(layer for layer in manifest["layers"] if layer["file"] == LAYER)


LIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "shape": lambda m: tensor_of(m, "h.0.attn.weight").update(shape=[96, 160]),
    "larger shape": lambda m: tensor_of(m, "h.0.attn.weight").update(shape=[161, 96]),
    "dtype": lambda m: tensor_of(m, "h.0.attn.weight").update(dtype="F64"),
    "method": lambda m: tensor_of(m, "h.0.attn.weight").update(method="lossless"),
    "unknown method": lambda m: tensor_of(m, "h.0.attn.weight").update(method="zip"),
    "name": lambda m: tensor_of(m, "h.0.attn.weight").update(name="h.0.attn.other"),
    "tensor left out": lambda m: layer_in(m)["tensors"].pop(),
    "tensor added": lambda m: layer_in(m)["tensors"].append(layer_in(m)["tensors"][0] | {"name": "x"}),
    "order of tensors": lambda m: layer_in(m)["tensors"].reverse(),
    "layer left out": lambda m: m["layers"].remove(layer_in(m)),
    "size": lambda m: layer_in(m).update(bytes=layer_in(m)["bytes"] + 1),
    "sha256": lambda m: layer_in(m).update(sha256="0" * 64),
    "carried sha256": lambda m: m["carried"][0].update(sha256="0" * 64),
    "carried path": lambda m: m["carried"][0].update(path="other.json"),
    "bytes of a tensor": lambda m: tensor_of(m, "h.0.attn.weight").update(bytes=1),
    "carried size": lambda m: m["carried"][0].update(bytes=10**12),
}


@pytest.mark.parametrize("what", LIES)
def test_manifest_that_disagrees_with_the_files(what: str, compressed: Path, tmp_path: Path) -> None:
    if what == "layer left out":
        # Its tensors are then simply not there; what cannot be is a tied tensor without the one it is tied to.
        edit_manifest(
            compressed, lambda m: m["layers"].remove(next(x for x in m["layers"] if x["file"] == "lm_head.rbe"))
        )
    else:
        edit_manifest(compressed, LIES[what])
    expect_refused(compressed, tmp_path / "back")


def test_another_layer_file_than_the_manifest_names(compressed: Path, tmp_path: Path) -> None:
    edit_manifest(compressed, lambda m: layer_in(m).update(file="gone.rbe"))
    expect_refused(compressed, tmp_path / "back")
    edit_manifest(compressed, lambda m: m["layers"][-1].update(file="rbe.json"))
    expect_refused(compressed, tmp_path / "back")


def rename_tie(folder: Path, target: str) -> None:
    """Make the tied tensor stand for `target`, in its layer file and in the manifest."""
    manifest = json.loads((folder / "rbe.json").read_bytes())
    layer = next(x for x in manifest["layers"] if x["tensors"][0]["method"].startswith("same as"))
    header, chunks = split_layer((folder / layer["file"]).read_bytes())
    header["tensors"][0]["as"] = target
    replace_layer(folder, layer["file"], layer_bytes(header, chunks))

    def edit(value: dict[str, Any]) -> None:
        tensor_of(value, header["tensors"][0]["name"])["method"] = f"same as {target}"

    edit_manifest(folder, edit)


@pytest.mark.parametrize("target", ["gone", "wte.weight", "lm_head.weight", "conv.weight", "positions"])
def test_tied_to_nothing_to_itself_or_to_another_kind(target: str, compressed: Path, tmp_path: Path) -> None:
    manifest = json.loads((compressed / "rbe.json").read_bytes())
    tied = next(t for x in manifest["layers"] for t in x["tensors"] if t["method"].startswith("same as"))
    if tied["method"] == f"same as {target}":
        decode_to(compressed, tmp_path / "back")
        return
    rename_tie(compressed, target)
    expect_refused(compressed, tmp_path / "back")


def test_claims_to_be_huge(compressed: Path, tmp_path: Path) -> None:
    """A shape of 2^40 elements in header and manifest, all sizes right: refused before anything is allocated."""
    header, chunks = split_layer((compressed / LAYER).read_bytes())
    for tensor in header["tensors"]:
        tensor["shape"] = [1 << 20, 1 << 20]
    replace_layer(compressed, LAYER, layer_bytes(header, chunks))
    edit_manifest(compressed, lambda m: [t.update(shape=[1 << 20, 1 << 20]) for t in layer_in(m)["tensors"]])
    assert "--max-decoded-size" in expect_refused(compressed, tmp_path / "back")


def test_limit_on_the_decoded_size(compressed: Path, tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match="--max-decoded-size"):
        decode_to(compressed, tmp_path / "back", max_decoded=1000)
    assert not (tmp_path / "back").exists()
    decode_to(compressed, tmp_path / "back", max_decoded=10**6)
    assert (tmp_path / "back" / "model.safetensors").is_file()


def test_inspect_refuses_damaged_headers_and_wrong_sizes(compressed: Path) -> None:
    whole = (compressed / LAYER).read_bytes()
    for damaged in (whole[:-1], whole + b"\0", whole[:30] + b"\xff" + whole[31:], b""):
        (compressed / LAYER).write_bytes(damaged)
        with pytest.raises(CorruptFile, match=r"h\.0\.attn\.rbe"):
            inspect(compressed)
        with pytest.raises(CorruptFile, match=r"h\.0\.attn\.rbe"):
            inspect(compressed / LAYER)


def test_extra_files_in_the_folder_are_ignored(compressed: Path, tmp_path: Path) -> None:
    (compressed / "notes.txt").write_text("mine")
    (compressed / "extra.rbe").write_bytes(hashlib.sha256(b"x").digest())
    decode_to(compressed, tmp_path / "back")
    assert not (tmp_path / "back" / "notes.txt").exists()
