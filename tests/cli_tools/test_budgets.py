"""Budgets: bounds, verdicts, exit code 3, files with bounds per pattern."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rbe_cli.container.manifest import TensorEntry
from rbe_cli.errors import UsageError
from rbe_cli.operations.budgets import Bounds, GroupedBounds, judge, read_bounds
from tests.command_line import Run

TENSORS = [
    TensorEntry("a.weight", "F32", (10, 10), "trellis", 50, 0.02, 0.1, 0),
    TensorEntry("b.weight", "F32", (10, 20), "trellis", 150, 0.01, 0.05, 0),
    TensorEntry("b.bias", "F32", (10,), "lossless", 40, 0.0, 0.0, 0),
]


def test_size_is_the_groups_and_error_its_worst_tensors() -> None:
    bounds = GroupedBounds(Bounds(max_size=300, min_ratio=4, max_nrmse=0.09), (("^b", Bounds(max_bits=8, min_snr=26)),))
    found = {(b.group, b.name): (b.figure, b.kept, b.tensor) for b in judge(bounds, TENSORS, 300)}
    assert found["all", "max_size"] == (300, True, "")
    assert found["all", "min_ratio"] == (pytest.approx(1240 / 300), True, "")
    assert found["all", "max_nrmse"] == (0.1, False, "a.weight")
    assert found["^b", "max_bits"] == (pytest.approx(8 * 190 / 210), True, "")
    assert found["^b", "min_snr"] == (pytest.approx(26.02, abs=0.01), True, "b.weight")


def test_exact_tensors_keep_any_error_bound() -> None:
    assert all(b.kept for b in judge(GroupedBounds(Bounds(max_rmse=0, max_nrmse=0, min_snr=999)), TENSORS[2:], 40))


def test_a_pattern_without_a_tensor_is_an_error() -> None:
    with pytest.raises(UsageError, match="would guard nothing"):
        judge(GroupedBounds(groups=(("nowhere", Bounds(max_bits=1)),)), TENSORS, 300)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_nrsme = 1", "unknown key 'max_nrsme'; did you mean 'max_nrmse'"),
        ('max_size = "5 elephants"', "not a size"),
        ("max_bits = true", "must be a number"),
        ("max_bits = -1", "0 or more"),
        ('[tensors."(x"]\nmax_bits = 1', "not a regular expression"),
        ("max_bits = ", "not TOML"),
        ("tensors = 3", "write bounds per tensor"),
        ("min_top1 = 90", "from 0 to 1"),
        ('[tensors."attn"]\nmax_kl = 1', "unknown key 'max_kl'"),
        ("max_size = -1", "b.toml: --max-size must be 0 or more"),
        ('[tensors."attn"]\nmax_bits = nan', "b.toml: --max-bits must be 0 or more"),
        ("", "holds no bounds"),
        ('[tensors."attn"]', "holds no bounds"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "b.toml").write_text(text)
    with pytest.raises(UsageError) as error:
        read_bounds(tmp_path / "b.toml")
    assert words in str(error.value)


def test_inspect_says_which_bound_is_broken(run: Run, mini: Path) -> None:
    assert run("inspect", mini, "--max-size", "4MB", "--min-snr", "5").code == 0
    done = run("inspect", mini, "--max-size", "100kB", "--max-bits", "4", "--min-snr", "5")
    assert done.code == 3
    size = sum(file.stat().st_size for file in mini.iterdir() if file.is_file())
    assert f"size is {size:,} bytes, must be at most 100,000 bytes" in done.err
    assert done.err.count("\n") == 1
    assert "over" in done.out
    assert "kept" in done.out


def test_json_carries_the_budget(run: Run, mini: Path) -> None:
    done = run("inspect", mini, "--max-nrmse", "0.0001", "--min-ratio", "2", "--json")
    assert done.code == 3
    found = json.loads(done.out)["budget"]
    assert [(b["bound"], b["kept"]) for b in found] == [("min_ratio", True), ("max_nrmse", False)]
    assert found[1]["tensor"] in {tensor["name"] for tensor in json.loads(done.out)["tensors"]}


def test_the_command_line_wins_over_the_file(run: Run, mini: Path, tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text('max_size = "1kB"\n[tensors."attn"]\nmax_bits = 32\n')
    assert run("inspect", mini, "--budget", "b.toml").code == 3
    assert run("inspect", mini, "--budget", "b.toml", "--max-size", "9MB").code == 0


def test_compress_over_budget_still_writes(run: Run, tmp_path: Path) -> None:
    done = run("compress", "mini-gpt2", "--effort", 0, "--bits", 2, "-o", "out", "--min-snr", 30, "-q", "--markdown")
    assert done.code == 3
    assert "out is written all the same" in done.err
    assert (tmp_path / "out" / "rbe.json").exists()
    assert "| budget for | bound |" in done.out
    assert "| --- |" in done.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("compress", "mini-gpt2", "-o", "out"),
        ("compress", "mini-gpt2", "--dry-run"),
        ("sweep", "--bits", "4", "--results", "r.jsonl"),
        ("bench", "MINI", "--reference", "mini-gpt2", "--quality-only"),
        ("inspect", "MINI"),
    ],
)
def test_a_pattern_without_a_tensor_is_seen_before_anything_is_done(
    arguments: tuple[str, ...], run: Run, mini: Path, tmp_path: Path
) -> None:
    (tmp_path / "b.toml").write_text('[tensors."nowhere"]\nmax_bits = 32\n')
    done = run(*(mini if word == "MINI" else word for word in arguments), "--budget", "b.toml")
    assert done.code == 2
    assert "would guard nothing" in done.complaint()
    assert [path.name for path in tmp_path.iterdir()] == ["b.toml"]


@pytest.mark.parametrize(
    "bound", [("--max-kl", "nan"), ("--max-kl", -1), ("--max-ppl-ratio", "inf"), ("--min-top1", 90)]
)
def test_bounds_that_make_no_sense(bound: tuple[object, ...], run: Run, mini: Path) -> None:
    done = run("bench", mini, "--reference", "mini-gpt2", "--quality-only", *bound)
    assert done.code == 2
    assert done.complaint().startswith(f"{bound[0]} must be ")


def test_a_file_bounds_what_a_model_does(run: Run, mini: Path, tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text("max_kl = 1e-9\nmin_top1 = 0.01\nmax_bits = 32\n")
    bench = ("bench", mini, "--reference", "mini-gpt2", "--quality-only", "--tokens", 100, "--budget", "b.toml")
    done = run(*bench, "--json")
    assert done.code == 3
    found = {b["bound"]: b["kept"] for b in json.loads(done.out)["budget"]}
    assert found == {"max_bits": True, "max_kl": False, "min_top1": True}
    assert run(*bench, "--max-kl", 100).code == 0, "the command line wins"
    refused = run("inspect", mini, "--budget", "b.toml")
    assert refused.code == 2
    assert "only `rbe bench` measures max_kl and min_top1" in refused.err
