"""A fuzzer that stands behind the checksums: what they protect is changed, and they are made to fit.

    python -m tests.attacks.fuzz --seconds 600            (or `make fuzz SECONDS=600`)
    python -m tests.attacks.fuzz --target stream --round 17   runs one round again, as it was

Five targets: `container` (prefix, header and chunk table of a layer file), `manifest`, `stream` (parameters, scale
fields, side matrices and entropy-coded tiles, both changed golden ones and ones made from nothing), `safetensors`
(files and shard indices, read and compressed), `importance` (files for --importance). A round is some hundred inputs,
drawn by hypothesis from the number of the round, in a process of its own. An input is survived when it is read or
refused with one line; a crash, another exception, a warning, more than CPU_SECONDS or more memory than
`allowed_memory` is a find, which hypothesis shrinks.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st

from rbe_cli import dtypes
from rbe_cli.calibration.importance_file import read_importance
from rbe_cli.checkpoint.reader import open_checkpoint
from rbe_cli.codec.parameters import Parameters
from rbe_cli.codec.residual import scale_field, tables, trellis_codec
from rbe_cli.codec.residual.analysis import analyse
from rbe_cli.codec.residual.geometry import Geometry
from rbe_cli.codec.residual.trellis import trellis
from rbe_cli.codec.source import Matrix
from rbe_cli.codec.tensor_codec import open_tensor
from rbe_cli.codec.tiles import Grid, Tile
from rbe_cli.container.base import BaseTensor
from rbe_cli.container.folder import StoredTensor
from rbe_cli.container.layer_file import LayerFile, TensorRecord
from rbe_cli.container.manifest import Manifest, TensorEntry
from rbe_cli.container.methods import CODECS
from rbe_cli.container.open_base import CheckpointBase
from rbe_cli.errors import RBEError
from rbe_cli.kernels import rans
from rbe_cli.layers.weight_mapper import WeightMapper
from rbe_cli.operations.compress import compress
from rbe_cli.operations.decode import decode
from rbe_cli.operations.inspect import inspect
from rbe_cli.operations.settings import Settings
from rbe_cli.operations.verify import verify
from tests.attacks.budget import CPU_SECONDS, allowed_memory
from tests.forge import canonical, layer_bytes, replace_layer, settle_figures, split_layer
from tests.synthetic import safetensors_bytes, tiny_tensors

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
#: A round, with shrinking, may take so much wall time.
ROUND_SECONDS = 900
_INPUTS = {"container": 400, "manifest": 300, "stream": 250, "safetensors": 150, "importance": 150}
#: Elements of a hostile tensor that are decoded; beyond, the claim alone is looked at.
_MOST_ELEMENTS = 1 << 20


# What is drawn

_NUMBERS = st.sampled_from(
    [0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 255, 256, 511, 512, 1023, 1024, 1025, 4095, 4096]
    + [1 << k for k in (15, 16, 18, 20, 22, 24, 26, 30, 31, 32, 47, 60, 62, 63)]
    + [(1 << k) - 1 for k in (15, 16, 22, 26, 31, 32, 60, 63, 64)]
) | st.integers(0, 1 << 16)  # fmt: skip
_FLOATS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, 1e-38, 1e-30, 1e30, 3.4e38, float("inf"), float("nan")])
_PLACE = st.integers(0, 80) | st.integers(0, 1 << 20)
_EDIT = st.one_of(
    st.tuples(st.just("byte"), _PLACE, st.integers(0, 255)),
    st.tuples(st.sampled_from(["H", "I", "Q"]), _PLACE, _NUMBERS),
    st.tuples(st.just("f"), _PLACE, _FLOATS),
    st.tuples(st.just("cut"), _PLACE, st.just(0)),
    st.tuples(st.just("drop"), _PLACE, st.integers(1, 40)),
    st.tuples(st.just("insert"), _PLACE, st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("repeat"), _PLACE, st.integers(1, 64)),
    st.tuples(st.just("flip"), _PLACE, st.integers(0, 7)),
)
_EDITS = st.lists(_EDIT, min_size=1, max_size=4)
_JSON = st.recursive(
    st.none() | st.booleans() | _NUMBERS | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
_NAMES = st.sampled_from(
    ["..", "../x", "/etc/passwd", "a/b/../c", "a\\b", "c:x", "\0", "a\nb", "\x1b[2J", "\ud800", "", ".", "~", " a",
     "CON", "model.safetensors", "rbe.json", "files", "x" * 5000, "a/" * 400 + "a", "__metadata__", "wte.weight"]
)  # fmt: skip


def mutated(data: bytes, edits: list[tuple[str, int, Any]]) -> bytes:
    """The bytes with some edits made, each at its place modulo the length."""
    out = bytearray(data)
    for kind, place, value in edits:
        at = place % (len(out) + 1)
        if kind == "byte" and at < len(out):
            out[at] = value
        elif kind == "flip" and at < len(out):
            out[at] ^= 1 << value
        elif kind in ("H", "I", "Q", "f"):
            size = struct.calcsize(kind)
            packed = struct.pack("<" + kind, value if kind == "f" else value & ((1 << 8 * size) - 1))
            out[at : at + size] = packed[: len(out) - at]
        elif kind == "cut":
            del out[at:]
        elif kind == "drop":
            del out[at : at + value]
        elif kind == "insert":
            out[at:at] = value
        elif kind == "repeat":
            out[at:at] = out[at : at + value] * 3
    return bytes(out)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


@st.composite
def edited_json(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with some of its parts replaced, removed, doubled or put elsewhere."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        somewhere = places(value)[1:]
        if not somewhere:
            break
        *way, key = draw(st.sampled_from(somewhere))
        holder = value
        for step in way:
            holder = holder[step]
        action = draw(st.sampled_from(["put", "name", "number", "remove", "copy", "double"]))
        if action == "remove":
            del holder[key]
        elif action == "double" and isinstance(holder, list):
            holder.insert(key, holder[key])
        elif action == "copy":
            other = value
            for step in draw(st.sampled_from(places(value))):
                other = other[step]
            holder[key] = json.loads(json.dumps(other))
        else:
            holder[key] = draw({"name": _NAMES, "number": _NUMBERS}.get(action, _JSON))
    return value


# The oracle


@contextlib.contextmanager
def survived(elements: int = 0) -> Iterator[None]:
    """The block ends or is refused in one line, without a warning, in bounded time and memory."""
    began, peak = time.process_time(), _peak()
    refusal = ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            yield
        except RBEError as error:
            refusal = str(error)
    assert "\n" not in refusal, "the message has several lines"
    assert "more memory than there is" not in refusal, "asked for memory without a bound"
    assert time.process_time() - began < CPU_SECONDS, "took too long"
    assert _peak() - peak < allowed_memory(elements), f"took {_peak() - peak >> 20} MB for {elements} elements"


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


# Container


def _golden_layers() -> list[bytes]:
    return [path.read_bytes() for path in sorted(GOLDEN.glob("*/*/*.rbe")) if path.stat().st_size < 20_000]


def container(folder: Path) -> Any:
    """Layer files whose prefix, header or table is another, with the right checksum."""
    layers = [split_layer(data) for data in _golden_layers()]
    path = folder / "x.rbe"

    @given(st.data())
    def one(data: st.DataObject) -> None:
        header, chunks = data.draw(st.sampled_from(layers))
        kind = data.draw(st.sampled_from(["json", "text", "prefix", "table", "anywhere"]))
        options: dict[str, Any] = {}
        if kind == "json":
            header = data.draw(edited_json(header))
        elif kind == "text":
            header = mutated(canonical(header), data.draw(_EDITS))
        elif kind == "prefix":
            options = {"version": data.draw(st.integers(0, 65535)), "zero": data.draw(st.integers(0, 1)),
                       "count": data.draw(_NUMBERS) & 0xFFFFFFFF}  # fmt: skip
        elif kind == "table":
            number = st.integers(0, 0xFFFFFFFF)
            options = {"table": data.draw(st.lists(st.tuples(number | st.integers(0, 99), number), max_size=5))}
        whole = layer_bytes(header, chunks, **options)
        path.write_bytes(mutated(whole, data.draw(_EDITS)) if kind == "anywhere" else whole)
        with survived():
            file = LayerFile(path)
            for record in file.tensors:
                list(file.chunks(record))
            assert sum(file.sizes()) in (0, path.stat().st_size)
        with survived():
            inspect(path)

    return one


# Manifest


def manifest(folder: Path) -> Any:
    """Folders whose manifest is another; everything that opens folders has a go."""
    cases = [(path.parent, json.loads(path.read_bytes())) for path in sorted(GOLDEN.glob("*/*/rbe.json"))]
    out = folder / "out"

    @given(st.data())
    def one(data: st.DataObject) -> None:
        case, value = data.draw(st.sampled_from(cases))
        copy = folder / f"{case.parent.name}-{case.name}"
        if not copy.exists():
            shutil.copytree(case, copy)
        if data.draw(st.booleans()):
            value = data.draw(edited_json(value))
            # Whatever stands there now: text times a number, say, which may be more than fits in memory.
            with contextlib.suppress(LookupError, TypeError, AttributeError, ValueError, ArithmeticError, MemoryError):
                settle_figures(value)
            text = canonical(value) + b"\n"
        else:
            text = mutated(canonical(value) + b"\n", data.draw(_EDITS))
        (copy / "rbe.json").write_bytes(text)
        before = sorted(folder.iterdir())
        with survived():
            inspect(copy)
        with survived(1 << 16):
            base = CheckpointBase(open_checkpoint(GOLDEN / "base.safetensors")) if case.parent.name == "v3" else None
            decode(copy, out, max_decoded=1 << 22, force=True, base=base)
        shutil.rmtree(out, ignore_errors=True)
        assert sorted(folder.iterdir()) == before, "something was written elsewhere, or left behind"

    return one


# Bit streams


class _Chunks:
    """A layer file in memory."""

    path = Path("fuzzed.rbe")

    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = chunks

    def chunk(self, index: int) -> bytes:
        return self._chunks[index]

    def chunks(self, record: TensorRecord) -> Iterator[bytes]:
        yield from self._chunks[record.first_chunk : record.first_chunk + record.chunks]


class _Even:
    """A tensor's bytes, all of which are the same, and none of which is in memory."""

    def __init__(self, size: int, value: int) -> None:
        self.size = size
        self._value = value

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, _ = part.indices(self.size)
        return np.full(max(stop - start, 0), self._value, np.uint8)


