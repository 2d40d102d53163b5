"""The attacks, by name: each turns a sound folder or checkpoint into a hostile one. Every checksum is right unless that
is the attack.

FOLDERS    what `rbe compress` might have written, but did not
SOURCES    what is given to `rbe compress`
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rbe_cli.codec.parameters import LOW_RANK_HEAD, SPARSE_HEAD, Parameters
from rbe_cli.codec.residual.scale_field import ZERO, Axis, encode_axis
from rbe_cli.codec.side_info import encode_integers
from rbe_cli.codec.tiles import Grid
from rbe_cli.container.layer_file import EncodedTensor, LayerFile, write_layer
from rbe_cli.container.manifest import LayerEntry, Manifest, SourceFile, TensorEntry
from tests.forge import canonical, edit_chunk, edit_manifest, layer_bytes, replace_layer, split_layer
from tests.synthetic import safetensors_bytes

Attack = Callable[[Path], Any]
FOLDERS: dict[str, Attack] = {}
SOURCES: dict[str, Attack] = {}
#: A layer of the sound folder with one trellis-coded float32 tensor of 160 x 96 and an exact vector, and an exact one.
LAYER, EXACT_LAYER = "h.0.attn.rbe", "positions.rbe"
WEIGHT = "h.0.attn.weight"


def folder(attack: Attack) -> Attack:
    """Register an attack on a compressed folder, under its name."""
    FOLDERS[attack.__name__] = attack
    return attack


def source(attack: Attack) -> Attack:
    """Register an attack on a checkpoint: it is given a folder with `model.safetensors` in it."""
    SOURCES[attack.__name__] = attack
    return attack


def rewrite(folder: Path, edit: Callable[[Any, list[bytes]], Any], **options: Any) -> None:
    """Change header and chunks of LAYER; checksums and the manifest's size and SHA-256 are made to fit."""
    header, chunks = split_layer((folder / LAYER).read_bytes())
    edited = edit(header, chunks)
    replace_layer(folder, LAYER, layer_bytes(header if edited is None else edited, chunks, **options))


def tensor_in(header: Any) -> dict[str, Any]:
    """The entry of WEIGHT in a layer's header."""
    return next(tensor for tensor in header["tensors"] if tensor["name"] == WEIGHT)


def in_manifest(manifest: Any, name: str = WEIGHT) -> dict[str, Any]:
    """The entry of a tensor in a manifest."""
    return next(t for layer in manifest["layers"] for t in layer["tensors"] if t["name"] == name)


def layer_of(manifest: Any, file: str = LAYER) -> dict[str, Any]:
    """The entry of a layer in a manifest."""
    return next(layer for layer in manifest["layers"] if layer["file"] == file)


def forged(folder: Path, dtype: str, shape: tuple[int, ...], codec: str, chunks: list[bytes]) -> None:
    """Put a folder of one tensor of any chunks in the place of the sound one."""
    forged_layers(folder, {"x": [EncodedTensor("x.w", dtype, shape, codec, chunks)]})


def forged_layers(folder: Path, layers: dict[str, list[EncodedTensor]]) -> None:
    """The same of any tensors."""
    shutil.rmtree(folder)
    folder.mkdir()
    entries = []
    for name, tensors in layers.items():
        path = folder / f"{name}.rbe"
        write_layer(path, tensors)
        data, sizes = path.read_bytes(), LayerFile(path).sizes()
        held = tuple(
            TensorEntry(t.name, t.dtype, t.shape, t.method, size, 0.0, 0.0, 0)
            for t, size in zip(tensors, sizes, strict=True)
        )
        entries.append(LayerEntry(path.name, len(data), hashlib.sha256(data).hexdigest(), held))
    source = SourceFile("model.safetensors", 0, "0" * 64, None)
    Manifest("forged", "nobody", None, {}, (source,), tuple(entries)).write(folder)


