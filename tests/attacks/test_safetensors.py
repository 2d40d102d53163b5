"""safetensors files and shard indices that are damaged or lie: refused in one line."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rbe_cli.checkpoint.reader import open_checkpoint
from rbe_cli.errors import CorruptFile, RBEError
from tests.command_line import Run
from tests.synthetic import safetensors_bytes, scaled_normal


def tensor(begin: int = 0, end: int = 8, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [begin, end]}


HOSTILE = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "header of no bytes": b"\0" * 8,
    "header beyond the end": (10**6).to_bytes(8, "little") + b"{}",
    "header of 2^63 bytes": (1 << 63).to_bytes(8, "little") + b"{}",
    "header of 2^64 - 1 bytes": b"\xff" * 8 + b"{}",
    "header bomb": safetensors_bytes(b'{"a":' + b"[" * 1_000_000),
    "deep metadata": safetensors_bytes(b'{"__metadata__":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001),
    "no JSON": safetensors_bytes(b"tensors!"),
    "a list": safetensors_bytes(b"[]"),
    "null": safetensors_bytes(b"null"),
    "not UTF-8": safetensors_bytes(b'{"\xff":0}'),
    "metadata is a number": safetensors_bytes({"__metadata__": 3}),
    "metadata with a number": safetensors_bytes({"__metadata__": {"a": 3}}),
    "tensor is a number": safetensors_bytes({"a": 3}),
    "tensor without a shape": safetensors_bytes({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)),
    "data missing": safetensors_bytes({"a": tensor()}, bytes(4)),
    "no data at all": safetensors_bytes({"a": tensor()}),
    "data too long": safetensors_bytes({"a": tensor()}, bytes(12)),
    "negative offset": safetensors_bytes({"a": tensor(-8, 0)}, bytes(8)),
    "offsets the wrong way round": safetensors_bytes({"a": tensor(8, 0)}, bytes(8)),
    "offsets of 2^63": safetensors_bytes({"a": tensor(1 << 63, (1 << 63) + 8)}, bytes(8)),
    "a hole": safetensors_bytes({"a": tensor(), "b": tensor(16, 24)}, bytes(24)),
    "overlap": safetensors_bytes({"a": tensor(), "b": tensor(4, 12)}, bytes(12)),
    "shape too large": safetensors_bytes({"a": tensor(shape=(3,))}, bytes(8)),
    "shape overflows": safetensors_bytes({"a": tensor(shape=(1 << 32, 1 << 32, 2))}, bytes(8)),
    "negative shape": safetensors_bytes({"a": tensor(shape=(-2,))}, bytes(8)),
    "float shape": safetensors_bytes({"a": tensor(shape=(2.0,))}, bytes(8)),
    "text shape": safetensors_bytes({"a": tensor(shape="2")}, bytes(8)),
    "unknown dtype": safetensors_bytes({"a": tensor(dtype="F33")}, bytes(8)),
    "dtype is a number": safetensors_bytes({"a": tensor(dtype=3)}, bytes(8)),
    "a pickle": b"\x80\x04\x95" + bytes(100),
    "a layer file": b"\x93RBE\r\n\x1a\n" + bytes(40),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_file(what: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(HOSTILE[what])
    with pytest.raises(CorruptFile) as error:
        open_checkpoint(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_truncation_of_the_header_and_the_data(tiny_source: Path, tmp_path: Path) -> None:
    whole = (tiny_source / "model.safetensors").read_bytes()
    path = tmp_path / "x.safetensors"
    rng = random.Random(1)
    for length in [*range(64), *(rng.randrange(len(whole)) for _ in range(60)), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptFile):
            open_checkpoint(path)


def test_mutated_headers_are_read_or_refused(tiny_source: Path, tmp_path: Path) -> None:
    whole = (tiny_source / "model.safetensors").read_bytes()
    size = 8 + int.from_bytes(whole[:8], "little")
    path = tmp_path / "x.safetensors"
    rng = random.Random(2)
    complaints = []
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(size)] = rng.choice(b'0123456789"{}[],:-.eFBIx\xff\0')
        path.write_bytes(bytes(damaged))
        try:
            checkpoint = open_checkpoint(path)
        except RBEError as error:
            complaints.append(str(error))
            continue
        for number, info in checkpoint.tensors:
            assert checkpoint.shards[number].raw(info).size == info.nbytes
    assert len(complaints) > 100
    assert not any("\n" in complaint for complaint in complaints)


def write_index(folder: Path, index: Any) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_bytes(index if isinstance(index, bytes) else json.dumps(index).encode())
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards in a folder, and one outside it."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": np.zeros(3, np.float32)}, folder / "x.safetensors")
    save_file({"b": np.ones(3, np.float32)}, folder / "y.safetensors")
    save_file({"c": np.ones(3, np.float32)}, tmp_path / "outside.safetensors")
    return folder


@pytest.mark.parametrize(
    "index",
    [b"", b"{}", b"[]", b"null", b"\xff", b'{"weight_map": []}', b'{"weight_map": null}', b'{"weight_map": "x"}',
     b'{"weight_map": {"a": 3}}', b'{"weight_map": {"a": null}}', b'{"weight_map": {"a": ["x"]}}',
     b'{"weight_map": {"a": {"x": "y"}}}', b'{"weight_map": {"a": 3, "b": "x.safetensors"}}', b"[" * 100_000,
     b'{"weight_map": {}}'],
)  # fmt: skip
def test_index_of_a_wrong_form(index: bytes, shards: Path) -> None:
    path = write_index(shards, index)
    for source in (path, shards):
        with pytest.raises(CorruptFile) as error:
            open_checkpoint(source)
        assert "\n" not in str(error.value)


def test_index_that_points_outside(shards: Path, tmp_path: Path) -> None:
    for file in ("../outside.safetensors", str(tmp_path / "outside.safetensors"), "x/../../outside.safetensors", ""):
        path = write_index(shards, {"weight_map": {"c": file}})
        with pytest.raises(CorruptFile, match="outside its folder"):
            open_checkpoint(path)


def test_index_that_disagrees_with_the_shards(shards: Path) -> None:
    for weight_map in (
        {"a": "x.safetensors", "b": "x.safetensors"},
        {"a": "y.safetensors", "b": "x.safetensors"},
        {"a": "x.safetensors", "b": "y.safetensors", "gone": "x.safetensors"},
    ):
        path = write_index(shards, {"weight_map": weight_map})
        with pytest.raises(CorruptFile, match="the index says"):
            open_checkpoint(path)


def test_missing_shard(shards: Path) -> None:
    path = write_index(shards, {"weight_map": {"a": "x.safetensors", "b": "z.safetensors"}})
    with pytest.raises(RBEError, match=r"z\.safetensors is missing") as error:
        open_checkpoint(path)
    assert error.value.exit_code == 1


def test_the_same_name_in_two_shards(shards: Path) -> None:
    save_file({"a": np.zeros(5, np.float32)}, shards / "z.safetensors")
    with pytest.raises(RBEError, match=r"'a' is also in x"):
        open_checkpoint(shards)


def test_the_same_name_twice_in_one_file(tmp_path: Path) -> None:
    """Whatever the library makes of it, what is opened covers its bytes exactly, or nothing is."""
    one = json.dumps(tensor()).encode()
    header = b'{"a":' + one + b',"a":' + one.replace(b"[0, 8]", b"[8, 16]") + b"}"
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes(header, bytes(16)))
    with pytest.raises(CorruptFile):
        open_checkpoint(tmp_path / "x.safetensors")


def test_dtype_of_a_later_safetensors_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes({"a": tensor(dtype="F8_E9M9")}, bytes(8)))
    with pytest.raises(RBEError, match="E9M9"):
        open_checkpoint(tmp_path / "x.safetensors")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.7e308, 0.0])
def test_original_that_is_another(rbe: Run, tmp_path: Path, value: float) -> None:
    """`verify --against` says so in one line, whatever the numbers do."""
    source, other, out = tmp_path / "model.safetensors", tmp_path / "other.safetensors", tmp_path / "out"
    weights = scaled_normal((64, 64), 0).astype(np.float64)
    save_file({"a": weights, "b": np.full((8, 8), -1.7e308)}, source)
    save_file({"a": np.full((64, 64), value), "b": np.full((8, 8), value)}, other)
    assert rbe("compress", source, "-o", out, "--bits", "8", "--effort", "0", "-q").code == 0
    done = rbe("verify", out, "--against", other, "-q")
    assert done.code == 4
    assert "this is not the checkpoint it was made from" in done.complaint()
