"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rbe_cli.errors import RBEError
from rbe_cli.files.atomic import atomic_file, atomic_folder, check_file, check_free, remove


class Interruption(BaseException):
    """Stands for Ctrl-C."""


def test_file_appears_when_complete(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a") as file:
        file.write(b"new")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


def test_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a") as file:
        file.write(b"new")
    (tmp_path / "b").write_bytes(b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("before", [None, b"old"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Interruption])
def test_interrupted_file_leaves_what_was_there(tmp_path: Path, before: bytes | None, error: type) -> None:
    if before is not None:
        (tmp_path / "a").write_bytes(before)

    def write_and_fail() -> None:
        with atomic_file(tmp_path / "a") as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        write_and_fail()
    assert os.listdir(tmp_path) == ([] if before is None else ["a"])
    if before is not None:
        assert (tmp_path / "a").read_bytes() == before


def test_folder_appears_when_complete(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "deep" / "out", replace=False) as folder:
        (folder / "x").write_bytes(b"1")
        assert not (tmp_path / "deep" / "out").exists()
    assert os.listdir(tmp_path / "deep") == ["out"]
    assert os.listdir(tmp_path / "deep" / "out") == ["x"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Interruption])
def test_interrupted_folder_leaves_what_was_there(tmp_path: Path, error: type) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_bytes(b"old")

    def fill_and_fail() -> None:
        with atomic_folder(out, replace=True) as folder:
            (folder / "new").write_bytes(b"half")
            raise error

    with pytest.raises(error):
        fill_and_fail()
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(out) == ["old"]


def test_replacing_a_folder_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_bytes(b"old")
    with atomic_folder(out, replace=True) as folder:
        (folder / "new").write_bytes(b"new")
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(out) == ["new"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    check_free(tmp_path / "out", replace=False)
    with atomic_folder(tmp_path / "out", replace=False) as folder:
        (folder / "x").touch()
    assert os.listdir(tmp_path / "out") == ["x"]


def test_what_is_not_free(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "full")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "fifo")
    check_free(tmp_path / "new", replace=False)
    check_free(tmp_path / "full", replace=True)
    with pytest.raises(RBEError, match="--force"):
        check_free(tmp_path / "full", replace=False)
    for name in ("file", "link", "dangling", "fifo"):
        for replace in (False, True):
            with pytest.raises(RBEError, match="not a folder"):
                check_free(tmp_path / name, replace=replace)


def test_output_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def fill_while_somebody_else_does() -> None:
        with atomic_folder(out, replace=False) as folder:
            (folder / "mine").touch()
            out.mkdir()
            (out / "theirs").touch()

    with pytest.raises(RBEError, match="already there"):
        fill_while_somebody_else_does()
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(out) == ["theirs"]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("after", ["out", "whole"])
def test_an_interruption_between_the_last_steps_loses_neither(
    after: str, keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_bytes(b"old")
    rename = Path.rename

    def rename_and_interrupt(path: Path, target: Path) -> Path:
        renamed = rename(path, target)
        if path.name == after:
            monkeypatch.setattr(Path, "rename", rename)
            raise Interruption
        return renamed

    def fill() -> None:
        with atomic_folder(out, replace=True, keep=keep) as folder:
            (folder / "new").write_bytes(b"new")

    monkeypatch.setattr(Path, "rename", rename_and_interrupt)
    with pytest.raises(Interruption):
        fill()
    assert os.listdir(out) == (["old"] if after == "out" else ["new"])
    fill()
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(out) == ["new"]


def test_what_a_killed_process_left_of_a_file_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".a.partial").write_bytes(b"half of something long")
    with atomic_file(tmp_path / "a") as file:
        file.write(b"new")
        with pytest.raises(RBEError, match="another rbe"), atomic_file(tmp_path / "a"):
            pass
    assert (tmp_path / "a").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("planted", ["link", "hard link", "folder", "pipe"])
def test_what_stands_in_the_place_of_a_partial_file_is_left_alone(planted: str, tmp_path: Path) -> None:
    mine, partial = tmp_path / "thesis", tmp_path / ".a.partial"
    mine.write_bytes(b"years of work")
    {
        "link": lambda: partial.symlink_to(mine),
        "hard link": lambda: partial.hardlink_to(mine),
        "folder": partial.mkdir,
        "pipe": lambda: os.mkfifo(partial),
    }[planted]()
    with pytest.raises(RBEError, match="choose another"), atomic_file(tmp_path / "a"):
        pass
    assert mine.read_bytes() == b"years of work"
    assert sorted(os.listdir(tmp_path)) == [".a.partial", "thesis"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may remove anything")
def test_what_cannot_be_removed_is_named(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "c").touch()
    inner.chmod(0o555)
    with pytest.raises(RBEError, match="c: cannot be removed"):
        remove(tmp_path / "a")
    inner.chmod(0o755)


def test_where_no_file_can_be_is_known_before_there_is_anything_to_write(tmp_path: Path) -> None:
    """/proc takes no new files, not even from root; a device would be replaced by a file."""
    for path, words in (
        (Path("/proc/table.csv"), "cannot be written"),
        (tmp_path, "is a folder"),
        (tmp_path / "gone" / "table.csv", "make it first"),
        (Path("/dev/null"), "is not a plain file"),
    ):
        with pytest.raises(RBEError, match=words):
            check_file(path, replace=True)
    check_file(tmp_path / "table.csv", replace=False)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("whole", [atomic_file, partial(atomic_folder, replace=False)])
def test_what_does_not_fit_on_the_disk_is_named(whole: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as error, whole(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert error.value.filename == str(tmp_path / "out")
