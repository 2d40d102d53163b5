from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rbe_cli.checkpoint.reader import open_checkpoint
from rbe_cli.errors import UsageError
from rbe_cli.operations.bench_sources import BenchSource, gaussian, of_checkpoint, structured
from tests.synthetic import read_tensors


def weights(source: BenchSource) -> np.ndarray:
    assert source.dtype == "F32"
    return source.raw.view("<f4").reshape(source.shape)


def test_gaussian_is_the_one_of_every_published_figure() -> None:
    expected = np.random.default_rng(0).standard_normal((40, 40)).astype(np.float32)
    np.testing.assert_array_equal(weights(gaussian(40)), expected)


def test_structured_is_smooth_but_for_noise_20_db_below() -> None:
    w = weights(structured(256)).astype(np.float64)
    assert np.mean(w**2) == pytest.approx(1.01, rel=0.02)
    # Nothing but noise is above the highest frequency of the field.
    spectrum = np.abs(np.fft.fft2(w) / w.shape[0]) ** 2
    outside = np.ones(256, bool)
    outside[:9], outside[-8:] = False, False
    assert np.mean(spectrum[np.ix_(outside, outside)]) == pytest.approx(0.01, rel=0.05)


def test_first_of_each_kind_is_taken(tiny_source: Path) -> None:
    names = [source.name for source in of_checkpoint(open_checkpoint(tiny_source), None, 1 << 20)]
    # lm_head is another kind than wte; vectors, integers and what is empty or small are none.
    assert names[0] == "wte.weight" or names[0] == "lm_head.weight"
    assert set(names) == {
        "wte.weight", "lm_head.weight", "h.0.attn.weight", "h.0.mlp.weight", "h.1.double.weight", "conv.weight",
        "wild.weight",
    }  # fmt: skip


def test_layers_alike_count_once_unless_named(sharded_source: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    layers = {f"h.{i}.w": np.full((40, 40), i, np.float32) for i in range(3)}
    save_file(layers | {"h.3.w": np.zeros((40, 41), np.float32)}, tmp_path / "m.safetensors")
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    assert len(of_checkpoint(checkpoint, None, 1 << 20)) == 2
    assert len(of_checkpoint(checkpoint, ".", 1 << 20)) == 4
    assert [source.name for source in of_checkpoint(checkpoint, r"h\.2", 1 << 20)] == ["h.2.w"]


def test_large_ones_are_cut_to_whole_rows(tiny_source: Path) -> None:
    (source,) = of_checkpoint(open_checkpoint(tiny_source), "^h.0.attn", 1000)
    assert source.shape == (10, 96)
    assert "first 10 of 160 rows" in source.what
    np.testing.assert_array_equal(weights(source), read_tensors(tiny_source)["h.0.attn.weight"][:10])


@pytest.mark.parametrize("pattern", ["nothing of the kind", "(", "positions"])
def test_no_such_tensor_is_wrong_usage(tiny_source: Path, pattern: str) -> None:
    with pytest.raises(UsageError):
        of_checkpoint(open_checkpoint(tiny_source), pattern, 1000)


def test_a_source_is_a_checkpoint_of_its_own(tiny_source: Path, tmp_path: Path) -> None:
    (source,) = of_checkpoint(open_checkpoint(tiny_source), "^conv", 1 << 20)
    source.checkpoint(tmp_path)
    tensors = read_tensors(tmp_path)
    np.testing.assert_array_equal(tensors["conv.weight"], read_tensors(tiny_source)["conv.weight"])
