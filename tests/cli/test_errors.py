"""Everything that can go wrong: one line that says what and what to do, the right exit code, nothing left behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.command_line import Run, rbe_process
from tests.forge import edit_chunk, edit_manifest
from tests.synthetic import folder_bytes, scaled_normal


def test_damaged_layer_file_is_exit_4(rbe: Run, compressed: Path, tmp_path: Path) -> None:
    path = compressed / "h.0.attn.rbe"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))
    done = rbe("decode", compressed, "-o", tmp_path / "back", "-q")
    assert done.code == 4
    assert "h.0.attn.rbe" in done.complaint()
    path.write_bytes(bytes(data[:-3]))
    for command in (("decode", compressed, "-o", tmp_path / "back", "-q"), ("inspect", compressed), ("inspect", path)):
        done = rbe(*command)
        assert done.code == 4
        assert "h.0.attn.rbe" in done.complaint()
    assert not (tmp_path / "back").exists()


def test_damaged_as_a_process(compressed: Path, tmp_path: Path) -> None:
    path = compressed / "conv.rbe"
    path.write_bytes(path.read_bytes()[:-1])
    done = rbe_process("decode", compressed, "-o", tmp_path / "back", "--json", "-q")
    assert done.code == 4
    assert "conv.rbe" in done.complaint()


def test_hostile_safetensors_is_exit_4(rbe: Run, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 100)
    done = rbe("compress", tmp_path / "x.safetensors", "-o", tmp_path / "m")
    assert done.code == 4
    assert "x.safetensors" in done.complaint()
    assert os.listdir(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize("name", ["model.gguf", "model.bin", "x.pt", "points.jsonl"])
def test_other_files_are_not_damaged_but_others(rbe: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"GGUF" + bytes(100))
    done = rbe("compress", tmp_path / name, "-o", tmp_path / "m")
    assert done.code == 1
    assert "rbe reads safetensors checkpoints" in done.complaint()
    for path in (tmp_path / name, tmp_path):
        done = rbe("inspect", path)
        assert done.code == 1
        assert "one .rbe file, or a checkpoint of .safetensors files" in done.complaint()


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31mb", "a\u202eb"])
def test_hostile_names_do_not_reach_the_terminal(name: str, rbe: Run, tmp_path: Path) -> None:
    save_file({f"{name}.weight": scaled_normal((40, 40), 1)}, tmp_path / "x.safetensors")
    done = rbe("compress", tmp_path / "x.safetensors", "-o", tmp_path / "m", "--bits", 9, "--all")
    assert done.code == 0
    assert name not in done.out
    assert name not in done.err
    assert "\x1b" not in done.out
    edit_chunk(tmp_path / "m", next(p.name for p in (tmp_path / "m").glob("*.rbe")), 0, lambda chunk: chunk[:-1])
    done = rbe("decode", tmp_path / "m", "-o", tmp_path / "back", "-q")
    assert done.code == 4
    assert name not in done.complaint()


def test_missing_things_are_exit_1(rbe: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, words in (
        (("compress", "./gone", "-o", "m"), "no such file or folder"),
        (("compress", tmp_path, "-o", "m"), "no .safetensors files"),
        (("compress", "nobody/nothing", "-o", "m"), "offline"),
        (("inspect", "gone"), "no such local path"),
        (("inspect", "gone.rbe"), "no such file or folder"),
        (("bench", "gone.rbe"), "no such file or folder"),
        (("inspect", tmp_path), "rbe.json"),
        (("decode", "gone", "-q"), "no such folder"),
        (("decode", tmp_path, "-q", "-o", "x"), "rbe.json"),
    ):
        done = rbe(*arguments)
        assert done.code == 1, arguments
        assert words in done.complaint()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--bits", 99), "--bits"),
        (("--bits", "nan"), "--bits"),
        (("--bits", -1), "--bits"),
        (("--ratio", 0.1), "--ratio"),
        (("--nrmse", 2), "--nrmse"),
        (("--effort", 11), "--effort"),
        (("--k", 99), "--k"),
        (("--block", 1), "--block"),
        (("--objective", "best"), "--objective"),
        (("--jobs", -3), "--jobs"),
        (("--bits", 4, "--ratio", 8), "--bits and --ratio"),
        (("--lossless", "--nrmse", 0.1), "--lossless"),
        (("--lossless", "--structure-only"), "--lossless leaves nothing"),
        (("--lossless", "--transform", "dct"), "--lossless leaves nothing"),
        (("--structure-only", "--transform", "klt"), "--structure-only needs"),
        (("--json", "--markdown"), "not both"),
        (("--size", "5 elephants"), "--size '5 elephants': not a size"),
        (("--include", "nowhere"), "--include 'nowhere': no tensor"),
        (("--exclude", "nowhere"), "--exclude 'nowhere': no tensor"),
        (("--override", "nowhere=skip"), "--override 'nowhere': no tensor"),
        (("--override", "(x=skip"), "--override '(x': not a regular expression"),
        (("--override", "x=bits"), "--override 'x=bits': write REGEX=bits:6"),
        (("--override", "x=skip:1"), "--override 'x=skip:1': write REGEX=bits:6"),
        (("--override", "x=bits:six"), "--override 'x=bits:six': write REGEX=bits:6"),
    ],
)
def test_wrong_wishes_are_exit_2(
    arguments: tuple[object, ...], words: str, rbe: Run, tiny_source: Path, tmp_path: Path
) -> None:
    done = rbe("compress", tiny_source, "-o", tmp_path / "m", *arguments)
    assert done.code == 2
    assert words in done.complaint()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "arguments",
    [("--bogus",), ("compress",), ("compress", "x", "--bits", "many"), ("compress", "x", "--bogus"), ("squash", "x"),
     ("inspect",), ("inspect", "a", "b"), ("decode", "x", "--max-decoded-size", "lots", "-q")],
)  # fmt: skip
def test_wrong_usage_is_exit_2(arguments: tuple[str, ...], rbe: Run) -> None:
    done = rbe(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert "Traceback" not in done.err


@pytest.mark.parametrize("option", ["--bits", "--jobs"])
def test_a_value_that_is_no_number_is_shown(option: str, rbe: Run) -> None:
    assert "'4,5'" in rbe("compress", "x", option, "4,5").complaint()


def test_a_layer_is_no_model(rbe: Run, compressed: Path) -> None:
    done = rbe("bench", next(compressed.glob("*.rbe")), "--quality-only")
    assert done.code == 1
    assert done.complaint().endswith(".rbe: is one layer; give the folder it is in")


def test_output_that_is_there(rbe: Run, tiny_source: Path, compressed: Path, tmp_path: Path) -> None:
    before = folder_bytes(compressed)
    done = rbe("compress", tiny_source, "-o", compressed, "--bits", 5)
    assert done.code == 1
    assert "--force" in done.complaint()
    assert folder_bytes(compressed) == before
    (compressed / "stale.rbe").write_bytes(b"x")
    assert rbe("compress", tiny_source, "-o", compressed, "--bits", 6, "--force", "-q").code == 0
    assert folder_bytes(compressed) == before, "nothing stale is left"


@pytest.mark.parametrize("command", ["compress", "decode"])
def test_what_cannot_be_done_is_said_before_anything_is_compiled(
    rbe: Run, tiny_source: Path, compressed: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """The first run on a machine compiles for half a minute."""
    from rbe_cli.cli import compress, decode

    def compile_all(*_: object) -> None:
        raise AssertionError("too soon")

    monkeypatch.setattr({"compress": compress, "decode": decode}[command], "load_kernels", compile_all)
    if command == "compress":
        assert "already there" in rbe("compress", tiny_source, "-o", compressed).complaint()
    else:
        assert "no such" in rbe("decode", compressed / "nowhere").complaint()


def test_force_replaces_only_what_rbe_wrote(rbe: Run, tiny_source: Path, compressed: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    for arguments in (
        ("compress", tiny_source, "--bits", 6, "--force", "-q", "-o"),
        ("decode", compressed, "--force", "-q", "-o"),
    ):
        done = rbe(*arguments, home)
        assert done.code == 1
        done.complaint()
        assert folder_bytes(home) == {"thesis.tex": b"years of work"}
        done = rbe(*arguments, home / "thesis.tex")
        assert done.code == 1
        done.complaint()


def test_force_removes_nothing_that_is_not_written_again(
    rbe: Run, tiny_source: Path, compressed: Path, tmp_path: Path
) -> None:
    back = tmp_path / "back"
    assert rbe("decode", compressed, "-q", "-o", back).code == 0
    for folder, arguments in (
        (compressed, ("compress", tiny_source, "--bits", 6)),
        (back, ("decode", compressed)),
        (tmp_path / "models", ("decode", compressed)),
    ):
        shutil.copytree(back, tmp_path / "models" / "llama", dirs_exist_ok=True)
        assert rbe(*arguments, "--force", "-q", "-o", folder).code == (1 if folder.name == "models" else 0)
        for name in ("train.py", "onnx/model.onnx", "sub/wte.rbe"):
            mine = folder / name
            mine.parent.mkdir(exist_ok=True)
            mine.write_text("years of work")
            before = folder_bytes(folder)
            done = rbe(*arguments, "--force", "-q", "-o", folder)
            assert done.code == 1
            assert "--force would remove it" in done.complaint()
            assert folder_bytes(folder) == before
            mine.unlink()
        (folder / "elsewhere").symlink_to(tmp_path)
        assert "elsewhere: --force would remove it" in rbe(*arguments, "--force", "-q", "-o", folder).complaint()
        (folder / "elsewhere").unlink()


def test_the_original_is_not_replaced_by_its_decoded_weights(rbe: Run, tiny_source: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_source, tmp_path / "model"))
    before = folder_bytes(source)
    for bits, code in (("--bits=6", 1), ("--lossless", 0)):
        assert rbe("compress", source, bits, "--force", "-q", "-o", tmp_path / "m.rbe").code == 0
        for out in (source, source / "model.safetensors"):
            done = rbe("decode", tmp_path / "m.rbe", "--force", "-q", "-o", out)
            assert done.code == code
            if code:
                assert "is the original" in done.complaint()
                assert folder_bytes(source) == before


@pytest.mark.parametrize("name", ["x.safetensors", "x.bin", "x.PT", "x.gguf", "x.tar"])
def test_a_folder_is_not_called_like_a_file(
    name: str, rbe: Run, tiny_source: Path, compressed: Path, tmp_path: Path
) -> None:
    done = rbe("compress", tiny_source, "--bits", 6, "-q", "-o", tmp_path / name)
    assert done.code == 2
    assert "compress writes a folder" in done.complaint()
    done = rbe("decode", compressed, "-q", "-o", tmp_path / name)
    if name == "x.safetensors":
        assert (tmp_path / name).is_file()
    else:
        assert done.code == 2
        assert "decode writes .safetensors" in done.complaint()
        assert not (tmp_path / name).exists()


def test_the_source_is_never_the_output(rbe: Run, tiny_source: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_source, tmp_path / "model"))
    before = folder_bytes(source)
    for out in (source, tmp_path):
        for force in ((), ("--force",)):
            done = rbe("compress", source, "-o", out, "--bits", 6, "-q", *force)
            assert done.code == 1
            done.complaint()
    assert folder_bytes(source) == before


def test_the_compressed_folder_is_never_the_output(rbe: Run, compressed: Path, tmp_path: Path) -> None:
    before = folder_bytes(compressed)
    for out in (compressed, compressed.parent):
        for force in ((), ("--force",)):
            done = rbe("decode", compressed, "-o", out, "-q", *force)
            assert done.code == 1
            done.complaint()
    assert folder_bytes(compressed) == before


def test_decoding_again_needs_force(rbe: Run, compressed: Path, tmp_path: Path) -> None:
    for out in (tmp_path / "back", tmp_path / "x.safetensors"):
        assert rbe("decode", compressed, "-o", out, "-q").code == 0
        done = rbe("decode", compressed, "-o", out, "-q")
        assert done.code == 1
        assert "--force" in done.complaint()
        assert rbe("decode", compressed, "-o", out, "-q", "--force").code == 0


def test_several_shards_do_not_fit_in_one_file(rbe: Run, sharded_source: Path, tmp_path: Path) -> None:
    assert rbe("compress", sharded_source, "-o", tmp_path / "m", "--bits", 6, "-q").code == 0
    done = rbe("decode", tmp_path / "m", "-o", tmp_path / "x.safetensors", "-q")
    assert done.code == 2
    assert "3 files" in done.complaint()


def test_compressing_twice_into_a_sub_folder_gives_the_same_bytes(rbe: Run, tiny_source: Path, tmp_path: Path) -> None:
    """What the first run wrote does not belong to the model: the second must not carry it along."""
    source = Path(shutil.copytree(tiny_source, tmp_path / "model"))
    out = source / "m.rbe"
    assert rbe("compress", source, "-o", out, "--bits", 6, "-q").code == 0
    first = folder_bytes(out)
    assert rbe("compress", source, "-o", out, "--bits", 6, "-q", "--force").code == 0
    assert folder_bytes(out) == first


def test_here_is_a_path_too(rbe: Run, tiny_source: Path, compressed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cd model.rbe; rbe inspect .; rbe decode .`"""
    monkeypatch.chdir(compressed)
    assert rbe("inspect", ".", "--json").json()["tensors"]
    done = rbe("decode", ".", "-q")
    assert done.code == 0 or done.complaint()
    assert not any(p.name.endswith(".safetensors") for p in compressed.iterdir())


