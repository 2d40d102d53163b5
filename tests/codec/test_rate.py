"""How near the codec comes to the Shannon bound, every byte of the layer file counted."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.codec import battery
from tests.synthetic import compress_to, decode_to, read_tensors


def gap(w: np.ndarray, folder: Path, **wishes: object) -> float:
    """6.0206 x bits per weight - SNR of one matrix as a checkpoint of its own."""
    save_file({"a.weight": w}, folder / "x.safetensors")
    compress_to(folder / "x.safetensors", folder / "m", **{"objective": "mse"} | wishes)
    decode_to(folder / "m", folder / "y.safetensors")
    back = read_tensors(folder / "y.safetensors")["a.weight"].astype(np.float64)
    bits = 8 * (folder / "m" / "a.rbe").stat().st_size / w.size
    snr = -20 * math.log10(np.linalg.norm(w - back) / np.linalg.norm(w))
    return 6.0206 * bits - snr


@pytest.mark.parametrize(("bits", "bound"), [(1, 0.45), (2, 0.45), (3, 0.4), (4, 0.4), (6, 0.4)])
def test_gaussian(bits: float, bound: float, tmp_path: Path) -> None:
    w = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    assert 0.0 < gap(w, tmp_path, bits=bits) < bound


def test_more_states_come_nearer(tmp_path: Path) -> None:
    w = np.random.default_rng(1).standard_normal((512, 512)).astype(np.float32)
    gaps = []
    for effort, bound in ((1, 0.6), (3, 0.45), (6, 0.35)):
        (tmp_path / str(effort)).mkdir()
        gaps.append(gap(w, tmp_path / str(effort), bits=3, effort=effort))
        assert gaps[-1] < bound
    assert gaps == sorted(gaps, reverse=True)


def test_scales_of_rows_and_columns_are_a_gain(tmp_path: Path) -> None:
    """The coding gain of known scales: 10 log10 of arithmetic over geometric mean variance."""
    rng = np.random.default_rng(2)
    rows, columns = np.exp(0.3 * rng.standard_normal((512, 1))), np.exp(0.3 * rng.standard_normal((1, 512)))
    w = (rng.standard_normal((512, 512)) * rows * columns).astype(np.float32)
    variance = (rows * columns) ** 2
    gain = 10 * math.log10(variance.mean()) - 10 * np.log10(variance).mean()
    assert gap(w, tmp_path, bits=4) < -gain + 0.55


def test_laplace_is_better_than_gaussian(tmp_path: Path) -> None:
    """Its bound is 0.7 dB lower at high rate: the family of tables is chosen."""
    w = np.random.default_rng(3).laplace(0, 1, (512, 512)).astype(np.float32)
    assert gap(w, tmp_path, bits=4) < -0.25


@pytest.mark.parametrize("size", [30.0, 76.0, 1000.0])
def test_an_outlier_costs_next_to_nothing(size: float, tmp_path: Path) -> None:
    """Nothing is clipped: at the same step it takes a few bytes, and comes back as exact as the rest."""
    w = np.random.default_rng(4).standard_normal((512, 512)).astype(np.float32)
    plain = battery.trellis_encode(w, "F32", step=0.14, states=16)
    assert plain is not None
    step = 0.14 * plain.analysis.unit
    w[100, 200] = size
    analysis = battery.analysed(w, "F32", "mse")
    assert analysis is not None
    coded = battery.trellis_encode(w, "F32", step=step / analysis.unit, states=16)
    assert coded is not None
    assert sum(map(len, coded.chunks)) < sum(map(len, plain.chunks)) * 1.004 + 100
    back = battery.trellis_decode(coded.chunks, w.shape, "F32")
    assert abs(back[100, 200] - size) < 3 * step


def test_zeros_cost_nothing(tmp_path: Path) -> None:
    """Half the rows and half the columns empty: a quarter of the bits for the same error."""
    w = np.random.default_rng(5).standard_normal((512, 512)).astype(np.float32)
    full = battery.trellis_encode(w, "F32", step=0.14, states=16)
    assert full is not None
    w[::2], w[:, 256:] = 0, 0
    analysis = battery.analysed(w, "F32", "mse")
    assert analysis is not None
    quarter = battery.trellis_encode(w, "F32", step=0.14 * full.analysis.unit / analysis.unit, states=16)
    assert quarter is not None
    assert sum(map(len, quarter.chunks)) < sum(map(len, full.chunks)) * 0.27
    assert quarter.squared_error == pytest.approx(full.squared_error / 4, rel=0.06)


@pytest.mark.parametrize("ratio", [50, 100, 200])
def test_high_ratios_keep_what_can_be_kept(ratio: float, tmp_path: Path) -> None:
    """At 0.64, 0.32 and 0.16 bits: within 0.8 dB of the bound, never worse than sending nothing."""
    w = np.random.default_rng(6).standard_normal((1024, 512)).astype(np.float32)
    assert 0 < gap(w, tmp_path, ratio=ratio) < 0.8
