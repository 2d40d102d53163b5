"""The tiny GPT-2 of the layers' tests, with an importance file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.layers import tiny_gpt2


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of a two-layer byte model. Read only."""
    return tiny_gpt2.write(tmp_path_factory.mktemp("calibrated") / "model")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 1300 bytes. Read only."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(f"In the beginning, line {i} of {i * i} words and more." for i in range(30)))
    return path
