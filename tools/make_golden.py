"""Make the golden files of a format version: compressed folders and what they decode to. Run once, never again.

    python -m tools.make_golden v2                          # tests/golden/v2; refuses to overwrite
    python -m tools.make_golden v1 --case example -o DIR    # one of the compressed folders, anywhere
    python -m tools.make_golden --encoder                   # what this version of rbe makes of the cases, by SHA-256

The golden files are what later versions must still read, so they are kept, not made anew; a new format version gets a
folder of its own. The weights come from integer arithmetic, so that they are the same on every machine. What the
encoder makes of the cases is noted by checksum for one version of rbe, and noted anew when that is another.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbe_cli import __version__, dtypes, elements
from rbe_cli.checkpoint.reader import open_checkpoint
from rbe_cli.checkpoint.source import open_source
from rbe_cli.checkpoint.writer import layout, write_safetensors
from rbe_cli.codec import tensor_codec
from rbe_cli.codec.choice.wish import Wish
from rbe_cli.codec.lossless import encode as encode_lossless
from rbe_cli.codec.parameters import SIZE, Parameters
from rbe_cli.codec.residual import scale_field, trellis_codec
from rbe_cli.codec.residual.geometry import Geometry
from rbe_cli.codec.residual.noise_shaping import Shaping
from rbe_cli.codec.source import Matrix
from rbe_cli.codec.structure.low_rank import fit_low_rank
from rbe_cli.codec.structure.sparse_analysis import SparseAnalysis
from rbe_cli.codec.structure.sparse_form import sparse_form
from rbe_cli.codec.tiles import Grid
from rbe_cli.container.folder import Folder
from rbe_cli.container.layer_file import EncodedTensor, LayerFile, write_layer
from rbe_cli.container.manifest import LayerEntry, Manifest, SourceFile, TensorEntry
from rbe_cli.container.open_base import AnyBase, open_base
from rbe_cli.operations.compress import compress
from rbe_cli.operations.settings import Settings

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"
ENCODER, BASE = GOLDEN / "encoder.json", GOLDEN / "base.safetensors"
#: Of a tensor whose decoding is exact only to a tolerance, about so many values are kept.
KEPT_VALUES = 2000
Floats = NDArray[np.float64]
#: Name -> (safetensors type, shape, bytes).
Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


def noise(count: int, seed: int) -> NDArray[np.uint64]:
    """Uniform 64-bit integers (splitmix64)."""
    z = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed << 32)
    z = z * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z ^ (z >> np.uint64(31))


def normal(rows: int, columns: int, seed: int) -> Floats:
    """Nearly Gaussian numbers of variance 1, multiples of 2^-16 and so exact: sums of 12 uniform ones."""
    uniform = (noise(12 * rows * columns, seed) >> np.uint64(48)).astype(np.float64)
    sums = uniform.reshape(rows, columns, 12).sum(axis=2)
    return np.asarray((sums - 6 * 65535) / 65536)


def scaled(rows: int, columns: int, seed: int) -> Floats:
    """Gaussian numbers whose rows and columns differ in scale, as trained matrices do."""
    row_scale = 2 + (noise(rows, seed + 1000) >> np.uint64(60)).astype(np.float64)
    column_scale = 2 + (noise(columns, seed + 2000) >> np.uint64(60)).astype(np.float64)
    return normal(rows, columns, seed) * row_scale[:, None] * column_scale / 1024


def laplace(rows: int, columns: int, seed: int) -> Floats:
    """Laplace numbers: a b - c d of four Gaussians."""
    a, b, c, d = (normal(rows, columns, seed + i) for i in range(4))
    return np.asarray(a * b - c * d)


def low_rank(rows: int, columns: int, rank: int, seed: int) -> Floats:
    """A product of two Gaussian factors, and a little of everything else."""
    a, b = np.floor(normal(rows, rank, seed) * 256), np.floor(normal(rank, columns, seed + 1) * 256)
    return np.asarray(a @ b / 2**16 + normal(rows, columns, seed + 2) / 64)


def smooth(rows: int, columns: int, seed: int) -> Floats:
    """Bowls, and noise."""
    i, j = np.mgrid[:rows, :columns].astype(np.float64)
    bowl = (i % 16 - 8) * (i % 16 - 8) + (j % 16 - 8) * (j % 16 - 8)
    return np.asarray(bowl / 64 + normal(rows, columns, seed) / 16)


def floats(
    values: Floats, dtype: str = "F32", shape: tuple[int, ...] | None = None
) -> tuple[str, tuple[int, ...], bytes]:
    """A tensor of a floating type."""
    return dtype, shape or values.shape, values.astype(np.float32).astype(elements.FLOATS[dtype]).tobytes()


def raw(dtype: str, shape: tuple[int, ...], seed: int, mask: int = 0xFF) -> tuple[str, tuple[int, ...], bytes]:
    """A tensor of any type, made of random bytes."""
    count = dtypes.byte_length(dtype, shape)
    return dtype, shape, (noise(count, seed).astype(np.uint8) & np.uint8(mask)).tobytes()


def example() -> Tensors:
    return {
        "tiny.weight": floats(scaled(32, 32, 1), "F16"),
        "tiny.bias": ("F16", (3,), bytes(6)),
    }


def every_type() -> Tensors:
    tied = floats(scaled(48, 24, 2), "BF16")
    wild = scaled(32, 32, 3)
    wild[0, :4] = np.nan, np.inf, -np.inf, -0.0
    tensors = {
        "wte.weight": tied,
        "lm_head.weight": tied,
        "h.0.double.weight": floats(scaled(40, 30, 4), "F64"),
        "h.0.single.weight": floats(scaled(32, 41, 5)),
        "h.0.half.weight": floats(scaled(37, 29, 6), "F16"),
        "h.0.half.bias": floats(scaled(1, 29, 7), "F16", (29,)),
        "h.0.brain.weight": floats(scaled(33, 35, 8), "BF16"),
        "conv.weight": floats(scaled(16, 75, 9), "F32", (16, 3, 5, 5)),
        "experts.weight": floats(scaled(36, 32, 10), "F16", (2, 18, 32)),
        "wild.weight": floats(wild),
        "zeros.weight": floats(np.zeros((32, 40))),
        "constant": floats(np.full((50, 40), 0.75)),
        "scalar": floats(np.array([[2.5]]), "F32", ()),
        "empty.weight": ("F32", (0, 5), b""),
        "strange name/../\u00fc\U0001f600.weight": floats(scaled(1, 5, 11), "F32", (5,)),
        ".hidden": raw("I8", (3,), 12),
        "Case.weight": raw("U8", (4,), 13),
        "case.weight": raw("U8", (4,), 14),
        "a" * 200: raw("U8", (2,), 15),
        "bool": raw("BOOL", (13, 11), 16, mask=1),
        "complex": raw("C64", (3, 2), 17),
    }
    for i, dtype in enumerate(("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8")):
        tensors["integers." + dtype] = raw(dtype, (7, 9), 20 + i, mask=0x1F)
    for i, dtype in enumerate(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ")):
        tensors["small." + dtype] = raw(dtype, (6, 4, 2), 30 + i)
    for i, dtype in enumerate(("F6_E2M3", "F6_E3M2", "F4")):
        tensors["small." + dtype] = raw(dtype, (4, 4), 40 + i)
    return tensors


def exact() -> Tensors:
    weights = scaled(40, 24, 50)
    return {name: floats(weights, name) for name in dtypes.FLOATS} | {
        "two chunks": ("U8", (1 << 18, 1), bytes(1 << 18)),
        "three chunks": ("BOOL", ((1 << 19) + 100,), bytes([1]) * ((1 << 19) + 100)),
        "skewed": ("U8", (3000,), bytes(np.minimum(noise(3000, 51) >> np.uint64(57), 90).astype(np.uint8) // 40)),
    }


def one(values: Floats, name: str = "layer.weight", dtype: str = "F32") -> Tensors:
    return {name: floats(values, dtype)}


def outliers() -> Tensors:
    weights = normal(40, 36, 60) / 16
    weights[3, 5], weights[17, 0], weights[22, 35] = 76 / 16, -300.0, 1000.0
    holes = scaled(44, 40, 61)
    holes[[0, 9, 43]] = 0
    holes[:, [4, 39]] = 0
    return {"outliers.weight": floats(weights), "holes.weight": floats(holes), "stripes.weight": floats(_stripes())}


def _stripes() -> Floats:
    """Rows of zeros, the others of one scale: an axis with nothing but the marker."""
    weights = normal(32, 32, 62)
    weights[::3] = 0
    return weights


def families() -> Tensors:
    between = normal(40, 36, 70) * np.where(noise(40 * 36, 71) >> np.uint64(62) == 0, 2.0, 1.0).reshape(40, 36)
    return {
        "gauss.weight": floats(normal(40, 36, 72)),
        "between.weight": floats(between),
        "laplace.weight": floats(laplace(40, 36, 73)),
    }


def raw_bits() -> Tensors:
    return one(scaled(33, 32, 91)) | one(scaled(33, 32, 92), "fine.weight")


def _plain(**wishes: Any) -> dict[str, Any]:
    return {"transform": "none", "objective": "mse"} | wishes


def _exactly(**wishes: Any) -> dict[str, Any]:
    """Everything lossless but what an override says."""
    return {"lossless": True, "objective": "mse"} | wishes


_DCT = {"transform": "dct", "block": 16}
_DWT = {"transform": "dwt", "block": 16}
#: Name -> (tensors, settings). Those with the transform `none`, or lossless, decode exactly and are encoded alike
#: everywhere.
CASES: dict[str, tuple[Callable[[], Tensors], dict[str, Any]]] = {
    "example": (example, _plain(nrmse=0.85, effort=1)),
    "types": (every_type, _plain(nrmse=0.2, overrides=("^constant=lossless",))),
    "lossless": (exact, {"lossless": True}),
    "stored": (lambda: one(scaled(8, 8, 52)), {"lossless": True, "overrides": (".=skip",)}),
    "states-4": (lambda: one(scaled(36, 32, 80)), _plain(nrmse=0.1, effort=0)),
    "states-8": (lambda: one(scaled(36, 32, 81)), _plain(nrmse=0.1, effort=1)),
    "states-16": (lambda: one(scaled(36, 32, 82)), _plain(nrmse=0.1, effort=2)),
    "states-32": (lambda: one(scaled(36, 32, 83)), _plain(nrmse=0.1, effort=3)),
    "states-64": (lambda: one(scaled(36, 32, 84)), _plain(nrmse=0.1, effort=4)),
    "states-128": (lambda: one(scaled(36, 32, 85)), _plain(nrmse=0.1, effort=5)),
    "states-256": (lambda: one(scaled(36, 32, 86)), _plain(nrmse=0.1, effort=6)),
    "balanced": (lambda: one(scaled(48, 40, 90)), _plain(nrmse=0.1, objective="balanced")),
    "outliers": (outliers, _plain(nrmse=0.0003)),
    "raw-bits": (raw_bits, _plain(nrmse=2e-5, overrides=("layer=nrmse:0.001",))),
    "families": (families, _plain(nrmse=0.15)),
    "coarse": (lambda: one(laplace(64, 64, 93)), _plain(nrmse=0.95)),
    "tiles": (lambda: one(scaled(230, 300, 94)), _exactly(transform="none", overrides=("layer=bits:0.25",))),
    "wide-row": (lambda: one(normal(1, 270_001, 95)), _plain(nrmse=0.98)),
    "dct": (lambda: one(smooth(40, 36, 100)), _DCT | {"nrmse": 0.05}),
    "dct-tiles": (lambda: one(smooth(250, 300, 101)), _DCT | _exactly(overrides=("layer=bits:0.4",))),
    "dwt": (lambda: one(smooth(45, 37, 102)), _DWT | {"nrmse": 0.05, "k": 16}),
    "dwt-2": (lambda: one(smooth(48, 32, 103), dtype="F16"), _DWT | {"nrmse": 0.1, "k": 2}),
    "klt": (lambda: one(low_rank(60, 20, 3, 104)), {"nrmse": 0.05, "transform": "klt"}),
    "lowrank": (lambda: one(low_rank(48, 40, 2, 106)), {"nrmse": 0.01, "transform": "lowrank"}),
    "sparse-dct": (lambda: one(smooth(48, 48, 110)), _DCT | {"nrmse": 0.1, "structure_only": True}),
    "sparse-dct-edges": (lambda: one(smooth(41, 35, 111)), _DCT | {"nrmse": 0.1, "structure_only": True}),
    "sparse-dwt": (
        lambda: one(smooth(45, 33, 112), dtype="BF16"),
        _DWT | {"nrmse": 0.1, "k": 3, "structure_only": True},
    ),
    "lowrank-only": (
        lambda: one(low_rank(48, 40, 3, 113), dtype="F16"),
        {"nrmse": 0.1, "transform": "lowrank", "structure_only": True},
    ),
}
#: Since version 2, with what is known of the inputs of `layer.weight`: (their axis, whether of second moments too).
CASES_2: dict[str, tuple[Callable[[], Tensors], dict[str, Any]]] = {
    "importance": (lambda: one(scaled(52, 40, 130)), _plain(bits=6, inputs=(1, False))),
    "importance-rows": (lambda: one(scaled(40, 52, 131), dtype="F16"), _plain(bits=6, inputs=(0, False))),
    "importance-lowrank": (
        lambda: one(low_rank(52, 40, 3, 132)),
        {"nrmse": 0.05, "transform": "lowrank", "inputs": (1, False)},
    ),
    "feedback": (lambda: one(scaled(75, 40, 134), dtype="BF16"), _plain(bits=5, inputs=(1, True))),
    "feedback-rows": (lambda: one(scaled(40, 75, 135)), _plain(bits=5, inputs=(0, True))),
}


def base() -> Tensors:
    """What the updates below are made against."""
    return {
        "layer.weight": floats(scaled(52, 40, 150)),
        "layer.half": floats(scaled(36, 32, 151)),
        "layer.frozen": floats(scaled(34, 36, 152), "BF16"),
        "layer.bias": floats(scaled(1, 40, 153), "F32", (40,)),
        "layer.count": raw("I32", (30,), 154, mask=0x0F),
        "layer.other": floats(scaled(30, 36, 155)),
    }


def update() -> Tensors:
    """Most of the base, a little changed: in another type, not at all, exactly, and one of another shape."""
    old = base()
    weight, half, bias = (
        np.frombuffer(old[name][2], "<f4").reshape(old[name][1])
        for name in ("layer.weight", "layer.half", "layer.bias")
    )
    count = np.frombuffer(old["layer.count"][2], "<i4") + (np.arange(30) % 7 == 0)
    return {
        "layer.weight": floats(weight + scaled(52, 40, 160) / 16),
        "layer.half": floats(half + scaled(36, 32, 161) / 16, "F16"),
        "layer.frozen": old["layer.frozen"],
        "layer.bias": floats(np.asarray(bias + scaled(1, 40, 162)[0] / 4096, np.float64), "F32", (40,)),
        "layer.count": ("I32", (30,), count.astype("<i4").tobytes()),
        "layer.other": floats(scaled(30, 37, 165)),
    }


def merged() -> Tensors:
    """The base and a product of two factors, as a merged LoRA is."""
    weight = np.frombuffer(base()["layer.weight"][2], "<f4").reshape(52, 40)
    return one(weight + low_rank(52, 40, 2, 166) / 32)


def retrained() -> Tensors:
    """What the golden folder `v1/balanced` is of, a little changed."""
    return one(scaled(48, 40, 90) + scaled(48, 40, 167) / 16)


def retrained_again() -> Tensors:
    """The same, a little more."""
    return one(scaled(48, 40, 90) + scaled(48, 40, 167) / 16 + scaled(48, 40, 168) / 64)


#: Since version 3, against BASE or a golden folder.
CASES_3: dict[str, tuple[Callable[[], Tensors], dict[str, Any]]] = {
    "update": (update, _plain(nrmse=0.02)),
    "update-lowrank": (merged, {"nrmse": 0.01, "transform": "lowrank"}),
    "update-lowrank-only": (merged, {"nrmse": 0.05, "transform": "lowrank", "structure_only": True}),
    "update-of-folder": (retrained, _plain(nrmse=0.02, base="v1/balanced")),
    "update-of-update": (retrained_again, _plain(nrmse=0.02, base="v3/update-of-folder")),
}
VERSIONS = {"v1": CASES, "v2": CASES_2, "v3": CASES_3}
DETERMINISTIC = tuple(
    f"{version}/{name}"
    for version, cases in VERSIONS.items()
    for name, (_, wishes) in cases.items()
    if wishes.get("transform", "none") == "none"
)


def write_source(tensors: Tensors, folder: Path) -> None:
    """A checkpoint of two shards (one, if it has one tensor), a configuration and a file in a sub-folder."""
    folder.mkdir(parents=True)
    names = list(tensors)
    shards = [names[::2], names[1::2]] if len(names) > 3 else [names]
    files: dict[str, str] = {}
    for i, part in enumerate(shards):
        file = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        files |= dict.fromkeys(part, file)
        order = layout((name, tensors[name][0], tensors[name][1]) for name in part)
        data = ([np.frombuffer(tensors[name][2], np.uint8)] for name, _, _ in order)
        write_safetensors(folder / file, order, data, {"format": "pt"} if i == 0 else None)
    if len(shards) > 1:
        size = sum(len(data) for _, _, data in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index) + "\n")
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text("{}\n")


def paths_of_base(version: str, name: str) -> list[Path]:
    """What a case is an update of; and if that is one, what that is one of, and so on."""
    if version != "v3":
        return []
    case = CASES_3[name][1].get("base")
    if case is None:
        return [BASE]
    version, name = case.split("/")
    made = GOLDEN / version
    return [(made if made.exists() else _under_way(made)) / name, *paths_of_base(version, name)]


def _under_way(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def base_of(version: str, name: str) -> AnyBase | None:
    """The same, open."""
    return open_base(list(map(str, paths_of_base(version, name))), open_source)


def write_importance(path: Path, shape: tuple[int, ...], axis: int, moments: bool) -> None:
    """What a calibration might have found of the inputs of `layer.weight`."""
    n = shape[axis]
    seen = np.floor(normal(4 * n, n, 140) * 16) * (1 + noise(n, 144) % np.uint64(4)) / 16
    second = seen.T @ seen / (4 * n)
    found = {"layer.weight": np.diag(second)} | ({"layer.weight.moments": second} if moments else {})
    order = layout((name, "F32", values.shape) for name, values in found.items())
    data = ([np.frombuffer(found[name].astype(np.float32).tobytes(), np.uint8)] for name, _, _ in order)
    write_safetensors(path, order, data, {"input_axis": json.dumps({"layer.weight": axis})})


def make_case(version: str, name: str, out: Path, jobs: int = 1) -> None:
    """Compress the tensors of one case to the folder `out`."""
    make, wishes = VERSIONS[version][name]
    tensors, wishes = make(), dict(wishes)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / name
        write_source(tensors, source)
        if "inputs" in wishes:
            wishes["importance"] = Path(scratch) / "importance.safetensors"
            write_importance(wishes["importance"], tensors["layer.weight"][1], *wishes.pop("inputs"))
        wishes.pop("base", None)
        settings = Settings(**{"jobs": jobs} | wishes)
        compress(open_checkpoint(source), out, settings, base=base_of(version, name))


# What the format allows and the encoder does not make: put together from what it does make.


def forged() -> dict[str, list[EncodedTensor]]:
    """Case -> tensors of one layer file: by columns, structure and transform together, sparse without functions,
    large escapes.
    """
    with ThreadPoolExecutor(1) as pool:
        return {
            "by-columns": [_by_columns(pool)],
            "mixed": [_with_low_rank("dct", pool), _with_low_rank("klt", pool)],
            "sparse-plain": [_sparse_plain()],
            "escapes": [_escapes(20), _escapes(57)],
        }


def _trellis(values: Floats, pool: ThreadPoolExecutor, kind: str = "none") -> list[bytes]:
    array = np.ascontiguousarray(values, np.float32)
    matrix = Matrix(array.view(np.uint8).ravel(), "F32", *array.shape)
    shaping = Shaping(4, 12) if kind == "none" else Shaping()
    choice = tensor_codec.prepare(matrix, shaping, Wish(kind, 16, 2, 0.1))
    assert choice is not None
    return tensor_codec.start(choice, 0.1 * choice.analysis.unit, 16, pool).result().chunks


def _by_columns(pool: ThreadPoolExecutor) -> EncodedTensor:
    """The transpose of a matrix by rows is the matrix by columns: swap the axes and set the flag."""
    head, stream = _trellis(scaled(36, 34, 120).T, pool)
    p = Parameters.unpack(head, 36 * 34)
    middle = SIZE + p.row_bytes
    p = dataclasses.replace(
        p, by_columns=True, row_shaping=p.column_shaping, column_shaping=p.row_shaping,
        grid=dataclasses.replace(p.grid, rows=36, columns=34, height=36, width=34),
        row_bytes=p.column_bytes, column_bytes=p.row_bytes,
    )  # fmt: skip
    return EncodedTensor(
        "by_columns.weight", "F32", (36, 34), "trellis", [p.pack() + head[middle:] + head[SIZE:middle], stream]
    )


def _escapes(base: int) -> EncodedTensor:
    """Weights from a step to 2^21 steps, all of one class."""
    size = np.exp2(np.arange(31 * 33) % 21).reshape(31, 33)
    array = np.ascontiguousarray(normal(31, 33, 123) * size, np.float32)
    rows, columns = scale_field.Axis.flat(31), scale_field.Axis.flat(33)
    axes = scale_field.encode_axis(rows), scale_field.encode_axis(columns)
    grid = Grid(31, 33, 31, 33)
    p = Parameters(False, 32, 1, 0, 0, base, 1.0, grid, 1.0, 0.1, len(axes[0]), len(axes[1]))
    matrix = Matrix(array.view(np.uint8).ravel(), "F32", 31, 33)
    streams, _, _ = trellis_codec._encode_group(matrix, p, Geometry.of(p, rows, columns), list(grid))
    head = p.pack() + axes[0] + axes[1]
    return EncodedTensor(f"class{base}.weight", "F32", (31, 33), "trellis", [head, *streams])


def _with_low_rank(kind: str, pool: ThreadPoolExecutor) -> EncodedTensor:
    """Low rank and a transform in one tensor."""
    part = fit_low_rank(Matrix.of(low_rank(48, 40, 2, 106).astype(np.float32)), 0.05)
    assert part is not None
    head, *streams = _trellis(smooth(48, 40, 121), pool, kind)
    p = Parameters.unpack(head, 48 * 40)
    end = SIZE + p.row_bytes + p.column_bytes
    p = dataclasses.replace(p, structure=1)
    return EncodedTensor(
        f"{kind}.weight", "F32", (48, 40), "trellis", [p.pack() + head[SIZE:end] + part.data + head[end:], *streams]
    )


def _sparse_plain() -> EncodedTensor:
    """Sparse blocks without basis functions, in two tiles."""
    array = np.ascontiguousarray(smooth(40, 36, 122), np.float32)
    matrix = Matrix(array.view(np.uint8).ravel(), "F32", *array.shape)
    form = sparse_form(matrix, "dwt", 8, 2)
    form = dataclasses.replace(form, with_basis=False, grid=dataclasses.replace(form.grid, height=24))
    energy = float((array.astype(np.float64) ** 2).sum())
    chunks = SparseAnalysis(matrix, form, energy, 0.0).encode(0.3).chunks
    return EncodedTensor("plain.weight", "F32", (40, 36), "sparse", chunks)


def write_forged(tensors: list[EncodedTensor], out: Path) -> None:
    """A folder with one layer file."""
    out.mkdir(parents=True)
    tensors = [*tensors, EncodedTensor("note", "U8", (2,), "lossless", list(encode_lossless(_NOTE, "U8")))]
    write_layer(out / "forged.rbe", tensors)
    file = LayerFile(out / "forged.rbe")
    entries = tuple(
        TensorEntry(record.name, record.dtype, record.shape, record.codec, size, 0.0, 0.0, 0)
        for record, size in zip(file.tensors, file.sizes(), strict=True)
    )
    data = (out / "forged.rbe").read_bytes()
    layer = LayerEntry("forged.rbe", len(data), hashlib.sha256(data).hexdigest(), entries)
    source = SourceFile("model.safetensors", 0, "0" * 64, None)
    Manifest("tools/make_golden.py", out.name, None, {}, (source,), (layer,)).write(out)


_NOTE = np.array([1, 2], np.uint8)


def expected(folder: Path, name: str, values: Path, base: AnyBase | None) -> dict[str, Any]:
    """What the tensors of a golden folder decode to: SHA-256 where that is exact, values where it is not."""
    opened = Folder.open(folder, whole=True, base=base)
    found: dict[str, Any] = {}
    for tensor in opened.names():
        stored = opened.open_tensor(tensor)
        record, entry = stored.record, stored.entry
        head = stored.file.chunk(record.first_chunk)[:2] if record.codec == "trellis" else b""
        data = b"".join(piece.decode().tobytes() for piece in stored.pieces())
        found[tensor] = {"dtype": entry.dtype, "shape": list(entry.shape), "codec": record.codec}
        if record.codec == "lossless" or head == b"\0\0":
            found[tensor]["sha256"] = hashlib.sha256(data).hexdigest()
            continue
        every = max(1, dtypes.count(entry.shape) // KEPT_VALUES)
        kept = np.frombuffer(data, elements.FLOATS[entry.dtype])[::every]
        file = f"{name}.{tensor}.{entry.dtype}"
        (values / file).write_bytes(kept.tobytes())
        largest = float(np.abs(np.frombuffer(data, elements.FLOATS[entry.dtype]).astype(np.float64)).max())
        found[tensor] |= {"values": f"values/{file}", "every": every, "largest": largest}
    return found


def write_base() -> None:
    """The checkpoint BASE."""
    tensors = base()
    order = layout((name, dtype, shape) for name, (dtype, shape, _) in tensors.items())
    write_safetensors(BASE, order, ([np.frombuffer(tensors[name][2], np.uint8)] for name, _, _ in order), None)


def make_all(version: str) -> None:
    """All of a version, into a folder that must not be there."""
    out, made_by_hand = GOLDEN / version, forged() if version == "v1" else {}
    if out.exists():
        sys.exit(
            f"{out}: already there. Golden files are kept, never made anew; a new format version gets a new folder."
        )
    if version == "v3" and not BASE.exists():
        write_base()
    partial = _under_way(out)
    (partial / "values").mkdir(parents=True)
    for name in VERSIONS[version]:
        make_case(version, name, partial / name)
    for name, tensors in made_by_hand.items():
        write_forged(tensors, partial / name)
    names = [*VERSIONS[version], *made_by_hand]
    answers = {name: expected(partial / name, name, partial / "values", base_of(version, name)) for name in names}
    (partial / "expected.json").write_text(json.dumps(answers, indent=1, sort_keys=True) + "\n")
    partial.rename(out)


def made(case: str) -> dict[str, str]:
    """SHA-256 of the layer files the encoder makes of a case."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "case"
        version, name = case.split("/")
        make_case(version, name, out, jobs=2)
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("*.rbe"))}


def note_encoder() -> None:
    """Note what the encoder makes, if it is another version's turn."""
    noted = json.loads(ENCODER.read_text()) if ENCODER.exists() else {}
    files = {case: made(case) for case in DETERMINISTIC}
    if noted.get("rbe") == __version__ and noted["files"] != files:
        sys.exit(f"{ENCODER}: other bytes than rbe {__version__} made so far: they need another version")
    ENCODER.write_text(json.dumps({"rbe": __version__, "files": files}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", nargs="?", choices=sorted(VERSIONS), help="of the format")
    parser.add_argument("--case", help="make this compressed folder only")
    parser.add_argument("-o", "--out", type=Path, help="where (with --case)")
    parser.add_argument("--encoder", action="store_true", help="note what the encoder makes")
    arguments = parser.parse_args()
    if bool(arguments.case) != bool(arguments.out):
        parser.error("--case and --out go together")
    if arguments.encoder == bool(arguments.version):
        parser.error("a version of the format, or --encoder")
    if arguments.encoder:
        note_encoder()
    elif arguments.case:
        make_case(arguments.version, arguments.case, arguments.out)
    else:
        make_all(arguments.version)


if __name__ == "__main__":
    main()
