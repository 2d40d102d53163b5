"""A compressed matrix that is multiplied with while it is decoded: never more than a few tiles of it in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbe_cli import elements
from rbe_cli.codec.tensor_codec import TileDecoder
from rbe_cli.codec.tiles import Tile
from rbe_cli.errors import located
from rbe_cli.layers.block_layout import BlockLayout
from rbe_cli.layers.encoded import StoredMatrix
from rbe_cli.layers.tile_cache import TileCache

#: Tiles that may be under way in an executor at once.
_AHEAD = 4

Product = Callable[[Tile, NDArray[np.float32]], NDArray[np.float32]]


class TiledMatrix:
    """W, rows x columns, held as its compressed tiles.

    Products equal those with the weights `rbe decode` writes: values are rounded to the source's type.

    Parameters
    ----------
    stored : StoredMatrix
        Of two dimensions. If it is in a file, all its bytes are read here and checked against their CRC; the file is
        not needed afterwards.
    decoder : TileDecoder
        That of `stored`.
    cache : TileCache
        Shared by the matrices of a model.
    executor : Executor or None
        Where tiles are decoded side by side; None decodes in the caller's thread. Sums are formed in the order of the
        tiles either way, so results do not depend on it.
    """

    def __init__(
        self, stored: StoredMatrix, decoder: TileDecoder, cache: TileCache, executor: Executor | None = None
    ) -> None:
        self._decoder = decoder
        self.layout = BlockLayout.of_grid(decoder.grid)
        self._streams = [stored.stream(i) for i in range(decoder.streams)]
        self._name = stored.record.name
        self._dtype = stored.record.dtype
        self._where = stored.where
        self._cache = cache
        self._executor = executor

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.layout.rows, self.layout.columns

    @property
    def nbytes(self) -> int:
        """Bytes of the compressed tiles and of what their decoder holds."""
        return sum(map(len, self._streams)) + self._decoder.nbytes

    def block(self, index: int) -> NDArray[np.float32]:
        """Weights of a tile, float32[height, width]."""
        return self._weights(index).copy()

    def at(self, index: int, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
        """Weights at positions of a tile, float32[n]; the tile is decoded if it is not in the cache."""
        return self._weights(index)[rows, columns]

    def take(self, ids: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Rows by number, int[n] -> float32[n, columns]; decodes the tiles they are in."""
        out = np.empty((ids.size, self.layout.columns), np.float32)
        across = self.layout.across
        bands = ids // self.layout.height
        for band in np.unique(bands):
            wanted = np.flatnonzero(bands == band)
            for index in range(int(band) * across, (int(band) + 1) * across):
                tile = self.layout[index]
                out[wanted, tile.left : tile.right] = self._weights(index)[ids[wanted] - tile.top]
        return out

    def times(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """X W, float32[n, rows] -> float32[n, columns]."""
        y = np.zeros((len(x), self.layout.columns), np.float32)
        for tile, part in self._products(lambda tile, w: x[:, tile.top : tile.bottom] @ w, len(x)):
            y[:, tile.left : tile.right] += part
        return y

    def times_transposed(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """X W^T, float32[n, columns] -> float32[n, rows]."""
        y = np.zeros((len(x), self.layout.rows), np.float32)
        for tile, part in self._products(lambda tile, w: x[:, tile.left : tile.right] @ w.T, len(x)):
            y[:, tile.top : tile.bottom] += part
        return y

    def _products(self, product: Product, count: int) -> Iterator[tuple[Tile, NDArray[np.float32]]]:
        """What `product` makes of each tile, in order; nothing for 0 vectors."""
        if not count:
            return
        if self._executor is None or len(self.layout) == 1:
            for index in range(len(self.layout)):
                tile = self.layout[index]
                yield tile, product(tile, self._weights(index))
            return
        ahead: deque[tuple[Tile, Future[NDArray[np.float32]]]] = deque()
        for index in range(len(self.layout)):
            ahead.append((self.layout[index], self._executor.submit(self._job, product, index)))
            if len(ahead) >= _AHEAD:
                tile, future = ahead.popleft()
                yield tile, future.result()
        for tile, future in ahead:
            yield tile, future.result()

    @np.errstate(all="ignore")
    def _job(self, product: Product, index: int) -> NDArray[np.float32]:
        return product(self.layout[index], self._weights(index))

    def _weights(self, index: int) -> NDArray[np.float32]:
        """A tile, float32[rows, columns], to read before this thread asks for the next."""
        key = self._name, index
        held = self._cache.get(key)
        if held is not None:
            return held
        with located(self._where), np.errstate(all="ignore"):
            weights = self._decoder.decode(self._streams[index], self.layout[index])
        if self._dtype in ("F16", "BF16"):
            weights = elements.from_float32(weights, self._dtype).astype(np.float32)
        self._cache.offer(key, weights)
        return weights
