"""The base of an update: what of it is read, and what tells it from others."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from rbe_cli.checkpoint.reader import open_checkpoint
from rbe_cli.codec import workspace
from rbe_cli.container.base import BaseTensor, Changes
from rbe_cli.container.folder import Folder
from rbe_cli.container.open_base import CheckpointBase, CompressedBase
from tests.synthetic import compress_to, tiny_tensors, write_tiny_model

WISHES = {
    "trellis": {"bits": 3.0, "transform": "none"},
    "low rank": {"bits": 2.0, "transform": "lowrank", "structure_only": True},
    "sparse": {"bits": 2.0, "transform": "dct", "block": 16, "structure_only": True},
    "lossless": {"lossless": True},
}


@pytest.fixture(scope="module", params=WISHES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A model in tiles of some rows and in pieces of a row."""
    path = tmp_path_factory.mktemp("base")
    rng = np.random.default_rng(3)
    w = (rng.standard_normal((700, 1)) @ rng.standard_normal((1, 150))).astype(np.float32)
    save_file({"a.weight": w + rng.standard_normal(w.shape).astype(np.float32) / 9}, path / "m.safetensors")
    compress_to(path / "m.safetensors", path / "m.rbe", **WISHES[request.param])
    return Folder.open(path / "m.rbe")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_part_of_a_compressed_base_is_what_it_decodes_to(folder: Folder, data: st.DataObject) -> None:
    whole = folder.tensor("a.weight").view(np.uint8).ravel()
    found = CompressedBase(folder).find("a.weight")
    assert found is not None
    assert found.raw.size == whole.size
    start = data.draw(st.integers(0, whole.size))
    stop = data.draw(st.integers(0, whole.size))
    assert np.array_equal(found.raw[start:stop], whole[start:stop])


def test_a_base_is_read_in_the_middle_of_something_else(folder: Folder) -> None:
    """What decodes it has scratch memory of its own."""
    found = CompressedBase(folder).find("a.weight")
    assert found is not None
    names = ("x", "classes", "symbols", "words", "low rank", "values", "weights", "union")
    under_way = {name: workspace.scratch(name, (70000,), np.uint8) for name in names}
    for i, buffer in enumerate(under_way.values()):
        buffer.fill(i)
    found.raw[0 : found.raw.size]
    for i, (name, buffer) in enumerate(under_way.items()):
        assert (buffer == i).all(), name
        assert workspace.scratch(name, (70000,), np.uint8).ctypes.data == buffer.ctypes.data


def test_fingerprints(tmp_path: Path) -> None:
    """Of a checkpoint's bytes; the same of one that is compressed exactly; of the chunks of what is coded."""
    source = write_tiny_model(tmp_path / "m")
    checkpoint = CheckpointBase(open_checkpoint(source))
    compress_to(source, tmp_path / "exact", lossless=True)
    compress_to(source, tmp_path / "coded", bits=6)
    exact, coded = (CompressedBase(Folder.open(tmp_path / name)) for name in ("exact", "coded"))
    differs = 0
    for name, values in tiny_tensors().items():
        found = [base.find(name) for base in (checkpoint, exact, coded)]
        assert found[0] is not None
        assert found[1] is not None
        assert found[2] is not None
        wanted = hashlib.sha256(values.tobytes()).hexdigest()[:16]
        assert found[0].fingerprint == found[1].fingerprint == wanted
        assert found[0].exact
        assert found[1].exact
        assert (found[2].fingerprint == wanted) == found[2].exact
        differs += not found[2].exact
    assert differs
    assert checkpoint.find("no such tensor") is None
    assert coded.find("no such tensor") is None


def test_changes_are_exclusive_or() -> None:
    new, old = (np.random.default_rng(i).integers(0, 256, 50, dtype=np.uint8) for i in (1, 2))
    changes = Changes(new, old)
    assert changes.size == 50
    assert np.array_equal(changes[7:30] ^ old[7:30], new[7:30])


def test_fingerprint_of_nothing() -> None:
    empty = BaseTensor("F32", (0, 5), np.empty(0, np.uint8))
    assert empty.fingerprint == hashlib.sha256(b"").hexdigest()[:16]
