"""Element types of a checkpoint, by their safetensors names."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

#: Types the codec may approximate. Everything else is carried exactly.
FLOATS: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
#: All types numpy (with ml_dtypes) has.
NUMPY: dict[str, np.dtype[Any]] = FLOATS | {
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"), "C64": np.dtype("<c8"),
}  # fmt: skip
#: Largest finite number of the types narrower than float32.
_LARGEST = {"F16": np.float32(65504.0), "BF16": np.float32(2.0**127 * (2 - 2.0**-7))}
#: Bits per element of every type safetensors 0.8 knows.
BITS: dict[str, int] = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip


def count(shape: tuple[int, ...]) -> int:
    """Number of elements.

    >>> count((3, 4)), count(()), count((0, 7))
    (12, 1, 0)
    """
    return math.prod(shape)


def byte_length(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes a tensor takes in a safetensors file.

    >>> byte_length("BF16", (3, 4))
    24
    """
    return (count(shape) * BITS[dtype] + 7) // 8


def to_float32(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Elements of a floating type as float32 (float64 is rounded); of F32, the same memory."""
    values = raw.view(FLOATS[dtype])
    if dtype != "F64":
        return values.astype(np.float32, copy=False)
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def from_float32(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Round to a floating type, to nearest even; what would overflow becomes the largest finite number."""
    if dtype in ("F16", "BF16"):
        values = np.clip(values, -_LARGEST[dtype], _LARGEST[dtype])
    return values.astype(FLOATS[dtype])
