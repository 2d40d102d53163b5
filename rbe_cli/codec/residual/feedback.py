"""Error feedback, for the encoder only: what the search of a tile needs to take in the errors made before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbe_cli.codec.parameters import Parameters
from rbe_cli.codec.residual import tables
from rbe_cli.codec.residual.geometry import Scan
from rbe_cli.codec.residual.noise_shaping import Shaping
from rbe_cli.codec.residual.trellis import trellis
from rbe_cli.codec.workspace import scratch
from rbe_cli.kernels import feedback as kernels
from rbe_cli.kernels.rans import LANES

#: Time steps searched at once, at most, and of them to look ahead: the decisions of a trellis of 128 states have
#: settled after about five times its seven bits of memory (Forney, Proc. IEEE 61, 1973).
_WINDOW, _AHEAD = 256, 32


@dataclass
class Feedback:
    """The errors of one tensor's columns (or rows, where those are the inputs), as they are made.

    Attributes
    ----------
    factor : float32[n, n]
        See `rbe_cli.codec.residual.noise_shaping.Inputs.factor`.
    """

    factor: NDArray[np.float32]

    @classmethod
    def of(cls, shaping: Shaping, parameters: Parameters) -> Feedback | None:
        """For a tensor, if errors are fed back and there are enough outputs for it."""
        grid = parameters.grid
        if not shaping.feedback or grid.width != grid.columns:
            return None
        shortest = grid[len(grid) - 1].bottom - grid[len(grid) - 1].top if parameters.by_columns else grid.columns
        if shortest < 2 * LANES:
            return None
        assert shaping.inputs is not None
        return cls(shaping.inputs.factor())

    def search(
        self,
        scans: list[Scan],
        values: NDArray[np.float32],
        first: int,
        classes: NDArray[np.uint8],
        parameters: Parameters,
        symbols: NDArray[np.int32],
        unions: NDArray[np.uint8],
    ) -> None:
        """Find the symbols of some tiles.

        Parameters
        ----------
        scans : list of Scan
            Of each tile.
        values : float32[tiles, inputs, inner]
            The tiles' weights in coding order, which become their errors; before `first`, the errors of the inputs
            before.
        first : int
            Input the first outer index is.
        classes : uint8[T, lanes]; symbols : int32[T, lanes]; unions : uint8[T, lanes]
            As in `rbe_cli.kernels.trellis.search`; the last two are written.
        """
        widths = np.array([scan.line_scales[1].size for scan in scans], np.int64)
        window = max(2, min(_WINDOW, int(widths.min()) // LANES))
        family, t = tables.family(parameters.family), trellis(parameters.states)
        lanes = classes.shape[1]
        outer = _stack("outer scales", [scan.line_scales[0] for scan in scans])
        inner = _stack("inner scales", [scan.line_scales[1] for scan in scans])
        kernels.search(
            values, first, self.factor, outer, inner, widths, classes, tables.CLASSES, family.coding.price,
            t.butterflies, t.back, min(_AHEAD, window // 3), LANES, scratch("x", (window, lanes), np.float32),
            scratch("decision", (window, -(-t.states // 32), lanes), np.uint32),
            scratch("higher", (window, lanes), np.uint8), symbols, unions,
        )  # fmt: skip


def _stack(name: str, arrays: list[Any]) -> NDArray[np.float32]:
    """Arrays of nearly the same shape in one, the shorter ones with zeros behind them."""
    shape = tuple(map(max, zip(*(array.shape for array in arrays), strict=True)))
    out = scratch(name, (len(arrays), *shape), np.float32)
    out.fill(0)
    for whole, array in zip(out, arrays, strict=True):
        whole[tuple(map(slice, array.shape))] = array
    return out
