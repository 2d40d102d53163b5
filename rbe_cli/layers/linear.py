"""A linear layer, y = x W + b."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbe_cli.layers.block_layout import BlockLayout
from rbe_cli.layers.encoded import compress_array
from rbe_cli.layers.fused_forward import FusedForwardPass
from rbe_cli.layers.tile_cache import TileCache
from rbe_cli.layers.weight_generator import WeightGenerator
from rbe_cli.layers.weight_mapper import open_matrix
from rbe_cli.layers.weights import WeightMatrix, WeightSource


class RBELinear:
    """A linear layer whose weights may stay compressed.

    Parameters
    ----------
    weight : WeightMatrix
        in x out if `in_by_out` (GPT-2's Conv1D), else out x in (torch's Linear).
    bias : float32[out] or None
    in_by_out : bool

    Attributes
    ----------
    inputs, outputs : int

    Examples
    --------
    >>> from rbe_cli.layers.weights import DenseMatrix
    >>> layer = RBELinear(DenseMatrix(np.array([[1, 2], [3, 4], [5, 6]], np.float32)))
    >>> layer.inputs, layer.outputs, layer(np.array([[1, 1]], np.float32))
    (2, 3, array([[ 3.,  7., 11.]], dtype=float32))
    """

    def __init__(
        self, weight: WeightMatrix, bias: NDArray[np.float32] | None = None, *, in_by_out: bool = False
    ) -> None:
        self.weight = weight
        self.bias = bias
        self.in_by_out = in_by_out
        #: Called with the inputs, float32[n, in], before they are multiplied; what calibration looks through.
        self.observer: Callable[[NDArray[np.float32]], None] | None = None
        self._forward = FusedForwardPass(weight, in_by_out)
        self.inputs, self.outputs = self._forward.inputs, self._forward.outputs

    @classmethod
    def load(cls, source: WeightSource, name: str, *, in_by_out: bool = False) -> RBELinear:
        """The tensors `name.weight` and, if there is one, `name.bias`. Raises RBEError, CorruptFile."""
        bias = f"{name}.bias"
        vector = source.vector(bias) if bias in source.shapes() else None
        return cls(source.matrix(f"{name}.weight"), vector, in_by_out=in_by_out)

    @classmethod
    def compress(
        cls,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32] | None = None,
        *,
        in_by_out: bool = False,
        cache: TileCache | None = None,
        **wishes: Any,
    ) -> RBELinear:
        """From float32[rows, columns]; `wishes` are those of `compress_array`. Raises UsageError."""
        return cls(open_matrix(compress_array(weight, **wishes), cache), bias, in_by_out=in_by_out)

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32[..., in] -> float32[..., out]; any number of vectors, 0 too. Raises RBEError."""
        if self.observer is not None:
            self.observer(x.reshape(-1, self.inputs))
        y = self._forward(x)
        if self.bias is not None:
            y += self.bias
        return y

    @property
    def weight_generator(self) -> WeightGenerator:
        """Its weights, wherever they are asked for."""
        return WeightGenerator(self.weight)

    @property
    def block_layout(self) -> BlockLayout:
        """How its weights are cut into blocks."""
        return self.weight.layout

    @property
    def nbytes(self) -> int:
        """Bytes held, a shared tile cache not counted."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)
