"""llama.cpp's importance matrices (`llama-imatrix`): GGUF, and the binary `.dat` it wrote until 2025.

GGUF: for each tensor `NAME.in_sum2`, float32[experts, inputs], sums of squares, and `NAME.counts`, float32[experts],
tokens. Binary, little-endian: int32 entries, and for each int32 length, name, int32 calls, int32 n, float32[n], mean
squares times calls. Source: llama.cpp, tools/imatrix/imatrix.cpp.
"""

from __future__ import annotations

import math
import re
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rbe_cli.calibration import gguf
from rbe_cli.calibration.importance import Alias, Importance, MeanSquares
from rbe_cli.errors import CorruptFile, RBEError
from rbe_cli.files.plain_file import PlainFile

_SUMS, _COUNTS = ".in_sum2", ".counts"
#: Of the binary form; one for each weight of a model.
_MOST_ENTRIES, _LONGEST_NAME = 1 << 16, 1 << 12
#: What a layer's weights are called by transformers -> by llama.cpp, and the axis of their inputs.
_KINDS = {
    "self_attn.q_proj": ("attn_q", 1),
    "self_attn.k_proj": ("attn_k", 1),
    "self_attn.v_proj": ("attn_v", 1),
    "self_attn.qkv_proj": ("attn_qkv", 1),
    "self_attn.o_proj": ("attn_output", 1),
    "mlp.gate_proj": ("ffn_gate", 1),
    "mlp.gate_up_proj": ("ffn_up", 1),
    "mlp.up_proj": ("ffn_up", 1),
    "mlp.down_proj": ("ffn_down", 1),
    "mlp.gate": ("ffn_gate_inp", 1),
    "block_sparse_moe.gate": ("ffn_gate_inp", 1),
    "attn.c_attn": ("attn_qkv", 0),
    "attn.c_proj": ("attn_output", 0),
    "mlp.c_fc": ("ffn_up", 0),
    "mlp.c_proj": ("ffn_down", 0),
    "attention.self.query": ("attn_q", 1),
    "attention.self.key": ("attn_k", 1),
    "attention.self.value": ("attn_v", 1),
    "attention.output.dense": ("attn_output", 1),
    "intermediate.dense": ("ffn_up", 1),
    "output.dense": ("ffn_down", 1),
}
_EXPERT_KINDS = {
    "gate_proj": "ffn_gate_exps",
    "up_proj": "ffn_up_exps",
    "down_proj": "ffn_down_exps",
    "w1": "ffn_gate_exps",
    "w3": "ffn_up_exps",
    "w2": "ffn_down_exps",
}
_IN_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h)\.(\d+)\.(.+)\.weight$")
_EXPERT = re.compile(r"(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)$")


def llama_name(name: str) -> Alias:
    """llama.cpp's name of a weight of transformers, and the axis of its inputs.

    >>> llama_name("model.layers.3.self_attn.q_proj.weight"), llama_name("transformer.h.0.attn.c_attn.weight")
    (('blk.3.attn_q.weight', 1), ('blk.0.attn_qkv.weight', 0))
    >>> llama_name("model.layers.3.mlp.experts.7.up_proj.weight"), llama_name("lm_head.weight")
    (('blk.3.ffn_up_exps.weight[7]', 1), ('output.weight', 1))
    """
    if name.rpartition("lm_head")[2] == ".weight":
        return "output.weight", 1
    layer = _IN_LAYER.search(name)
    if layer is None:
        return name, None
    number, part = layer.groups()
    expert = _EXPERT.fullmatch(part)
    if expert is not None and expert[2] in _EXPERT_KINDS:
        return f"blk.{number}.{_EXPERT_KINDS[expert[2]]}.weight[{expert[1]}]", 1
    kind, axis = _KINDS.get(part, (part, None))
    return f"blk.{number}.{kind}.weight", axis


def read_imatrix(path: Path) -> Importance:
    """Read either form. Raises RBEError if it cannot be read, CorruptFile if it is neither."""
    try:
        file = PlainFile(path)
        found = _read_gguf(path, file) if file.read(0, 4) == gguf.MAGIC else _read_binary(path, file)
    except OSError as error:
        raise RBEError(f"{path}: cannot be read ({error.strerror})") from None
    return Importance(path, found, {}, alias=llama_name)


def _read_gguf(path: Path, file: PlainFile) -> dict[str, MeanSquares]:
    try:
        tensors = gguf.tensors_of(file)
    except ValueError:
        raise CorruptFile(f"{path}: not a sound GGUF file, or cut short") from None
    end, found, used = file.stamp()[0], dict[str, MeanSquares](), 0
    for name, sums in tensors.items():
        base = name.removesuffix(_SUMS)
        counts = tensors.get(base + _COUNTS)
        if base == name or counts is None:
            continue
        experts, inputs = (1, *sums.shape)[-2:]
        if (
            {sums.kind, counts.kind} != {gguf.F32}
            or not 1 <= len(sums.shape) <= 2
            or math.prod(counts.shape) != experts
            or not 1 <= experts <= _MOST_ENTRIES
        ):
            raise CorruptFile(f"{path}: {name!r} and its counts do not belong together")
        if max(sums.begin + 4 * experts * inputs, counts.begin + 4 * experts) > end:
            raise CorruptFile(f"{path}: {name!r} is cut short")
        used += 4 * experts * (inputs + 1)
        if used > end:
            raise CorruptFile(f"{path}: {name!r} lies where another tensor does")
        for i, count in enumerate(_floats(path, file, counts.begin, experts)):
            # An expert that no token went to says nothing.
            if count > 0:
                read = partial(_mean_of, path, file, sums.begin + 4 * i * inputs, inputs, float(count))
                found[base if experts == 1 else f"{base}[{i}]"] = MeanSquares(inputs, read)
    if not found:
        raise CorruptFile(f"{path}: a GGUF file without an importance matrix")
    return found


def _floats(path: Path, file: PlainFile, begin: int, size: int) -> NDArray[np.float32]:
    data = file.read(begin, 4 * size)
    if len(data) != 4 * size:
        raise RBEError(f"{path}: changed while it was read; run again when nothing writes to it")
    return np.frombuffer(data, "<f4")


def _mean_of(path: Path, file: PlainFile, begin: int, size: int, count: float) -> NDArray[np.float64]:
    """So many numbers from a place on, over a count."""
    return _floats(path, file, begin, size).astype(np.float64) / count


def _read_binary(path: Path, file: PlainFile) -> dict[str, MeanSquares]:
    end, at = file.stamp()[0], 0
    found: dict[str, MeanSquares] = {}
    refusal = CorruptFile(f"{path}: neither safetensors nor an importance matrix of llama.cpp, or cut short")

    def skip(size: int) -> int:
        nonlocal at
        if not 0 <= size <= end - at:
            raise refusal
        at += size
        return at - size

    def integer() -> int:
        return int.from_bytes(file.read(skip(4), 4), "little", signed=True)

    entries = integer()
    if not 0 < entries <= _MOST_ENTRIES:
        raise refusal
    for _ in range(entries):
        length = integer()
        if length > _LONGEST_NAME:
            raise refusal
        name = file.read(skip(length), length).decode("utf-8", "replace")
        calls, size = integer(), integer()
        found[name] = MeanSquares(size, partial(_mean_of, path, file, skip(4 * size), size, calls if calls > 0 else 1))
    return found
