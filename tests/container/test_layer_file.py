"""The .rbe file: what is written is read back, and every damage is refused."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from rbe_cli.container import layer_file
from rbe_cli.container.layer_file import EncodedTensor, LayerFile, write_layer
from rbe_cli.errors import CorruptFile
from tests.forge import layer_bytes, split_layer

TENSORS = [
    EncodedTensor("a.weight", "F32", (3, 5), "trellis", [b"head", b"", b"tile" * 9]),
    EncodedTensor("a.bias", "BF16", (3,), "lossless", [b"\x01\x02"]),
    EncodedTensor("a.tied", "F32", (3, 5), "same", [], "b.weight"),
    EncodedTensor('a.\N{SNOWMAN}\n"', "I64", (), "lossless", []),
]


def read_everything(path: Path) -> list[tuple[str, list[bytes]]]:
    file = LayerFile(path)
    return [(record.name, list(file.chunks(record))) for record in file.tensors]


def refused(path: Path, data: bytes) -> str:
    """The one-line message with which reading all of `data` is refused."""
    path.write_bytes(data)
    with pytest.raises(CorruptFile) as error:
        read_everything(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value).replace(str(path), "")
    return str(error.value)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a.rbe"
    write_layer(path, TENSORS)
    assert read_everything(path) == [(tensor.name, tensor.chunks) for tensor in TENSORS]
    file = LayerFile(path)
    for record, tensor in zip(file.tensors, TENSORS, strict=True):
        assert (record.dtype, record.shape, record.codec) == (tensor.dtype, tensor.shape, tensor.codec)
        assert record.same_as == tensor.same_as
        assert file.size_of(record) == tensor.size()
    assert sum(file.size_of(record) for record in file.tensors) <= path.stat().st_size
    assert [p.name for p in tmp_path.iterdir()] == ["a.rbe"]


def test_same_tensors_same_bytes(tmp_path: Path) -> None:
    write_layer(tmp_path / "a.rbe", TENSORS)
    write_layer(tmp_path / "b.rbe", iter(TENSORS))
    assert (tmp_path / "a.rbe").read_bytes() == (tmp_path / "b.rbe").read_bytes()


def test_more_than_waits_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that wait in a temporary file make the same bytes, and leave nothing beside them."""
    write_layer(tmp_path / "a.rbe", TENSORS)
    monkeypatch.setattr(layer_file, "_SPOOLED", 5)
    write_layer(tmp_path / "b.rbe", TENSORS)
    assert (tmp_path / "a.rbe").read_bytes() == (tmp_path / "b.rbe").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.rbe", "b.rbe"]


def test_no_tensors(tmp_path: Path) -> None:
    write_layer(tmp_path / "a.rbe", [])
    assert read_everything(tmp_path / "a.rbe") == []


def test_layout_is_the_documented_one(tmp_path: Path) -> None:
    """An independent writer gives the same bytes; golden against accidental changes of the container."""
    write_layer(tmp_path / "a.rbe", TENSORS)
    data = (tmp_path / "a.rbe").read_bytes()
    header, chunks = split_layer(data)
    assert layer_bytes(header, chunks) == data
    assert header["tensors"][0] == {
        "chunks": 3, "codec": "trellis", "dtype": "F32", "name": "a.weight", "shape": [3, 5],
    }  # fmt: skip


def test_truncation_at_every_length(tmp_path: Path) -> None:
    write_layer(tmp_path / "a.rbe", TENSORS)
    whole = (tmp_path / "a.rbe").read_bytes()
    for length in range(len(whole)):
        refused(tmp_path / "cut.rbe", whole[:length])


def test_flipped_bits_of_a_tiny_file(tmp_path: Path) -> None:
    write_layer(tmp_path / "a.rbe", TENSORS)
    whole = (tmp_path / "a.rbe").read_bytes()
    for place in range(0, 8 * len(whole), 3):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        refused(tmp_path / "flipped.rbe", bytes(damaged))


def test_bytes_after_the_end(tmp_path: Path) -> None:
    write_layer(tmp_path / "a.rbe", TENSORS)
    whole = (tmp_path / "a.rbe").read_bytes()
    for tail in (b"\0", b"\n", whole):
        refused(tmp_path / "long.rbe", whole + tail)


def test_bytes_swapped_between_chunks(tmp_path: Path) -> None:
    tensors = [EncodedTensor("a", "U8", (8,), "lossless", [b"abcdefgh"])]
    other = [EncodedTensor("a", "U8", (8,), "lossless", [b"hgfedcba"])]
    write_layer(tmp_path / "a.rbe", tensors)
    write_layer(tmp_path / "b.rbe", other)
    a, b = (tmp_path / "a.rbe").read_bytes(), (tmp_path / "b.rbe").read_bytes()
    assert "checksum" in refused(tmp_path / "c.rbe", a[:-8] + b[-8:])


def test_random_bytes_are_not_a_layer_file(tmp_path: Path) -> None:
    rng = random.Random(5)
    for size in (0, 1, 7, 8, 27, 28, 29, 1000):
        refused(tmp_path / "noise.rbe", rng.randbytes(size))
        refused(tmp_path / "noise.rbe", b"\x93RBE\r\n\x1a\n" + rng.randbytes(size))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match="missing"):
        LayerFile(tmp_path / "gone.rbe")


def test_a_folder_is_no_layer_file(tmp_path: Path) -> None:
    with pytest.raises(CorruptFile):
        LayerFile(tmp_path)