def flat_axis(n: int, dead: bool = False) -> bytes:
    """A scale field of n equal rows, or of n rows of zeros: some bytes, whatever n is."""
    return encode_axis(Axis(np.full(n, ZERO if dead else 0, np.int32), 3))


def first_chunk(grid: Grid, rows: bytes, columns: bytes, rest: bytes = b"", **changes: Any) -> bytes:
    """Parameters of a trellis-coded tensor and what follows them."""
    given = {"by_columns": False, "states": 4, "family": 0, "row_shaping": 0, "column_shaping": 0, "base": 15,
             "step": 1.0, "rms": 1.0, "nrmse": 0.1} | changes  # fmt: skip
    return Parameters(grid=grid, row_bytes=len(rows), column_bytes=len(columns), **given).pack() + rows + columns + rest


def zeros(n: int) -> bytes:
    """The stream of n elements of class 0, that is of zeros: a handful of words, whatever n is."""
    states, words = [1 << 16] * 8, []
    for t in range(n - 1, -1, -1):
        state = states[t & 7]
        if state >= 4095 << 20:
            words.append(state & 0xFFFF)
            state >>= 16
        states[t & 7] = (state // 4095 << 12) + state % 4095 + 1
    return struct.pack(f"<8I{len(words)}H", *states, *reversed(words))


def side_matrix(rows: int, columns: int, rest: bytes = b"") -> bytes:
    """A side matrix of zeros, with something behind what its first chunk holds."""
    grid = Grid(rows, columns, min(rows, max((1 << 16) // columns, 1)), columns)
    chunks = [first_chunk(grid, flat_axis(rows, dead=True), flat_axis(columns), rest)]
    chunks += [zeros(tile.size) for tile in (grid[0],)] * (len(grid) - 1) + [zeros(grid[len(grid) - 1].size)]
    return struct.pack(f"<I{len(chunks)}I", len(chunks), *map(len, chunks)) + b"".join(chunks)


# Files that are something else too


@folder
def polyglot_with_an_archive_behind_it(folder: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("run.py", "print('hello')")
    replace_layer(folder, LAYER, (folder / LAYER).read_bytes() + archive.getvalue())


@folder
def polyglot_with_a_script_before_it(folder: Path) -> None:
    replace_layer(folder, LAYER, b"#!/bin/sh\necho hello\n" + (folder / LAYER).read_bytes())


@folder
def polyglot_with_a_pickle_in_a_chunk(folder: Path) -> None:
    edit_chunk(folder, LAYER, 1, lambda chunk: b"\x80\x04cos\nsystem\n(S'id'\ntR." + bytes(chunk))


@folder
def safetensors_file_in_place_of_a_layer(folder: Path) -> None:
    replace_layer(folder, LAYER, safetensors_bytes({}))


@folder
def manifest_that_is_a_script(folder: Path) -> None:
    text = (folder / "rbe.json").read_bytes()
    (folder / "rbe.json").write_bytes(b"#!/bin/sh\n" + text)


# Lengths, tables, headers


@folder
def overlapping_chunks(folder: Path) -> None:
    """Lengths that cover the same bytes twice: more than the file has."""
    _, chunks = split_layer((folder / LAYER).read_bytes())
    table = [(len(chunk) + 7, zlib.crc32(chunk)) for chunk in chunks]
    rewrite(folder, lambda header, chunks: None, table=table)


@folder
def gapped_chunks(folder: Path) -> None:
    """Bytes between two chunks that belong to none: less than the file has."""

    def edit(header: Any, chunks: list[bytes]) -> None:
        chunks[0] += b"hidden"

    _, chunks = split_layer((folder / LAYER).read_bytes())
    rewrite(folder, edit, table=[(len(chunk), zlib.crc32(chunk)) for chunk in chunks])


@folder
def chunks_in_another_order(folder: Path) -> None:
    rewrite(folder, lambda header, chunks: chunks.reverse())


@folder
def chunk_lengths_that_overflow(folder: Path) -> None:
    """Lengths whose sum, in 32 bits, is that of the file."""
    _, chunks = split_layer((folder / LAYER).read_bytes())
    table = [(len(chunk), zlib.crc32(chunk)) for chunk in chunks]
    table[0], table[1] = (0xFFFFFFFF, 0), ((table[0][0] + table[1][0] + 1) & 0xFFFFFFFF, 0)
    rewrite(folder, lambda header, chunks: None, table=table)


@folder
def chunk_counts_that_overflow(folder: Path) -> None:
    rewrite(folder, lambda header, chunks: tensor_in(header).update(chunks=(1 << 64) + 1))


@folder
def more_chunks_than_the_file_has_bytes(folder: Path) -> None:
    rewrite(folder, lambda header, chunks: None, count=0xFFFFFFFF)


@folder
def header_length_beyond_the_file(folder: Path) -> None:
    prefix = struct.pack("<8sHHII", b"\x93RBE\r\n\x1a\n", 1, 0, 0xFFFFFFFF, 0)
    replace_layer(folder, LAYER, prefix + struct.pack("<I", zlib.crc32(prefix)) + b"{}")


@folder
def header_longer_than_the_cap(folder: Path) -> None:
    replace_layer(folder, LAYER, layer_bytes(canonical({"tensors": ["x" * (16 << 20)]}), []))


@folder
def header_of_deep_nesting(folder: Path) -> None:
    replace_layer(folder, LAYER, layer_bytes(b"[" * 200_000 + b"]" * 200_000, []))


@folder
def header_bomb_of_empty_lists(folder: Path) -> None:
    """As much as a header may have of what takes most memory for its bytes."""
    replace_layer(folder, LAYER, layer_bytes(b'{"tensors":[' + b"[]," * (1 << 20) + b"[]]}", []))


@folder
def header_with_a_key_twice(folder: Path) -> None:
    header, chunks = split_layer((folder / LAYER).read_bytes())
    text = canonical(header).replace(b'"codec":', b'"codec":"same","codec":', 1)
    replace_layer(folder, LAYER, layer_bytes(text, chunks))


@folder
def header_with_an_empty_as(folder: Path) -> None:
    def edit(header: Any, chunks: list[bytes]) -> None:
        tensor_in(header)["as"] = ""

    rewrite(folder, edit)


@folder
def header_with_numbers_of_a_million_digits(folder: Path) -> None:
    replace_layer(folder, LAYER, layer_bytes(b'{"tensors":' + b"9" * 1_000_000 + b"}", []))


@folder
def newer_format(folder: Path) -> None:
    rewrite(folder, lambda header, chunks: None, version=65535)


# Shapes and types


@folder
def huge_shape(folder: Path) -> None:
    rewrite(folder, lambda header, chunks: tensor_in(header).update(shape=[1 << 29, 1 << 29]))
    edit_manifest(folder, lambda m: in_manifest(m).update(shape=[1 << 29, 1 << 29]))


@folder
def shape_whose_product_overflows(folder: Path) -> None:
    """160 x 96 elements in 64 bits, counted with care for nothing."""
    shape = [1 << 32, 1 << 32, 160, 96]
    rewrite(folder, lambda header, chunks: tensor_in(header).update(shape=shape))
    edit_manifest(folder, lambda m: in_manifest(m).update(shape=shape))


@folder
def type_of_another_size(folder: Path) -> None:
    def edit(header: Any, chunks: list[bytes]) -> None:
        next(tensor for tensor in header["tensors"] if tensor["name"] != WEIGHT)["dtype"] = "F64"

    rewrite(folder, edit)
    name = next(t["name"] for t in layer_of(json.loads((folder / "rbe.json").read_bytes()))["tensors"]
                if t["name"] != WEIGHT)  # fmt: skip
    edit_manifest(folder, lambda m: in_manifest(m, name).update(dtype="F64"))


@folder
def type_that_cannot_be_coded_so(folder: Path) -> None:
    rewrite(folder, lambda header, chunks: tensor_in(header).update(dtype="I32"))
    edit_manifest(folder, lambda m: in_manifest(m).update(dtype="I32"))


@folder
def manifest_and_layer_disagree_on_a_shape(folder: Path) -> None:
    edit_manifest(folder, lambda m: in_manifest(m).update(shape=[96, 160]))


@folder
def manifest_and_layer_disagree_on_a_type(folder: Path) -> None:
    edit_manifest(folder, lambda m: in_manifest(m).update(dtype="BF16"))


@folder
def manifest_and_layer_disagree_on_names(folder: Path) -> None:
    edit_manifest(folder, lambda m: in_manifest(m).update(name="h.0.attn.other"))


# Streams


def _first_stream(folder: Path) -> int:
    """Number of the first tile's chunk in LAYER."""
    header, _ = split_layer((folder / LAYER).read_bytes())
    at = 0
    for tensor in header["tensors"]:
        if tensor["name"] == WEIGHT:
            return at + 1
        at += int(tensor["chunks"])
    raise AssertionError


@folder
def rans_states_that_never_end(folder: Path) -> None:
    """A state of 0 stays 0 for ever and asks for a word after every symbol."""
    edit_chunk(folder, LAYER, _first_stream(folder), lambda chunk: bytes(32) + bytes(chunk[32:]))


@folder
def rans_states_that_end_too_late(folder: Path) -> None:
    edit_chunk(folder, LAYER, _first_stream(folder), lambda chunk: b"\xff" * len(chunk))


@folder
def rans_stream_that_is_empty(folder: Path) -> None:
    edit_chunk(folder, LAYER, _first_stream(folder), lambda chunk: b"")


def _coded_plane(frequencies: np.ndarray) -> bytes:
    """A lossless chunk of 77 64-bit integers whose planes are coded with these frequencies."""
    side = encode_integers(frequencies.astype(np.int32), False)
    plane = b"\x02" + struct.pack("<HI", len(side), 32) + side + struct.pack("<8I", *[1 << 16] * 8)
    return plane * 8


@folder
def frequencies_that_do_not_sum(folder: Path) -> None:
    edit_chunk(folder, EXACT_LAYER, 0, lambda chunk: _coded_plane(np.full(256, 15)))


@folder
def frequencies_that_sum_by_overflow(folder: Path) -> None:
    frequencies = np.zeros(256, np.int64)
    frequencies[:3] = (1 << 31) - 1, (1 << 31) - 1, 4098
    edit_chunk(folder, EXACT_LAYER, 0, lambda chunk: _coded_plane(frequencies))


@folder
def frequency_that_is_all(folder: Path) -> None:
    """Of a symbol that takes no bits at all: a plane of one value is stored as one."""
    frequencies = np.zeros(256, np.int64)
    frequencies[7] = 4096
    edit_chunk(folder, EXACT_LAYER, 0, lambda chunk: _coded_plane(frequencies))


@folder
def frequencies_below_zero(folder: Path) -> None:
    frequencies = np.zeros(256, np.int64)
    frequencies[:2] = 5000, -904
    edit_chunk(folder, EXACT_LAYER, 0, lambda chunk: _coded_plane(frequencies))


# Names, links, pipes


@folder
def layer_file_of_a_name_too_long(folder: Path) -> None:
    edit_manifest(folder, lambda m: layer_of(m).update(file="y" * 300))


@folder
def layer_file_of_a_name_too_long_in_bytes(folder: Path) -> None:
    edit_manifest(folder, lambda m: layer_of(m).update(file="\xe9" * 200))


@folder
def source_path_too_long(folder: Path) -> None:
    edit_manifest(folder, lambda m: m["sources"][0].update(path="y" * 300))


@folder
def layer_file_outside_the_folder(folder: Path) -> None:
    shutil.copy(folder / LAYER, folder.parent / "outside.rbe")
    edit_manifest(folder, lambda m: layer_of(m).update(file="../outside.rbe"))


@folder
def source_path_that_climbs(folder: Path) -> None:
    edit_manifest(folder, lambda m: m["sources"][0].update(path="../../climbed.safetensors"))


@folder
def source_path_that_is_absolute(folder: Path) -> None:
    edit_manifest(folder, lambda m: m["sources"][0].update(path="/tmp/absolute.safetensors"))


@folder
def carried_path_that_climbs(folder: Path) -> None:
    edit_manifest(folder, lambda m: m["carried"][0].update(path="a/../../climbed.json"))


@folder
def carried_path_with_control_characters(folder: Path) -> None:
    edit_manifest(folder, lambda m: m["carried"][0].update(path="a\x1b[2J\r\n.json"))


@folder
def carried_path_of_a_hidden_file(folder: Path) -> None:
    edit_manifest(folder, lambda m: m["carried"][0].update(path=".bashrc"))


@folder
def carried_path_of_another_drive(folder: Path) -> None:
    edit_manifest(folder, lambda m: m["carried"][0].update(path="C:\\windows\\system.ini"))


@folder
def carried_file_over_the_weights(folder: Path) -> None:
    edit_manifest(folder, lambda m: m["carried"][0].update(path=m["sources"][0]["path"]))


@folder
def layer_file_that_is_a_link(folder: Path) -> None:
    (folder / LAYER).rename(folder.parent / "elsewhere.rbe")
    (folder / LAYER).symlink_to(folder.parent / "elsewhere.rbe")


@folder
def carried_file_that_is_a_link(folder: Path) -> None:
    """To a file of the same bytes: only that it is a link gives it away."""
    path = folder / "files" / "config.json"
    path.rename(folder.parent / "secret.json")
    path.symlink_to(folder.parent / "secret.json")


@folder
def carried_folder_that_is_a_link(folder: Path) -> None:
    (folder / "files").rename(folder.parent / "elsewhere")
    (folder / "files").symlink_to(folder.parent / "elsewhere")


@folder
def layer_file_that_is_a_pipe(folder: Path) -> None:
    (folder / LAYER).unlink()
    os.mkfifo(folder / LAYER)


@folder
def manifest_that_is_a_pipe(folder: Path) -> None:
    (folder / "rbe.json").unlink()
    os.mkfifo(folder / "rbe.json")


@folder
def carried_file_that_is_a_pipe(folder: Path) -> None:
    (folder / "files" / "config.json").unlink()
    os.mkfifo(folder / "files" / "config.json")


@folder
def swapped_layer_files(folder: Path) -> None:
    first, second = (folder / LAYER).read_bytes(), (folder / "conv.rbe").read_bytes()
    (folder / LAYER).write_bytes(second)
    (folder / "conv.rbe").write_bytes(first)


@folder
def swapped_layer_files_with_the_right_sums(folder: Path) -> None:
    first, second = (folder / LAYER).read_bytes(), (folder / "conv.rbe").read_bytes()
    replace_layer(folder, LAYER, second)
    replace_layer(folder, "conv.rbe", first)


@folder
def manifest_with_a_key_twice(folder: Path) -> None:
    text = (folder / "rbe.json").read_bytes()
    (folder / "rbe.json").write_bytes(text.replace(b'"tool":', b'"tool":"x","tool":', 1))


@folder
def manifest_of_deep_nesting(folder: Path) -> None:
    (folder / "rbe.json").write_bytes(b'{"settings":' * 100_000 + b"0" + b"}" * 100_000 + b"\n")


@folder
def manifest_with_a_tensor_twice(folder: Path) -> None:
    edit_manifest(folder, lambda m: m["layers"].append(m["layers"][0] | {"file": "again.rbe"}))


def _in_every_tensor(folder: Path, **figures: float) -> None:
    def edit(manifest: Any) -> None:
        for layer in manifest["layers"]:
            for tensor in layer["tensors"]:
                if tensor["method"] == "trellis":
                    tensor.update(figures)

    edit_manifest(folder, edit)


@folder
def settings_with_a_surrogate(folder: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest["settings"].update({"objective": ["\ud800"]}))


@folder
def errors_whose_squares_overflow(folder: Path) -> None:
    _in_every_tensor(folder, rmse=1e300, nrmse=0.1)


@folder
def errors_whose_squares_vanish(folder: Path) -> None:
    _in_every_tensor(folder, rmse=1e-300, nrmse=1e-300)


@folder
def errors_of_nothing(folder: Path) -> None:
    _in_every_tensor(folder, rmse=0.0, nrmse=0.1)


@folder
def errors_of_four_hundred_digits(folder: Path) -> None:
    _in_every_tensor(folder, rmse=10**400)


def _tie(folder: Path, name: str, other: str) -> EncodedTensor:
    return EncodedTensor(name, "F32", (40, 40), "same", [], other)


@folder
def tensors_that_are_the_same_as_each_other(folder: Path) -> None:
    forged_layers(folder, {"x": [_tie(folder, "x.a", "x.b"), _tie(folder, "x.b", "x.a")]})
    edit_manifest(folder, lambda m: [t.update(method=f"same as x.{o}")
                                     for t, o in zip(m["layers"][0]["tensors"], "ba", strict=True)])  # fmt: skip


@folder
def tensor_that_is_the_same_as_itself(folder: Path) -> None:
    forged_layers(folder, {"x": [_tie(folder, "x.a", "x.a")]})
    edit_manifest(folder, lambda m: m["layers"][0]["tensors"][0].update(method="same as x.a"))


# Bombs: small files that would take much memory or time


@folder
def bomb_of_constant_planes(folder: Path) -> None:
    """87,000 bytes for one."""
    forged(folder, "F64", (1 << 18, 1 << 14), "lossless", [b"\x01\x00" * 8] * (1 << 14))


@folder
def bomb_of_tiles_of_zeros(folder: Path) -> None:
    grid = Grid(1 << 20, 1 << 12, 1 << 10, 1 << 12)
    chunks = [first_chunk(grid, flat_axis(grid.rows, dead=True), flat_axis(grid.columns))]
    forged(folder, "F32", (1 << 20, 1 << 12), "trellis", chunks + [zeros(1 << 22)] * len(grid))


@folder
def bomb_of_a_tile_beyond_the_bound(folder: Path) -> None:
    grid = Grid(1 << 13, 1 << 13, 1 << 13, 1 << 13)
    chunks = [first_chunk(grid, flat_axis(grid.rows, dead=True), flat_axis(grid.columns)), bytes(32)]
    forged(folder, "F16", (grid.rows, grid.columns), "trellis", chunks)


@folder
def bomb_of_a_long_axis(folder: Path) -> None:
    """2^23 rows whose scale field takes some thousand bytes; the stream is none."""
    grid = Grid(1 << 23, 1, 1 << 22, 1)
    chunks = [first_chunk(grid, flat_axis(grid.rows), flat_axis(1))] + [bytes(32)] * len(grid)
    forged(folder, "BF16", (grid.rows, 1), "trellis", chunks)


@folder
def bomb_of_low_rank_factors(folder: Path) -> None:
    """As large as the tensor, in float32, from nearly nothing."""
    rows, rank = 1 << 17, 256
    exponents = encode_integers(np.zeros(rank, np.int32), False)
    head = LOW_RANK_HEAD.pack(rows, 1.0, 0.1) + struct.pack("<HH", rank, len(exponents)) + exponents
    chunk = head + side_matrix(rows, rank) + side_matrix(rank, rank)
    forged(folder, "BF16", (rows, rank), "lowrank", [chunk + b"more"])


@folder
def side_matrix_with_bytes_left_over(folder: Path) -> None:
    exponents = encode_integers(np.zeros(4, np.int32), False)
    head = LOW_RANK_HEAD.pack(64, 1.0, 0.1) + struct.pack("<HH", 4, len(exponents)) + exponents
    forged(folder, "F32", (64, 64), "lowrank", [head + side_matrix(64, 4, b"more") + side_matrix(4, 64)])


@folder
def bomb_of_a_basis(folder: Path) -> None:
    """A Karhunen-Loeve basis of 64 MB for one row."""
    grid = Grid(1, 4096, 1, 4096)
    first = first_chunk(grid, flat_axis(1), flat_axis(4096), side_matrix(4096, 4096), transform=3)
    forged(folder, "F32", (1, 4096), "trellis", [first, bytes(32)])


@folder
def bomb_of_tensors_that_are_the_same_as_one_with_a_basis(folder: Path) -> None:
    """A basis of 64 MB that a hundred tensors of some bytes in the header need; and one that is damaged."""
    grid = Grid(1, 4096, 1, 4096)
    first = first_chunk(grid, flat_axis(1, dead=True), flat_axis(4096), side_matrix(4096, 4096), transform=3)
    tensors = [EncodedTensor("x.w", "F32", (1, 4096), "trellis", [first, zeros(4096)])]
    tensors += [EncodedTensor(f"x.{i:03d}", "F32", (1, 4096), "same", [], "x.w") for i in range(100)]
    tensors.append(EncodedTensor("x.zzz", "F32", (1, 4), "lossless", [b"\x07"]))
    forged_layers(folder, {"x": tensors})


@folder
def bomb_of_basis_functions_of_many_sizes(folder: Path) -> None:
    """Each tensor has blocks of its own size, of which the basis functions take up to 64 MB."""
    tensors = []
    for block in range(800, 1024, 40):
        head = SPARSE_HEAD.pack(1, 0, 1, 0, block, 0, 1.0, 1.0, 0.1, block, block)
        tensors.append(EncodedTensor(f"x.{block}", "F16", (block, block), "sparse", [head, b""]))
    tensors.append(EncodedTensor("x.zzz", "F16", (4, 4), "sparse", [b"", b""]))
    forged_layers(folder, {"x": tensors})


@folder
def bomb_of_many_small_blocks(folder: Path) -> None:
    n = 1 << 11
    head = SPARSE_HEAD.pack(1, 0, 1, 0, 4, 0, 1.0, 1.0, 0.1, n, n)
    forged(folder, "F32", (n, n), "sparse", [head, b"\xff" * 100])


@folder
def bomb_of_blocks_of_one_row(folder: Path) -> None:
    """Four million blocks of 1 x 4 in one tile, from nothing; and a second tile that is damaged."""
    head = SPARSE_HEAD.pack(1, 0, 0, 0, 4, 0, 1.0, 1.0, 0.1, 5, 4)
    forged(folder, "F16", (5, 1 << 22), "sparse", [head, b"", b"\xff" * 100])


@folder
def bomb_of_blocks_smaller_than_there_are(folder: Path) -> None:
    n = 1 << 11
    head = SPARSE_HEAD.pack(1, 0, 1, 0, 1, 0, 1.0, 1.0, 0.1, n, n)
    forged(folder, "F32", (n, n), "sparse", [head, b""])


@folder
def bomb_of_deep_paths(folder: Path) -> None:
    """Ten thousand paths of 512 folders each: every folder in memory by its whole path would be 2.6 GB."""
    paths = [f"{i:05d}" + "/a" * 500 for i in range(10_000)]

    def edit(manifest: Any) -> None:
        manifest["carried"] = [{"path": path, "bytes": 1, "sha256": "0" * 64} for path in paths]

    edit_manifest(folder, edit)


@folder
def bomb_of_tensors_in_one_header(folder: Path) -> None:
    """Twenty thousand tensors in a layer, and one of another type in front that is damaged: a header that is parsed
    for every tensor takes hours."""
    tensors = [EncodedTensor(f"x.{i:05d}", "U8", (0,), "lossless", []) for i in range(20_000)]
    tensors.append(EncodedTensor("x.z", "BOOL", (3,), "lossless", [b"\x07"]))
    forged_layers(folder, {"x": tensors})


@folder
def bomb_of_empty_chunks(folder: Path) -> None:
    forged(folder, "U8", (5,), "lossless", [b""] * 500_000)


@folder
def bomb_of_a_hole(folder: Path) -> None:
    """A chunk of a gigabyte for sixteen weights, in a file that takes no room on a disk or in an archive."""
    forged(folder, "F32", (4, 4), "trellis", [b""])
    path = folder / "x.rbe"
    path.write_bytes(layer_bytes(split_layer(path.read_bytes())[0], [], table=[(1 << 30, 0)]))
    os.truncate(path, path.stat().st_size + (1 << 30))


@folder
def manifest_larger_than_the_cap(folder: Path) -> None:
    with (folder / "rbe.json").open("wb") as file:
        file.truncate((256 << 20) + 2)


# Checkpoints

_ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def _write(folder: Path, header: Any, data: bytes = b"") -> None:
    (folder / "model.safetensors").write_bytes(safetensors_bytes(header, data))


@source
def checkpoint_that_is_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x80\x04cos\nsystem\n(S'id'\ntR." + bytes(100))


@source
def checkpoint_that_is_an_archive(folder: Path) -> None:
    with zipfile.ZipFile(folder / "model.safetensors", "w") as file:
        file.writestr("data.pkl", "cos\nsystem\n")


@source
def checkpoint_cut_short(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


@source
def checkpoint_with_bytes_behind_it(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole + b"PK\x05\x06" + bytes(18))


@source
def checkpoint_header_beyond_the_end(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((1 << 63).to_bytes(8, "little") + b"{}")


@source
def checkpoint_header_bomb(folder: Path) -> None:
    _write(folder, b'{"a":' + b"[" * 1_000_000)


@source
def checkpoint_offsets_that_overlap(folder: Path) -> None:
    _write(folder, {"a": _ENTRY, "b": _ENTRY | {"data_offsets": [4, 12]}}, bytes(12))


@source
def checkpoint_offsets_with_a_gap(folder: Path) -> None:
    _write(folder, {"a": _ENTRY, "b": _ENTRY | {"data_offsets": [16, 24]}}, bytes(24))


@source
def checkpoint_offsets_that_overflow(folder: Path) -> None:
    _write(folder, {"a": _ENTRY | {"data_offsets": [1 << 63, (1 << 63) + 8]}}, bytes(8))


@source
def checkpoint_shape_that_overflows(folder: Path) -> None:
    _write(folder, {"a": _ENTRY | {"shape": [1 << 32, 1 << 32, 2]}}, bytes(8))


@source
def checkpoint_shape_that_overflows_but_for_a_zero(folder: Path) -> None:
    entry = {"dtype": "F32", "shape": [0, 1 << 62, 1 << 62], "data_offsets": [0, 0]}
    _write(folder, {"a": entry})


@source
def checkpoint_with_a_name_twice(folder: Path) -> None:
    one = json.dumps(_ENTRY).encode()
    _write(folder, b'{"a":' + one + b',"a":' + one.replace(b"[0, 8]", b"[8, 16]") + b"}", bytes(16))


@source
def checkpoint_that_is_a_pipe(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


def _index(folder: Path, index: Any) -> None:
    text = index if isinstance(index, bytes) else json.dumps(index).encode()
    (folder / "model.safetensors.index.json").write_bytes(text)


@source
def index_that_points_outside(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "outside.safetensors")
    _index(folder, {"weight_map": {"a": "../outside.safetensors"}})


@source
def index_that_points_to_an_absolute_path(folder: Path) -> None:
    _index(folder, {"weight_map": {"a": "/etc/passwd"}})


@source
def index_of_deep_nesting(folder: Path) -> None:
    _index(folder, b'{"weight_map":' * 100_000)


@source
def index_that_is_a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "model.safetensors.index.json")


@source
def index_that_disagrees(folder: Path) -> None:
    _index(folder, {"weight_map": {"no.such.tensor": "model.safetensors"}})
