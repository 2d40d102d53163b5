"""The figures of a whole folder or of some of its tensors, as they stand in tables, budgets and JSON documents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rbe_cli import metrics

if TYPE_CHECKING:
    from rbe_cli.container.manifest import TensorEntry


def total_error(tensors: Sequence[TensorEntry]) -> metrics.Error:
    """The error of all tensors that are not exact, together."""
    total = metrics.Error(0.0, 0.0, 0)
    for tensor in tensors:
        if tensor.nrmse and math.isfinite(tensor.nrmse):
            squared = tensor.rmse**2 * tensor.elements
            total += metrics.Error(squared, squared / tensor.nrmse**2, tensor.elements)
    return total


def totals(tensors: Sequence[TensorEntry], size: int, carried: int) -> dict[str, Any]:
    """The figures of a whole folder, as they stand in the JSON documents.

    `size` counts the layer files and the manifest; `carried` the files copied along, which are the same size in the
    source and count in neither.
    """
    elements = sum(tensor.elements for tensor in tensors)
    source = sum(tensor.source_bytes for tensor in tensors)
    error = total_error(tensors)
    return {
        "tensors": len(tensors),
        "elements": elements,
        "source_bytes": source,
        "bytes": size,
        "carried_bytes": carried,
        "bits_per_weight": metrics.bits_per_weight(size, elements) if elements else None,
        "ratio": metrics.ratio(source, size),
        "rmse": error.rmse,
        "nrmse": error.nrmse,
        "snr_db": finite(error.snr),
        "worst_nrmse": max((tensor.nrmse for tensor in tensors), default=0.0),
    }


def finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
