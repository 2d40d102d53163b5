"""compress and decode as library calls: what comes back, and how exact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rbe_cli.container.layer_file import LayerFile
from rbe_cli.container.manifest import Manifest
from tests.forge import canonical
from tests.synthetic import (
    compress_to,
    decode_to,
    folder_bytes,
    read_tensors,
    safetensors_bytes,
    scaled_normal,
    tiny_tensors,
)

#: Tensors of the tiny model that may be approximated; all others are exact whatever is asked.
LOSSY = {"wte.weight", "lm_head.weight", "h.0.attn.weight", "h.0.mlp.weight", "h.1.double.weight", "conv.weight"}
WISHES: list[dict[str, Any]] = [
    {"bits": 6.0}, {"ratio": 3.0, "objective": "mse"}, {"nrmse": 0.05}, {"nrmse": 0.3, "effort": 0}, {"lossless": True},
]  # fmt: skip


def relative_error(original: np.ndarray, decoded: np.ndarray) -> float:
    original, decoded = original.astype(np.float64), decoded.astype(np.float64)
    return float(np.linalg.norm(decoded - original) / np.linalg.norm(original))


@pytest.mark.parametrize("wish", WISHES, ids=str)
def test_names_shapes_types_files_and_exact_tensors(tiny_source: Path, tmp_path: Path, wish: dict[str, Any]) -> None:
    done = compress_to(tiny_source, tmp_path / "c", **wish)
    decode_to(tmp_path / "c", tmp_path / "back")
    back, expected = read_tensors(tmp_path / "back"), tiny_tensors()
    assert set(back) == set(expected)
    methods = {tensor.name: tensor.method for tensor in done.manifest.tensors}
    for name, tensor in expected.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape)
        if name not in LOSSY or wish.get("lossless"):
            assert back[name].tobytes() == tensor.tobytes(), name
            assert not methods[name].startswith("trellis")
        else:
            assert np.isfinite(back[name].astype(np.float64)).all()
            assert relative_error(tensor, back[name]) < 0.6
    for file in ("config.json", "1_Pooling/config.json"):
        assert (tmp_path / "back" / file).read_bytes() == (tiny_source / file).read_bytes()


def test_lossless_gives_back_the_identical_file(tiny_source: Path, tmp_path: Path) -> None:
    compress_to(tiny_source, tmp_path / "c", lossless=True)
    decode_to(tmp_path / "c", tmp_path / "back")
    assert folder_bytes(tmp_path / "back") == folder_bytes(tiny_source)


def test_lossless_gives_back_identical_shards(sharded_source: Path, tmp_path: Path) -> None:
    compress_to(sharded_source, tmp_path / "c", lossless=True)
    decode_to(tmp_path / "c", tmp_path / "back")
    assert folder_bytes(tmp_path / "back") == folder_bytes(sharded_source)


def test_shards_come_back_as_they_were(sharded_source: Path, tmp_path: Path) -> None:
    compress_to(sharded_source, tmp_path / "c", bits=6.0)
    done = decode_to(tmp_path / "c", tmp_path / "back")
    assert sorted(p.name for p in done.files) == sorted(p.name for p in sharded_source.glob("*.safetensors"))
    for file in sharded_source.glob("*.safetensors"):
        before, after = file.read_bytes(), (tmp_path / "back" / file.name).read_bytes()
        length = int.from_bytes(before[:8], "little")
        assert after[: 8 + length] == before[: 8 + length], "same header: names, types, shapes, order, metadata"
    index = "model.safetensors.index.json"
    assert (tmp_path / "back" / index).read_bytes() == (sharded_source / index).read_bytes()


def test_single_file_out(tiny_source: Path, tmp_path: Path) -> None:
    compress_to(tiny_source / "model.safetensors", tmp_path / "c", lossless=True)
    done = decode_to(tmp_path / "c", tmp_path / "deep" / "x.safetensors")
    assert done.files == [tmp_path / "deep" / "x.safetensors"]
    assert done.files[0].read_bytes() == (tiny_source / "model.safetensors").read_bytes()


def test_the_library_loads_what_comes_back(tmp_path: Path) -> None:
    tensors = {"a.weight": scaled_normal((64, 64), 1), "a.bias": np.ones(64, np.float32)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"b": "2", "a": "1", "format": "pt"})
    compress_to(tmp_path / "x.safetensors", tmp_path / "c", bits=8)
    decode_to(tmp_path / "c", tmp_path / "y.safetensors")
    loaded = load_file(tmp_path / "y.safetensors")
    assert relative_error(tensors["a.weight"], loaded["a.weight"]) < 0.02
    header = (tmp_path / "y.safetensors").read_bytes()
    assert b'"a":"1"' in header
    assert b'"format":"pt"' in header


def test_tied_tensors_are_stored_once(tiny_source: Path, tmp_path: Path) -> None:
    done = compress_to(tiny_source, tmp_path / "c", nrmse=0.05)
    by_name = {tensor.name: tensor for tensor in done.manifest.tensors}
    stored, tied = sorted((by_name["wte.weight"], by_name["lm_head.weight"]), key=lambda t: t.bytes, reverse=True)
    assert tied.method == f"same as {stored.name}"
    assert tied.bytes < 300
    assert tied.nrmse == stored.nrmse
    decode_to(tmp_path / "c", tmp_path / "back")
    back = read_tensors(tmp_path / "back")
    assert back["wte.weight"].tobytes() == back["lm_head.weight"].tobytes()


def test_tied_tensors_in_different_shards(sharded_source: Path, tmp_path: Path) -> None:
    done = compress_to(sharded_source, tmp_path / "c", bits=6.0)
    tied = [tensor for tensor in done.manifest.tensors if tensor.method.startswith("same as")]
    assert len(tied) == 1
    decode_to(tmp_path / "c", tmp_path / "back")
    back = read_tensors(tmp_path / "back")
    assert back["wte.weight"].tobytes() == back["lm_head.weight"].tobytes()


def test_equal_values_of_another_type_or_shape_are_not_tied(tmp_path: Path) -> None:
    weight = scaled_normal((64, 64), 1)
    tensors = {"a": weight, "b": weight.reshape(32, 128), "c": weight.astype(np.float64), "d": weight.T.copy()}
    save_file(tensors, tmp_path / "x.safetensors")
    done = compress_to(tmp_path / "x.safetensors", tmp_path / "c", nrmse=0.1)
    assert not any(tensor.method.startswith("same as") for tensor in done.manifest.tensors)


def test_minus_zero_is_not_zero(tmp_path: Path) -> None:
    """Two tensors equal as numbers but not as bits."""
    tensors = {"a": np.zeros((64, 64), np.float32), "b": -np.zeros((64, 64), np.float32)}
    save_file(tensors, tmp_path / "x.safetensors")
    compress_to(tmp_path / "x.safetensors", tmp_path / "c", lossless=True)
    decode_to(tmp_path / "c", tmp_path / "y.safetensors")
    assert (tmp_path / "y.safetensors").read_bytes() == (tmp_path / "x.safetensors").read_bytes()


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_same_bytes_for_any_number_of_threads_and_every_run(
    tiny_source: Path, compressed: Path, tmp_path: Path, jobs: int
) -> None:
    compress_to(tiny_source, tmp_path / "again", bits=6.0, jobs=jobs)
    assert folder_bytes(tmp_path / "again") == folder_bytes(compressed)


def test_place_of_source_and_output_leave_no_trace(tiny_source: Path, compressed: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    source = Path(shutil.copytree(tiny_source, tmp_path / "elsewhere" / "model"))
    compress_to(source, tmp_path / "elsewhere" / "another name", bits=6.0)
    assert folder_bytes(tmp_path / "elsewhere" / "another name") == folder_bytes(compressed)


def test_figures_are_those_of_the_files(tiny_source: Path, compressed: Path, tmp_path: Path) -> None:
    """Sizes add up to the files' sizes, errors are those of what decode writes."""
    manifest = Manifest.read(compressed)
    for layer in manifest.layers:
        size = (compressed / layer.file).stat().st_size
        assert layer.bytes == size == sum(tensor.bytes for tensor in layer.tensors)
        file = LayerFile(compressed / layer.file)
        assert [record.name for record in file.tensors] == [tensor.name for tensor in layer.tensors]
    assert {p.name for p in compressed.glob("*.rbe")} == {layer.file for layer in manifest.layers}
    decode_to(compressed, tmp_path / "back")
    back, expected = read_tensors(tmp_path / "back"), read_tensors(tiny_source)
    for tensor in manifest.tensors:
        w, v = expected[tensor.name].astype(np.float64), back[tensor.name].astype(np.float64)
        if tensor.name in LOSSY:
            assert tensor.nrmse == pytest.approx(np.linalg.norm(w - v) / np.linalg.norm(w), rel=1e-5)
            assert tensor.rmse == pytest.approx(np.sqrt(np.mean((w - v) ** 2)), rel=1e-5)
        else:
            assert tensor.nrmse == tensor.rmse == 0
    recorded = json.loads((compressed / "rbe.json").read_bytes())
    assert canonical(recorded) + b"\n" == (compressed / "rbe.json").read_bytes()
    assert "jobs" not in recorded["settings"]
    assert recorded["settings"]["bits"] == 6.0


