"""Which files of a folder are its weights: shards, variants, and the modules of sentence-transformers."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rbe_cli.checkpoint.reader import Checkpoint, open_checkpoint
from rbe_cli.errors import CorruptFile, RBEError
from tests.synthetic import write_sentence_model, write_tiny_model

DENSE = ["2_Dense/model.safetensors", "3_Dense/model.safetensors"]


def save(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.zeros(3, np.float32) for name in names}, path)


def paths(checkpoint: Checkpoint) -> list[str]:
    return [shard.relative for shard in checkpoint.shards]


@pytest.fixture
def sentence(tmp_path: Path) -> Path:
    return write_sentence_model(tmp_path / "sentence")


def test_a_variant_beside_the_weights_is_left_out(tmp_path: Path) -> None:
    for name in ("first", "first.fp16", "first.non_ema.fp16", "second"):
        save(tmp_path / f"{name}.safetensors", name.partition(".")[0])
    checkpoint = open_checkpoint(tmp_path)
    assert paths(checkpoint) == ["first.safetensors", "second.safetensors"]
    assert checkpoint.left_out == ["first.fp16.safetensors", "first.non_ema.fp16.safetensors"]


def test_beside_the_model_others_are_left_out(tmp_path: Path) -> None:
    """As of a repository: what was fetched of it, by whatever program, is the same model."""
    for name in ("adapter", "model", "model.fp16"):
        save(tmp_path / f"{name}.safetensors", name)
    checkpoint = open_checkpoint(tmp_path)
    assert paths(checkpoint) == ["model.safetensors"]
    assert checkpoint.left_out == ["adapter.safetensors", "model.fp16.safetensors"]


def test_of_two_indices_that_of_the_model_counts(tmp_path: Path) -> None:
    for name in ("model", "other"):
        save(tmp_path / f"{name}-1.safetensors", "a")
        index = {"weight_map": {"a": f"{name}-1.safetensors"}}
        (tmp_path / f"{name}.safetensors.index.json").write_text(json.dumps(index))
    assert paths(open_checkpoint(tmp_path)) == ["model-1.safetensors"]


def test_modules_are_shards(sentence: Path) -> None:
    checkpoint = open_checkpoint(sentence)
    assert paths(checkpoint) == ["model.safetensors", *DENSE]
    assert checkpoint.left_out == []
    carried = [relative for _, relative in checkpoint.carried]
    assert carried == [f"{i}/config.json" for i in ("1_Pooling", "2_Dense", "3_Dense")] + [
        "config.json",
        "modules.json",
    ]


def test_the_model_itself_may_be_a_module(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_sentence_model(tmp_path / "m", "0_Transformer"))
    assert paths(checkpoint) == ["0_Transformer/model.safetensors", *DENSE]
    assert checkpoint.left_out == []


@pytest.mark.parametrize("main", ["", "0_Transformer"])
def test_modules_without_the_model_itself_are_none(main: str, tmp_path: Path) -> None:
    folder = write_sentence_model(tmp_path / "m", main)
    (folder / main / "model.safetensors").rename(folder / main / "pytorch_model.bin")
    with pytest.raises(RBEError, match="give one of the folders in it: 2_Dense, 3_Dense"):
        open_checkpoint(folder)


def test_modules_beside_an_index(sharded_source: Path, sentence: Path) -> None:
    """It may name the file of one, too."""
    (sentence / "model.safetensors").unlink()
    shutil.copytree(sharded_source, sentence, dirs_exist_ok=True)
    path = sentence / "model.safetensors.index.json"
    index = json.loads(path.read_bytes())
    index["weight_map"]["head.weight"] = index["weight_map"]["head.bias"] = DENSE[1]
    path.write_text(json.dumps(index))
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert paths(open_checkpoint(sentence)) == [DENSE[1], *shards, DENSE[0]]
    assert paths(open_checkpoint(path)) == [DENSE[1], *shards]


def test_a_module_with_a_name_that_is_taken_is_left_out(sentence: Path) -> None:
    """All of it: half a module is none."""
    (sentence / DENSE[1]).unlink()
    save(sentence / "3_Dense" / "a.safetensors", "head.weight")
    save(sentence / "3_Dense" / "b.safetensors", "linear.weight")
    checkpoint = open_checkpoint(sentence)
    assert paths(checkpoint) == ["model.safetensors", DENSE[0]]
    assert checkpoint.left_out == ["3_Dense/a.safetensors", "3_Dense/b.safetensors"]


def test_variants_in_a_module_and_folders_that_are_none_are_left_out(sentence: Path) -> None:
    others = ["2_Dense/below/model.safetensors", "2_Dense/model.fp16.safetensors", "4_Other/model.safetensors"]
    for i, path in enumerate(others):
        save(sentence / path, f"other.{i}")
    checkpoint = open_checkpoint(sentence)
    assert paths(checkpoint) == ["model.safetensors", *DENSE]
    assert checkpoint.left_out == others


def test_a_damaged_module_is_named(sentence: Path) -> None:
    (sentence / DENSE[1]).write_bytes(b"no weights")
    with pytest.raises(CorruptFile, match="3_Dense"):
        open_checkpoint(sentence)


def test_modules_are_not_those_of_another_folder(sentence: Path, tmp_path: Path) -> None:
    (sentence / "3_Dense").rename(tmp_path / "outside")
    (sentence / "3_Dense").symlink_to(tmp_path / "outside")
    (sentence / "1_Pooling" / "config.json").unlink()
    (sentence / "1_Pooling").rmdir()
    (sentence / "1_Pooling").symlink_to("1_Pooling")
    assert paths(open_checkpoint(sentence)) == ["model.safetensors", DENSE[0]]


@pytest.mark.parametrize(
    "modules",
    [b"", b"\xff", b"{}", b"null", b"5", b'"2_Dense"', b'["2_Dense"]', b"[[]]", b"[{}]", b'{"path": "2_Dense"}',
     b"[" * 60_000, b'[{"path": "2_Dense"}]' + bytes([32]) * (1 << 16),
     *([{"path": "2_Dense"}, {"path": path}] for path in (
         None, 2, ["2_Dense"], {}, "../outside", "2_Dense/../../outside", ".", "..", "/", "./2_Dense", "2_Dense/",
         "\0", "\udcff", "a\nb", "m" * 5000, "C:\\x")),
     [{"path": "2_Dense"}, {"name": "no path"}]],
    ids=repr,
)  # fmt: skip
def test_modules_of_another_form_are_none(modules: Any, tmp_path: Path) -> None:
    """The name is not sentence-transformers' alone; and none leads out of the folder."""
    folder = write_tiny_model(tmp_path / "m")
    save(folder / DENSE[0], "inside.weight")
    save(tmp_path / "outside" / "model.safetensors", "outside.weight")
    text = modules if isinstance(modules, bytes) else json.dumps(modules).encode()
    (folder / "modules.json").write_bytes(text)
    checkpoint = open_checkpoint(folder)
    assert paths(checkpoint) == ["model.safetensors"]
    assert checkpoint.left_out == [DENSE[0]]


def test_modules_of_an_absolute_path(sentence: Path, tmp_path: Path) -> None:
    save(tmp_path / "outside" / "model.safetensors", "outside.weight")
    (sentence / "modules.json").write_text(json.dumps([{"path": str(tmp_path / "outside")}]))
    assert paths(open_checkpoint(sentence)) == ["model.safetensors"]


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_modules_that_are_no_file(kind: str, sentence: Path) -> None:
    path = sentence / "modules.json"
    path.unlink()
    {"pipe": os.mkfifo, "folder": os.mkdir, "link": lambda path: os.symlink(path, path)}[kind](path)
    assert paths(open_checkpoint(sentence)) == ["model.safetensors"]
