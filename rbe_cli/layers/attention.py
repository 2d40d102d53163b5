"""Causal self-attention with several heads and a cache of keys and values (Vaswani et al., 2017)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from rbe_cli.errors import RBEError
from rbe_cli.layers.linear import RBELinear

#: Scores that are in memory at once, float32.
_SCORES = 1 << 20


class KeyValueCache:
    """Keys and values of the positions one attention layer has seen.

    Parameters
    ----------
    batch, heads, capacity, size : int
        Texts side by side, heads, positions at most, elements of a head.
    """

    def __init__(self, batch: int, heads: int, capacity: int, size: int) -> None:
        self.keys = np.zeros((batch, heads, capacity, size), np.float32)
        self.values = np.zeros((batch, heads, capacity, size), np.float32)
        self.length = 0

    def append(
        self, keys: NDArray[np.float32], values: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Add float32[batch, heads, positions, size] of each; returns all there are so far. Raises RBEError if full."""
        end = self.length + keys.shape[2]
        if end > self.keys.shape[2]:
            raise RBEError(f"text is longer than the {self.keys.shape[2]} positions there is room for")
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    @property
    def nbytes(self) -> int:
        """Bytes held, for its whole capacity."""
        return self.keys.nbytes + self.values.nbytes


class RBEAttention:
    """Attention whose projections may stay compressed.

    Parameters
    ----------
    qkv : RBELinear
        hidden -> 3 hidden: queries, keys and values beside each other, as GPT-2 has them.
    out : RBELinear
        hidden -> hidden.
    heads : int
        Divides hidden.
    scale : float or None
        Factor on the scores; None is 1 / sqrt(hidden / heads).
    """

    def __init__(self, qkv: RBELinear, out: RBELinear, heads: int, scale: float | None = None) -> None:
        self.qkv = qkv
        self.out = out
        self.heads = heads
        self.scale = scale if scale is not None else 1 / math.sqrt(qkv.inputs / heads)

    def __call__(self, x: NDArray[np.float32], cache: KeyValueCache | None = None) -> NDArray[np.float32]:
        """float32[batch, positions, hidden] -> the same shape.

        With a cache, `x` are the positions after those in it; they are added to it.
        """
        batch, positions, hidden = x.shape
        parts = self.qkv(x).reshape(batch, positions, 3, self.heads, hidden // self.heads)
        queries, keys, values = parts.transpose(2, 0, 3, 1, 4)
        if cache is not None:
            keys, values = cache.append(keys, values)
        attended = causal_attention(queries * np.float32(self.scale), keys, values)
        return self.out(attended.transpose(0, 2, 1, 3).reshape(batch, positions, hidden))

    @property
    def nbytes(self) -> int:
        """Bytes held, caches not counted."""
        return self.qkv.nbytes + self.out.nbytes


def causal_attention(
    queries: NDArray[np.float32], keys: NDArray[np.float32], values: NDArray[np.float32]
) -> NDArray[np.float32]:
    """softmax(Q K^T, each query seeing itself and what is before it) V.

    Parameters
    ----------
    queries : float32[batch, heads, positions, size]
        Scaled already; they stand at the last positions of the keys.
    keys, values : float32[batch, heads, past + positions, size]

    Returns
    -------
    float32[batch, heads, positions, size]

    Some queries at a time, so that memory does not grow with the square of the length; keys that none of them may see
    are not multiplied at all.
    """
    batch, heads, positions, _ = queries.shape
    past = keys.shape[2] - positions
    out = np.empty(queries.shape, np.float32)
    height = max(16, _SCORES // max(1, batch * heads * keys.shape[2]))
    for begin in range(0, positions, height):
        end = min(begin + height, positions)
        seen = past + end
        scores = queries[:, :, begin:end] @ keys[:, :, :seen].swapaxes(2, 3)
        if end - begin > 1:
            hidden = np.arange(seen) > past + np.arange(begin, end)[:, None]
            np.copyto(scores, np.float32(-np.inf), where=hidden)
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        weighted = scores @ values[:, :, :seen]
        weighted /= scores.sum(-1, keepdims=True)
        out[:, :, begin:end] = weighted
    return out
