"""Structure only, block by block: the basis functions and the few coefficients that matter. No symbol per element.

A tensor's first chunk is SPARSE_HEAD; then one chunk per tile, `rbe_cli.kernels.block_code`. What the numbers in it are
is found by `sparse_analysis`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbe_cli.codec.structure.basis import orthonormal, scan_order
from rbe_cli.codec.structure.sparse_form import SparseForm
from rbe_cli.codec.tiles import Tile
from rbe_cli.errors import Damage
from rbe_cli.kernels.block_code import decode_blocks, encode_blocks

#: Elements of blocks of one shape that the functions are added to at once.
_PIECE = 1 << 17


def part_of(values: NDArray[Any], tile: Tile, block: Tile) -> NDArray[Any]:
    """A block of a tile's values, [rows, columns] -> a view, [height, width]."""
    return values[block.top - tile.top : block.bottom - tile.top, block.left : block.right]


def encode_tile(form: SparseForm, tile: Tile, weights: NDArray[np.int32], indices: NDArray[np.int32]) -> bytes:
    """The stream of a tile, of numbers in steps.

    Parameters
    ----------
    weights : int32[blocks, b]
        Of the basis functions.
    indices : int32[rows, columns]
        Coefficients of the transform.
    """
    places, values = [], []
    for block in form.blocks(tile):
        order = scan_order(block.bottom - block.top, block.right - block.left)
        scanned = part_of(indices, tile, block).ravel()[order]
        places.append(np.flatnonzero(scanned))
        values.append(scanned[places[-1]])
    counts = np.array([at.size for at in places], np.int32)
    numbers = weights.size + counts.size + 2 * int(counts.sum())
    out = np.zeros(16 * numbers + 64, np.uint8)
    used = encode_blocks(weights, counts, np.concatenate(places).astype(np.int32), np.concatenate(values), out)
    return out[:used].tobytes()


class SparseDecoder:
    """Turns the chunks of one tensor's tiles back into weights.

    Attributes
    ----------
    form : SparseForm
    step : float32
    grid : Grid
    streams : int
        One for each tile.
    """

    def __init__(self, form: SparseForm, step: float) -> None:
        self.form = form
        self.grid = form.grid
        self.streams = len(form.grid)
        self.step = np.float32(step)
        self._transform = form.transform()

    def numbers(self, stream: bytes, tile: Tile) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """What a tile's stream holds, in steps, block by block in the order of `SparseForm.blocks`. Raises Damage.

        Returns
        -------
        weights : int32[blocks, b]
            Of the basis functions, b is 8 or 0; of a small block that has fewer functions, the first count.
        coefficients : int32[elements]
            Of the transform, each block's whole, by rows.
        """
        b = self.form.block
        blocks = -(-(tile.bottom - tile.top) // b) * -(-(tile.right - tile.left) // b)
        areas, starts = np.empty(blocks, np.int64), np.empty(blocks, np.int64)
        orders, at = [], 0
        for alike in self.form.alike(tile):
            alike.among(areas)[...], alike.among(starts)[...] = alike.area, at
            orders.append(scan_order(alike.height, alike.width))
            at += alike.area
        weights = np.zeros((blocks, 8 if self.form.with_basis else 0), np.int32)
        coefficients = np.zeros(tile.size, np.int32)
        good = decode_blocks(
            np.frombuffer(stream, np.uint8), areas, weights, coefficients, np.concatenate(orders), starts
        )
        if not good:
            raise Damage("tile of blocks is damaged")
        return weights, coefficients

    def decode(self, stream: bytes, tile: Tile) -> NDArray[np.float32]:
        """Weights of a tile, float32[rows, columns]. Raises Damage."""
        weights, coefficients = self.numbers(stream, tile)
        y = np.empty((tile.bottom - tile.top, tile.right - tile.left), np.float32)
        for alike in self.form.alike(tile):
            alike.within(y)[...] = alike.listed(coefficients)
        del coefficients
        y *= self.step
        w = self._transform.inverse(y)
        if self.form.with_basis:
            self._add_functions(tile, weights, w)
        return w

    def _add_functions(self, tile: Tile, weights: NDArray[np.int32], w: NDArray[np.float32]) -> None:
        """Add what the basis functions make of the blocks; those of one shape together, since one set is held."""
        for alike in self.form.alike(tile):
            b = orthonormal(alike.height, alike.width)
            own, parts = alike.among(weights), alike.within(w)
            together = max(1, _PIECE // alike.area)
            for first in range(0, alike.down * alike.along, together):
                some = np.divmod(np.arange(first, min(first + together, alike.down * alike.along)), alike.along)
                # One product for each block, whose additions are then the same however many there are.
                smooth = (own[some][:, None, : len(b)] * np.float64(self.step)) @ b
                parts[some] += smooth.reshape(-1, alike.height, alike.width).astype(np.float32)


def open_sparse(first_chunk: bytes, elements: int) -> SparseDecoder:
    """The decoder of a tensor, from its first chunk. Raises Damage."""
    return SparseDecoder(*SparseForm.unpack(first_chunk, elements))
