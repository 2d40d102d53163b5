"""Structure and transforms by name and by choice: what comes back, the same every time, never worse for `auto`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rbe_cli.errors import CorruptFile, UsageError
from rbe_cli.layers.encoded import compress_array
from rbe_cli.operations.settings import Settings
from tests.forge import edit_chunk
from tests.synthetic import compress_to, decode_to, folder_bytes, read_tensors

NAMES = ["none", "dct", "dwt", "klt", "lowrank"]


def smooth(rows: int, columns: int) -> np.ndarray:
    """A position table: what dct, dwt and low rank are good for, and a little noise."""
    t, f = np.linspace(0, 1, rows)[:, None], np.arange(columns)[None, :] % 13
    noise = 0.02 * np.random.default_rng(0).standard_normal((rows, columns))
    return (np.sin(6.28 * t * f + f) + noise).astype(np.float32)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Matrices of different shapes: smooth ones, a tall one, a white one, ones smaller than a block."""
    rng = np.random.default_rng(1)
    mixing = rng.standard_normal((48, 48)) * np.exp(-np.arange(48) / 8)[:, None]
    tensors = {
        "wpe.weight": smooth(256, 192),
        "tall.weight": (rng.standard_normal((700, 48)) @ mixing).astype(np.float32),
        "white.weight": rng.standard_normal((200, 130)).astype(np.float32),
        "odd.weight": smooth(131, 67),
        "small.weight": smooth(40, 30).astype(np.float16),
        "row.weight": rng.standard_normal((1, 2000)).astype(np.float32),
        "zero.weight": np.zeros((64, 64), np.float32),
    }
    path = tmp_path_factory.mktemp("transforms") / "x.safetensors"
    save_file(tensors, path)
    return path


def errors(source: Path, decoded: Path) -> dict[str, float]:
    original, back = read_tensors(source), read_tensors(decoded)
    found = {}
    for name, tensor in original.items():
        w, v = tensor.astype(np.float64), back[name].astype(np.float64)
        assert np.isfinite(v).all()
        found[name] = float(np.linalg.norm(w - v) / (np.linalg.norm(w) or 1))
    return found


