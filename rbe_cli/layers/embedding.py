"""A table of vectors, one row per token or position."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbe_cli.errors import RBEError
from rbe_cli.layers.weights import WeightMatrix


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
