"""Weights of a compressed folder: matrices stay compressed, vectors are decoded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from rbe_cli import dtypes
from rbe_cli.container.folder import Folder
from rbe_cli.errors import RBEError
from rbe_cli.layers.tile_cache import TileCache
from rbe_cli.layers.tiled_matrix import TiledMatrix
from rbe_cli.layers.weights import DenseMatrix, WeightMatrix


class FolderWeights:
    """The `WeightSource` of a folder that `rbe compress` wrote.

    Matrices that are not exact become `TiledMatrix`; what is stored exactly is decoded once and held as float32.

    Parameters
    ----------
    folder : Folder
    cache_bytes : int
        Budget of the cache of decoded tiles that all matrices share.
    threads : int
        Threads that decode tiles; results do not depend on it.

    Attributes
    ----------
    cache : TileCache
    """

    def __init__(self, folder: Folder, cache_bytes: int = 0, threads: int = 1) -> None:
        self.folder = folder
        self.cache = TileCache(cache_bytes)
        self._executor = ThreadPoolExecutor(threads) if threads > 1 else None
        self._matrices: dict[str, WeightMatrix] = {}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor."""
        return {tensor.name: tensor.shape for tensor in self.folder.manifest.tensors}

    def vector(self, name: str) -> NDArray[np.float32]:
        """A tensor, decoded, in float32."""
        values = self.folder.tensor(name)
        if values.dtype not in dtypes.FLOATS.values():
            raise RBEError(f"{self.folder.path}: tensor {name!r} is not of a floating type")
        return values.astype(np.float32)

    def matrix(self, name: str) -> WeightMatrix:
        """A tensor of two dimensions; tied ones give the same object."""
        stored = self.folder.open_tensor(name)
        if len(stored.record.shape) != 2:
            raise RBEError(f"{stored.where}: has {len(stored.record.shape)} dimensions where a matrix is needed")
        key = stored.record.name
        if key not in self._matrices:
            if stored.record.codec == "lossless":
                self._matrices[key] = DenseMatrix(self.vector(name))
            else:
                self._matrices[key] = TiledMatrix(stored, self.cache, self._executor)
        return self._matrices[key]

    def decoded_bytes(self) -> int:
        """Bytes a cache needs to hold every tile of the matrices opened so far."""
        tiled = (matrix for matrix in self._matrices.values() if isinstance(matrix, TiledMatrix))
        return sum(4 * matrix.shape[0] * matrix.shape[1] for matrix in tiled)
