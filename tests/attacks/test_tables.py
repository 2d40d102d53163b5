"""The frequency tables that ship with the package: damaged ones are never used."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbe_cli.codec.residual import tables
from rbe_cli.errors import RBEError


def test_tables_that_are_not_the_format_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (Path(tables.__file__).parent / "tables.txt").read_bytes()
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "tables.txt").write_bytes(bytes(damaged))
    monkeypatch.setattr(tables.resources, "files", lambda package: tmp_path)
    tables._parsed.cache_clear()
    tables.family.cache_clear()
    try:
        with pytest.raises(RBEError, match="reinstall"):
            tables.family(0)
    finally:
        monkeypatch.undo()
    assert int(tables.family(0).coding.freq[256:].sum()) % 4096 == 0
