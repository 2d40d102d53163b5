"""What the attacks share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.attacks.trial import Arena


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    """A process to try commands in."""
    opened = Arena()
    yield opened
    opened.close()
