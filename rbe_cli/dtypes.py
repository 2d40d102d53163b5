"""Element types of a checkpoint, by their safetensors names; what they are in numpy is in `elements`."""

from __future__ import annotations

import math

#: Types the codec may approximate. Everything else is carried exactly.
FLOATS = ("F64", "F32", "F16", "BF16")
#: Bits per element of every type safetensors 0.8 knows.
BITS: dict[str, int] = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
#: Dimensions of a shape, and the product of those that are not 0, less than which it is.
MAX_DIMENSIONS, MAX_ELEMENTS = 32, 1 << 60


def count(shape: tuple[int, ...]) -> int:
    """Number of elements.

    >>> count((3, 4)), count(()), count((0, 7))
    (12, 1, 0)
    """
    return math.prod(shape)


def is_possible(shape: tuple[int, ...]) -> bool:
    """Whether there can be an array of a shape: numpy and safetensors multiply its dimensions, those that are 0 or not.

    >>> is_possible((0, 7)), is_possible((1 << 30, 1 << 30)), is_possible((0, 1 << 62, 1 << 62))
    (True, False, False)
    """
    return len(shape) <= MAX_DIMENSIONS and math.prod(n for n in shape if n) < MAX_ELEMENTS


def byte_length(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes a tensor takes in a safetensors file.

    >>> byte_length("BF16", (3, 4))
    24
    """
    return (count(shape) * BITS[dtype] + 7) // 8
