"""`rbe verify`: damage, and claims that are not true."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.command_line import Run
from tests.forge import edit_manifest
from tests.synthetic import compress_to, write_tiny_model


def test_sound_folder_against_its_original(run: Run, mini: Path) -> None:
    done = run("verify", mini, "--against", "mini-gpt2", "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    claimed = {t["name"]: t["nrmse"] for t in json.loads(run("inspect", mini, "--json").out)["tensors"]}
    assert document["same_files"] is True
    assert {t["name"]: pytest.approx(t["nrmse"], rel=1e-4) for t in document["tensors"]} == claimed
    assert {t["name"]: t["claimed_nrmse"] for t in document["tensors"]} == claimed
    assert document["ok"]
    assert all(t["ok"] for t in document["tensors"])


def test_a_file_the_manifest_does_not_name_is_told_and_not_counted(run: Run, mini: Path, tmp_path: Path) -> None:
    shutil.copytree(mini, tmp_path / "more")
    (tmp_path / "more" / "files").mkdir(exist_ok=True)
    (tmp_path / "more" / "notes.txt").write_text("stray\n")
    (tmp_path / "more" / "files" / "link").symlink_to(tmp_path)
    document = run("verify", "more", "--json").json()
    assert document["unknown_files"] == ["files/link", "notes.txt"]
    assert document["ok"]
    assert document["bytes"] == run("inspect", mini, "--json").json()["totals"]["bytes"]
    assert "nothing counts: files/link, notes.txt\n" in run("verify", "more").err


def test_all_that_is_damaged_is_told(run: Run, mini: Path, tmp_path: Path) -> None:
    shutil.copytree(mini, tmp_path / "damaged")
    files = sorted((tmp_path / "damaged").glob("*.rbe"))
    files[0].write_bytes(files[0].read_bytes()[:-1])
    files[1].unlink()
    done = run("verify", "damaged", "--against", "mini-gpt2", "--json")
    assert done.code == 4
    document = done.json()
    assert not document["ok"]
    assert [problem.partition(": ")[0] for problem in document["problems"]] == [f"damaged/{f.name}" for f in files[:2]]
    assert 0 < len(document["tensors"]) < len(run("inspect", mini, "--json").json()["tensors"])
    for problem in document["problems"]:
        assert f"{problem}\n" in done.err
    (tmp_path / "damaged" / "rbe.json").write_text("{}")
    done = run("verify", "damaged", "--json")
    assert done.code == 4
    assert len(done.json()["problems"]) == 1


def test_every_kind_of_tensor(run: Run, tiny_source: Path, tmp_path: Path) -> None:
    compress_to(tiny_source, tmp_path / "tiny.rbe", bits=6.0)
    done = run("verify", "tiny.rbe", "--against", tiny_source)
    assert done.code == 0, done.err
    assert "has the files that were compressed" in done.out


@pytest.mark.parametrize("options", [("--structure-only",), ("--lossless",), ()])
def test_decode_and_verify_time_the_same_tensors(run: Run, tmp_path: Path, options: tuple[str, ...]) -> None:
    """All that are not exact: those without a coded residual are among them."""
    low = np.random.default_rng(0).standard_normal((2, 128, 4), np.float32)
    save_file({"w": low[0] @ low[1].T}, tmp_path / "low.safetensors")
    assert run("compress", "low.safetensors", "-o", "low.rbe", "-q", *options).code == 0
    for command in (("verify", "low.rbe"), ("decode", "low.rbe", "-o", "back.safetensors")):
        speed = run(*command, "--json", "-q").json()["decode_ns_per_weight"]
        assert (speed is None) == (options == ("--lossless",))


def test_other_files_with_the_same_tensors(run: Run, sharded_source: Path, tmp_path: Path) -> None:
    compress_to(sharded_source, tmp_path / "c.rbe", bits=6.0)
    whole = write_tiny_model(tmp_path / "whole")
    done = run("verify", "c.rbe", "--against", whole)
    assert done.code == 0, done.err
    assert "not the files, but the tensors" in done.out


def test_a_flipped_bit_anywhere_is_found(run: Run, mini: Path, tmp_path: Path) -> None:
    for file in sorted(path for path in mini.rglob("*") if path.is_file())[::9]:
        damaged = tmp_path / "damaged"
        shutil.copytree(mini, damaged)
        target = damaged / file.relative_to(mini)
        data = bytearray(target.read_bytes())
        data[len(data) * 2 // 3] ^= 16
        target.write_bytes(data)
        done = run("verify", damaged, "-q")
        assert done.code == 4, file
        assert done.err.count("\n") == 1
        shutil.rmtree(damaged)


@pytest.mark.parametrize("figure", ["nrmse", "rmse"])
def test_a_claim_that_is_not_true(figure: str, run: Run, mini: Path, tmp_path: Path) -> None:
    shutil.copytree(mini, tmp_path / "lies")
    told = []

    def lie(manifest: dict[str, Any]) -> None:
        liar = next(t for layer in manifest["layers"] for t in layer["tensors"] if t["nrmse"])
        liar[figure] *= 0.5
        told.append(liar["name"])

    edit_manifest(tmp_path / "lies", lie)
    done = run("verify", "lies", "--against", "mini-gpt2", "-q")
    assert done.code == 4, done.err
    assert told[0] in done.err
    assert f"{figure.upper()} is" in done.err
    assert "the manifest claims" in done.err
    document = run("verify", "lies", "--against", "mini-gpt2", "--json", "-q").json()
    assert not document["ok"]
    assert [tensor["name"] for tensor in document["tensors"] if not tensor["ok"]] == told


def test_another_model(run: Run, mini: Path, tiny_source: Path) -> None:
    done = run("verify", mini, "--against", tiny_source, "-q")
    assert done.code == 1
    assert "has no tensor" in done.err
