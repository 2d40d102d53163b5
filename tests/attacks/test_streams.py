"""Parameters, scale fields and streams that lie under right checksums: CorruptFile, or weights of the right size."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbe_cli.codec.parameters import SIZE
from rbe_cli.errors import CorruptFile
from rbe_cli.operations.inspect import inspect
from tests.forge import edit_chunk, edit_manifest, layer_bytes, replace_layer, split_layer
from tests.synthetic import decode_to, read_tensors, tiny_tensors

#: A layer with one trellis-coded float32 tensor of 160 x 96 and an exact vector.
LAYER = "h.0.attn.rbe"
Edit = Callable[[bytearray], "bytes | bytearray | None"]


def expect_refused(folder: Path, out: Path) -> str:
    with pytest.raises(CorruptFile) as error:
        decode_to(folder, out)
    assert not out.exists()
    assert LAYER in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def decoded_or_refused(folder: Path, out: Path) -> bool:
    """Decode; everything has the right size and only the damaged layer differs, or CorruptFile. True if decoded."""
    try:
        decode_to(folder, out, force=True)
    except CorruptFile:
        return False
    back = read_tensors(out)
    for name, tensor in tiny_tensors().items():
        assert (back[name].shape, back[name].dtype) == (tensor.shape, tensor.dtype)
    return True


def put(offset: int, form: str, value: float | int) -> Edit:
    def edit(chunk: bytearray) -> None:
        struct.pack_into("<" + form, chunk, offset, value)

    return edit


def weight_chunks(folder: Path) -> range:
    """Chunk numbers of the trellis-coded tensor; the first has the parameters."""
    header, _ = split_layer((folder / LAYER).read_bytes())
    at = 0
    for tensor in header["tensors"]:
        if tensor["codec"] == "trellis":
            return range(at, at + tensor["chunks"])
        at += tensor["chunks"]
    raise AssertionError("the layer has a trellis-coded tensor")


def test_layout_of_the_parameters_is_the_one_forged_here(compressed: Path) -> None:
    """structure, transform, flags, log2 states, family, gr, gc, levels, base, block, step, rows, height, width, ..."""
    _, chunks = split_layer((compressed / LAYER).read_bytes())
    fields = struct.unpack_from("<BBBBBBBBhHfQIIffII", chunks[weight_chunks(compressed)[0]])
    assert fields[:2] == (0, 0)
    assert fields[11:14] == (160, 160, 96)
    assert struct.calcsize("<BBBBBBBBhHfQIIffII") == SIZE


HOSTILE_PARAMETERS: dict[str, Edit] = {
    "a structure that is not there": put(0, "B", 1),
    "another structure that is not there": put(0, "B", 2),
    "unknown structure": put(0, "B", 255),
    "blocks of no size": put(1, "B", 1),
    "a basis that is not there": put(1, "B", 3),
    "levels without a transform": put(7, "B", 5),
    "a block without a transform": put(10, "H", 128),
    "column axis beyond": put(44, "I", 0xFFFFFFFF),
    "column axis empty": put(44, "I", 0),
    "unknown transform": put(1, "B", 255),
    "unknown flags": put(2, "B", 0x80),
    "2 states": put(3, "B", 1),
    "512 states": put(3, "B", 9),
    "2^255 states": put(3, "B", 255),
    "unknown family": put(4, "B", 3),
    "row shaping": put(5, "B", 17),
    "column shaping": put(6, "B", 255),
    "step 0": put(12, "f", 0.0),
    "negative step": put(12, "f", -1.0),
    "NaN step": put(12, "f", float("nan")),
    "infinite step": put(12, "f", float("inf")),
    "no rows": put(16, "Q", 0),
    "rows that do not divide": put(16, "Q", 159),
    "2^64 - 1 rows": put(16, "Q", (1 << 64) - 1),
    "rows and columns exchanged": put(16, "Q", 96),
    "all rows": put(16, "Q", 160 * 96),
    "height 0": put(24, "I", 0),
    "height beyond": put(24, "I", 161),
    "height 2^32 - 1": put(24, "I", 0xFFFFFFFF),
    "height 1": put(24, "I", 1),
    "width 0": put(28, "I", 0),
    "width beyond": put(28, "I", 97),
    "width narrower": put(28, "I", 95),
    "negative rms": put(32, "f", -1.0),
    "NaN rms": put(32, "f", float("nan")),
    "infinite rms": put(32, "f", float("inf")),
    "negative nrmse": put(36, "f", -1.0),
    "NaN nrmse": put(36, "f", float("nan")),
    "infinite nrmse": put(36, "f", float("inf")),
    "row axis beyond": put(40, "I", 0xFFFFFFFF),
    "row axis empty": put(40, "I", 0),
    "cut to nothing": lambda chunk: b"",
    "cut by one": lambda chunk: chunk[: SIZE - 1],
    "no axes": lambda chunk: chunk[:SIZE],
    "axis of another form": lambda chunk: chunk[:SIZE] + b"\xff" + chunk[SIZE + 1 :],
    "axis in another mode": lambda chunk: chunk[: SIZE + 1] + b"\x02" + chunk[SIZE + 2 :],
    "bytes after the axes": lambda chunk: chunk + bytes(range(1, 200)),
}


@pytest.mark.parametrize("what", HOSTILE_PARAMETERS)
def test_hostile_parameters(what: str, compressed: Path, tmp_path: Path) -> None:
    edit_chunk(compressed, LAYER, weight_chunks(compressed)[0], HOSTILE_PARAMETERS[what])
    assert "h.0.attn.weight" in expect_refused(compressed, tmp_path / "back")


@pytest.mark.parametrize("step", [1e-45, 1e-38, 1e30, 3.4e38])
def test_extreme_steps_decode_without_a_warning(step: float, compressed: Path, tmp_path: Path) -> None:
    """Warnings are errors here: on a terminal they would be lines nobody asked for."""
    edit_chunk(compressed, LAYER, weight_chunks(compressed)[0], put(12, "f", step))
    decoded_or_refused(compressed, tmp_path / "back")


@pytest.mark.parametrize("base", [-32768, -1, 0, 300, 32767])
def test_extreme_classes(base: int, compressed: Path, tmp_path: Path) -> None:
    edit_chunk(compressed, LAYER, weight_chunks(compressed)[0], put(8, "h", base))
    decoded_or_refused(compressed, tmp_path / "back")


HOSTILE_STREAMS: dict[str, Edit] = {
    "empty": lambda chunk: b"",
    "states only": lambda chunk: chunk[:32],
    "less than the states": lambda chunk: chunk[:30],
    "odd": lambda chunk: chunk[:-1],
    "a word less": lambda chunk: chunk[:-2],
    "a word more": lambda chunk: chunk + b"\0\0",
    "half": lambda chunk: chunk[: len(chunk) // 4 * 2],
    "twice": lambda chunk: chunk + chunk,
    "zeros": lambda chunk: bytes(len(chunk)),
    "ones": lambda chunk: b"\xff" * len(chunk),
    "states of zero": lambda chunk: bytes(32) + chunk[32:],
    "states of ones": lambda chunk: b"\xff" * 32 + chunk[32:],
    "noise": lambda chunk: random.Random(1).randbytes(len(chunk)),
}


@pytest.mark.parametrize("what", HOSTILE_STREAMS)
def test_hostile_tile(what: str, compressed: Path, tmp_path: Path) -> None:
    edit_chunk(compressed, LAYER, weight_chunks(compressed)[1], HOSTILE_STREAMS[what])
    expect_refused(compressed, tmp_path / "back")


def test_number_of_chunks_that_does_not_fit_the_tiles(compressed: Path, tmp_path: Path) -> None:
    header, chunks = split_layer((compressed / LAYER).read_bytes())
    number = weight_chunks(compressed)[-1]
    for entry in header["tensors"]:
        if entry["codec"] == "trellis":
            entry["chunks"] += 1
    replace_layer(compressed, LAYER, layer_bytes(header, [*chunks[:number], chunks[number], *chunks[number:]]))
    assert "number of chunks" in expect_refused(compressed, tmp_path / "back")


@pytest.mark.parametrize("dtype", ["I32", "U32", "F8_E4M3", "BOOL"])
def test_trellis_on_a_type_that_is_no_float(dtype: str, compressed: Path, tmp_path: Path) -> None:
    header, chunks = split_layer((compressed / LAYER).read_bytes())
    for entry in header["tensors"]:
        entry["dtype"] = dtype if entry["codec"] == "trellis" else entry["dtype"]
    replace_layer(compressed, LAYER, layer_bytes(header, chunks))

    def edit(manifest: dict) -> None:
        for layer in manifest["layers"]:
            for tensor in layer["tensors"]:
                if tensor["name"] == "h.0.attn.weight":
                    tensor["dtype"] = dtype

    edit_manifest(compressed, edit)
    expect_refused(compressed, tmp_path / "back")


@settings(max_examples=150)
@given(st.integers(0, 1), st.integers(0, 10**6), st.binary(min_size=1, max_size=8))
def test_mutated_chunks_with_right_checksums(
    compressed: Path, tmp_path: Path, which: int, place: int, patch: bytes
) -> None:
    """Parameters with their axes, or a tile, with some bytes changed."""
    original = (compressed / LAYER).read_bytes()
    number = weight_chunks(compressed)[which]

    def edit(chunk: bytearray) -> None:
        at = place % len(chunk)
        chunk[at : at + len(patch)] = patch[: len(chunk) - at]

    edit_chunk(compressed, LAYER, number, edit)
    with np.errstate(all="ignore"):
        decoded_or_refused(compressed, tmp_path / "back")
    replace_layer(compressed, LAYER, original)


@pytest.mark.parametrize("layer", ["positions.rbe", "wild.rbe", "mask.rbe", "quantised.rbe"])
def test_mutated_lossless_chunks(layer: str, compressed: Path, tmp_path: Path) -> None:
    rng = random.Random(layer)
    original = (compressed / layer).read_bytes()
    for round_number in range(40):

        def edit(chunk: bytearray, round_number: int = round_number) -> bytes:
            if round_number % 4 == 0:
                return bytes(chunk[: rng.randrange(len(chunk))])
            if round_number % 4 == 1:
                return bytes(chunk) + rng.randbytes(rng.randint(1, 9))
            for _ in range(rng.randint(1, 3)):
                chunk[rng.randrange(min(len(chunk), 200))] = rng.randrange(256)
            return bytes(chunk)

        edit_chunk(compressed, layer, 0, edit)
        decoded = decoded_or_refused(compressed, tmp_path / "back")
        assert not decoded or round_number % 4 > 1
        replace_layer(compressed, layer, original)


def test_infinite_error_in_a_layer_file_is_refused_by_inspect(compressed: Path) -> None:
    """The figures of a single file come from its parameters; they must be numbers JSON has."""
    edit_chunk(compressed, LAYER, weight_chunks(compressed)[0], put(36, "f", float("inf")))
    with pytest.raises(CorruptFile):
        inspect(compressed / LAYER)