@pytest.mark.parametrize("objective", ["mse", "balanced"])
@pytest.mark.parametrize("transform", NAMES)
def test_error_asked_for_and_error_told(transform: str, objective: str, source: Path, tmp_path: Path) -> None:
    done = compress_to(source, tmp_path / "m", nrmse=0.1, transform=transform, objective=objective, effort=1)
    decode_to(tmp_path / "m", tmp_path / "y.safetensors")
    found = errors(source, tmp_path / "y.safetensors")
    assert max(found.values()) <= 0.1
    for tensor in done.manifest.tensors:
        assert tensor.nrmse == pytest.approx(found[tensor.name], rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("transform", NAMES)
def test_same_bytes_for_any_number_of_threads(transform: str, source: Path, tmp_path: Path) -> None:
    for jobs in (1, 3):
        compress_to(source, tmp_path / str(jobs), nrmse=0.2, transform=transform, objective="mse", effort=0, jobs=jobs)
    assert folder_bytes(tmp_path / "1") == folder_bytes(tmp_path / "3")


def test_auto_is_never_worse_than_none(source: Path, tmp_path: Path) -> None:
    sizes = {}
    for transform in ("auto", "none", "dct"):
        done = compress_to(source, tmp_path / transform, nrmse=0.1, transform=transform, objective="mse", effort=1)
        sizes[transform] = {tensor.name: tensor.bytes for tensor in done.manifest.tensors}
    for name, size in sizes["none"].items():
        assert sizes["auto"][name] <= 1.02 * size + 40
    assert sizes["auto"]["wpe.weight"] < 0.8 * sizes["none"]["wpe.weight"]


@pytest.mark.parametrize(("block", "k"), [(4, 1), (8, 16), (128, 5), (1024, 5), (13, 3)])
@pytest.mark.parametrize("transform", ["dct", "dwt"])
def test_blocks_of_any_size(transform: str, block: int, k: int, source: Path, tmp_path: Path) -> None:
    compress_to(source, tmp_path / "m", nrmse=0.1, transform=transform, block=block, k=k, objective="mse", effort=0)
    decode_to(tmp_path / "m", tmp_path / "y.safetensors")
    assert max(errors(source, tmp_path / "y.safetensors").values()) <= 0.1


@pytest.mark.parametrize("structure_only", [False, True])
@pytest.mark.parametrize("transform", ["auto", *NAMES])
@pytest.mark.parametrize("shape", [(2000, 1), (1, 2000), (2000, 2), (2, 2000), (2000, 1, 1)])
def test_one_row_or_one_column(shape: tuple[int, ...], transform: str, structure_only: bool, tmp_path: Path) -> None:
    """A factor, or a basis, of one number was not coded but ended in a traceback."""
    if structure_only and transform in ("none", "klt"):
        pytest.skip("is refused")
    w = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    save_file({"w": w}, tmp_path / "x.safetensors")
    wishes = {"transform": transform, "structure_only": structure_only, "effort": 0}
    compress_to(tmp_path / "x.safetensors", tmp_path / "m", nrmse=0.3, **wishes)
    decode_to(tmp_path / "m", tmp_path / "y.safetensors")
    assert errors(tmp_path / "x.safetensors", tmp_path / "y.safetensors")["w"] <= 0.3


def test_unknown_transform() -> None:
    with pytest.raises(UsageError, match="--transform"):
        Settings(transform="fft")


@pytest.mark.parametrize("transform", ["klt", "lowrank", "dwt"])
def test_damaged_side_information(transform: str, source: Path, tmp_path: Path) -> None:
    """Any byte of the first chunk changed under right checksums: CorruptFile, or a file of the right size."""
    compress_to(source, tmp_path / "m", nrmse=0.3, transform=transform, objective="mse", effort=0)
    original = (tmp_path / "m" / "tall.rbe").read_bytes()
    manifest = (tmp_path / "m" / "rbe.json").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for round_number in range(30):

        def edit(chunk: bytearray, round_number: int = round_number) -> bytes:
            if round_number % 3 == 0:
                return bytes(chunk[: rng.integers(len(chunk))])
            chunk[rng.integers(len(chunk))] ^= rng.integers(1, 256)
            return bytes(chunk)

        edit_chunk(tmp_path / "m", "tall.rbe", 0, edit)
        try:
            decode_to(tmp_path / "m", tmp_path / "y.safetensors", force=True)
            assert (tmp_path / "y.safetensors").stat().st_size == source.stat().st_size
        except CorruptFile:
            refused += 1
        (tmp_path / "m" / "tall.rbe").write_bytes(original)
        (tmp_path / "m" / "rbe.json").write_bytes(manifest)
    assert refused >= 10


@pytest.mark.parametrize("bits", [1.0, 3.0])
@pytest.mark.parametrize("own", [False, True])
def test_structure_is_chosen_for_the_error_that_a_size_makes(own: bool, bits: float, tmp_path: Path) -> None:
    """What structure saves makes steps finer: a size and the error it comes to ask for the same.

    A matrix that is low rank but for a hundredth, of which a size that others would have makes very fine steps.
    """
    rng = np.random.default_rng(2)
    w = rng.standard_normal((320, 12)) @ rng.standard_normal((12, 256)) + 0.03 * rng.standard_normal((320, 256))
    source = tmp_path / "x.safetensors"
    save_file({"h.0.weight": w.astype(np.float32)}, source)
    asked: dict[str, Any] = {"lossless": True, "overrides": (f"weight=bits:{bits}",)} if own else {"bits": bits}
    by_size = compress_to(source, tmp_path / "size", effort=2, **asked).manifest.tensors[0]
    by_error = compress_to(source, tmp_path / "error", effort=2, nrmse=by_size.nrmse).manifest.tensors[0]
    assert by_size.choice is not None
    assert by_size.choice.name == "lowrank"
    assert by_size.bytes < 1.02 * by_error.bytes
    if not own:
        layer = compress_array(w.astype(np.float32), bits=bits, states=16)
        assert np.sqrt(layer.squared_error) / np.linalg.norm(w) < 1.05 * by_size.nrmse