def _golden_tensors() -> list[tuple[str, str, tuple[int, ...], list[bytes]]]:
    """(codec, dtype, shape, chunks) of all golden tensors that are not too large to be fuzzed quickly."""
    found = []
    for data in _golden_layers():
        header, chunks = split_layer(data)
        at = 0
        for tensor in header["tensors"]:
            own = chunks[at : at + tensor["chunks"]]
            at += tensor["chunks"]
            if own and tensor["codec"] != "same":
                found.append((tensor["codec"], tensor["dtype"], tuple(tensor["shape"]), own))
    return found


def run_tensor(
    codec: str, dtype: str, shape: tuple[int, ...], chunks: list[bytes], base: tuple[str, int] | None = None
) -> None:
    """What decode does with a tensor, as far as _MOST_ELEMENTS go; `base` is the type and every byte of its base's."""
    claimed = dtypes.byte_length(dtype, shape)
    record = TensorRecord("x.w", dtype, shape, codec, 0, len(chunks))
    entry = TensorEntry("x.w", dtype, shape, codec, 0, 0.0, 0.0, 0)
    with survived(min(dtypes.count(shape), _MOST_ELEMENTS)):
        against = (
            None if base is None else BaseTensor(base[0], shape, _Even(dtypes.byte_length(base[0], shape), base[1]))
        )
        stored = StoredTensor(_Chunks(chunks), entry, record, base=against)  # type: ignore[arg-type]
        total = elements = 0
        for piece in stored.pieces():
            total += piece.decode().size
            elements += piece.elements
            if elements > _MOST_ELEMENTS:
                return
        assert total == claimed, "decoded to another size than claimed"


