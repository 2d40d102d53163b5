"""Hostile importance files, `rbe compress --importance`: one line that names the file, nothing written, no bomb."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.attacks.budget import CONSTANT, CPU_SECONDS
from tests.attacks.trial import Arena
from tests.gguf_files import gguf_bytes, text
from tests.synthetic import safetensors_bytes, scaled_normal

N = 96
SQUARES = np.abs(np.random.default_rng(0).standard_normal(N)).astype(np.float32) + 0.1
INPUTS = np.random.default_rng(1).standard_normal((500, N))
MOMENTS = INPUTS.T @ INPUTS / 500
AXIS = json.dumps({"a.weight": 1})
Attack = Callable[[Path], object]


def tensors(values: dict[str, np.ndarray], **metadata: str) -> Attack:
    """A sound safetensors file of these."""
    return lambda path: save_file(values, path, metadata={"input_axis": AXIS} | metadata)


def squares(values: np.ndarray, **metadata: str) -> Attack:
    """These for the only weight."""
    return tensors({"a.weight": values}, **metadata)


def moments(values: np.ndarray, **metadata: str) -> Attack:
    """These beside sound mean squares."""
    return tensors({"a.weight": SQUARES, "a.weight.moments": values.astype(np.float32)}, **metadata)


def at(values: np.ndarray, value: float, *places: tuple[int, ...]) -> np.ndarray:
    """With other values at some places."""
    changed = values.copy()
    for place in places:
        changed[place] = value
    return changed


def claims(shape: tuple[int, ...], name: str) -> Attack:
    """A file that is as large as it claims, but takes no room on the disk."""
    size = 4 * int(np.prod(shape))

    def write(path: Path) -> None:
        header: dict[str, Any] = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
        path.write_bytes(safetensors_bytes(header))
        os.truncate(path, path.stat().st_size + size)

    return write


def binary(*entries: tuple[bytes, int, int, bytes], count: int | None = None) -> Attack:
    """A file as llama.cpp's: names, calls, sizes, values."""

    def write(path: Path) -> None:
        parts = [struct.pack("<i", len(entries) if count is None else count)]
        for name, calls, size, values in entries:
            parts += [struct.pack("<i", len(name)), name, struct.pack("<ii", calls, size), values]
        path.write_bytes(b"".join(parts))

    return write


