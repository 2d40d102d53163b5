"""A table of vectors, one row per token or position."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbe_cli.errors import RBEError
from rbe_cli.layers.encoded import compress_array
from rbe_cli.layers.tile_cache import TileCache
from rbe_cli.layers.weight_mapper import open_matrix
from rbe_cli.layers.weights import WeightMatrix, WeightSource


class RBEEmbedding:
    """A table whose rows may stay compressed until they are asked for.

    Parameters
    ----------
    table : WeightMatrix
        entries x hidden.
    name : str
        Of the tensor, for messages.
    """

    def __init__(self, table: WeightMatrix, name: str = "embedding") -> None:
        self.table = table
        self.name = name

    @classmethod
    def load(cls, source: WeightSource, name: str) -> RBEEmbedding:
        """The tensor `name.weight`. Raises RBEError, CorruptFile."""
        return cls(source.matrix(f"{name}.weight"), f"tensor {name + '.weight'!r}")

    @classmethod
    def compress(
        cls, table: NDArray[np.float32], *, cache: TileCache | None = None, name: str = "embedding", **wishes: Any
    ) -> RBEEmbedding:
        """From float32[entries, hidden]; `wishes` are those of `compress_array`. Raises UsageError."""
        return cls(open_matrix(compress_array(table, name=name, **wishes), cache), name)

    def __call__(self, ids: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """int[...] -> float32[..., hidden]. Raises RBEError for a number that has no row."""
        entries, hidden = self.table.shape
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < entries:
            wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
            raise RBEError(f"{self.name}: has {entries} rows, none of number {wrong}")
        return self.table.take(ids.ravel()).reshape(*ids.shape, hidden)

    @property
    def nbytes(self) -> int:
        """Bytes held, a shared tile cache not counted."""
        return self.table.nbytes
