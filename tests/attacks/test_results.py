"""Hostile files of results, `rbe sweep --results`: refused before anything is measured, and left as they are."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from rbe_cli.operations import records
from rbe_cli.operations.sweep import Point
from tests.attacks.budget import CONSTANT, CPU_SECONDS
from tests.attacks.trial import Arena

SOUND = {"key": "0" * 64, "point": asdict(Point({"bits": 4.0}, size=1, seconds=1.0))}
TENSOR = {
    "name": "w", "dtype": "F32", "shape": [2, 2], "method": "trellis", "bytes": 9, "rmse": 0.1, "nrmse": 0.1,
    "source": 0, "choice": None,
}  # fmt: skip


def of(record: Any) -> Callable[[Path], None]:
    """A file with one sound record and one that has the right sum and the wrong form."""

    def write(path: Path) -> None:
        records.add(path, SOUND)
        records.add(path, record)

    return write


def text(data: bytes) -> Callable[[Path], None]:
    """A file of these bytes."""
    return lambda path: path.write_bytes(data) and None


def point(**changes: Any) -> Callable[[Path], None]:
    """A point with other values."""
    return of({"key": "1" * 64, "point": SOUND["point"] | changes})


def edited(path: Path) -> None:
    records.add(path, SOUND)
    path.write_bytes(re.sub(rb'"size":1', b'"size":2', path.read_bytes()))


def a_terabyte(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def cut_in_the_middle(path: Path) -> None:
    records.add(path, SOUND)
    whole = path.read_bytes()
    path.write_bytes(whole[:70] + b"\n" + whole)


def in_front_of_a_note(path: Path) -> None:
    records.add(path, SOUND)
    path.write_bytes(path.read_bytes() + b"a note without an end")


ATTACKS: dict[str, Callable[[Path], object]] = {
    "one_brace": text(b"{"),
    "a_text_that_begins_alike": text(b'{"sha256":"abc","all my":"work"}'),
    "binary": text(bytes(range(256)) * 100),
    "binary_in_one_line": text(b"\xff\xfe" * 1000),
    "deep_nesting": text(b"[" * 200_000 + b"\n"),
    "deep_nesting_in_a_record": text(b'{"sha256":"","record":' + b'{"a":' * 100_000 + b"\n"),
    "no_objects": text(b"1\n[]\nnull\n"),
    "the_csv_of_a_sweep": text(b"bits,nrmse\n4,0.1\n"),
    "a_note_without_an_end": text(b"remember the milk"),
    "a_number_of_a_million_digits": text(b'{"sha256":"","record":' + b"9" * 1_000_000 + b"}\n"),
    "a_file_of_a_terabyte": a_terabyte,
    "a_pipe": os.mkfifo,
    "a_link_to_a_device": lambda path: path.symlink_to("/dev/zero"),
    "edited": edited,
    "cut_in_the_middle": cut_in_the_middle,
    "in_front_of_a_note": in_front_of_a_note,
    "a_list": of([1, 2]),
    "no_point": of({"key": "1"}),
    "a_key_that_is_a_number": of({"key": 7, "point": SOUND["point"]}),
    "a_size_that_is_a_text": point(size="9"),
    "a_size_below_zero": point(size=-1),
    "a_size_beyond_all": point(size=10**400),
    "seconds_beyond_all": point(seconds=10**400),
    "speed_that_is_a_list": point(encode_ns=[]),
    "problem_that_is_a_number": point(problem=3),
    "settings_that_are_a_number": point(settings=3),
    "tensors_that_are_a_number": point(tensors=3),
    "shape_that_is_a_text": point(tensors=[TENSOR | {"shape": "22"}]),
    "type_that_is_none": point(tensors=[TENSOR | {"dtype": "F31"}]),
    "error_below_zero": point(tensors=[TENSOR | {"nrmse": -1}]),
    "choice_that_is_a_text": point(tensors=[TENSOR | {"choice": "dct"}]),
}


def content(path: Path) -> bytes:
    """What is in the file, or as much of it as fits."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(1 << 24)


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_results(attack: str, arena: Arena, tiny_source: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    ATTACKS[attack](results)
    before = content(results)
    (trial,) = arena.run(("sweep", tiny_source, "--bits", "4", "--efforts", "0", "-q", "--results", results))
    complaint = trial.complaint()
    assert (trial.code, trial.out) == (4, "")
    assert str(results) in complaint
    assert "give another --results file" in complaint
    assert trial.memory < CONSTANT
    assert trial.seconds < CPU_SECONDS
    assert content(results) == before
