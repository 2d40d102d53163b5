"""Commands in an empty folder, on the model that ships with the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbe_cli import models
from tests.command_line import Run
from tests.synthetic import compress_to


@pytest.fixture
def run(rbe: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """`run("inspect", "x.rbe")` is `rbe inspect x.rbe` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return rbe


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model at 3 bits. Read only."""
    out = tmp_path_factory.mktemp("mini") / "mini.rbe"
    compress_to(models.path(), out, bits=3.0, effort=0)
    return out