_SHAPES = st.lists(st.integers(0, 5) | st.integers(0, 300) | _NUMBERS, max_size=4).map(tuple)


@st.composite
def changed_tensor(draw: st.DrawFn) -> tuple[str, str, tuple[int, ...], list[bytes]]:
    """A golden tensor with some of its chunks, and maybe its type, shape or codec, changed."""
    codec, dtype, shape, chunks = draw(st.sampled_from(_TENSORS))
    chunks = list(chunks)
    for _ in range(draw(st.integers(0, 2))):
        number = draw(st.just(0) | st.integers(0, len(chunks) - 1))
        chunks[number] = mutated(chunks[number], draw(_EDITS))
    if draw(st.integers(0, 5)) == 0:
        dtype = draw(st.sampled_from(sorted(dtypes.BITS)))
    if draw(st.integers(0, 5)) == 0:
        shape = draw(_SHAPES)
        assume(dtypes.byte_length(dtype, shape) < 4 << 30)
    if draw(st.integers(0, 9)) == 0:
        codec = draw(st.sampled_from([c for c in CODECS if c != "same"]))
    if draw(st.integers(0, 9)) == 0:
        chunks = chunks[: draw(st.integers(1, len(chunks)))] * draw(st.integers(1, 2))
    if not dtypes.count(shape):
        chunks = chunks[:1]
    return codec, dtype, shape, chunks


