"""`rbe bench codec` on small matrices. Speeds are only looked at for being there."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rbe_cli import metrics
from rbe_cli.operations.bench_codec import bench_codec
from rbe_cli.operations.bench_sources import gaussian
from rbe_cli.operations.settings import Settings
from tests.command_line import Run
from tests.synthetic import compress_to, decode_to, read_tensors

TIMING = {"best", "median", "worst", "repeats"}
POINT = {
    "effort", "bits_asked", "bytes", "bits_per_weight", "snr_db", "gap_db", "method", "coding",
    "analyse_ns_per_weight", "encode_ns_per_weight", "decode_ns_per_weight",
}  # fmt: skip


def check_speed(speed: Any) -> None:
    assert set(speed) == {"one_core", "all_cores"}
    for timing in speed.values():
        assert set(timing) == TIMING
        assert 0 < timing["best"] <= timing["median"] <= timing["worst"]


def test_json_has_its_schema_and_a_point_for_each_rate_and_effort(rbe: Run, tiny_source: Path) -> None:
    arguments = ("--synthetic", 64, "--bits", "2,4", "--efforts", "0,1", "--repeat", 1, "--max-elements", 2048)
    outcome = rbe("bench", "codec", tiny_source, "--tensors", "attn.weight|conv", *arguments, "--json", "-q")
    assert outcome.code == 0
    assert outcome.err == ""
    document = outcome.json()
    assert set(document) == {"command", "machine", "threads", "objective", "transform", "sources"}
    assert document["command"] == "bench codec"
    assert document["machine"]["cores"] >= 1
    assert [source["name"] for source in document["sources"]] == [
        "gaussian", "structured", "conv.weight", "h.0.attn.weight",
    ]  # fmt: skip
    for source in document["sources"]:
        assert set(source) == {"name", "what", "shape", "dtype", "points"}
        assert [(p["effort"], p["bits_asked"]) for p in source["points"]] == [(0, 2), (0, 4), (1, 2), (1, 4)]
        for point in source["points"]:
            assert set(point) == POINT
            elements = math.prod(source["shape"])
            assert point["bits_per_weight"] == metrics.bits_per_weight(point["bytes"], elements)
            check_speed(point["decode_ns_per_weight"])
            if point["method"] == "trellis":
                check_speed(point["encode_ns_per_weight"])
                assert point["gap_db"] == pytest.approx(metrics.gap_db(point["bits_per_weight"], point["snr_db"]))


def test_figures_are_those_of_the_files(tmp_path: Path) -> None:
    source = gaussian(96)
    settings = Settings(objective="mse", jobs=1)
    (point,) = bench_codec([source], [4.0], [2], settings, repeat=1)
    source.checkpoint(tmp_path)
    compress_to(
        tmp_path / "source.safetensors",
        tmp_path / "out.rbe",
        lossless=True,
        overrides=(".=bits:4",),
        effort=2,
        objective="mse",
    )
    decode_to(tmp_path / "out.rbe", tmp_path / "back")
    (layer,) = (tmp_path / "out.rbe").glob("*.rbe")
    exact = source.raw.view("<f4").astype(np.float64)
    decoded = read_tensors(tmp_path / "back")["gaussian"].ravel().astype(np.float64)
    assert point.size == layer.stat().st_size
    assert point.snr_db == pytest.approx(-10 * math.log10(((decoded - exact) ** 2).sum() / (exact**2).sum()))


def test_more_bits_and_more_effort_are_more_exact() -> None:
    points = bench_codec([gaussian(256)], [2.0, 4.0], [0, 4], Settings(objective="mse", jobs=2), repeat=1)
    low, high, low_searched, high_searched = points
    assert low.snr_db < high.snr_db < high_searched.snr_db
    assert 0 < low_searched.gap_db < low.gap_db


def test_what_must_be_kept_exactly_has_no_encoding_speed(rbe: Run, tiny_source: Path) -> None:
    outcome = rbe(
        "bench", "codec", tiny_source, "--tensors", "wild", "--synthetic", 0, "--bits", 32, "--efforts", 0,
        "--repeat", 1, "--json", "-q",
    )  # fmt: skip
    (source,) = outcome.json()["sources"]
    (point,) = source["points"]
    assert point["method"] == "lossless"
    assert point["snr_db"] is None
    assert point["gap_db"] is None
    assert point["encode_ns_per_weight"] is None
    check_speed(point["decode_ns_per_weight"])


@pytest.mark.parametrize("form", ["table", "markdown"])
def test_table_names_the_sources_and_the_machine(rbe: Run, form: str) -> None:
    arguments = ["--synthetic", 48, "--bits", 3, "--efforts", 0, "--repeat", 1, "--tensors", "wpe"]
    outcome = rbe("bench", "codec", *arguments, *(["--markdown"] if form == "markdown" else []))
    assert outcome.code == 0
    for word in ("gaussian", "structured", "transformer.wpe.weight", "gap dB", "numba", "of mini-gpt2"):
        assert word in outcome.out
    assert "measuring" in outcome.err


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs matplotlib (the extra `plot`)")
@pytest.mark.parametrize("suffix", [".svg", ".png"])
@pytest.mark.filterwarnings("default")
def test_plot_is_written(rbe: Run, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"codec{suffix}"
    arguments = ["--synthetic", 0, "--bits", "2,3", "--efforts", 0, "--repeat", 1, "--tensors", "wpe", "-q"]
    assert rbe("bench", "codec", *arguments, "--plot", path).code == 0
    content = path.read_bytes()
    if suffix == ".svg":
        assert b"<svg" in content
        assert b"bits per weight" in content or b"<path" in content
    else:
        assert content.startswith(b"\x89PNG")
    assert "--force" in rbe("bench", "codec", *arguments, "--plot", path).complaint()
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--bits", "a,b"], 2),
        (["--bits", "99"], 2),
        (["--efforts", "11"], 2),
        (["--efforts", "1.5"], 2),
        (["--tensors", "("], 2),
        (["--tensors", "no such tensor"], 2),
        (["--objective", "best"], 2),
        (["--plot", "codec.gif"], 2),
        (["--plot", "/no/such/folder/codec.svg"], 1),
        (["no-such-folder/at/all"], 1),
    ],
)
def test_wrong_wishes_are_one_line(rbe: Run, arguments: list[str], code: int) -> None:
    outcome = rbe("bench", "codec", *arguments)
    assert outcome.code == code
    assert outcome.complaint()


def test_without_matplotlib_it_says_what_to_install(rbe: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rbe_cli.cli.figure.find_spec", lambda name: None)
    outcome = rbe("bench", "codec", "--plot", tmp_path / "codec.svg")
    assert outcome.code == 1
    assert "pip install matplotlib" in outcome.complaint()