def test_decoded_size_may_be_limited(rbe: Run, compressed: Path, tmp_path: Path) -> None:
    done = rbe("decode", compressed, "-o", tmp_path / "back", "--max-decoded-size", "1k", "-q")
    assert done.code == 4
    assert "--max-decoded-size" in done.complaint()
    assert rbe("decode", compressed, "-o", tmp_path / "back", "--max-decoded-size", "1GiB", "-q").code == 0


def test_manifest_of_a_newer_format_says_so(rbe: Run, compressed: Path) -> None:
    edit_manifest(compressed, lambda manifest: manifest.update(format=3))
    done = rbe("inspect", compressed)
    assert done.code == 4
    assert "format 3" in done.complaint()


def test_a_disk_that_may_not_be_written(rbe: Run, tiny_source: Path) -> None:
    """/proc takes no new folders, not even from root."""
    done = rbe("compress", tiny_source, "-o", "/proc/model.rbe", "--bits", 6, "-q")
    assert done.code == 1
    done.complaint()


def test_file_names_that_are_not_text(tiny_source: Path, tmp_path: Path) -> None:
    """A path with a byte that is not UTF-8 is a path like any other."""
    out = tmp_path / os.fsdecode(b"m\xff.rbe")
    done = rbe_process("compress", tiny_source, "-o", out, "--bits", 6, "-q")
    assert done.code == 0
    assert "Traceback" not in done.err
    assert (out / "rbe.json").is_file()


def test_size_out_of_reach_is_exit_1(rbe: Run, tmp_path: Path) -> None:
    save_file({"ids": np.random.default_rng(0).integers(0, 2**62, 5000)}, tmp_path / "x.safetensors")
    done = rbe("compress", tmp_path / "x.safetensors", "-o", tmp_path / "m", "-q")
    assert done.code == 1
    assert "cannot be that small" in done.complaint()
    assert not (tmp_path / "m").exists()
