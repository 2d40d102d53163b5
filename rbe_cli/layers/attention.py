"""Causal self-attention with several heads and a cache of keys and values (Vaswani et al., 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbe_cli.errors import RBEError
from rbe_cli.kernels import forward
from rbe_cli.layers.linear import RBELinear
from rbe_cli.layers.tile_cache import TileCache
from rbe_cli.layers.weights import WeightSource

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
        self.make_room(keys.shape[2])
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def make_room(self, positions: int) -> None:
        """Raises RBEError if there is none for so many more positions."""
        if self.length + positions > self.keys.shape[2]:
            raise RBEError(f"text is longer than the {self.keys.shape[2]} positions there is room for")

    @property
    def nbytes(self) -> int:
        """Bytes held, for its whole capacity."""
        return self.keys.nbytes + self.values.nbytes


class RBEAttention:
    """Attention whose projections may stay compressed.

    Parameters
    ----------
    projections : sequence of RBELinear
        One, hidden -> 3 hidden: queries, keys and values beside each other, as GPT-2 has them; or three,
        hidden -> hidden: queries, keys, values.
    out : RBELinear
        hidden -> hidden.
    heads : int
        Divides hidden.
    scale : float or None
        Factor on the scores; None is 1 / sqrt(hidden / heads).

    Raises
    ------
    RBEError
        If the projections do not fit each other, or heads do not divide hidden.
    """

    def __init__(
        self, projections: Sequence[RBELinear], out: RBELinear, heads: int, scale: float | None = None
    ) -> None:
        hidden = projections[0].inputs
        fits = all(p.inputs == hidden for p in projections) and out.inputs == hidden
        if not fits or hidden % heads or [p.outputs for p in projections] not in ([3 * hidden], [hidden] * 3):
            raise RBEError(f"attention of {heads} heads cannot be made of projections of these shapes")
        self.projections = tuple(projections)
        self.out = out
        self.heads = heads
        self.scale = scale if scale is not None else 1 / math.sqrt(hidden / heads)

    @classmethod
    def load(
        cls,
        source: WeightSource,
        projections: Sequence[str],
        out: str,
        heads: int,
        *,
        scale: float | None = None,
        in_by_out: bool = False,
    ) -> RBEAttention:
        """From the layers of these names, as `RBELinear.load` has them. Raises RBEError, CorruptFile."""
        layers = [RBELinear.load(source, name, in_by_out=in_by_out) for name in (*projections, out)]
        return cls(layers[:-1], layers[-1], heads, scale)

    @classmethod
    def compress(
        cls,
        projections: Sequence[NDArray[np.float32]],
        out: NDArray[np.float32],
        heads: int,
        *,
        in_by_out: bool = False,
        cache: TileCache | None = None,
        **wishes: Any,
    ) -> RBEAttention:
        """From the matrices of the projections, without biases; `wishes` are those of `compress_array`.

        Raises UsageError.
        """
        layers = [
            RBELinear.compress(matrix, in_by_out=in_by_out, cache=cache, **{"name": f"projection {i}"} | wishes)
            for i, matrix in enumerate((*projections, out))
        ]
        return cls(layers[:-1], layers[-1], heads)

    def __call__(self, x: NDArray[np.float32], cache: KeyValueCache | None = None) -> NDArray[np.float32]:
        """float32[batch, positions, hidden] -> the same shape.

        With a cache, `x` are the positions after those in it; they are added to it.
        """
        batch, positions, hidden = x.shape
        if cache is not None and positions == 1:
            return self._one_position(x.reshape(batch, hidden), cache).reshape(x.shape)
        parts = self._parts(x)
        size = hidden // self.heads
        queries, keys, values = (part.reshape(batch, positions, self.heads, size).swapaxes(1, 2) for part in parts)
        if cache is not None:
            keys, values = cache.append(keys, values)
        attended = causal_attention(queries * np.float32(self.scale), keys, values)
        return self.out(attended.swapaxes(1, 2).reshape(batch, positions, hidden))

    def _parts(self, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Queries, keys and values, float32[..., hidden] each."""
        parts = [projection(x) for projection in self.projections]
        if len(parts) == 3:
            return parts
        hidden = x.shape[-1]
        return [parts[0][..., i * hidden : (i + 1) * hidden] for i in range(3)]

    def _one_position(self, x: NDArray[np.float32], cache: KeyValueCache) -> NDArray[np.float32]:
        """One new position of every text, float32[batch, hidden] -> the same: between the projections, one call."""
        cache.make_room(1)
        queries, keys, values = map(np.ascontiguousarray, self._parts(x))
        out = np.empty(queries.shape, np.float32)
        forward.attend_one(queries, keys, values, cache.keys, cache.values, cache.length, np.float32(self.scale), out)
        cache.length += 1
        return self.out(out)

    @property
    def nbytes(self) -> int:
        """Bytes held, caches not counted."""
        return self.out.nbytes + sum(projection.nbytes for projection in self.projections)


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
