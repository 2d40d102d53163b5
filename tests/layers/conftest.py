"""A tiny GPT-2 and what 4 bits make of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.layers import tiny_gpt2
from tests.synthetic import compress_to


@pytest.fixture(scope="session")
def gpt2_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of a two-layer byte model. Read only."""
    return tiny_gpt2.write(tmp_path_factory.mktemp("gpt2") / "model")


@pytest.fixture(scope="session")
def gpt2_folder(gpt2_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same compressed. Read only."""
    out = tmp_path_factory.mktemp("gpt2-rbe") / "model.rbe"
    compress_to(gpt2_source, out, nrmse=0.05)
    return out
