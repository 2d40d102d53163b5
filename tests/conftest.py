"""Settings and fixtures that every test folder shares."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.command_line import Outcome, Run

# No test may reach for the network, whatever name it mistypes.
os.environ["HF_HUB_OFFLINE"] = "1"
# Tables are as wide as where there is no terminal, whatever the caller's is (workers of xdist are told one).
for _name in ("COLUMNS", "LINES"):
    os.environ.pop(_name, None)

settings.register_profile(
    "rbe",
    deadline=None,
    max_examples=50,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("rbe")


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every kind of tensor in one file, and two files beside it. Read only."""
    from tests.synthetic import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def sharded_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in three shards with an index. Read only."""
    from tests.synthetic import write_sharded_model

    return write_sharded_model(tmp_path_factory.mktemp("sharded") / "model")


@pytest.fixture(scope="session")
def _compressed_once(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.synthetic import compress_to

    out = tmp_path_factory.mktemp("compressed") / "model.rbe"
    compress_to(tiny_source, out, bits=6.0)
    return out


@pytest.fixture
def compressed(_compressed_once: Path, tmp_path: Path) -> Path:
    """The tiny model compressed at 6 bits, in a folder a test may damage."""
    return Path(shutil.copytree(_compressed_once, tmp_path / "model.rbe"))


@pytest.fixture(scope="session")
def pool() -> Iterator[object]:
    """Two worker threads."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture
def rbe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`rbe ARGUMENTS` in this process."""

    from rbe_cli.cli import main
    from tests.command_line import Outcome

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["rbe", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
        return Outcome(code, *capsys.readouterr())

    return run
