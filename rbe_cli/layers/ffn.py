"""The feed-forward layer: up, activation, down."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from rbe_cli.layers.linear import RBELinear

Activation = Callable[[NDArray[np.float32]], NDArray[np.float32]]
_erf = np.frompyfunc(math.erf, 1, 1)


def gelu_new(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """GELU by its tanh approximation, as GPT-2 has it (Hendrycks and Gimpel, 2016, section 2).

    >>> gelu_new(np.array([-1, 0, 1], np.float32)).round(4)
    array([-0.1588,  0.    ,  0.8412], dtype=float32)
    """
    y: NDArray[np.float32] = x * x
    y *= np.float32(0.044715 * math.sqrt(2 / math.pi))
    y += np.float32(math.sqrt(2 / math.pi))
    y *= x
    np.tanh(y, out=y)
    y += 1
    y *= x
    y *= np.float32(0.5)
    return y


def gelu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """GELU itself: x times the Gaussian distribution function.

    >>> gelu(np.array([-1, 0, 1], np.float32)).round(4)
    array([-0.1587,  0.    ,  0.8413], dtype=float32)
    """
    y: NDArray[np.float32] = _erf(x * np.float32(math.sqrt(0.5))).astype(np.float32)
    y += 1
    y *= np.float32(0.5) * x
    return y


def relu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The positive part."""
    return np.maximum(x, 0)


#: Activations by the name transformers has for them in a config.json.
ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": gelu_new,
    "gelu_pytorch_tanh": gelu_new,
    "gelu": gelu,
    "relu": relu,
}


class RBEFFN:
    """down(activation(up(x))), whose matrices may stay compressed.

    Parameters
    ----------
    up, down : RBELinear
        hidden -> inner and back.
    activation : callable
        float32 array to float32 array, element by element.
    """

    def __init__(self, up: RBELinear, down: RBELinear, activation: Activation = gelu_new) -> None:
        self.up = up
        self.down = down
        self.activation = activation

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32[..., hidden] -> float32[..., hidden]."""
        return self.down(self.activation(self.up(x)))

    @property
    def nbytes(self) -> int:
        """Bytes held, a shared tile cache not counted."""
        return self.up.nbytes + self.down.nbytes
