"""Weights of a checkpoint that is not compressed: everything dense, in float32."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rbe_cli import dtypes, elements
from rbe_cli.checkpoint.reader import Checkpoint
from rbe_cli.errors import RBEError
from rbe_cli.layers.weights import DenseMatrix


class CheckpointWeights:
    """The `WeightSource` of a safetensors checkpoint. A tensor is read when it is asked for.

    Parameters
    ----------
    checkpoint : Checkpoint
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._tensors = {info.name: (shard, info) for shard, info in checkpoint.tensors}
        self._matrices: dict[str, DenseMatrix] = {}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor."""
        return {name: info.shape for name, (_, info) in self._tensors.items()}

    def vector(self, name: str) -> NDArray[np.float32]:
        """A tensor in float32."""
        if name not in self._tensors:
            raise RBEError(f"{self.checkpoint.name}: has no tensor {name!r}")
        shard, info = self._tensors[name]
        if info.dtype not in dtypes.FLOATS:
            raise RBEError(f"{self.checkpoint.name}: tensor {name!r} is {info.dtype}, not of a floating type")
        return elements.to_float32(self.checkpoint.shards[shard].raw(info)[:], info.dtype).reshape(info.shape)

    def matrix(self, name: str) -> DenseMatrix:
        """A tensor of two dimensions."""
        if name not in self._matrices:
            values = self.vector(name)
            if values.ndim != 2:
                raise RBEError(f"{self.checkpoint.name}: tensor {name!r} has {values.ndim} dimensions, not 2")
            self._matrices[name] = DenseMatrix(values)
        return self._matrices[name]
