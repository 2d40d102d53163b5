"""The feed-forward layer: up, activation, down."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbe_cli.errors import RBEError
from rbe_cli.kernels import forward
from rbe_cli.layers.linear import RBELinear
from rbe_cli.layers.tile_cache import TileCache
from rbe_cli.layers.weights import WeightSource

Activation = Callable[[NDArray[np.float32]], NDArray[np.float32]]


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
    y = np.empty(x.shape, np.float32)
    forward.gelu(np.ascontiguousarray(x).reshape(-1), y.reshape(-1))
    return y


def relu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The positive part."""
    return np.maximum(x, 0)


def silu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """X times the logistic function of x (Elfwing et al., 2017).

    >>> silu(np.array([-1, 0, 1], np.float32)).round(4)
    array([-0.2689,  0.    ,  0.7311], dtype=float32)
    """
    y: NDArray[np.float32] = np.tanh(x * np.float32(0.5))
    y += 1
    y *= x * np.float32(0.5)
    return y


#: Activations by the name transformers has for them in a config.json.
ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": gelu_new,
    "gelu_pytorch_tanh": gelu_new,
    "gelu": gelu,
    "relu": relu,
    "silu": silu,
}


class RBEFFN:
    """down(activation(up(x))), or with a gate down(activation(gate(x)) * up(x)); its matrices may stay compressed.

    Parameters
    ----------
    up, down : RBELinear
        hidden -> inner and back.
    activation : callable
        float32 array to float32 array, element by element.
    gate : RBELinear or None
        hidden -> inner. With `silu` it makes a SwiGLU layer (Shazeer, 2020), as Llama has them.

    Raises
    ------
    RBEError
        If the matrices do not fit each other.
    """

    def __init__(
        self, up: RBELinear, down: RBELinear, activation: Activation = gelu_new, gate: RBELinear | None = None
    ) -> None:
        gates = [gate] if gate is not None else []
        if down.inputs != up.outputs or any((g.inputs, g.outputs) != (up.inputs, up.outputs) for g in gates):
            raise RBEError("feed-forward layer cannot be made of matrices of these shapes")
        self.up = up
        self.down = down
        self.activation = activation
        self.gate = gate

    @classmethod
    def load(
        cls,
        source: WeightSource,
        up: str,
        down: str,
        activation: Activation = gelu_new,
        gate: str | None = None,
        *,
        in_by_out: bool = False,
    ) -> RBEFFN:
        """From the layers of these names, as `RBELinear.load` has them. Raises RBEError, CorruptFile."""
        layers = [RBELinear.load(source, name, in_by_out=in_by_out) for name in (up, down, gate) if name is not None]
        return cls(layers[0], layers[1], activation, layers[2] if gate is not None else None)

    @classmethod
    def compress(
        cls,
        up: NDArray[np.float32],
        down: NDArray[np.float32],
        activation: Activation = gelu_new,
        gate: NDArray[np.float32] | None = None,
        *,
        in_by_out: bool = False,
        cache: TileCache | None = None,
        **wishes: Any,
    ) -> RBEFFN:
        """From its matrices, without biases; `wishes` are those of `compress_array`. Raises UsageError."""

        def layer(matrix: NDArray[np.float32], name: str) -> RBELinear:
            return RBELinear.compress(matrix, in_by_out=in_by_out, cache=cache, **{"name": name} | wishes)

        gated = layer(gate, "gate") if gate is not None else None
        return cls(layer(up, "up"), layer(down, "down"), activation, gated)

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32[..., hidden] -> float32[..., hidden]."""
        if self.gate is None:
            return self.down(self.activation(self.up(x)))
        inner = self.activation(self.gate(x))
        inner *= self.up(x)
        return self.down(inner)

    @property
    def nbytes(self) -> int:
        """Bytes held, a shared tile cache not counted."""
        return self.up.nbytes + self.down.nbytes + (0 if self.gate is None else self.gate.nbytes)
