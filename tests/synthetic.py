"""Small checkpoints with every kind of tensor, and safetensors files put together by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from rbe_cli.checkpoint.reader import open_checkpoint
from rbe_cli.operations.compress import Compressed, compress
from rbe_cli.operations.decode import Decoded, decode
from rbe_cli.operations.settings import Settings

BF16 = np.dtype(ml_dtypes.bfloat16)
#: safetensors names of the numpy types the tests use.
NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": BF16, "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"), "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"), "BOOL": np.dtype(bool),
    "C64": np.dtype("<c8"), "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in NUMPY_TYPES.items()}


def dtype_name(array: np.ndarray) -> str:
    """The safetensors name of an array's type."""
    return _NAMES[array.dtype]


def scaled_normal(shape: tuple[int, ...], seed: int, spread: float = 0.5) -> np.ndarray:
    """Gaussian float32 whose rows and columns differ in scale by e^(spread N(0, 1)), as trained matrices do."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((shape[0], int(np.prod(shape[1:]))))
    matrix *= np.exp(spread * rng.standard_normal((matrix.shape[0], 1)))
    matrix *= np.exp(spread * rng.standard_normal((1, matrix.shape[1])))
    return (0.04 * matrix).astype(np.float32).reshape(shape)


def tiny_tensors() -> dict[str, np.ndarray]:
    """Every kind of tensor: all types, all numbers of dimensions, tied ones, one with NaN and infinity."""
    rng = np.random.default_rng(7)
    embedding = scaled_normal((401, 64), 1).astype(BF16)
    wild = scaled_normal((40, 50), 2)
    wild[3, 4], wild[5, 6], wild[7, 8], wild[9, 10] = np.nan, np.inf, -np.inf, -0.0
    return {
        "wte.weight": embedding,
        "lm_head.weight": embedding.copy(),
        "h.0.attn.weight": scaled_normal((160, 96), 3),
        "h.0.attn.bias": rng.standard_normal(160).astype(np.float32),
        "h.0.mlp.weight": scaled_normal((97, 131), 4).astype(np.float16),
        "h.0.mlp.bias": rng.standard_normal(97).astype(np.float16),
        "h.1.double.weight": scaled_normal((48, 64), 5).astype(np.float64),
        "conv.weight": scaled_normal((32, 3, 5, 5), 6),
        "wild.weight": wild,
        "positions": np.arange(77, dtype=np.int64),
        "mask": rng.random((13, 11)) < 0.5,
        "quantised": rng.integers(0, 256, (64, 48), dtype=np.uint8).view(ml_dtypes.float8_e4m3fn),
        "scale": np.array(2.5, np.float32),
        "nothing": np.zeros((0, 5), np.float32),
    }


def write_tiny_model(folder: Path) -> Path:
    """One safetensors file with metadata, a configuration and a file in a sub-folder."""
    folder.mkdir(parents=True)
    save_file(tiny_tensors(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text('{"model_type": "tiny"}\n')
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    return folder


def write_sharded_model(folder: Path) -> Path:
    """Three shards with an index; shard 2 has no metadata."""
    folder.mkdir(parents=True)
    tensors = tiny_tensors()
    weight_map = {}
    for number in range(3):
        file = f"model-{number + 1:05d}-of-00003.safetensors"
        part = {name: tensor for i, (name, tensor) in enumerate(tensors.items()) if i % 3 == number}
        save_file(part, folder / file, metadata={"format": "pt"} if number != 1 else None)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def write_sentence_model(folder: Path, main: str = "") -> Path:
    """As sentence-transformers writes a model: the tiny one at the top, or in a sub-folder, and two dense layers."""
    write_tiny_model(folder / main)
    modules = [(main, "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Dense", "Dense")]
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    for i, (path, name) in enumerate((("2_Dense", "linear"), ("3_Dense", "head"))):
        (folder / path).mkdir()
        (folder / path / "config.json").write_text('{"in_features": 96, "out_features": 64}')
        tensors = {f"{name}.weight": scaled_normal((64, 96), i), f"{name}.bias": np.zeros(64, np.float32)}
        save_file(tensors, folder / path / "model.safetensors")
    return folder


def safetensors_bytes(header: dict[str, Any] | bytes, data: bytes = b"") -> bytes:
    """A safetensors file with any header at all."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file or of all in a folder, read without any code of ours but the type names."""
    if path.is_dir():
        return {name: t for file in sorted(path.glob("*.safetensors")) for name, t in read_tensors(file).items()}
    blob = path.read_bytes()
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(blob[begin:end], NUMPY_TYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def compress_to(
    source: Path, out: Path, *, force: bool = False, resume: bool = False, progress: Any = None, **wishes: Any
) -> Compressed:
    """`rbe compress` as a library call; `wishes` are the Settings."""
    settings = Settings(**{"jobs": 2} | wishes)
    return compress(open_checkpoint(source), out, settings, force=force, resume=resume, progress=progress)


def decode_to(folder: Path, out: Path, **options: Any) -> Decoded:
    """`rbe decode` as a library call."""
    return decode(folder, out, **{"threads": 2} | options)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Relative path -> content of every file under a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
