"""What no compressed folder could hold, so that it could not be read again, is refused while the original is there."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rbe_cli.errors import RBEError
from tests.attacks.trial import Arena
from tests.synthetic import compress_to, decode_to, folder_bytes, safetensors_bytes

ONE: dict[str, Any] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize("name", [b"a\nb", b"a:b", b"\x1b[31m", b"a\\b", b"\xff\xfe", b" a", "\u202ea".encode()])
def test_file_name(tmp_path: Path, tiny_source: Path, name: bytes) -> None:
    source = tmp_path / "model"
    source.mkdir()
    shutil.copy(tiny_source / "model.safetensors", source / os.fsdecode(name + b".safetensors"))
    with pytest.raises(RBEError, match="no compressed folder can hold a file of such a name; rename it"):
        compress_to(source, tmp_path / "out", bits=6.0)
    assert os.listdir(tmp_path) == ["model"]


def test_folder_name(tmp_path: Path, tiny_source: Path) -> None:
    source = shutil.copytree(tiny_source, tmp_path / os.fsdecode(b"\xff"))
    with pytest.raises(RBEError, match="its name is no UTF-8; rename it"):
        compress_to(source, tmp_path / "out", bits=6.0)


def test_dimensions(tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    source.write_bytes(safetensors_bytes({"a": ONE | {"shape": [1] * 33}}, bytes(4)))
    with pytest.raises(RBEError, match=r"'a' has 33 dimensions, more than 32"):
        compress_to(source, tmp_path / "out", lossless=True)


def test_header_of_a_layer(tmp_path: Path) -> None:
    """Names of 20 MB in one layer: its header would be beyond the cap."""
    source = tmp_path / "model.safetensors"
    header = {f"a.{i:0100000}": ONE | {"data_offsets": [4 * i, 4 * i + 4]} for i in range(200)}
    source.write_bytes(safetensors_bytes(header, np.arange(200, dtype=np.float32).tobytes()))
    with pytest.raises(RBEError, match=r"out: cannot be written so that it can be read again \(.*cut short or damaged"):
        compress_to(source, tmp_path / "out", lossless=True)
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_what_is_no_file_is_not_carried(tmp_path: Path, tiny_source: Path) -> None:
    """Nor is it waited for: the kernel's own files say they are empty."""
    source = shutil.copytree(tiny_source, tmp_path / "model")
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(str(source / "socket"))
    os.mkfifo(source / "pipe.json")
    for name, target in (("zero", "/dev/zero"), ("loop", "loop"), ("up", ".."), ("gone", "nowhere")):
        (source / name).symlink_to(target)
    (source / "memory.txt").symlink_to("/proc/self/mem")
    (source / "log.txt").symlink_to("/proc/kmsg")
    arena, out = Arena(), tmp_path / "out"
    try:
        for trial in arena.run(("compress", source, "-o", out, "-q", "--effort", "0"), ("verify", out, "-q")):
            assert (trial.code, trial.err) == (0, "")
    finally:
        arena.close()
    carried = set(folder_bytes(out / "files"))
    assert carried - {"memory.txt", "log.txt"} == {"config.json", "1_Pooling/config.json"}
    decode_to(out, tmp_path / "back")
