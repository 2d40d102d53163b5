"""Old files stay readable: the golden folders decode to what they did when they were made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rbe_cli.container.folder import Folder
from tests.format.golden import EXPECTED, GOLDEN, assert_expected
from tools import make_golden


@pytest.mark.parametrize("case", sorted(EXPECTED))
def test_package_decodes_golden_folder(case: str) -> None:
    folder = Folder.open(GOLDEN / case, whole=True)
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


@pytest.mark.parametrize("case", make_golden.DETERMINISTIC)
def test_encoder_still_makes_the_golden_bytes(case: str, tmp_path: Path) -> None:
    out = tmp_path / case
    make_golden.make_case(*case.split("/"), out, jobs=2)
    made = {path.name: path.read_bytes() for path in sorted(out.glob("*.rbe"))}
    kept = {path.name: path.read_bytes() for path in sorted((GOLDEN / case).glob("*.rbe"))}
    assert set(made) == set(kept)
    other = [name for name in made if made[name] != kept[name]]
    assert not other, f"{case}: {', '.join(other)}: a change of compressed bytes needs a new format version"


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
