"""The golden files, what they decode to, and how near a decoder has to come."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
#: Version and case -> tensor -> what it decodes to.
EXPECTED: dict[str, dict[str, dict[str, Any]]] = {
    f"{path.parent.name}/{case}": tensors
    for path in sorted(GOLDEN.glob("v*/expected.json"))
    for case, tensors in json.loads(path.read_text()).items()
}
TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16}
#: Of the largest magnitude of a tensor (docs/FORMAT.md, "What is exact").
TOLERANCE = 2.0**-16


def as_floats(data: bytes, dtype: str) -> np.ndarray:
    """The elements of a tensor in float64."""
    return np.frombuffer(data, TYPES[dtype]).astype(np.float64)


def allowed(values: np.ndarray, dtype: str, largest: float) -> np.ndarray:
    """How far two decoders may be from each other: the tolerance and one unit in the last place."""
    digits = {"F64": 24, "F32": 24, "F16": 11, "BF16": 8}[dtype]
    _, exponent = np.frexp(np.maximum(np.abs(values), 2.0**-14))
    return TOLERANCE * largest + np.ldexp(1.0, exponent - digits)


def assert_near(data: bytes, other: bytes, dtype: str) -> None:
    """Two decodings of one tensor agree to the tolerance of the format."""
    values, others = as_floats(data, dtype), as_floats(other, dtype)
    assert (np.abs(values - others) <= allowed(values, dtype, float(np.abs(values).max()))).all()


def assert_expected(data: bytes, case: str, name: str) -> None:
    """The bytes of a tensor are those of `expected.json`, or their values near enough."""
    expected = EXPECTED[case][name]
    if "sha256" in expected:
        assert hashlib.sha256(data).hexdigest() == expected["sha256"]
        return
    dtype = expected["dtype"]
    values = as_floats(data, dtype)[:: expected["every"]]
    kept = as_floats(((GOLDEN / case).parent / expected["values"]).read_bytes(), dtype)
    assert values.shape == kept.shape
    assert (np.abs(values - kept) <= allowed(kept, dtype, expected["largest"])).all()
