"""Every named attack, on every command that reads what is attacked, as a process of its own: exit code 4, one line that
names the file or tensor, bounded time and memory, nothing written."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import pytest

from rbe_cli.container.layer_file import EncodedTensor
from tests.attacks.budget import CONSTANT, CPU_SECONDS, READING, allowed_memory
from tests.attacks.cases import FOLDERS, SOURCES, forged_layers
from tests.attacks.trial import LAYERS, Arena, Trial
from tests.synthetic import folder_bytes

#: Attacks that are only seen when the weights are decoded, or the carried files copied: `inspect` looks at neither.
UNSEEN_BY_INSPECT = {
    "polyglot_with_a_pickle_in_a_chunk", "chunks_in_another_order", "huge_shape", "type_of_another_size",
    "type_that_cannot_be_coded_so", "rans_states_that_never_end", "rans_states_that_end_too_late",
    "rans_stream_that_is_empty", "frequencies_that_do_not_sum", "frequencies_that_sum_by_overflow",
    "frequencies_below_zero", "frequency_that_is_all",
    "side_matrix_with_bytes_left_over", "carried_file_that_is_a_link", "carried_folder_that_is_a_link",
    "carried_file_that_is_a_pipe", "tensors_that_are_the_same_as_each_other", "tensor_that_is_the_same_as_itself",
    "bomb_of_constant_planes", "bomb_of_tiles_of_zeros", "bomb_of_a_long_axis",
    "bomb_of_low_rank_factors", "bomb_of_a_basis", "bomb_of_basis_functions_of_many_sizes",
    "bomb_of_many_small_blocks", "bomb_of_blocks_smaller_than_there_are", "bomb_of_deep_paths",
    "bomb_of_blocks_of_one_row", "bomb_of_tensors_that_are_the_same_as_one_with_a_basis",
    "bomb_of_tensors_in_one_header", "bomb_of_empty_chunks",
}  # fmt: skip


def bound_of(folder: Path) -> int:
    """The memory that reading a folder may take, from what its manifest claims."""
    path = folder / "rbe.json"
    try:
        manifest = json.loads(path.read_bytes()) if path.is_file() else {}
        shapes = [tensor["shape"] for layer in manifest["layers"] for tensor in layer["tensors"]]
    except (ValueError, KeyError, RecursionError):
        shapes = []
    largest = max(map(math.prod, shapes), default=0)
    text = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return allowed_memory(min(largest, 1 << 30)) + READING * min(text, 300 << 20)


def check(trial: Trial, name: str, bound: int) -> None:
    """Refused as promised."""
    complaint = trial.complaint()
    assert trial.code == 4, complaint
    assert "memory" not in complaint
    assert name in complaint
    assert trial.out == ""
    assert trial.seconds < CPU_SECONDS
    assert trial.memory < bound, f"{trial.memory >> 20} MB"


@pytest.mark.parametrize("attack", FOLDERS)
def test_hostile_folder(attack: str, arena: Arena, compressed: Path, tmp_path: Path) -> None:
    FOLDERS[attack](compressed)
    before = sorted(os.listdir(tmp_path))
    bound = bound_of(compressed)
    out = tmp_path / "out"
    commands = [("decode", compressed, "-o", out, "-q"), ("verify", compressed, "-q"), (LAYERS, compressed)]
    if attack not in UNSEEN_BY_INSPECT:
        commands.append(("inspect", compressed))
    for command, trial in zip(commands, arena.run(*commands), strict=True):
        if command[0] == LAYERS:
            # They read the weights they are asked for, and neither other files nor every checksum; and they keep them.
            bound += CONSTANT
        if command[0] != LAYERS or trial.code != 0:
            check(trial, str(compressed), bound)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("attack", SOURCES)
def test_hostile_checkpoint(attack: str, arena: Arena, tiny_source: Path, tmp_path: Path) -> None:
    source = tmp_path / "model"
    shutil.copytree(tiny_source, source)
    SOURCES[attack](source)
    before = sorted(os.listdir(tmp_path))
    bound = CONSTANT + READING * sum(len(data) for data in folder_bytes(source).values())
    for trial in arena.run(("compress", source, "-o", tmp_path / "out", "-q"), ("inspect", source)):
        check(trial, str(source), bound)
    assert sorted(os.listdir(tmp_path)) == before


def test_inspect_of_many_tensors_and_of_a_name_of_half_a_million(arena: Arena, compressed: Path) -> None:
    """Sound, if odd: rich takes hours to fold such a name, and a millisecond for each line of a table."""
    tensors = [EncodedTensor("x." + "w" * (1 << 19), "U8", (70_000,), "lossless", [b"\x01\0"])]
    tensors += [EncodedTensor(f"x.{i}", "U8", (70_000,), "same", [], tensors[0].name) for i in range(20)]
    tensors += [EncodedTensor(f"x.{i:05d}", "U8", (70_000,), "lossless", [b"\x01\0"]) for i in range(10_000)]
    forged_layers(compressed, {"x": tensors})
    shown, whole = arena.run(("inspect", compressed), ("inspect", compressed, "--json"))
    assert (shown.code, whole.code) == (0, 0)
    assert shown.seconds < CPU_SECONDS
    assert len(shown.out) < 1 << 20
    assert "9021 more" in shown.out
    assert [tensor["name"] for tensor in json.loads(whole.out)["tensors"]] == [tensor.name for tensor in tensors]
