"""Where compiled kernels are kept when neither the package's folder nor the user's can be written to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import ENVIRONMENT

#: Permissions do not stop the superuser, as whom tests may run, so numba is left the locator of NUMBA_CACHE_DIR alone.
_WORK = """
from numba.core import caching
caching.CacheImpl._locator_classes = caching.CacheImpl._locator_classes[:1]
import numpy as np
from rbe_cli.kernels import JIT
from rbe_cli.kernels.field import sum_of_squares
print(JIT["cache"], sum_of_squares(np.ones(3, np.float32)))
"""


def work(tmp: Path) -> str:
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "NUMBA_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", _WORK],
        env=environment | {"TMPDIR": str(tmp)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_a_folder_of_the_user(tmp_path: Path) -> None:
    assert work(tmp_path) == "True 3.0"
    (folder,) = tmp_path.iterdir()
    assert folder.name == f"rbe-kernels-{os.geteuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    before = sorted(folder.rglob("*.nbc"))
    assert before
    assert work(tmp_path) == "True 3.0"
    assert sorted(folder.rglob("*.nbc")) == before


@pytest.mark.parametrize("kind", ["link", "open to others", "file"])
def test_a_folder_that_others_may_write_to_is_not_read_from(kind: str, tmp_path: Path) -> None:
    theirs, tmp = tmp_path / "theirs", tmp_path / "tmp"
    theirs.mkdir(0o700)
    tmp.mkdir()
    folder = tmp / f"rbe-kernels-{os.geteuid()}"
    if kind == "link":
        folder.symlink_to(theirs)
    elif kind == "file":
        folder.touch(0o700)
    else:
        folder.mkdir()
        folder.chmod(0o770)
    assert work(tmp) == "False 3.0"
    assert list(theirs.iterdir()) == []
    assert folder.is_file() or list(folder.iterdir()) == []
