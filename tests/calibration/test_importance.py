"""Importance files: what is read, and one clear error for everything that is not one."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from rbe_cli.calibration.importance import Importance
from rbe_cli.calibration.importance_file import read_importance
from rbe_cli.errors import CorruptFile, RBEError, UsageError

SQUARES = np.array([1.0, 0.0, 4.0], np.float32)


def written(path: Path, tensors: dict[str, np.ndarray], **metadata: object) -> Path:
    save_file(tensors, path, metadata={key: json.dumps(value) for key, value in metadata.items()} or None)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "i.safetensors"


def test_the_axis_is_the_one_that_fits_or_the_one_that_is_said(file: Path) -> None:
    importance = read_importance(written(file, {"a": SQUARES, "b": SQUARES}, input_axis={"b": 0}))
    for name, shape, axis in (("a", (3, 5), 0), ("a", (5, 3), 1), ("b", (3, 3), 0), ("b", (3, 5), 0)):
        found = importance.mean_square(name, shape)
        assert found is not None
        assert found[0] == axis
        assert found[1].dtype == np.float64
        assert found[1].tolist() == [1, 0, 4]
    with pytest.raises(UsageError, match=r"'a' is 3x3; the metadata's input_axis must say"):
        importance.mean_square("a", (3, 3))
    with pytest.raises(UsageError, match=r"'a' has 3 input channels there, but is 4x5"):
        importance.mean_square("a", (4, 5))
    with pytest.raises(UsageError, match=r"'b' has 3 input channels there, but is 5x3 along axis 0"):
        importance.mean_square("b", (5, 3))
    with pytest.raises(UsageError, match=r"'a' is 3x4x5; importance is for matrices"):
        importance.mean_square("a", (3, 4, 5))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_any_floating_type(file: Path, dtype: type) -> None:
    found = read_importance(written(file, {"a": SQUARES.astype(dtype)})).mean_square("a", (3, 5))
    assert found is not None
    assert found[1].tolist() == [1, 0, 4]


def test_what_is_missing_or_never_used_is_none(file: Path) -> None:
    importance = read_importance(written(file, {"zeros": np.zeros(3, np.float32)}))
    assert importance.mean_square("other", (3, 5)) is None
    assert importance.mean_square("zeros", (3, 5)) is None
    assert not importance.has_moments("zeros")


def test_shared_moments_are_stored_once(file: Path) -> None:
    x = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    tensors = {"q": SQUARES, "k": SQUARES, "k.moments": x.T @ x}
    importance = read_importance(written(file, tensors, shared={"q": "k"}, input_axis={"q": 1, "k": 1}))
    assert importance.names == ["k", "q"]
    for name in ("q", "k"):
        found = importance.moments(name, (3, 3))
        assert found is not None
        assert (found == x.T @ x).all()
    with pytest.raises(UsageError, match=r"'q' has 3 input channels there, but is 4x5"):
        importance.moments("q", (4, 5))


@pytest.mark.parametrize(
    "bad",
    [
        np.array([1, np.nan, 1]),
        np.array([1, np.inf, 1]),
        np.array([1, 1e39, 1]),
        np.array([1, -1e-9, 1]),
        np.ones((3, 1)),
        np.arange(3),
    ],
)
def test_values_no_mean_square_has(file: Path, bad: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"i.safetensors: 'x.weight'"):
        read_importance(written(file, {"x.weight": bad})).mean_square("x.weight", (4, 3))


@pytest.mark.parametrize(
    "bad",
    [
        np.ones((3, 2)),
        np.full((3, 3), np.nan),
        -np.eye(3),
        np.arange(9.0).reshape(3, 3),
        np.ones(9),
        np.eye(3, dtype=int),
    ],
)
def test_matrices_no_second_moments_are(file: Path, bad: np.ndarray) -> None:
    importance = read_importance(written(file, {"x": SQUARES, "x.moments": bad}))
    with pytest.raises(UsageError, match=r"'x.moments'"):
        importance.moments("x", (5, 3))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("input_axis", "["), ("input_axis", "[1]"), ("input_axis", '{"a": 2}'), ("input_axis", '{"a": true}'),
        ("input_axis", "[" * 100_000), ("shared", '{"a": 1}'), ("shared", "null"),
    ],
)  # fmt: skip
def test_hostile_metadata(file: Path, key: str, value: str) -> None:
    save_file({"a": SQUARES}, file, metadata={key: value})
    with pytest.raises(CorruptFile, match=rf"i.safetensors: the metadata's {key}"):
        read_importance(file)


def test_files_that_are_none(file: Path) -> None:
    with pytest.raises(RBEError, match="no such file"):
        read_importance(file)
    for data in (b"", b"\xff" * 40, b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "[:12]):
        file.write_bytes(data)
        with pytest.raises(CorruptFile, match=r"i.safetensors: not a sound safetensors file"):
            read_importance(file)


@given(st.data())
def test_damage_is_told_and_nothing_else(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A file with some bytes changed reads, or fails with one of our errors."""
    file = tmp_path_factory.mktemp("damaged") / "i.safetensors"
    written(file, {"a": SQUARES, "a.moments": np.eye(3, dtype=np.float32)}, input_axis={"a": 1}, shared={"b": "a"})
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.integers(len(content) - 9, len(content)))])
    with suppress(RBEError):
        importance = read_importance(file)
        assert isinstance(importance, Importance)
        importance.mean_square("a", (5, 3))
        importance.moments("b", (5, 3))
