"""Going on after a kill: the same bytes as a run that was never stopped, and nothing that belongs to other work."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rbe_cli.container.layer_file import EncodedTensor
from rbe_cli.errors import CorruptFile, Interrupted, RBEError
from rbe_cli.operations import compress as operation
from rbe_cli.operations import records
from tests.command_line import ENVIRONMENT, rbe_process
from tests.synthetic import compress_to, folder_bytes, scaled_normal


class Killed(BaseException):
    """Stands for kill -9: what would clean up is taken away, too."""


class Notes:
    """A Progress that remembers notes and details."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.details: list[str] = []

    def phase(self, name: str, total: int) -> None: ...

    def advance(self, elements: int) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)

    def detail(self, text: str) -> None:
        self.details.append(text)


@contextmanager
def stopped_after(layers: int, error: type[BaseException], kept: type[BaseException] | None = None) -> Iterator[None]:
    """A compression that is stopped by `error` when so many layers are written, and raises `kept` or that."""
    write, left = operation.write_layer, [layers]

    def counted(path: Path, tensors: list[EncodedTensor]) -> None:
        if not left[0]:
            raise error
        left[0] -= 1
        write(path, tensors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operation, "write_layer", counted)
        if error is Killed:
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(kept or error):
            yield


@pytest.mark.parametrize(
    ("wish", "layers"), [({"bits": 6.0}, 0), ({"bits": 6.0}, 5), ({"bits": 6.0}, 13), ({"nrmse": 0.05}, 3)]
)
def test_same_bytes_after_a_kill(tiny_source: Path, tmp_path: Path, wish: dict[str, float], layers: int) -> None:
    """13 layers are more than there are, so that one is killed in its second pass."""
    compress_to(tiny_source, tmp_path / "whole", **wish)
    with stopped_after(layers, Killed):
        compress_to(tiny_source, tmp_path / "out", **wish)
    assert (tmp_path / ".out.partial").is_dir()
    said = Notes()
    compress_to(tiny_source, tmp_path / "out", resume=True, progress=said, **wish)
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["out", "whole"]
    if 0 < layers < 8:
        assert sum("finished before" in text for text in said.details) == layers
    assert said.notes == ["wild.weight: holds NaN or infinity in float32, kept exactly"]


def test_without_resume_the_work_begins_anew(tiny_source: Path, tmp_path: Path) -> None:
    with stopped_after(3, Killed):
        compress_to(tiny_source, tmp_path / "out", bits=6.0)
    said = Notes()
    compress_to(tiny_source, tmp_path / "out", bits=6.0, progress=said)
    assert not any("finished before" in text for text in said.details)
    assert os.listdir(tmp_path) == ["out"]


def other_settings(source: Path, work: Path) -> None: ...


def other_source(source: Path, work: Path) -> None:
    save_file({"a.weight": scaled_normal((64, 64), 9)}, source / "model.safetensors")


def damaged_journal(source: Path, work: Path) -> None:
    journal = work / "journal"
    journal.write_bytes(journal.read_bytes().replace(b'"layer"', b'"lay\\er"', 1))


def damaged_layer(source: Path, work: Path) -> None:
    for layer in (work / "whole").glob("*.rbe"):
        layer.write_bytes(layer.read_bytes()[:-1] + b"?")


def journal_of_deep_nesting(source: Path, work: Path) -> None:
    (work / "journal").write_bytes(b"[" * 200_000)


def journal_of_huge_numbers(source: Path, work: Path) -> None:
    journal = work / "journal"
    journal.write_bytes(re.sub(rb'"bytes":\d+', b'"bytes":1e400', journal.read_bytes()))


def journal_of_other_figures(source: Path, work: Path) -> None:
    journal = work / "journal"
    journal.write_bytes(re.sub(rb'"nrmse":0\.\d+', b'"nrmse":0.001', journal.read_bytes(), count=1))


def journal_of_other_tensors(source: Path, work: Path) -> None:
    """A forger can make the checksums right."""
    journal = work / "journal"
    lines = [json.loads(line)["record"] for line in journal.read_bytes().splitlines()]
    journal.unlink()
    for line in lines:
        for tensor in line.get("layer", {}).get("tensors", []):
            tensor["method"] = "same as nope"
        records.add(journal, line)


