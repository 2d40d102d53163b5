"""Written safetensors files: the same bytes as the library's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from rbe_cli.checkpoint.writer import layout, write_safetensors
from tests.synthetic import NUMPY_TYPES, dtype_name, read_tensors, tiny_tensors


def write(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None, piece: int = 1 << 20) -> None:
    """Write arrays, in pieces of at most so many bytes."""

    def pieces(tensor: np.ndarray) -> Iterator[np.ndarray]:
        raw = np.frombuffer(tensor.tobytes(), np.uint8)
        yield from (raw[i : i + piece] for i in range(0, raw.size, piece))

    order = layout((name, dtype_name(tensor), tensor.shape) for name, tensor in tensors.items())
    write_safetensors(path, order, (pieces(tensors[name]) for name, _, _ in order), metadata)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {'é\n"\\\x7f\u2028': "\N{SNOWMAN}\0"}])
@pytest.mark.parametrize("piece", [1, 1000, 1 << 20])
def test_same_bytes_as_the_library(tmp_path: Path, metadata: dict[str, str] | None, piece: int) -> None:
    tensors = tiny_tensors() if piece > 1 else {"a": np.arange(10), "scale": np.array(1.5)}
    save_file(tensors, tmp_path / "theirs.safetensors", metadata=metadata)
    write(tmp_path / "ours.safetensors", tensors, metadata, piece)
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["ours.safetensors", "theirs.safetensors"]


_TENSORS = st.dictionaries(
    st.text(max_size=8),
    st.tuples(st.sampled_from(sorted(NUMPY_TYPES)), st.lists(st.integers(0, 3), max_size=4)),
    max_size=8,
)


@given(_TENSORS, st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=1))
def test_any_names_types_and_shapes(
    tmp_path: Path, kinds: dict[str, tuple[str, list[int]]], metadata: dict[str, str] | None
) -> None:
    kinds = {name: kind for name, kind in kinds.items() if name != "__metadata__"}
    # safetensors 0.8 writes broken JSON for no tensors and empty metadata.
    metadata = metadata or None if not kinds else metadata
    tensors = {name: np.zeros(shape, NUMPY_TYPES[dtype]) for name, (dtype, shape) in kinds.items()}
    save_file(tensors, tmp_path / "theirs.safetensors", metadata=metadata)
    write(tmp_path / "ours.safetensors", tensors, metadata)
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_the_library_loads_it(tmp_path: Path) -> None:
    tensors = {name: t for name, t in tiny_tensors().items() if t.dtype.kind in "fiub" and t.dtype.itemsize != 1}
    tensors = {name: t for name, t in tensors.items() if t.dtype.type.__module__ == "numpy"}
    write(tmp_path / "x.safetensors", tensors, {"format": "pt", "b": "2", "a": "1"})
    loaded = load_file(tmp_path / "x.safetensors")
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].tobytes() == tensor.tobytes()


def test_failure_leaves_no_file(tmp_path: Path) -> None:
    def broken() -> Iterator[list[np.ndarray]]:
        yield [np.zeros(4, np.uint8)]
        raise RuntimeError("the source went away")

    with pytest.raises(RuntimeError, match="went away"):
        write_safetensors(tmp_path / "x.safetensors", [("a", "F32", (1,)), ("b", "F32", (1,))], broken(), None)
    assert os.listdir(tmp_path) == []


def test_our_own_reader_in_the_tests_agrees_with_the_library(tiny_source: Path) -> None:
    tensors = read_tensors(tiny_source)
    for name, tensor in tiny_tensors().items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].shape == tensor.shape
        assert tensors[name].tobytes() == tensor.tobytes()
