"""rbe.json: a round trip, and the figures it holds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rbe_cli.container.manifest import FileEntry, LayerEntry, Manifest, SourceFile, TensorEntry
from rbe_cli.errors import RBEError

TENSOR = TensorEntry("a.weight", "F32", (4, 8), "trellis", 100, 0.25, 0.5, 0)
MANIFEST = Manifest(
    "rbe 0.1.0",
    "somewhere/model",
    None,
    {"bits": 4.0},
    (SourceFile("model.safetensors", 300, "0" * 64, {"format": "pt"}), SourceFile("sub/b.safetensors", 8, "1" * 64)),
    (LayerEntry("a.rbe", 120, "2" * 64, (TENSOR, TensorEntry("a.bias", "I64", (), "lossless", 20, 0.0, 0.0, 1))),),
    (FileEntry("config.json", 2, "3" * 64),),
)


def test_round_trip(tmp_path: Path) -> None:
    size = MANIFEST.write(tmp_path)
    assert size == (tmp_path / "rbe.json").stat().st_size
    assert Manifest.read(tmp_path) == MANIFEST
    assert [p.name for p in tmp_path.iterdir()] == ["rbe.json"]


def test_figures_of_a_tensor() -> None:
    assert TENSOR.elements == 32
    assert TENSOR.source_bytes == 128
    assert TENSOR.bpw == 25.0
    assert TENSOR.snr == pytest.approx(6.0206, abs=1e-4)
    assert TENSOR.gap == pytest.approx(6.0206 * 25 - 6.0206, abs=1e-3)
    assert math.isnan(MANIFEST.tensors[1].gap)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(RBEError, match=r"no rbe\.json") as error:
        Manifest.read(tmp_path)
    assert error.value.exit_code == 1