def journal_without_a_beginning(source: Path, work: Path) -> None:
    journal = work / "journal"
    journal.write_bytes(journal.read_bytes().partition(b"\n")[2])


def journal_that_is_a_pipe(source: Path, work: Path) -> None:
    (work / "journal").unlink()
    os.mkfifo(work / "journal")


def journal_that_is_a_link(source: Path, work: Path) -> None:
    (work / "journal").rename(source / "journal")
    (work / "journal").symlink_to(source / "journal")


def layers_that_are_a_link(source: Path, work: Path) -> None:
    (work / "whole").rename(work / "elsewhere")
    (work / "whole").symlink_to(work / "elsewhere")


def strangers_in_the_folder(source: Path, work: Path) -> None:
    """Folders in place of the layers, one beside them, and a link where carried files would be copied to."""
    for layer in (work / "whole").glob("*.rbe"):
        layer.unlink()
        layer.mkdir()
    (work / "whole" / "more").mkdir()
    (work / "whole" / "more" / "file").touch()
    shutil.rmtree(work / "whole" / "files", ignore_errors=True)
    (work / "whole" / "files").symlink_to(source)


@pytest.mark.parametrize(
    ("change", "bits", "words"),
    [
        (other_settings, 5.0, "what is there was made with another set of settings"),
        (other_source, 9.0, "what is there was made with another source"),
        (damaged_journal, 6.0, "the journal of what is there is damaged"),
        (damaged_layer, 6.0, ""),
        (journal_of_deep_nesting, 6.0, "the journal of what is there is damaged"),
        (journal_of_huge_numbers, 6.0, "the journal of what is there is damaged"),
        (journal_of_other_figures, 6.0, "the journal of what is there is damaged"),
        (journal_of_other_tensors, 6.0, ""),
        (journal_without_a_beginning, 6.0, "the journal of what is there is damaged"),
        (journal_that_is_a_pipe, 6.0, "the journal of what is there is damaged"),
        (journal_that_is_a_link, 6.0, "the journal of what is there is damaged"),
        (layers_that_are_a_link, 6.0, ""),
        (strangers_in_the_folder, 6.0, ""),
    ],
)
def test_other_work_is_not_gone_on_with(
    tiny_source: Path, tmp_path: Path, change: Callable[[Path, Path], None],
    bits: float, words: str,
) -> None:  # fmt: skip
    source = Path(shutil.copytree(tiny_source, tmp_path / "model"))
    with stopped_after(4, Killed):
        compress_to(source, tmp_path / "out", bits=6.0 if bits != 9 else bits)
    change(source, tmp_path / ".out.partial")
    said = Notes()
    compress_to(source, tmp_path / "out", bits=bits, resume=True, progress=said)
    compress_to(source, tmp_path / "whole", bits=bits)
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "whole")
    expected = [f"starting at the beginning: {words}"] if words else []
    assert [text for text in said.notes if "starting" in text] == expected
    assert not any("finished before" in text for text in said.details)


def test_nothing_to_go_on_from(tiny_source: Path, tmp_path: Path) -> None:
    said = Notes()
    compress_to(tiny_source, tmp_path / "out", bits=6.0, resume=True, progress=said)
    assert "starting at the beginning: there is nothing to go on from" in said.notes


def test_what_is_complete_already_is_left(tiny_source: Path, tmp_path: Path) -> None:
    first = compress_to(tiny_source, tmp_path / "out", bits=6.0)
    before = (tmp_path / "out" / "rbe.json").stat().st_mtime_ns
    said = Notes()
    again = compress_to(tiny_source, tmp_path / "out", bits=6.0, resume=True, progress=said)
    assert said.notes == [f"{tmp_path / 'out'} is complete already"]
    assert (again.size, again.passes) == (first.size, 0)
    assert (tmp_path / "out" / "rbe.json").stat().st_mtime_ns == before
    with pytest.raises(RBEError, match="--force"):
        compress_to(tiny_source, tmp_path / "out", bits=5.0, resume=True)


