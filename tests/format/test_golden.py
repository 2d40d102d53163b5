"""Old files stay readable: the golden folders decode to what they did when they were made."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from rbe_cli import __version__
from rbe_cli.container.folder import Folder
from tests.format.golden import EXPECTED, GOLDEN, assert_expected
from tools import make_golden


@pytest.mark.parametrize("case", sorted(EXPECTED))
def test_package_decodes_golden_folder(case: str) -> None:
    folder = Folder.open(GOLDEN / case, whole=True, base=make_golden.base_of(*case.split("/")))
    assert set(folder.names()) == set(EXPECTED[case])
    for name, expected in EXPECTED[case].items():
        stored = folder.open_tensor(name)
        assert stored.record.codec == expected["codec"]
        assert [stored.entry.dtype, list(stored.entry.shape)] == [expected["dtype"], expected["shape"]]
        assert_expected(b"".join(piece.decode().tobytes() for piece in stored.pieces()), case, name)


def test_every_golden_folder_is_expected() -> None:
    folders = {f"{path.parts[-3]}/{path.parent.name}" for path in GOLDEN.glob("*/*/rbe.json")}
    assert folders == set(EXPECTED)
    assert folders >= {f"{version}/{case}" for version, cases in make_golden.VERSIONS.items() for case in cases}


def test_golden_files_are_small() -> None:
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 300_000


@pytest.mark.parametrize("case", sorted(EXPECTED))
def test_layer_files_have_the_lowest_version_that_reads_them(case: str) -> None:
    for path in (GOLDEN / case).glob("*.rbe"):
        assert path.read_bytes()[8:10] == bytes([int(case[1]), 0])


NOTED = json.loads(make_golden.ENCODER.read_text())


def test_encoder_is_noted_for_this_version() -> None:
    assert NOTED["rbe"] == __version__, "python -m tools.make_golden --encoder"
    assert set(NOTED["files"]) == set(make_golden.DETERMINISTIC)


@pytest.mark.parametrize("case", make_golden.DETERMINISTIC)
def test_encoder_still_makes_the_same_bytes(case: str) -> None:
    assert make_golden.made(case) == NOTED["files"][case], "a change of compressed bytes needs a new version of rbe"


def test_golden_files_are_never_made_anew() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "tools.make_golden", "v1"],
        cwd=GOLDEN.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1
    assert "never made anew" in process.stderr
