"""From a tensor's name to its blocks: the weights of a compressed folder, which stay compressed."""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from rbe_cli import elements
from rbe_cli.codec.structure.low_rank_codec import LowRankDecoder
from rbe_cli.codec.structure.sparse_codec import SparseDecoder
from rbe_cli.container.folder import Folder
from rbe_cli.errors import CorruptFile, RBEError
from rbe_cli.layers.encoded import StoredMatrix
from rbe_cli.layers.low_rank_matrix import LowRankMatrix
from rbe_cli.layers.sparse_matrix import SparseMatrix
from rbe_cli.layers.tile_cache import TileCache
from rbe_cli.layers.tiled_matrix import TiledMatrix
from rbe_cli.layers.weight_generator import WeightGenerator
from rbe_cli.layers.weights import DenseMatrix, WeightMatrix


class WeightMapper:
    """The `WeightSource` of a folder that `rbe compress` wrote.

    Matrices without a coded residual become a `LowRankMatrix` or a `SparseMatrix`, those with one a `TiledMatrix`; what
    is stored exactly, or against a base, is decoded once and held as float32.

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
        if values.dtype not in elements.FLOATS.values():
            raise RBEError(f"{self.folder.path}: tensor {name!r} is not of a floating type")
        with np.errstate(all="ignore"):
            return values.astype(np.float32)

    def matrix(self, name: str) -> WeightMatrix:
        """A tensor of two dimensions; tied ones give the same object. Raises RBEError, CorruptFile."""
        stored = self.folder.open_tensor(name)
        if len(stored.record.shape) != 2:
            raise RBEError(f"{stored.where}: has {len(stored.record.shape)} dimensions where a matrix is needed")
        key = stored.record.name
        if key not in self._matrices:
            if stored.record.codec == "lossless" or stored.record.base:
                self._matrices[key] = DenseMatrix(self.vector(name))
            else:
                opened = open_matrix(stored, self.cache, self._executor)
                if opened.shape != stored.record.shape:
                    raise CorruptFile(f"{stored.where}: is coded as a matrix of another shape")
                self._matrices[key] = opened
        return self._matrices[key]

    def generator(self, name: str) -> WeightGenerator:
        """Weights of a tensor wherever they are asked for."""
        return WeightGenerator(self.matrix(name))

    def decode_row(self, name: str, row: int) -> NDArray[np.float32]:
        """One row of a tensor, float32[columns], decoded without the others where the tensor has no coded residual.

        Raises IndexError for a row that is not there.
        """
        decoded: NDArray[np.float32] = self.generator(name).rows(np.array([row]))[0]
        return decoded


def open_matrix(stored: StoredMatrix, cache: TileCache | None = None, executor: Executor | None = None) -> WeightMatrix:
    """A lossily coded matrix, ready to be multiplied with.

    `cache` and `executor` are those of `TiledMatrix`; without a cache nothing is kept. Raises CorruptFile.
    """
    decoder = stored.decoder()
    if isinstance(decoder, LowRankDecoder):
        return LowRankMatrix(decoder.low_rank)
    if isinstance(decoder, SparseDecoder):
        return SparseMatrix(stored, decoder)
    return TiledMatrix(stored, decoder, TileCache(0) if cache is None else cache, executor)
