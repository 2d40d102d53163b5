"""`rbe bench layers` on small layers. Speeds are only looked at for being there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rbe_cli import metrics
from rbe_cli.checkpoint.reader import open_checkpoint
from rbe_cli.layers.weights import DenseMatrix
from rbe_cli.operations.bench_layers import FOUR_BITS, STRUCTURE, bench_layers
from rbe_cli.operations.bench_sources import guide_model
from rbe_cli.operations.layer_subjects import guide_subjects, model_subjects
from tests.command_line import Run

SMALL = ("--hidden", 64, "--vocabulary", 900, "--seconds", 0.001, "-q")
GUIDE = {
    "WeightGenerator", "FusedForwardPass", "RBELinear", "RBEEmbedding", "RBEEmbedding, 8 coordinates", "RBEAttention",
    "RBEFFN_up", "RBEFFN_down", "RBEFFN", "RBELayerNorm",
}  # fmt: skip


def check(row: dict[str, Any]) -> None:
    for span in (row["call_ns"], row["dense_call_ns"]):
        assert 0 < span["low"] <= span["median"] <= span["high"]
        assert span["calls"] >= 5
    if row["storage"] == "exact":
        assert row["bytes"] == row["dense_bytes"] == 0
        return
    elements = sum(rows * columns for rows, columns in row["shapes"])
    assert row["dense_bytes"] == 4 * elements
    assert row["ratio"] == pytest.approx(metrics.ratio(4 * elements, row["bytes"]))
    assert row["reached"]["ratio"] == (row["ratio"] >= row["target"]["ratio"])
    assert 0 < row["nrmse"] < 1
    assert row["resident_bytes"] > 0


def test_all_layers(rbe: Run) -> None:
    outcome = rbe("bench", "layers", *SMALL, "--json", "--weights", "structured")
    assert outcome.code == 0, outcome.err
    document = outcome.json()
    assert set(document) == {"command", "machine", "layers"}
    assert {row["layer"] for row in document["layers"]} == GUIDE | {"RBELinear, block 5"}
    assert {row["storage"] for row in document["layers"]} == {STRUCTURE, "coded residual", FOUR_BITS, "exact"}
    for row in document["layers"]:
        check(row)


def test_layers_of_the_model_that_ships(rbe: Run) -> None:
    outcome = rbe("bench", "layers", *SMALL, "--json", "--weights", "model", "--layers", "Attention|FFN$", "--jobs", 1)
    for row in outcome.json()["layers"]:
        check(row)
        assert row["weights"] == "mini-gpt2"
    shapes = {row["layer"]: row["shapes"] for row in outcome.json()["layers"]}
    assert shapes == {"RBEAttention": [[128, 384], [128, 128]], "RBEFFN": [[128, 512], [512, 128]]}


@pytest.mark.parametrize("form", ["table", "markdown"])
def test_the_table_has_ticks_and_crosses(rbe: Run, form: str) -> None:
    options = ["--weights", "white", "--layers", "^RBELinear$|Norm", *(["--markdown"] if form == "markdown" else [])]
    outcome = rbe("bench", "layers", *SMALL, *options)
    assert outcome.code == 0
    # White weights at 100:1 have an error near their own size; at 4 bits they have not.
    for word in ("white", "4 bits", "trellis", "RMSE 0.1", "exact", "numba", "\N{CHECK MARK}", "\N{BALLOT X}"):
        assert word in outcome.out
    assert "WeightGenerator" not in outcome.out


def test_figures_are_those_of_the_weights() -> None:
    (subject,) = [s for s in guide_subjects("white", 48, 100) if s.layer == "RBELinear"]
    row = next(row for row in bench_layers([subject], seconds=0.001) if row.storage == FOUR_BITS)
    assert 3.8 < 8 * row.size / 48**2 <= 4
    assert row.error.rmse == pytest.approx(row.error.nrmse, rel=0.1)
    assert 18 < row.error.snr < 6.03 * 4
    assert row.verdicts()["RMSE"] == (row.error.rmse <= 0.1)
    assert row.block_bytes == pytest.approx(row.size * subject.block**2 / 48**2)


def test_every_call_runs_on_dense_weights() -> None:
    for subject in guide_subjects("structured", 32, 100):
        matrices = [DenseMatrix(matrix) for matrix in subject.matrices.values()]
        out = subject.ready(matrices, subject.tokens)()
        assert isinstance(out, np.ndarray)
        assert out.size == subject.numbers
        assert np.isfinite(out).all()


def test_layers_of_other_families_are_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {
        "self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32), "self_attn.v_proj": (16, 32),
        "self_attn.o_proj": (32, 32), "mlp.up_proj": (64, 32), "mlp.down_proj": (32, 64), "mlp.gate_proj": (64, 32),
    }  # fmt: skip
    llama = {
        f"model.layers.{i}.{n}.weight": rng.standard_normal(s, np.float32) for i in (0, 1) for n, s in shapes.items()
    }
    save_file(llama, tmp_path / "llama.safetensors")
    subjects = model_subjects(open_checkpoint(tmp_path / "llama.safetensors"))
    # Keys and values shared by heads are left out, a table is not there.
    assert {s.layer for s in subjects} == GUIDE - {"RBEAttention", "RBEEmbedding", "RBEEmbedding, 8 coordinates"}
    ffn = next(s for s in subjects if s.layer == "RBEFFN")
    assert list(ffn.matrices) == [f"model.layers.0.mlp.{n}_proj.weight" for n in ("up", "down", "gate")]
    save_file({"w": rng.standard_normal((40, 30), np.float32)}, tmp_path / "other.safetensors")
    (first, *_) = model_subjects(open_checkpoint(tmp_path / "other.safetensors"))
    assert list(first.matrices) == ["w"]


def test_the_guides_model_is_smooth_blocks_and_low_frequencies() -> None:
    w = guide_model(70, 50, block=32, coefficients=3)
    assert w.shape == (70, 50)
    assert np.mean(w**2, dtype=np.float64) == pytest.approx(1, rel=1e-5)
    block = w[:32, :32].astype(np.float64)
    spectrum = np.abs(np.fft.fft2(block - block.mean()))
    assert spectrum[10:22, 10:22].max() < 0.05 * spectrum.max()


@pytest.mark.parametrize("arguments", [["--weights", "black"], ["--layers", "("], ["--layers", "no such layer"]])
def test_wrong_wishes_are_one_line(rbe: Run, arguments: list[str]) -> None:
    outcome = rbe("bench", "layers", *SMALL, *arguments)
    assert outcome.code == 2
    assert outcome.complaint()
