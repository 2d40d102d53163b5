"""Opening checkpoints: files, folders, shard indices, and what tensors they hold."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rbe_cli.checkpoint.reader import open_checkpoint
from rbe_cli.errors import RBEError
from tests.synthetic import dtype_name, tiny_tensors


def test_single_file(tiny_source: Path) -> None:
    checkpoint = open_checkpoint(tiny_source / "model.safetensors")
    (shard,) = checkpoint.shards
    assert (checkpoint.name, shard.relative) == ("model.safetensors", "model.safetensors")
    assert shard.metadata == {"format": "pt"}
    assert checkpoint.carried == []
    assert shard.size == shard.path.stat().st_size


def test_every_tensor_as_it_was_saved(tiny_source: Path) -> None:
    checkpoint = open_checkpoint(tiny_source / "model.safetensors")
    expected = tiny_tensors()
    assert {info.name for _, info in checkpoint.tensors} == set(expected)
    for number, info in checkpoint.tensors:
        tensor = expected[info.name]
        assert (info.dtype, info.shape, info.elements) == (dtype_name(tensor), tensor.shape, tensor.size)
        raw = checkpoint.shards[number].raw(info)[:]
        assert raw.dtype == np.uint8
        assert raw.tobytes() == tensor.tobytes()


def test_pieces_of_a_tensor(tiny_source: Path) -> None:
    (shard,) = open_checkpoint(tiny_source).shards
    info = next(info for info in shard.tensors if info.name == "positions")
    raw, whole = shard.raw(info), tiny_tensors()["positions"].tobytes()
    assert raw.size == len(whole)
    for part in (slice(8, 24), slice(600, None), slice(610, 10**6), slice(5, 5), slice(9, 3)):
        assert raw[part].tobytes() == whole[part]
    assert raw.sha256() == hashlib.sha256(whole).digest()


def test_folder_with_what_belongs_to_it(tiny_source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_source, tmp_path / "model"))
    (folder / "pytorch_model.bin").write_bytes(b"weights of another kind")
    (folder / "model.onnx").write_bytes(b"the same")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("x")
    (folder / ".gitattributes").write_text("x")
    (folder / "a\nb.txt").write_text("x")
    (folder / "link.json").symlink_to("config.json")
    (folder / "dangling.json").symlink_to("gone.json")
    checkpoint = open_checkpoint(folder)
    assert [relative for _, relative in checkpoint.carried] == ["1_Pooling/config.json", "config.json", "link.json"]
    assert checkpoint.left_out == ["a\nb.txt", "model.onnx", "pytorch_model.bin"]
    assert checkpoint.name == "model"


def test_links_out_of_the_hub_cache_are_followed(tiny_source: Path, tmp_path: Path) -> None:
    """The hub's cache keeps blobs in one folder and links to them from another."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(tiny_source / "model.safetensors")
    (folder / "config.json").symlink_to(tiny_source / "config.json")
    checkpoint = open_checkpoint(folder)
    assert len(checkpoint.tensors) == len(tiny_tensors())
    assert [relative for _, relative in checkpoint.carried] == ["config.json"]


def test_a_folder_has_the_name_it_was_given_by(
    tiny_source: Path, sharded_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for source in (tiny_source, sharded_source):
        link = tmp_path / f"linked-{source.parent.name}"
        link.symlink_to(source)
        assert open_checkpoint(link).name == link.name
        monkeypatch.chdir(source)
        assert open_checkpoint(Path()).name == source.name


def test_several_files_without_an_index(tmp_path: Path) -> None:
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")
    save_file({"b": np.zeros(3, np.float32)}, tmp_path / "y.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert [shard.relative for shard in checkpoint.shards] == ["x.safetensors", "y.safetensors"]
    assert [(number, info.name) for number, info in checkpoint.tensors] == [(0, "a"), (1, "b")]


def test_a_pipeline_of_models_says_which_folders_hold_them(tiny_source: Path, tmp_path: Path) -> None:
    for name in ("vae", "unet"):
        shutil.copytree(tiny_source, tmp_path / name)
    with pytest.raises(RBEError, match="give one of the folders in it: unet, vae"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("what", ["", "model.safetensors.index.json"])
def test_shard_index(sharded_source: Path, what: str) -> None:
    checkpoint = open_checkpoint(sharded_source / what)
    assert [shard.relative for shard in checkpoint.shards] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert [shard.metadata for shard in checkpoint.shards] == [{"format": "pt"}, None, {"format": "pt"}]
    assert {info.name for _, info in checkpoint.tensors} == set(tiny_tensors())
    carried = [relative for _, relative in checkpoint.carried]
    assert "model.safetensors.index.json" in carried
    assert ("tokenizer.json" in carried) == (what == "")


def test_index_leaves_other_files_alone(sharded_source: Path, tmp_path: Path) -> None:
    """A consolidated copy beside the shards belongs to nobody: it is neither read nor carried."""
    folder = Path(shutil.copytree(sharded_source, tmp_path / "model"))
    save_file({"h.0.attn.weight": np.zeros((3, 3), np.float32)}, folder / "consolidated.safetensors")
    checkpoint = open_checkpoint(folder)
    assert len(checkpoint.shards) == 3
    assert all(not relative.endswith(".safetensors") for _, relative in checkpoint.carried)


def test_shards_in_a_sub_folder(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "unet" / "x.safetensors")
    index = {"weight_map": {"a": "unet/x.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert open_checkpoint(tmp_path).shards[0].relative == "unet/x.safetensors"


def test_fingerprint(tiny_source: Path) -> None:
    (shard,) = open_checkpoint(tiny_source).shards
    assert shard.sha256() == hashlib.sha256((tiny_source / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("how", ["rewritten", "shortened", "longer"])
def test_file_that_changes_while_it_is_read(how: str, tiny_source: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(tiny_source / "model.safetensors", tmp_path))
    (shard,) = open_checkpoint(path).shards
    whole = path.read_bytes()
    path.write_bytes({"rewritten": whole[:-1] + b"x", "shortened": whole[:5000], "longer": whole + b"x"}[how])
    os.utime(path, (1, 1))
    with pytest.raises(RBEError, match="changed while"):
        shard.raw(shard.tensors[0])[:]
    with pytest.raises(RBEError, match="changed while"):
        shard.sha256()


def test_file_that_is_replaced_is_read_as_it_was(tiny_source: Path, tmp_path: Path) -> None:
    """Whoever saves a checkpoint anew by renaming takes nothing from those who read the old one."""
    path = Path(shutil.copy(tiny_source / "model.safetensors", tmp_path))
    (shard,) = open_checkpoint(path).shards
    (tmp_path / "new").write_bytes(b"other")
    (tmp_path / "new").replace(path)
    assert shard.sha256() == hashlib.sha256((tiny_source / "model.safetensors").read_bytes()).hexdigest()


def test_nothing_there(tmp_path: Path) -> None:
    for path, message in ((tmp_path, "no .safetensors files"), (tmp_path / "gone", "no such file")):
        with pytest.raises(RBEError, match=message) as error:
            open_checkpoint(path)
        assert error.value.exit_code == 1


def test_many_tensors_are_opened_one_at_a_time(tmp_path: Path) -> None:
    """No file handle is held per tensor."""
    save_file({f"t{i}": np.full(3, i, np.float32) for i in range(2000)}, tmp_path / "x.safetensors")
    (shard,) = open_checkpoint(tmp_path / "x.safetensors").shards
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    total = sum(float(shard.raw(info)[:].view(np.float32)[0]) for info in shard.tensors)
    assert total == sum(range(2000))
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 1