SAFETENSORS: dict[str, Attack] = {
    "of_no_tensor_there_is": tensors({"b.weight": SQUARES}),
    "nan": squares(at(SQUARES, np.nan, (3,))),
    "infinity": squares(at(SQUARES, np.inf, (3,))),
    "below_zero": squares(-SQUARES),
    "sums_that_overflow": squares(np.full(N, 1.7e308)),
    "too_few": squares(SQUARES[:50].copy()),
    "along_the_other_axis": squares(SQUARES, input_axis=json.dumps({"a.weight": 0})),
    "an_axis_there_is_not": squares(SQUARES, input_axis=json.dumps({"a.weight": 2})),
    "an_axis_of_five_thousand_digits": squares(SQUARES, input_axis='{"a.weight":' + "9" * 5000 + "}"),
    "a_matrix": squares(SQUARES.reshape(1, N)),
    "a_scalar": squares(np.array(1, np.float32)),
    "integers": squares(np.arange(N)),
    "moments_with_nan": moments(at(MOMENTS, np.nan, (3, 4), (4, 3))),
    "moments_below_zero": moments(-MOMENTS),
    "moments_that_are_not_symmetric": moments(np.triu(MOMENTS)),
    "moments_that_are_indefinite": moments(at(MOMENTS, 100, (0, 1), (1, 0))),
    "moments_that_are_not_square": moments(MOMENTS[:50].copy()),
    "moments_of_another_layer": moments(MOMENTS[:50, :50].copy()),
    "moments_that_are_a_vector": moments(SQUARES),
    "moments_of_integers": tensors({"a.weight": SQUARES, "a.weight.moments": np.eye(N, dtype=np.int32)}),
    "shared_of_deep_nesting": moments(MOMENTS, shared="[" * 100_000),
    "shared_that_is_a_number": moments(MOMENTS, shared='{"a.weight": 3}'),
    "a_vector_of_four_gigabytes": claims((1 << 30,), "a.weight"),
    "a_pipe": os.mkfifo,
    "a_device": lambda path: path.symlink_to("/dev/zero"),
    "a_folder": Path.mkdir,
    "nothing": lambda path: path.touch(),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 9),
}
BINARY: dict[str, Attack] = {
    "a_name_of_a_negative_length": lambda path: path.write_bytes(struct.pack("<ii", 1, -5) + bytes(99)),
    "a_name_of_a_megabyte": binary((b"a" * (1 << 20), 1, 1, bytes(4))),
    "more_entries_than_there_are": binary((b"a.weight", 1, N, SQUARES.tobytes()), count=2),
    "two_billion_entries": binary((b"a.weight", 1, N, SQUARES.tobytes()), count=2**31 - 1),
    "no_entries": binary(),
    "entries_below_zero": binary(count=-1),
    "a_size_below_zero": binary((b"a.weight", 1, -1, b"")),
    "a_size_beyond_the_file": binary((b"a.weight", 1, 2**31 - 1, bytes(99))),
    "a_million_empty_entries": lambda path: path.write_bytes(struct.pack("<i", 10**6) + bytes(12 * 10**6)),
    "nan_in_the_binary_form": binary((b"a.weight", 1, N, np.full(N, np.nan, np.float32).tobytes())),
    "a_binary_that_is_a_pipe": os.mkfifo,
    "a_binary_that_is_a_device": lambda path: path.symlink_to("/dev/zero"),
}
SUMS = {"a.weight.in_sum2": SQUARES.reshape(1, N), "a.weight.counts": np.ones((1, 1), np.float32)}


def header(tensors: int, values: int, data: bytes = b"") -> Attack:
    """A GGUF file that claims so many, and what follows."""
    return lambda path: path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, values) + data + bytes(64))


def value(kind: int, data: bytes) -> Attack:
    """A GGUF file that would be sound but for one value."""
    return lambda path: path.write_bytes(gguf_bytes(SUMS, text("x") + struct.pack("<I", kind) + data, 1))


