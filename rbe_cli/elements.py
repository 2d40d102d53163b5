"""Elements of a checkpoint as numpy arrays, by the safetensors names of their types.

Apart from `dtypes`, so that what reads no weights is quick to start.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

#: Those of `dtypes.FLOATS`.
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