def test_nothing_but_the_result_is_left(tiny_source: Path, tmp_path: Path) -> None:
    compress_to(tiny_source, tmp_path / "c", bits=6.0)
    decode_to(tmp_path / "c", tmp_path / "back")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "c"]
    assert not [p for p in tmp_path.rglob("*") if "partial" in p.name or p.name.startswith(".")]


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../../escape",
        "/etc/x",
        "a/b\\c",
        "a" * 3000,
        "new\nline",
        "\x1b[31m",
        "é.\N{SNOWMAN}",
        "rbe.json",
    ],
)
def test_any_tensor_name_comes_back(name: str, tmp_path: Path) -> None:
    tensors = {name: scaled_normal((40, 40), 1), "other": np.arange(5)}
    save_file(tensors, tmp_path / "x.safetensors")
    compress_to(tmp_path / "x.safetensors", tmp_path / "c", lossless=True)
    decode_to(tmp_path / "c", tmp_path / "y.safetensors")
    assert (tmp_path / "y.safetensors").read_bytes() == (tmp_path / "x.safetensors").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "x.safetensors", "y.safetensors"]


def test_names_that_differ_by_case_or_by_layer_only(tmp_path: Path) -> None:
    names = ["a.weight", "A.weight", "a", "A", "a.weight.weight", "a.weight.", "a..weight"]
    save_file({name: np.full(3, i, np.float32) for i, name in enumerate(names)}, tmp_path / "x.safetensors")
    compress_to(tmp_path / "x.safetensors", tmp_path / "c", lossless=True)
    decode_to(tmp_path / "c", tmp_path / "y.safetensors")
    assert (tmp_path / "y.safetensors").read_bytes() == (tmp_path / "x.safetensors").read_bytes()


