"""docs/FORMAT.md is complete: a decoder written from it alone reads the golden files as the package does."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from rbe_cli.container.folder import Folder
from tests import reference_decoder
from tests.format.golden import EXPECTED, GOLDEN, assert_expected, assert_near
from tests.reference_decoder import Refused, decode_folder
from tools import make_golden


@pytest.mark.parametrize("case", sorted(EXPECTED))
def test_reference_decoder_agrees(case: str) -> None:
    version, name = case.split("/")
    folder = Folder.open(GOLDEN / case, base=make_golden.base_of(version, name))
    decoded = decode_folder(GOLDEN / case, *make_golden.paths_of_base(version, name))
    assert set(decoded) == set(EXPECTED[case])
    for name, tensor in decoded.items():
        expected = EXPECTED[case][name]
        assert_expected(tensor.data, case, name)
        stored = folder.open_tensor(name)
        data = b"".join(piece.decode().tobytes() for piece in stored.pieces())
        if "sha256" in expected:
            assert tensor.data == data
        else:
            assert_near(tensor.data, data, tensor.dtype)


def test_reference_decoder_does_not_import_the_package() -> None:
    source = Path(reference_decoder.__file__).read_text()
    modules = {
        name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert not [module for module in modules if module.startswith(("rbe_cli", "tests", "tools"))]


@pytest.mark.parametrize("place", [0, 8, 10, 14, 20, 30, 200, 210, 222, 250, 300, 343])
def test_reference_decoder_refuses_damage(place: int, tmp_path: Path) -> None:
    """A flipped bit of the layer file: by its SHA-256, and, with that made to fit, by its own checks."""
    data = bytearray((GOLDEN / "v1" / "example" / "tiny.rbe").read_bytes())
    data[place] ^= 4
    with pytest.raises(Refused):
        reference_decoder.read_layer(bytes(data))
    (tmp_path / "tiny.rbe").write_bytes(data)
    (tmp_path / "rbe.json").write_bytes((GOLDEN / "v1" / "example" / "rbe.json").read_bytes())
    with pytest.raises(Refused):
        decode_folder(tmp_path)