def test_what_is_complete_is_not_if_files_beside_the_weights_changed(tiny_source: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(tiny_source, source)
    compress_to(source, out, bits=6.0)
    (source / "config.json").write_text('{"model_type": "other"}')
    with pytest.raises(RBEError, match="--force"):
        compress_to(source, out, bits=6.0, resume=True)
    compress_to(source, out, bits=6.0, resume=True, force=True)
    assert (out / "files" / "config.json").read_bytes() == (source / "config.json").read_bytes()
    (out / "files" / "config.json").unlink()
    with pytest.raises(CorruptFile, match=r"config.json: missing"):
        compress_to(source, out, bits=6.0, resume=True)


@pytest.mark.parametrize("change", ["name", "carried"])
def test_sizes_of_passes_count_only_beside_the_same_files(change: str, tmp_path: Path) -> None:
    """The manifest counts: with a longer name, or more files, the passes before would have measured other sizes."""
    source = tmp_path / "source"
    source.mkdir()
    save_file({f"h.{i}.weight": scaled_normal((64, 64), i) for i in range(4)}, source / "model.safetensors")
    with stopped_after(5, Killed):
        compress_to(source, tmp_path / "out", bits=4.0, effort=9)
    if change == "name":
        source = source.rename(tmp_path / ("s" * 100))
    else:
        for i in range(9):
            (source / f"{i}.json").write_text("{}")
    compress_to(source, tmp_path / "out", bits=4.0, effort=9, resume=True)
    compress_to(source, tmp_path / "whole", bits=4.0, effort=9)
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "whole")


def test_interruption_keeps_the_work_only_with_resume(tiny_source: Path, tmp_path: Path) -> None:
    with stopped_after(4, KeyboardInterrupt):
        compress_to(tiny_source, tmp_path / "out", bits=6.0)
    assert os.listdir(tmp_path) == []
    with stopped_after(4, KeyboardInterrupt, Interrupted):
        compress_to(tiny_source, tmp_path / "out", bits=6.0, resume=True)
    said = Notes()
    compress_to(tiny_source, tmp_path / "out", bits=6.0, resume=True, progress=said)
    assert sum("finished before" in text for text in said.details) == 4


def test_killed_for_real(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {f"h.{i}.weight": rng.standard_normal((512, 512), dtype=np.float32) for i in range(8)}
    save_file(tensors, tmp_path / "x.safetensors")
    command = ["compress", tmp_path / "x.safetensors", "--jobs", "1", "--resume", "-v", "-o"]
    with subprocess.Popen(
        [sys.executable, "-m", "rbe_cli", *map(str, command), str(tmp_path / "out")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT,
    ) as process:  # fmt: skip
        journal = tmp_path / ".out.partial" / "journal"
        until = time.monotonic() + 60
        while time.monotonic() < until and not (journal.exists() and journal.read_bytes().count(b"\n") > 3):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    again = rbe_process(*command, tmp_path / "out")
    assert again.code == 0, again.err
    assert again.err.count("finished before") >= 3
    assert rbe_process(*command, tmp_path / "whole").code == 0
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "whole")


def test_two_at_once(tiny_source: Path, tmp_path: Path) -> None:
    from rbe_cli.files.atomic import atomic_folder

    with atomic_folder(tmp_path / "out", replace=False), pytest.raises(RBEError, match="another rbe is writing it"):
        compress_to(tiny_source, tmp_path / "out", bits=6.0)


def test_killed_between_the_last_two_steps(tmp_path: Path) -> None:
    """The old folder is away, the new one not yet in its place: nothing of the old one is lost."""
    from rbe_cli.files.atomic import atomic_folder

    (tmp_path / ".out.partial" / "old").mkdir(parents=True)
    (tmp_path / ".out.partial" / "old" / "rbe.json").write_text("old")
    with pytest.raises(RBEError, match="already there"), atomic_folder(tmp_path / "out", replace=False):
        pass
    assert (tmp_path / "out" / "rbe.json").read_text() == "old"
