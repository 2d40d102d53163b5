"""A few of every fault that does not take long; `make faults` injects them by the dozen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults import faults
from tests.faults.faults import ABSENT, NEW, OLD, Fault, Scene, inject


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    return Scene(tmp_path_factory.mktemp("scene"))


@pytest.mark.parametrize(
    ("fault", "times", "allowed"),
    [
        (faults.kill_compress, 2, {ABSENT, NEW}),
        (faults.kill_compress_force, 1, {OLD, NEW, ABSENT}),
        (faults.kill_decode, 1, {OLD, NEW, ABSENT}),
        (faults.kill_sweep, 1, {ABSENT, NEW}),
        (faults.full_disk, 2, {ABSENT, OLD}),
        (faults.read_only_disk, 1, {OLD}),
        (faults.file_size_limit, 1, {OLD}),
        (faults.two_at_once, 1, {NEW}),
    ],
)
def test_fault(fault: Fault, times: int, allowed: set[str], scene: Scene) -> None:
    try:
        assert set(inject(scene, fault, times, seed=1)) <= allowed
    except PermissionError as error:
        pytest.skip(str(error))
