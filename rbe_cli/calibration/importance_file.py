"""Importance files (docs/calibration.md).

A safetensors file. `NAME` is float[n], the mean square of each input of the weight NAME; `NAME.moments` is
float[n, n], the mean of x x^T. The metadata's `input_axis` says which axis of NAME its inputs run along, `shared`
under which name the moments of NAME are if another tensor has the same inputs; both are JSON objects by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbe_cli import dtypes, elements
from rbe_cli.calibration.imatrix import read_imatrix
from rbe_cli.calibration.importance import MOMENTS, Importance, MeanSquares
from rbe_cli.checkpoint.reader import Shard, TensorInfo, open_shard
from rbe_cli.checkpoint.weight_files import SUFFIX
from rbe_cli.errors import CorruptFile, UsageError


def read_importance(path: Path) -> Importance:
    """Read an importance file: safetensors, or what llama.cpp's llama-imatrix writes (by its first bytes).

    Raises RBEError if it cannot be read, CorruptFile if it is not such a file, UsageError if some tensor
    cannot be mean squares.
    """
    if path.suffix != SUFFIX:
        return read_imatrix(path)
    shard = open_shard(path, path.name)
    metadata = shard.metadata or {}
    axes, shared = (_by_name(metadata, key, path) for key in ("input_axis", "shared"))
    if any(type(axis) is not int or axis not in (0, 1) for axis in axes.values()):
        raise CorruptFile(f"{path}: the metadata's input_axis must be 0 or 1 for each tensor")
    if not all(isinstance(other, str) for other in shared.values()):
        raise CorruptFile(f"{path}: the metadata's shared must name a tensor for each tensor")
    plain = [info for info in shard.tensors if not info.name.endswith(MOMENTS)]
    return Importance(path, {info.name: _vector(shard, info) for info in plain}, axes, shard=shard, shared=shared)


def _vector(shard: Shard, info: TensorInfo) -> MeanSquares:
    if len(info.shape) != 1 or info.dtype not in dtypes.FLOATS:
        raise UsageError(f"{shard.path}: {info.name!r} must be one number per input channel, of a floating type")

    def read() -> NDArray[np.float64]:
        return shard.raw(info)[:].view(elements.FLOATS[info.dtype]).astype(np.float64)

    return MeanSquares(info.elements, read)


def _by_name(metadata: Mapping[str, str], key: str, path: Path) -> dict[str, Any]:
    """A JSON object of the metadata; empty if there is none."""
    try:
        value = json.loads(metadata.get(key, "{}"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise CorruptFile(f"{path}: the metadata's {key} must be a JSON object by tensor name")
    return value
