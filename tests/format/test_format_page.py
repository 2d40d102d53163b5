"""Every number of the worked example in docs/FORMAT.md is that of the file."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from tests import reference_decoder
from tests.format.golden import GOLDEN

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "FORMAT.md").read_text()
EXAMPLE = PAGE.split("## 16 A whole file")[1]
FILE = (GOLDEN / "v1" / "example" / "tiny.rbe").read_bytes()
LAYOUTS = {"u8": "<B", "u16": "<H", "u32": "<I", "u64": "<Q", "i16": "<h", "f32": "<f"}


def table(heading: str) -> list[list[str]]:
    """The rows of the table of the example whose first column is called `heading`."""
    lines = EXAMPLE.split(f"| {heading} |")[1].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def page_numbers(label: str) -> list[int]:
    found = re.search(rf"^    {label}:(.*)$", EXAMPLE, re.MULTILINE)
    assert found
    return [int(number) for number in found.group(1).split()]


def test_every_byte_of_the_example() -> None:
    at = 0
    for offset, text, kind, value, _ in table("Offset"):
        assert int(offset) == at
        size = 172 if kind == "text" else len(text.split())
        part = FILE[at : at + size]
        if kind != "text":
            assert bytes.fromhex(text) == part
        if kind in LAYOUTS:
            (number,) = struct.unpack(LAYOUTS[kind], part)
            assert np.float32(value) == number if kind == "f32" else int(value) == number
        at += size
    assert at == len(FILE) == 344
    header = re.search(r'^    (\{"tensors".*?\]\})$', EXAMPLE, re.MULTILINE | re.DOTALL)
    assert header
    assert header.group(1).replace("\n    ", "").encode() == FILE[24:196]


def test_checksums_of_the_example() -> None:
    crc = {int(row[0]): int.from_bytes(bytes.fromhex(row[1]), "little") for row in table("Offset") if row[2] == "crc"}
    chunks = {200: FILE[220:224], 208: FILE[224:298], 216: FILE[298:344]}
    assert crc == {20: zlib.crc32(FILE[:20] + FILE[24:220])} | {at: zlib.crc32(part) for at, part in chunks.items()}


class Watched(reference_decoder.Rans):
    """Keeps the state before and after every symbol."""

    def __init__(self, stream: bytes) -> None:
        super().__init__(stream)
        self.seen: list[tuple[int, int, int]] = []

    def symbol(self, lane: int, table: reference_decoder.Slots) -> int:
        before = self.x[lane]
        byte = super().symbol(lane, table)
        self.seen.append((before, byte, self.x[lane]))
        return byte


def test_every_element_of_the_example() -> None:
    rows, row_power = reference_decoder.decode_axis(FILE[272:284], 32, 0, [0] * 32)
    columns, column_power = reference_decoder.decode_axis(FILE[284:298], 32, 0, [0] * 32)
    assert [8 * number for number in page_numbers("rows")] == rows
    assert [8 * number for number in page_numbers("columns")] == columns
    classes = [12 + c for c in rows if c is not None]
    rans = Watched(FILE[298:])
    points = reference_decoder.decode_points(rans, (list(classes), columns), 8, 0)
    weight = reference_decoder.decode_folder(GOLDEN / "v1" / "example")["tiny.weight"]
    values = np.frombuffer(weight.data, "<f2")
    states = [0] * 8
    step = np.float32(table_value("step")) * row_power[0] * column_power[0]
    for t, row in enumerate(table("t")):
        before, byte, after = rans.seen[t]
        lane = t % 8
        union, k = states[lane] & 1, byte - 128
        column = columns[t]
        assert column is not None
        c = min(max(classes[0] + column, 1), 184)
        whole = [t, lane, before, c, union, before & 4095, byte, k, 2 * k + union, after]
        assert [int(cell) for cell in row[:10]] == whole
        assert [float(row[10]), np.float32(row[11]), float(row[12])] == [points[0, t], step, values[t]]
        states[lane] = (states[lane] >> 1) ^ (2 if k & 1 else 0) ^ (5 if states[lane] & 1 else 0)
    assert len(table("t")) == 16


def table_value(what: str) -> str:
    return next(row[3] for row in table("Offset") if row[4] == what)


def test_constants_of_the_page() -> None:
    constants = re.search(r"eighth\[0\.\.7\] = ((?:[0-9A-F]{8} ?){8})", PAGE)
    assert constants
    bits = np.array([2.0 ** (i / 8) for i in range(8)], np.float32).view(np.uint32)
    assert constants.group(1).split() == [f"{value:08X}" for value in bits]
    assert reference_decoder.TABLES_SHA256 in PAGE
    assert f"{len(reference_decoder.TABLES.read_bytes()):,} bytes" in PAGE
    states, h0, h1 = (
        [int(cell, base) for cell in re.findall(r"\d+", line.split("|", 2)[2])]
        for line, base in zip(
            [line for line in PAGE.splitlines() if line.startswith(("| States", "| h0", "| h1"))],
            (10, 8, 8),
            strict=True,
        )
    )
    assert {s: (a, b) for s, a, b in zip(states, h0, h1, strict=True)} == reference_decoder.POLYNOMIALS


@pytest.mark.parametrize("name", ["lossless", "trellis", "sparse", "lowrank", "same"])
def test_page_has_every_codec(name: str) -> None:
    assert f'"{name}"' in PAGE
