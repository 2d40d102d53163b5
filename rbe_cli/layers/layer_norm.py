"""Layer normalisation (Ba, Kiros and Hinton, 2016)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class RBELayerNorm:
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta, over the last dimension.

    Mean and variance are taken in float64, in two passes: exact even where the mean is a million times the spread.

    Parameters
    ----------
    gamma, beta : float32[hidden]
    epsilon : float

    Examples
    --------
    >>> norm = RBELayerNorm(np.ones(2, np.float32), np.zeros(2, np.float32), 1e-5)
    >>> norm(np.array([[1e6, 1e6 + 1]], np.float32)).round(3)
    array([[-1.,  1.]], dtype=float32)
    """

    def __init__(self, gamma: NDArray[np.float32], beta: NDArray[np.float32], epsilon: float) -> None:
        self.gamma = gamma
        self.beta = beta
        self.epsilon = epsilon

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32[..., hidden] -> float32[..., hidden]."""
        hidden = x.shape[-1]
        centred = x - np.add.reduce(x, -1, np.float64, keepdims=True) / hidden
        variance = np.einsum("...i,...i->...", centred, centred)[..., None] / hidden
        centred /= np.sqrt(variance + self.epsilon)
        y: NDArray[np.float32] = centred.astype(np.float32)
        y *= self.gamma
        y += self.beta
        return y

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.gamma.nbytes + self.beta.nbytes