def _bases(codec: str, dtype: str) -> st.SearchStrategy[tuple[str, int] | None]:
    """None, or a base that a folder lets pass: of zeros, of large numbers, of NaN."""
    types = [dtype] if codec == "lossless" else sorted(dtypes.FLOATS)
    return st.none() | st.tuples(st.sampled_from(types), st.sampled_from([0, 0x3C, 0x7B, 0x7F, 0xFF]))


_SYMBOLS = st.sampled_from([0, 0, 0, 1, -1, 2, -3, 9, -40, 127, -128, 200, 5000, -70000, 1 << 22, -(1 << 27), 1 << 28])


def _axis(draw: st.DrawFn, n: int, may_be_dead: bool = True) -> scale_field.Axis:
    shift = draw(st.integers(0, 3))
    values = draw(st.lists(st.integers(-4, 4) | st.sampled_from([-512, 512, 511, -300]), min_size=1, max_size=5))
    stored = np.resize(np.array(values, np.int64), n)
    dead = np.resize(np.array(draw(st.lists(st.booleans(), min_size=1, max_size=3))), n) & (
        may_be_dead and draw(st.booleans())
    )
    return scale_field.Axis(np.where(dead, scale_field.ZERO, stored << shift).astype(np.int32), shift)


def _stream(parameters: Parameters, geometry: Geometry, tile: Tile, symbols: list[int]) -> bytes:
    """A sound stream of any symbols at all, whatever their classes."""
    lanes, rows = rans.LANES, -(-tile.size // rans.LANES)
    flat = np.zeros(rows * lanes, np.int32)
    flat[: tile.size] = np.resize(np.array(symbols, np.int64), tile.size).astype(np.int32)
    classes = np.zeros(rows * lanes, np.uint8)
    classes[: tile.size] = geometry.scan(tile, parameters).classes()
    flat[classes == 0] = 0
    k, unions = flat.reshape(rows, lanes), np.zeros((rows, lanes), np.uint8)
    step, state = trellis(parameters.states).step, np.zeros(lanes, np.int64)
    for row in range(rows):
        unions[row] = state & 1
        state = step[2 * state + (k[row] & 1)].astype(np.int64)
    coding = tables.family(parameters.family).coding
    words = np.zeros(8 * tile.size + 4 * lanes, np.uint16)
    at = rans.encode_tile(
        tile.size, k, classes.reshape(rows, lanes), unions, tables.CLASSES, coding.start, coding.freq, coding.reach,
        words,
    )  # fmt: skip
    return words[at:].astype("<u2").tobytes()


@st.composite
def made_tensor(draw: st.DrawFn) -> tuple[str, str, tuple[int, ...], list[bytes]]:
    """A trellis-coded tensor of extreme but allowed parameters, with streams that fit them."""
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    height = draw(st.integers(1, rows))
    width = columns if height > 1 else draw(st.integers(1, columns))
    transform = draw(st.sampled_from([0, 0, 1, 2]))
    block = draw(st.sampled_from([1, 2, 3, 5, 8, 16, 64, 1024])) if transform else 0
    if transform:
        width, height = columns, (draw(st.sampled_from([block, rows])) if block < rows else rows)
    row_axis, column_axis = _axis(draw, rows), _axis(draw, columns)
    importance = [_axis(draw, n, may_be_dead=False) if draw(st.booleans()) else None for n in (rows, columns)]
    row_bytes, column_bytes = scale_field.encode_axis(row_axis), scale_field.encode_axis(column_axis)
    parameters = Parameters(
        by_columns=draw(st.booleans()), states=1 << draw(st.integers(2, 8)), family=draw(st.integers(0, 2)),
        row_shaping=draw(st.integers(0, 16)), column_shaping=draw(st.integers(0, 16)),
        base=draw(st.sampled_from([12, 20, 40, 56, 57, 100, 184]) | st.integers(-32768, 32767)),
        step=draw(st.sampled_from([1.0, 1e-45, 1e-38, 1e-10, 1e10, 3.4e38])),
        grid=Grid(rows, columns, height, width), rms=1.0, nrmse=0.5, row_bytes=len(row_bytes),
        column_bytes=len(column_bytes), transform=transform, block=block,
        levels=draw(st.integers(0, 16)) if transform == 2 else 0,
        row_importance=importance[0] is not None, column_importance=importance[1] is not None,
    )  # fmt: skip
    symbols = draw(st.lists(_SYMBOLS, min_size=1, max_size=20))
    with np.errstate(all="ignore"):
        geometry = Geometry.of(parameters, row_axis, column_axis, *importance)
    chunks = [parameters.pack() + row_bytes + column_bytes]
    for axis in filter(None, importance):
        stored = scale_field.encode_axis(axis)
        chunks[0] += len(stored).to_bytes(4, "little") + stored
    chunks += [_stream(parameters, geometry, tile, symbols) for tile in parameters.grid]
    if draw(st.integers(0, 2)) == 0:
        number = draw(st.integers(0, len(chunks) - 1))
        chunks[number] = mutated(chunks[number], draw(_EDITS))
    return "trellis", draw(st.sampled_from(sorted(dtypes.FLOATS))), (rows, columns), chunks


def stream(folder: Path) -> Any:
    """Tensors whose chunks are other ones; now and then by way of a folder and the layers that run from it."""
    sound = GOLDEN / "v1" / "balanced"

    @given(st.data())
    def one(data: st.DataObject) -> None:
        if data.draw(st.integers(0, 2)):
            codec, dtype, shape, chunks = data.draw(changed_tensor())
            run_tensor(codec, dtype, shape, chunks, data.draw(_bases(codec, dtype)))
        elif data.draw(st.integers(0, 3)):
            codec, dtype, shape, chunks = data.draw(made_tensor())
            run_tensor(codec, dtype, shape, chunks, data.draw(_bases(codec, dtype)))
        else:
            _through_a_folder(folder, sound, data)

    return one


def _through_a_folder(folder: Path, sound: Path, data: st.DataObject) -> None:
    """One chunk of a layer file changed, manifest and all made to fit; decode, verify and the layers read it."""
    copy, out = folder / "model", folder / "out"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(sound, copy)
    file = next(copy.glob("*.rbe"))
    header, chunks = split_layer(file.read_bytes())
    number = data.draw(st.integers(0, len(chunks) - 1))
    chunks[number] = mutated(chunks[number], data.draw(_EDITS))
    replace_layer(copy, file.name, layer_bytes(header, chunks))
    with survived(1 << 16):
        decode(copy, out, force=True)
    shutil.rmtree(out, ignore_errors=True)
    with survived(1 << 16):
        verify(copy).require_sound()
    with survived(1 << 16):
        weights = WeightMapper(_opened(copy))
        for name, shape in weights.shapes().items():
            if len(shape) == 2:
                weights.matrix(name).times_transposed(np.ones((1, shape[1]), np.float32))
    assert not out.exists()


def _opened(folder: Path) -> Any:
    from rbe_cli.container.folder import Folder

    return Folder.open(folder)


# safetensors


def safetensors(folder: Path) -> Any:
    """Checkpoints whose header or index is another: opened, read, and compressed where they can be."""
    tensors = {name: array for name, array in tiny_tensors().items() if array.nbytes < 6000}
    from safetensors.numpy import save

    whole = save(tensors, metadata={"format": "pt"})
    length = int.from_bytes(whole[:8], "little")
    header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    index = {"metadata": {"total_size": 3}, "weight_map": dict.fromkeys(tensors, "x.safetensors")}
    source, out = folder / "source", folder / "out.rbe"
    source.mkdir(exist_ok=True)

    @given(st.data())
    def one(data: st.DataObject) -> None:
        kind = data.draw(st.sampled_from(["json", "text", "anywhere", "index json", "index text"]))
        file, text = whole, None
        if kind == "json":
            file = safetensors_bytes(data.draw(edited_json(header)), body)
        elif kind == "text":
            file = safetensors_bytes(mutated(json.dumps(header).encode(), data.draw(_EDITS)), body)
        elif kind == "anywhere":
            file = mutated(whole, data.draw(_EDITS))
        elif kind == "index json":
            text = json.dumps(data.draw(edited_json(index))).encode()
        else:
            text = mutated(json.dumps(index).encode(), data.draw(_EDITS))
        (source / "x.safetensors").write_bytes(file)
        (source / "x.safetensors.index.json").unlink(missing_ok=True)
        if text is not None:
            (source / "x.safetensors.index.json").write_bytes(text)
        before = sorted(folder.iterdir())
        with survived(len(file)):
            checkpoint = open_checkpoint(source)
            goal = {"lossless": True} if data.draw(st.booleans()) else {"bits": 9.0}
            compress(checkpoint, out, Settings(jobs=1, effort=0, **goal))
            assert Manifest.read(out).tensors is not None
        shutil.rmtree(out, ignore_errors=True)
        assert sorted(folder.iterdir()) == before, "something was written elsewhere, or left behind"

    return one


# Importance files


def importance(folder: Path) -> Any:
    """Importance files, ours and llama.cpp's binary ones, and what is asked of them."""
    from safetensors.numpy import save

    values = {"a.weight": np.ones(4, np.float32), "a.weight.moments": np.eye(4, dtype=np.float32)}
    ours = save(values, metadata={"input_axis": '{"a.weight":1}', "shared": '{"b.weight":"a.weight"}'})
    theirs = struct.pack("<i", 1) + struct.pack("<i", 8) + b"a.weight" + struct.pack("<ii", 2, 4)
    theirs += values["a.weight"].tobytes() + struct.pack("<ii", 2, 8) + b"text.txt"

    @given(st.booleans(), _EDITS)
    def one(safe: bool, edits: list[tuple[str, int, Any]]) -> None:
        path = folder / ("x.safetensors" if safe else "x.dat")
        path.write_bytes(mutated(ours if safe else theirs, edits))
        with survived(1 << 16):
            found = read_importance(path)
            for name in ("a.weight", "b.weight"):
                found.mean_square(name, (4, 4))
                found.moments(name, (4, 4))

    return one


TARGETS: dict[str, Callable[[Path], Any]] = {
    "container": container, "manifest": manifest, "stream": stream, "safetensors": safetensors,
    "importance": importance,
}  # fmt: skip
_TENSORS = _golden_tensors()


# Rounds, each in a process of its own


def _round(target: str, number: int, report: int) -> None:
    """One round in this process: its inputs are counted into `report`, a file descriptor; a find is raised."""
    tried = 0
    folder = Path(tempfile.mkdtemp(prefix="rbe-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        one = TARGETS[target](folder)
        inner = one.hypothesis.inner_test

        def counted(*args: Any, **kwargs: Any) -> None:
            nonlocal tried
            tried += 1
            inner(*args, **kwargs)

        one.hypothesis.inner_test = counted
        wanted = settings(
            max_examples=_INPUTS[target], deadline=None, database=None, suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.target, Phase.shrink], print_blob=False,
        )  # fmt: skip
        seed(number)(wanted(one))()
    finally:
        os.write(report, f"{tried}\n".encode())
        shutil.rmtree(folder, ignore_errors=True)


def run_round(target: str, number: int) -> tuple[int, str]:
    """One round in a child: inputs tried, and what was found (empty if nothing)."""
    here, there = os.pipe()
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - the child writes to it, and both leave it to the system
    child = os.fork()
    if child == 0:
        code = 0
        try:
            signal.alarm(ROUND_SECONDS)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            _round(target, number, there)
        except BaseException:
            traceback.print_exc(file=log)
            log.flush()
            code = 1
        os._exit(code)
    os.close(there)
    _, status = os.waitpid(child, 0)
    with os.fdopen(here) as counts:
        tried = sum(map(int, counts.read().split()))
    log.seek(0)
    found = log.read()
    if os.WIFSIGNALED(status):
        found = f"killed by {signal.Signals(os.WTERMSIG(status)).name}\n{found}"
    return tried, found


def campaign(targets: list[str], seconds: float, first: int) -> tuple[dict[str, int], list[str]]:
    """Rounds in turn until the time is over: inputs tried per target, and what was found."""
    warm_up()
    tried = dict.fromkeys(targets, 0)
    finds: list[str] = []
    end, number = time.monotonic() + seconds, first
    while time.monotonic() < end:
        for target in targets:
            if time.monotonic() >= end:
                break
            count, found = run_round(target, number)
            tried[target] += count
            if found:
                finds.append(f"--- {target}, round {number}\n{found}")
                print(finds[-1], file=sys.stderr, flush=True)
        number += 1
    return tried, finds


def warm_up() -> None:
    """Load and compile everything once, so that the children begin with it; no thread is left."""
    from rbe_cli.codec.warm_up import compile_all

    compile_all()
    w = np.sin(np.arange(48 * 48, dtype=np.float32)).reshape(48, 48)
    analysis = analyse(Matrix.of(w))
    assert analysis is not None
    with ThreadPoolExecutor(1) as pool:
        trellis_codec.Encoding(analysis, 0.1, 4, pool).result()
    for codec, _, shape, chunks in _TENSORS:
        if codec in ("trellis", "sparse", "lowrank"):
            decoder = open_tensor(chunks[0], shape, codec)
            decoder.decode(chunks[1] if decoder.streams else b"", decoder.grid[0])


def main() -> int:
    """Run a campaign, or one round again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--target", choices=sorted(TARGETS), action="append")
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--round", type=int, help="run this one round and no other")
    arguments = parser.parse_args()
    targets = arguments.target or list(TARGETS)
    if arguments.round is not None:
        warm_up()
        results = [run_round(target, arguments.round) for target in targets]
        tried, finds = dict(zip(targets, (count for count, _ in results), strict=True)), [f for _, f in results if f]
        print(*finds, sep="\n", file=sys.stderr)
    else:
        tried, finds = campaign(targets, arguments.seconds, arguments.first)
    print(json.dumps({"inputs": tried, "total": sum(tried.values()), "finds": len(finds)}))
    return min(len(finds), 1)


if __name__ == "__main__":
    sys.exit(main())