def test_types_narrower_than_a_byte_are_carried_exactly(tmp_path: Path) -> None:
    entry = {"dtype": "F4", "shape": [64, 64], "data_offsets": [0, 2048]}
    data = np.random.default_rng(0).integers(0, 256, 2048, np.uint8).tobytes()
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes({"a.weight": entry}, data))
    compress_to(tmp_path / "x.safetensors", tmp_path / "c", nrmse=0.5)
    decode_to(tmp_path / "c", tmp_path / "y.safetensors")
    assert (tmp_path / "y.safetensors").read_bytes()[-2048:] == data


def test_checkpoint_without_tensors(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes(b"{}      "))
    compress_to(tmp_path / "x.safetensors", tmp_path / "c", lossless=True)
    decode_to(tmp_path / "c", tmp_path / "y.safetensors")
    assert (tmp_path / "y.safetensors").read_bytes() == (tmp_path / "x.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", ["<f2", "<f4"])
def test_values_near_the_largest_come_back_finite(tmp_path: Path, dtype: str) -> None:
    """Rounding up past the largest float16 must not give infinity."""
    weight = np.full((64, 64), 65504.0)
    weight[::2] *= -1
    weight[3] = np.linspace(60000, 65504, 64)
    save_file({"a.weight": weight.astype(dtype)}, tmp_path / "x.safetensors")
    compress_to(tmp_path / "x.safetensors", tmp_path / "c", nrmse=0.2)
    decode_to(tmp_path / "c", tmp_path / "y.safetensors")
    back = read_tensors(tmp_path / "y.safetensors")["a.weight"]
    assert np.isfinite(back).all()
    assert relative_error(weight, back) <= 0.2
