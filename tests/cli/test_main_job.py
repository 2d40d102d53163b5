"""compress, inspect, decode on checkpoints: what is printed is what is there."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rbe_cli import models
from tests.command_line import Outcome, Run, rbe_process
from tests.synthetic import folder_bytes, read_tensors, tiny_tensors


@pytest.fixture(params=["tiny", "sharded", "mini-gpt2"])
def source(request: pytest.FixtureRequest, tiny_source: Path, sharded_source: Path) -> tuple[str, Path]:
    """What is typed as SOURCE, and the folder with the original."""
    folders = {"tiny": tiny_source, "sharded": sharded_source, "mini-gpt2": models.path("mini-gpt2")}
    folder = folders[request.param]
    return (request.param if request.param in models.NAMES else str(folder)), folder


@pytest.mark.parametrize("bits", [4, 6])
def test_main_job(source: tuple[str, Path], bits: float, rbe: Run, tmp_path: Path) -> None:
    """Sizes add up to those of the files, errors are those of the decoded weights, size is what was asked."""
    typed, folder = source
    out, back = tmp_path / "m.rbe", tmp_path / "back"
    done = rbe("compress", typed, "--bits", bits, "-o", out, "--json")
    assert done.code == 0, done.err
    shown = rbe("inspect", out, "--json")
    assert shown.code == 0, shown.err
    decoded = rbe("decode", out, "-o", back, "--json")
    assert decoded.code == 0, decoded.err
    check_sizes(shown, out, bits)
    check_errors(shown, read_tensors(folder), read_tensors(back))
    written, listed = done.json(), shown.json()
    assert written["settings"] == listed["settings"]
    for tensor, again in zip(written["tensors"], listed["tensors"], strict=True):
        for key in tensor.keys() & again.keys():
            # The manifest keeps six digits of the errors.
            close = pytest.approx(again[key], rel=1e-5, abs=1e-4) if isinstance(again[key], float) else again[key]
            assert tensor[key] == close, key
    assert set(folder_bytes(back)) == set(folder_bytes(folder))
    assert sorted(decoded.json()["files"]) == sorted(str(p) for p in back.glob("*.safetensors"))


def check_sizes(shown: Outcome, out: Path, bits: float) -> None:
    document = shown.json()
    files = {name: data for name, data in folder_bytes(out).items() if not name.startswith("files/")}
    total = sum(map(len, files.values()))
    weights = sum(tensor["elements"] for tensor in document["tensors"])
    assert document["totals"]["bytes"] == total
    assert document["totals"]["elements"] == weights
    assert sum(tensor["bytes"] for tensor in document["tensors"]) == total - len(files["rbe.json"])
    assert document["totals"]["bits_per_weight"] == pytest.approx(8 * total / weights, rel=1e-9)
    assert document["totals"]["bits_per_weight"] <= bits
    assert document["totals"]["ratio"] == pytest.approx(document["totals"]["source_bytes"] / total, rel=1e-9)
    assert total >= (0.995 if total > 10**6 else 0.98) * bits * weights / 8
    for tensor in document["tensors"]:
        assert tensor["elements"] == math.prod(tensor["shape"])
        if tensor["elements"]:
            assert tensor["bits_per_weight"] == pytest.approx(8 * tensor["bytes"] / tensor["elements"], rel=1e-5)


def check_errors(shown: Outcome, original: dict[str, np.ndarray], decoded: dict[str, np.ndarray]) -> None:
    document = shown.json()
    assert {tensor["name"] for tensor in document["tensors"]} == set(original) == set(decoded)
    squared, energy = 0.0, 0.0
    for tensor in document["tensors"]:
        raw, back = original[tensor["name"]], decoded[tensor["name"]]
        assert tensor["shape"] == list(raw.shape)
        if raw.tobytes() == back.tobytes():
            assert tensor["nrmse"] == tensor["rmse"] == 0
            assert tensor["snr_db"] is None
            continue
        w, v = raw.astype(np.float64), back.astype(np.float64)
        error, power = float(((w - v) ** 2).sum()), float((w**2).sum())
        assert tensor["snr_db"] == pytest.approx(10 * math.log10(power / error), abs=0.01)
        assert tensor["nrmse"] == pytest.approx(math.sqrt(error / power), rel=1e-3)
        assert tensor["rmse"] == pytest.approx(math.sqrt(error / w.size), rel=1e-3)
        gap = 6.0206 * tensor["bits_per_weight"] - tensor["snr_db"]
        assert tensor["gap_db"] == pytest.approx(gap, abs=0.01)
        squared, energy = squared + error, energy + power
    assert document["totals"]["snr_db"] == pytest.approx(10 * math.log10(energy / squared), abs=0.01)


def test_one_layer_file_says_the_same_as_the_folder(rbe: Run, compressed: Path) -> None:
    whole = {tensor["name"]: tensor for tensor in rbe("inspect", compressed, "--json").json()["tensors"]}
    for path in compressed.glob("*.rbe"):
        shown = rbe("inspect", path, "--json").json()
        assert shown["tensors"]
        for tensor in shown["tensors"]:
            expected = whole[tensor["name"]]
            assert {key: tensor[key] for key in ("shape", "dtype", "method", "bytes", "elements")} == {
                key: expected[key] for key in ("shape", "dtype", "method", "bytes", "elements")
            }
            if not tensor["method"].startswith("same as"):
                assert tensor["nrmse"] == pytest.approx(expected["nrmse"], rel=1e-4)
                assert tensor["rmse"] == pytest.approx(expected["rmse"], rel=1e-4)


def test_the_method_names_what_was_chosen_once(rbe: Run, tmp_path: Path) -> None:
    low = np.random.default_rng(0).standard_normal((2, 256, 4), np.float32)
    save_file({"w": low[0] @ low[1].T}, tmp_path / "low.safetensors")
    for options, folder, file in (
        ((), "trellis, lowrank +", "trellis, lowrank "),
        (("--structure-only",), "lowrank +", "lowrank "),
    ):
        out = tmp_path / f"{len(options)}.rbe"
        assert rbe("compress", tmp_path / "low.safetensors", "-o", out, "-q", *options).code == 0
        for path, method in ((out, folder), (next(out.glob("*.rbe")), file)):
            assert f" F32     {method}" in rbe("inspect", path).out


def test_manifest_may_be_named_itself(rbe: Run, compressed: Path) -> None:
    assert rbe("inspect", compressed / "rbe.json", "--json").json()["tensors"]


@pytest.mark.parametrize(
    "wish", [("--ratio", 5), ("--nrmse", 0.05), ("--lossless",), ("--bits", 7, "--objective", "mse")]
)
def test_wishes(wish: tuple[object, ...], rbe: Run, tiny_source: Path, tmp_path: Path) -> None:
    done = rbe("compress", tiny_source, *wish, "-o", tmp_path / "m.rbe", "--json", "-q")
    assert done.code == 0
    assert done.err == ""
    document = done.json()
    if wish[0] == "--ratio":
        assert document["totals"]["ratio"] >= 5
    elif wish[0] == "--nrmse":
        assert 0 < max(tensor["nrmse"] for tensor in document["tensors"]) <= 0.05
    elif wish[0] == "--lossless":
        assert all(tensor["nrmse"] == 0 for tensor in document["tensors"])
        assert rbe("decode", tmp_path / "m.rbe", "-o", tmp_path / "back", "-q").code == 0
        assert folder_bytes(tmp_path / "back") == folder_bytes(tiny_source)
    else:
        assert document["settings"]["objective"] == "mse"


def test_tables_show_the_figures(rbe: Run, tiny_source: Path, tmp_path: Path) -> None:
    done = rbe("compress", tiny_source, "--bits", 6, "-o", tmp_path / "m.rbe", "--all")
    assert done.code == 0
    for name in tiny_tensors():
        assert name in done.out
    for column in ("tensor", "shape", "dtype", "method", "bits/w", "ratio", "RMSE", "NRMSE", "SNR dB", "gap dB", "ns"):
        assert column in done.out
    size = sum(len(d) for name, d in folder_bytes(tmp_path / "m.rbe").items() if not name.startswith("files/"))
    assert f"{size:,} bytes" in done.out
    assert "peak memory" in done.out
    assert "ns per weight" in done.out
    shown = rbe("inspect", tmp_path / "m.rbe", "--all")
    assert f"{size:,} bytes" in shown.out
    assert shown.err == ""
    decoded = rbe("decode", tmp_path / "m.rbe", "-o", tmp_path / "back")
    assert "ns per weight on one core" in decoded.out


def test_status_goes_to_stderr_and_the_result_to_stdout(tiny_source: Path, tmp_path: Path) -> None:
    done = rbe_process("compress", tiny_source, "-o", tmp_path / "m.rbe", "--bits", 6, "--json")
    assert done.code == 0
    assert done.json()["command"] == "compress"
    assert "encoding" in done.err
    assert "\x1b" not in done.out + done.err, "no colours in a pipe"
    quiet = rbe_process("decode", tmp_path / "m.rbe", "-o", tmp_path / "back", "--json", "--quiet")
    assert quiet.err == ""
    assert quiet.json()["command"] == "decode"
    table = rbe_process("inspect", tmp_path / "m.rbe")
    assert table.err == ""
    assert "\x1b" not in table.out


def test_same_bytes_with_one_and_two_jobs_and_in_a_second_process(tiny_source: Path, tmp_path: Path) -> None:
    for name, jobs in (("a", 1), ("b", 2), ("c", 2)):
        assert rbe_process("compress", tiny_source, "-o", tmp_path / name, "--bits", 6, "--jobs", jobs, "-q").code == 0
    first = folder_bytes(tmp_path / "a")
    assert first == folder_bytes(tmp_path / "b") == folder_bytes(tmp_path / "c")
    assert rbe_process("decode", tmp_path / "a", "-o", tmp_path / "d1", "--jobs", 1, "-q").code == 0
    assert rbe_process("decode", tmp_path / "b", "-o", tmp_path / "d2", "--jobs", 2, "-q").code == 0
    assert folder_bytes(tmp_path / "d1") == folder_bytes(tmp_path / "d2")


def test_tensors_that_are_not_finite_are_kept_and_named(rbe: Run, tiny_source: Path, tmp_path: Path) -> None:
    done = rbe("compress", tiny_source, "--bits", 6, "-o", tmp_path / "m.rbe", "--json")
    (wild,) = [tensor for tensor in done.json()["tensors"] if tensor["name"] == "wild.weight"]
    assert wild["method"] == "lossless"
    assert "wild.weight" in done.err
    assert "NaN or infinity" in done.err


def test_output_by_default_is_named_after_the_source(
    rbe: Run, tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert rbe("compress", tiny_source, "--bits", 6, "-q").code == 0
    assert (tmp_path / "model.rbe" / "rbe.json").is_file()
    assert rbe("decode", "model.rbe", "-q").code == 0
    assert (tmp_path / "model.rbe.decoded" / "model.safetensors").is_file()


def test_structure_options_are_recorded(rbe: Run, tiny_source: Path, tmp_path: Path) -> None:
    done = rbe("compress", tiny_source, "--k", 7, "--block", 64, "--threshold", 0.02, "--bits", 6, "-o", tmp_path / "m")
    assert done.code == 0, done.err
    settings = json.loads((tmp_path / "m" / "rbe.json").read_bytes())["settings"]
    assert (settings["k"], settings["block"], settings["threshold"]) == (7, 64, 0.02)


@pytest.mark.parametrize("forecast", [(), ("--dry-run",)])
def test_what_is_left_out_is_said(forecast: tuple[str, ...], rbe: Run, tiny_source: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_source, tmp_path / "model"))
    command = ("compress", source, "-o", tmp_path / "m", "--force", *forecast)
    assert "left out" not in rbe(*command).out
    (source / "2_Dense").mkdir()
    for name in ("2_Dense/model.safetensors", "a.bin", "b.onnx", "c.pt", "d.gguf", "e.h5"):
        (source / name).write_bytes(b"other weights")
    done = rbe(*command)
    assert "too large): 2_Dense/model.safetensors, a.bin, b.onnx, c.pt, d.gguf and 1 more" in done.out
    assert len(json.loads(rbe(*command, "--json").out)["left_out"]) == 6