def tensor(name: str, shape: tuple[int, ...], offset: int = 0, kind: int = 0) -> bytes:
    """What a GGUF file says of a tensor."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def pair(first: bytes, second: bytes = tensor("a.weight.counts", (1, 1), 512)) -> Attack:
    """A GGUF file of two tensors, with data for both."""
    return header(2, 0, first + second + bytes(1024))


def same_experts(tensors: int, experts: int) -> bytes:
    """A GGUF file of many tensors that all have the same data."""
    parts = [tensor(f"{i}.in_sum2", (1, experts)) + tensor(f"{i}.counts", (experts,)) for i in range(tensors)]
    return b"GGUF" + struct.pack("<IQQ", 3, 2 * tensors, 0) + b"".join(parts) + struct.pack("<f", 1.0) * (experts + 8)


GGUF: dict[str, Attack] = {
    "a_list_without_end": value(9, struct.pack("<IQ", 0, 1 << 60)),
    "a_list_of_strings_without_end": value(9, struct.pack("<IQ", 8, 1 << 60)),
    "a_list_of_lists": value(9, struct.pack("<IQ", 9, 1) * 2000),
    "a_string_without_end": value(8, struct.pack("<Q", 1 << 63)),
    "a_value_of_no_type": value(99, b""),
    "two_to_the_sixty_values": header(0, 1 << 60),
    "two_to_the_sixty_tensors": header(1 << 60, 0),
    "a_million_values_of_no_name": header(0, 1 << 20, bytes(13 << 20)),
    "values_beyond_the_most": value(8, struct.pack("<Q", 17 << 20) + bytes(17 << 20)),
    "a_gguf_without_tensors": header(0, 0),
    "version_one": lambda path: path.write_bytes(gguf_bytes(SUMS, version=1)),
    "big_endian": lambda path: path.write_bytes(gguf_bytes(SUMS, version=3 << 24)),
    "an_alignment_of_nothing": lambda path: path.write_bytes(
        gguf_bytes(SUMS, text("general.alignment") + struct.pack("<II", 4, 0), 1)
    ),
    "a_tensor_of_five_dimensions": pair(tensor("a.weight.in_sum2", (N, 1, 1, 1, 1))),
    "a_tensor_of_two_to_the_sixty_dimensions": header(1, 0, text("a") + struct.pack("<I", 0xFFFFFFFF)),
    "sums_beyond_the_file": pair(tensor("a.weight.in_sum2", (1 << 62, 1))),
    "sums_whose_size_overflows": pair(tensor("a.weight.in_sum2", (1 << 63, 1 << 63))),
    "sums_that_begin_beyond_the_file": pair(tensor("a.weight.in_sum2", (N, 1), (1 << 64) - 8)),
    "sums_of_half_precision": pair(tensor("a.weight.in_sum2", (N, 1), 0, 1)),
    "sums_twice": pair(tensor("a.weight.in_sum2", (N, 1)), tensor("a.weight.in_sum2", (N, 1))),
    "four_billion_experts": pair(tensor("a.weight.in_sum2", (0, 1 << 32)), tensor("a.weight.counts", (1, 1 << 32))),
    "sixty_times_the_same_experts": lambda path: path.write_bytes(same_experts(60, 1 << 16)),
    "nan_in_gguf": lambda path: path.write_bytes(gguf_bytes(SUMS | {"a.weight.in_sum2": np.full((1, N), np.nan)})),
    "counts_that_are_tiny": lambda path: path.write_bytes(
        gguf_bytes({name: at(array, 1e-45 if "counts" in name else 3e38, (0, 0)) for name, array in SUMS.items()})
    ),
}
#: Odd, but mean squares and second moments all the same.
SOUND: dict[str, Attack] = {
    "one_input_that_is_all": squares(at(np.zeros(N, np.float32), 3e38, (0,))),
    "the_smallest_there_is": squares(np.full(N, 5e-324)),
    "from_the_smallest_to_the_largest": squares(at(np.full(N, 1e-38, np.float32), 3e38, (0,))),
    "all_zero": squares(np.zeros(N, np.float32)),
    "moments_of_one_input": moments(at(np.zeros((N, N)), 1e38, (0, 0))),
    "moments_of_rank_one": moments(np.outer(SQUARES, SQUARES)),
    "moments_that_are_zero": moments(np.zeros((N, N))),
    "moments_that_are_tiny": moments(MOMENTS * 1e-44),
    "shared_in_a_circle": moments(MOMENTS, shared='{"a.weight": "b", "b": "a.weight"}'),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One matrix of 64 x 96."""
    folder = tmp_path_factory.mktemp("source")
    save_file({"a.weight": scaled_normal((64, N), 0)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("attack", SAFETENSORS | BINARY | GGUF)
def test_hostile_importance(attack: str, arena: Arena, source: Path, tmp_path: Path) -> None:
    file = tmp_path / ("importance.safetensors" if attack in SAFETENSORS else "importance.dat")
    (SAFETENSORS | BINARY | GGUF)[attack](file)
    out = tmp_path / "out"
    (trial,) = arena.run(("compress", source, "-o", out, "-q", "--effort", "0", "--importance", file))
    assert str(file) in trial.complaint()
    assert trial.code in (2, 4)
    assert trial.memory < CONSTANT
    assert trial.seconds < CPU_SECONDS
    assert os.listdir(tmp_path) == [file.name]


@pytest.mark.parametrize("attack", SOUND)
def test_odd_importance(attack: str, arena: Arena, source: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "importance.safetensors", tmp_path / "out"
    SOUND[attack](file)
    trials = arena.run(
        ("compress", source, "-o", out, "-q", "--effort", "0", "--importance", file),
        ("verify", out, "--against", source, "-q"),
    )
    assert [(trial.code, trial.err) for trial in trials] == [(0, ""), (0, "")]
