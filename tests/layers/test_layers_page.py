"""The Python in docs/layers.md runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rbe_cli import models
from tests.synthetic import compress_to

PAGE = Path(__file__).resolve().parents[2] / "docs" / "layers.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_example(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "mini.rbe" in example:
        compress_to(Path(models.__path__[0]) / "mini_gpt2", tmp_path / "mini.rbe", effort=0)
    assert "rbe_cli.layers" in example
    exec(compile(example, PAGE.name, "exec"), {})


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 3
