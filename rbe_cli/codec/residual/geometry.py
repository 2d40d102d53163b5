"""Which class and which step every element of a tile has: what encoder and decoder share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rbe_cli.codec.parameters import Parameters
from rbe_cli.codec.residual import tables
from rbe_cli.codec.residual.scale_field import ZERO, Axis
from rbe_cli.codec.tiles import Tile
from rbe_cli.codec.workspace import scratch
from rbe_cli.kernels import field as field_kernels

#: Float32 constants of the format: 2^(i / 8).
_EIGHTHS = np.array([2.0 ** (i / 8) for i in range(8)], np.float32)

_NONE = np.empty(0, np.int32)


def shaped(axis: Axis, shaping: int, importance: Axis | None = None) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Step exponents A = ((shaping E + 8) >> 4) + importance and class exponents E - A of an axis, int32[n] each.

    Where the axis is ZERO, A is 0 and the class stays ZERO.
    """
    steps, classes = np.empty(axis.exponents.size, np.int32), np.empty(axis.exponents.size, np.int32)
    added = importance.exponents if importance else _NONE
    field_kernels.shape_exponents(axis.exponents, shaping, added, ZERO, steps, classes)
    return steps, classes


def _classes_and_scales(
    axis: Axis, shaping: int, importance: Axis | None = None
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Class exponents and 2^(A / 8) of an axis."""
    steps, classes = shaped(axis, shaping, importance)
    factors = np.empty(steps.size, np.float32)
    field_kernels.scales_of(steps, classes, ZERO, _EIGHTHS, factors)
    return classes, factors


@dataclass(frozen=True)
class Geometry:
    """Per-row and per-column classes and steps, the part that encoder and decoder share.

    Attributes
    ----------
    row_class, column_class : int32; row_scale, column_scale : float32
        The step of an element is row_scale x column_scale, its class base + row_class + column_class.
    """

    row_class: NDArray[np.int32]
    column_class: NDArray[np.int32]
    row_scale: NDArray[np.float32]
    column_scale: NDArray[np.float32]

    @classmethod
    def of(
        cls,
        parameters: Parameters,
        rows: Axis,
        columns: Axis,
        row_importance: Axis | None = None,
        column_importance: Axis | None = None,
    ) -> Geometry:
        """From what the first chunk says."""
        row_class, row_scale = _classes_and_scales(rows, parameters.row_shaping, row_importance)
        column_class, column_scale = _classes_and_scales(columns, parameters.column_shaping, column_importance)
        # A step no encoder writes may overflow; the weights are then infinite, as a file that says so deserves.
        with np.errstate(over="ignore", under="ignore"):
            row_scale *= np.float32(parameters.step)
        return cls(row_class, column_class, row_scale, column_scale)

    @property
    def nbytes(self) -> int:
        """Bytes of the four arrays."""
        return self.row_class.nbytes + self.column_class.nbytes + self.row_scale.nbytes + self.column_scale.nbytes

    def scan(self, tile: Tile, parameters: Parameters) -> Scan:
        """The elements of a tile in coding order."""
        row_class, row_scale = self.row_class[tile.top : tile.bottom], self.row_scale[tile.top : tile.bottom]
        column_class = self.column_class[tile.left : tile.right]
        column_scale = self.column_scale[tile.left : tile.right]
        width = tile.right - tile.left
        if parameters.by_columns:
            return Scan(column_class, row_class, column_scale, row_scale, (1, width), parameters.base)
        return Scan(row_class, column_class, row_scale, column_scale, (width, 1), parameters.base)


class Scan:
    """Classes and steps of a tile's elements in coding order. A thread works with one scan at a time, and what it
    returns is good until the next call.

    Attributes
    ----------
    line_classes : (int32, int32)
        Of the outer (slow) and the inner (fast) index; the class of an element is base + their sum.
    line_scales : (float32, float32)
        The step of an element is the product of that of its outer and its inner index.
    strides : (int, int)
        Where an element is in the tile, flat, by rows.
    base : int
    """

    def __init__(
        self,
        outer_class: NDArray[np.int32],
        inner_class: NDArray[np.int32],
        outer_scale: NDArray[np.float32],
        inner_scale: NDArray[np.float32],
        strides: tuple[int, int],
        base: int,
    ) -> None:
        self.line_classes = outer_class, inner_class
        self.line_scales = outer_scale, inner_scale
        self.strides = strides
        self.base = base

    def classes(self) -> NDArray[np.uint8]:
        """Class of every element, uint8[n]."""
        outer, inner = self.line_classes
        classes = scratch("scan", (outer.size, inner.size), np.uint8)
        field_kernels.classify(outer, inner, self.base, tables.MAX_CLASS, classes)
        return classes.ravel()

    def divide(self, w: NDArray[np.float32]) -> NDArray[np.float32]:
        """Weights [rows, columns] of the tile, in steps, in coding order."""
        out = scratch("divided", (w.size,), np.float32)
        field_kernels.divide(w.ravel(), self.strides, *self.line_scales, out)
        return out
