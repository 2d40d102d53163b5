"""Layer normalisation (Ba, Kiros and Hinton, 2016)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rbe_cli.errors import RBEError
from rbe_cli.kernels import forward
from rbe_cli.layers.encoded import EncodedMatrix, compress_array
from rbe_cli.layers.weights import WeightSource

#: Vectors of fewer elements are never compressed: there is nothing to gain.
COMPRESSED_FROM = 1024


class RBELayerNorm:
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta, over the last dimension.

    Mean and variance are taken in float64, in two passes: exact even where the mean is a million times the spread.

    Parameters
    ----------
    gamma, beta : float32[hidden], or an EncodedMatrix of one row
        Which is decoded at every call.
    epsilon : float

    Examples
    --------
    >>> norm = RBELayerNorm(np.ones(2, np.float32), np.zeros(2, np.float32), 1e-5)
    >>> norm(np.array([[1e6, 1e6 + 1]], np.float32)).round(3)
    array([[-1.,  1.]], dtype=float32)
    """

    def __init__(
        self, gamma: NDArray[np.float32] | EncodedMatrix, beta: NDArray[np.float32] | EncodedMatrix, epsilon: float
    ) -> None:
        self.gamma = gamma
        self.beta = beta
        self.epsilon = epsilon
        self.hidden = gamma.size if isinstance(gamma, np.ndarray) else gamma.record.shape[1]

    @classmethod
    def load(cls, source: WeightSource, name: str, epsilon: float = 1e-5) -> RBELayerNorm:
        """The tensors `name.weight` and `name.bias`, which folders hold exactly. Raises RBEError, CorruptFile."""
        return cls(source.vector(f"{name}.weight"), source.vector(f"{name}.bias"), epsilon)

    @classmethod
    def compress(
        cls, gamma: NDArray[np.float32], beta: NDArray[np.float32], epsilon: float = 1e-5, bits: float = 8.0
    ) -> RBELayerNorm:
        """From float32[hidden] each: compressed to so many bits an element from COMPRESSED_FROM elements on, else kept.

        So is a vector of one number repeated, which the codec keeps exactly.
        """

        def held(vector: NDArray[np.float32], name: str) -> NDArray[np.float32] | EncodedMatrix:
            if vector.size < COMPRESSED_FROM or (vector == vector[0]).all():
                return vector
            return compress_array(vector[None], bits=bits, name=name)

        return cls(held(gamma, "gamma"), held(beta, "beta"), epsilon)

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32[..., hidden] -> float32[..., hidden]. Raises RBEError."""
        if x.shape[-1:] != (self.hidden,):
            raise RBEError(f"layer norm of {self.hidden} elements was given an array of shape {x.shape}")
        flat = np.ascontiguousarray(x, np.float32).reshape(x.size // self.hidden, self.hidden)
        out = np.empty(flat.shape, np.float32)
        forward.layer_norm(flat, _vector(self.gamma), _vector(self.beta), self.epsilon, out)
        return out.reshape(x.shape)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.gamma.nbytes + self.beta.nbytes


def _vector(held: NDArray[np.float32] | EncodedMatrix) -> NDArray[np.float32]:
    return held if isinstance(held, np.ndarray) else held.decode()[0]
