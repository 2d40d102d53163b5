"""What an encoder puts aside makes the same bytes, whether it stays in memory or goes to a temporary file."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rbe_cli.codec import workspace
from rbe_cli.codec.choice.wish import Wish, reference_error
from rbe_cli.codec.residual.analysis import Analysis
from rbe_cli.codec.residual.noise_shaping import PLAIN, Inputs, Shaping
from rbe_cli.codec.source import Matrix
from rbe_cli.codec.structure import pipeline
from rbe_cli.codec.tensor_codec import prepare
from rbe_cli.codec.workspace import Allowance, Findings
from rbe_cli.errors import RBEError
from tests.synthetic import compress_to, folder_bytes, scaled_normal


@pytest.fixture
def no_allowance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "arrays_aside", Allowance(0))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    low_rank = rng.standard_normal((192, 4)) @ rng.standard_normal((4, 128)) + 0.3 * rng.standard_normal((192, 128))
    folder = tmp_path_factory.mktemp("source")
    save_file({"a.w": low_rank.astype(np.float32), "b.w": scaled_normal((512, 48), 1)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    "wish",
    [
        {"bits": 4.0},
        {"bits": 4.0, "transform": "klt"},
        {"bits": 4.0, "transform": "lowrank"},
        {"ratio": 40.0, "structure_only": True},
        {"ratio": 40.0, "structure_only": True, "transform": "dct", "block": 16},
    ],
)
def test_same_bytes(wish: dict[str, Any], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compress_to(source, tmp_path / "memory", **wish)
    monkeypatch.setattr(workspace, "arrays_aside", Allowance(0))
    compress_to(source, tmp_path / "file", **wish)
    assert folder_bytes(tmp_path / "memory") == folder_bytes(tmp_path / "file")


@pytest.mark.usefixtures("no_allowance")
def test_arrays_come_back() -> None:
    arrays = (np.arange(12, dtype=np.int16).reshape(3, 4).T, np.zeros((3, 0)), np.array([1.5]))
    aside = [Findings(*arrays), Findings(np.arange(5))]
    for findings in aside:
        findings.set_aside()
    for array, back in zip(arrays, aside[0].arrays(), strict=True):
        assert array.dtype == back.dtype
        np.testing.assert_array_equal(array, back)
    np.testing.assert_array_equal(aside[1].arrays()[0], np.arange(5))


def test_the_allowance_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "arrays_aside", Allowance(100))
    aside = Findings(np.zeros(10))
    assert workspace.arrays_aside.take(40)
    workspace.arrays_aside.give(40)
    for _ in range(2):
        aside.set_aside()
    assert not workspace.arrays_aside.take(40)
    del aside
    gc.collect()
    assert workspace.arrays_aside.take(100)


@pytest.mark.usefixtures("no_allowance")
def test_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rbe_cli.codec.workspace.tempfile.TemporaryFile", full)
    findings = Findings(np.zeros(10))
    with pytest.raises(RBEError, match="TMPDIR"):
        findings.set_aside()
    assert findings.arrays()[0].size == 10


@pytest.mark.usefixtures("no_allowance")
@pytest.mark.parametrize("transform", ["none", "klt", "lowrank"])
def test_what_stays_in_memory_does_not_grow_with_the_tensor(transform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "kept_matrices", Allowance(0))
    rng = np.random.default_rng(0)
    w = rng.standard_normal((4096, 4)) @ rng.standard_normal((4, 64)) + 0.3 * scaled_normal((4096, 64), 1)
    matrix = Matrix(w.astype(np.float32).view(np.uint8).ravel(), "F32", *w.shape)
    choice = prepare(matrix, PLAIN, Wish(transform, 16, 0, reference_error(4.0, None)))
    assert choice is not None
    assert choice.name == transform
    before, forecast = choice.analysis.aligned(0.1), choice.analysis.expected_bytes(0.1)
    choice.analysis.set_aside()
    assert sum(array.nbytes for array in _arrays(choice.analysis, {id(matrix)})) < 8192
    base, step, field = choice.analysis.aligned(0.1)
    assert (base, step) == before[:2]
    np.testing.assert_array_equal(field.rows.exponents, before[2].rows.exponents)
    assert choice.analysis.expected_bytes(0.1) == forecast


@pytest.mark.usefixtures("no_allowance")
@pytest.mark.parametrize("axis", [0, 1])
def test_importance_does_not_stay_in_memory(axis: int) -> None:
    shape = (4096, 64) if axis == 0 else (64, 4096)
    matrix = Matrix.of(scaled_normal(shape, 1).astype(np.float32))
    mean_square = np.exp2(np.linspace(-5, 5, 4096))
    choice = prepare(matrix, Shaping(0, 0, True, Inputs(axis, mean_square)), Wish("none", 16, 0, 0.05))
    assert choice is not None
    analysis = choice.analysis
    assert isinstance(analysis, Analysis)
    before = (analysis.shaping.row_importance, analysis.shaping.column_importance)[axis]
    analysis.set_aside()
    assert sum(array.nbytes for array in _arrays(analysis, {id(matrix)})) < 8192
    after = (analysis.shaping.row_importance, analysis.shaping.column_importance)[axis]
    assert before is not None
    assert after is not None
    np.testing.assert_array_equal(after.exponents, before.exponents)
    assert before.exponents[0] > 10 > -10 > before.exponents[-1]


def _arrays(thing: Any, seen: set[int]) -> Iterator[np.ndarray]:
    """All arrays an object holds, the one it is a view of in the place of a view."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, np.ndarray):
        if isinstance(thing.base, np.ndarray):
            yield from _arrays(thing.base, seen)
        else:
            yield thing
    elif isinstance(thing, tuple | list):
        for part in thing:
            yield from _arrays(part, seen)
    elif isinstance(thing, bytes):
        yield np.frombuffer(thing, np.uint8)
    else:
        yield from _arrays(list(getattr(thing, "__dict__", {}).values()), seen)


def test_who_has_some_does_not_wait_for_itself() -> None:
    allowance = Allowance(10)
    with allowance.held(8), allowance.held(20):
        assert not allowance.take(3)
    assert allowance.take(10)
