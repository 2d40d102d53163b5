"""`-o -`: the result on standard output, whole and alone."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

from tests.command_line import ENVIRONMENT, Run
from tests.synthetic import compress_to, decode_to, folder_bytes


def piped(*arguments: object) -> tuple[bytes, str]:
    done = subprocess.run(
        [sys.executable, "-m", "rbe_cli", *map(str, arguments)],
        capture_output=True, env=ENVIRONMENT, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, done.stderr.decode()


def test_compress_writes_a_tar_of_the_folder(tiny_source: Path, tmp_path: Path) -> None:
    compress_to(tiny_source, tmp_path / "model.rbe", bits=6.0)
    stream, said = piped("compress", tiny_source, "--bits", 6, "-o", "-")
    with tarfile.open(fileobj=io.BytesIO(stream)) as tar:
        assert {entry.mtime for entry in tar} == {0}
        # Python 3.11.0 to 3.11.3 have no filters.
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        tar.extractall(tmp_path / "there")
    assert folder_bytes(tmp_path / "there" / "model.rbe") == folder_bytes(tmp_path / "model.rbe")
    assert "h.0.attn.weight" in said
    assert "wrote a tar to stdout" in said


def test_decode_writes_a_safetensors_file(tiny_source: Path, tmp_path: Path) -> None:
    compress_to(tiny_source, tmp_path / "model.rbe", bits=6.0)
    decode_to(tmp_path / "model.rbe", tmp_path / "x.safetensors")
    stream, said = piped("decode", tmp_path / "model.rbe", "-o", "-", "-q")
    assert stream == (tmp_path / "x.safetensors").read_bytes()
    assert said == ""


def test_what_does_not_go_together(rbe: Run, tiny_source: Path, sharded_source: Path, tmp_path: Path) -> None:
    for arguments in (("--json",), ("--resume",)):
        done = rbe("compress", tiny_source, "-o", "-", *arguments)
        assert done.code == 2
        assert "-" in done.complaint()
    compress_to(sharded_source, tmp_path / "m", bits=6.0)
    done = rbe("decode", tmp_path / "m", "-o", "-", "-q")
    assert done.code == 2
    assert "was made of 3 files" in done.complaint()
