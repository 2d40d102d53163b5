"""Presets: what ships, what a file may hold, who wins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rbe_cli.errors import CorruptFile, RBEError, UsageError
from rbe_cli.operations.presets import as_toml, folder, names, read_preset, resolve
from rbe_cli.operations.settings import Settings
from tests.command_line import ENVIRONMENT, Run


def test_all_that_ship_can_be_used_and_say_why() -> None:
    assert names() == ["balanced", "extreme", "lossless", "near-lossless", "small"]
    for name in names():
        resolve(name, {})
        lines = (folder() / f"{name}.toml").read_text().splitlines()
        assert lines[0].startswith("# ")
        assert all(line.startswith("#") or "#" in line for line in lines)


def test_balanced_is_the_default() -> None:
    assert resolve("balanced", {}) == Settings()


def test_extreme_is_the_guides() -> None:
    settings = resolve("extreme", {})
    assert (settings.k, settings.ratio) == (16, 1000.0)


def test_the_command_line_wins_and_a_rate_replaces_any_rate() -> None:
    settings = resolve("extreme", {"bits": 3.0, "k": 4, "effort": None})
    assert (settings.bits, settings.ratio, settings.k, settings.effort) == (3.0, None, 4, 9)
    assert resolve("extreme", {"lossless": True}).structure_only is False


def test_what_is_shown_can_be_read_back(run: Run, tmp_path: Path) -> None:
    done = run("compress", "x", "--preset", "small", "--override", 'a"b=lossless', "--show-config")
    assert done.code == 0
    (tmp_path / "mine.toml").write_text(done.out)
    assert run("compress", "x", "--preset", "mine.toml", "--show-config").out == done.out
    settings = resolve("mine.toml", {})
    assert settings.overrides == ('a"b=lossless',)
    assert as_toml(settings) == done.out
    piped = subprocess.run(
        [sys.executable, "-m", "rbe_cli", "compress", "x", "--preset", "-", "--show-config"],
        input=done.out, capture_output=True, text=True, env=ENVIRONMENT, check=True,
    )  # fmt: skip
    assert piped.stdout == done.out


def test_a_folder_is_no_file_of_settings(run: Run, mini: Path, tmp_path: Path) -> None:
    (tmp_path / "p.toml").mkdir()
    for arguments in (("compress", "x", "--preset", "p.toml"), ("inspect", mini, "--budget", "p.toml")):
        done = run(*arguments)
        assert (done.code, done.complaint()) == (2, "p.toml: is a folder; name a file")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("blocks = 128", "unknown key 'blocks'; did you mean 'block'"),
        ("jobs = 3", "unknown key 'jobs'"),
        ("effort = 2.5", "wrong type"),
        ("lossless = 1", "wrong type"),
        ('overrides = "x=skip"', "wrong type"),
        ("bits = 99", "--bits must be from"),
        ("bits = 3\nratio = 4", "not both"),
        ("bits", "not TOML"),
        ("k = " + "[" * 100_000, "not TOML"),
        ("k = " + "9" * 100_000, "not TOML"),
        ("bits = " + "9" * 4000, "beyond 64 bits"),
        ("#" * (17 << 20), "no settings"),
        ("", "holds no settings"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(UsageError) as error:
        resolve(str(tmp_path / "p.toml"), {})
    assert words in str(error.value)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "mine.toml")
    with pytest.raises(CorruptFile, match="not a plain file"):
        read_preset(str(tmp_path / "mine.toml"))


def test_a_file_name_that_cannot_be(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('importance = "a\\u0000b"')
    done = run("compress", "mini-gpt2", "--preset", tmp_path / "mine.toml", "--dry-run")
    assert done.code == 4
    assert "no file has such a name" in done.err


def test_names_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'small'"):
        read_preset("smal")
    with pytest.raises(RBEError, match="cannot be read"):
        read_preset(str(tmp_path / "none.toml"))


def test_sizes_for_people(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('size = "60MB"')
    assert resolve(str(tmp_path / "p.toml"), {}).size == 60_000_000
