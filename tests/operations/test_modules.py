"""A sentence-transformers model goes through compress and decode as a whole, with its modules in sub-folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbe_cli.checkpoint.reader import open_checkpoint
from rbe_cli.operations.verify import verify
from tests.synthetic import compress_to, decode_to, folder_bytes, read_tensors, write_sentence_model


def tensors_by_file(folder: Path) -> dict[tuple[str, str], tuple[str, tuple[int, ...], bytes]]:
    return {
        (file.relative_to(folder).as_posix(), name): (tensor.dtype.str, tensor.shape, tensor.tobytes())
        for file in folder.rglob("*.safetensors")
        for name, tensor in read_tensors(file).items()
    }


@pytest.mark.parametrize("main", ["", "0_Transformer"])
def test_lossless(main: str, tmp_path: Path) -> None:
    source = write_sentence_model(tmp_path / "source", main)
    compress_to(source, tmp_path / "c", lossless=True)
    decode_to(tmp_path / "c", tmp_path / "back")
    expected = tensors_by_file(source)
    assert {file for file, _ in expected} >= {"2_Dense/model.safetensors", "3_Dense/model.safetensors"}
    assert tensors_by_file(tmp_path / "back") == expected
    assert folder_bytes(tmp_path / "back") == folder_bytes(source)


def test_at_a_rate(tmp_path: Path) -> None:
    source = write_sentence_model(tmp_path / "source")
    done = compress_to(source, tmp_path / "c", bits=6.0)
    methods = {tensor.name: tensor.method for tensor in done.manifest.tensors}
    assert methods["linear.weight"].startswith("trellis")
    decode_to(tmp_path / "c", tmp_path / "back")
    assert tensors_by_file(tmp_path / "back").keys() == tensors_by_file(source).keys()
    verified = verify(tmp_path / "c", open_checkpoint(source))
    assert (verified.problems, verified.same_files) == ([], True)
