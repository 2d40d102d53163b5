"""Structure: what a few numbers describe of a matrix. So far, low rank.

    S = P diag(2^(-e / 8)) Q,   P = W V (rows x r),   Q = diag(2^(e / 8)) V^T (r x columns)

V holds the leading right singular vectors and 2^(e / 8) the singular values, to an eighth octave, so that an error in
P and an error in Q weigh the same and one quantisation step serves both. What P and Q lose is in the residual.
"""

from __future__ import annotations

import math
import struct

import numpy as np
from numpy.typing import NDArray

from rbe_cli.codec.side_info import decode_integers, encode_integers
from rbe_cli.codec.side_matrix import decode_side_matrix, encode_side_matrix
from rbe_cli.codec.workspace import scratch
from rbe_cli.errors import Damage
from rbe_cli.kernels.products import add_product

#: Largest rank in a file, and the largest that is looked for under a residual.
MAX_RANK = 1024
_RANK_UNDER_RESIDUAL = 64
_HEAD = struct.Struct("<HH")
_OVERSAMPLING = 8
_ITERATIONS = 3
_MAX_EXPONENT = 1024
#: Bits a factor element costs above the rate-distortion bound, all side information counted.
_FACTOR_OVERHEAD = 0.1
#: Squared error of the trellis quantiser at a fine step, in squared steps.
STEP_POWER = 0.26


class LowRank:
    """A decoded low-rank part.

    Attributes
    ----------
    left : float32[rows, r]
        P diag(2^(-e / 8)).
    right : float32[r, columns]
        Q.
    data : bytes
        Its stored form.
    """

    def __init__(self, left: NDArray[np.float32], right: NDArray[np.float32], data: bytes) -> None:
        self.left = left
        self.right = right
        self.data = data

    @classmethod
    def unpack(cls, data: bytes, rows: int, columns: int) -> tuple[LowRank, int]:
        """Read the stored form; returns it and the bytes it took. Raises Damage."""
        if len(data) < _HEAD.size:
            raise Damage("low rank part is cut short")
        rank, size = _HEAD.unpack_from(data)
        if not 1 <= rank <= min(MAX_RANK, rows, columns) or len(data) < _HEAD.size + size:
            raise Damage("low rank part has an impossible rank")
        at = _HEAD.size + size
        exponents = decode_integers(data[_HEAD.size : at], rank)
        if np.abs(exponents.astype(np.int64)).max() > _MAX_EXPONENT:
            raise Damage("low rank part has an exponent out of range")
        p, used = decode_side_matrix(data[at:], rows, rank)
        at += used
        q, used = decode_side_matrix(data[at:], rank, columns)
        at += used
        p *= np.exp2(-exponents / 8).astype(np.float32)
        return cls(p, q, data[:at]), at

    def subtract(self, w: NDArray[np.float32], top: int) -> None:
        """Take it from rows top, top + 1, ... in place: in a fixed order, since what is left is quantised."""
        add_product(self.left[top : top + w.shape[0]], self.right, np.float32(-1), w)

    def add(self, w: NDArray[np.float32], top: int) -> None:
        """Add it to rows top, top + 1, ... in place: by the library's product, which is fast."""
        part = scratch("low rank", w.shape, np.float32)
        np.matmul(self.left[top : top + w.shape[0]], self.right, out=part)
        w += part


def fit_low_rank(w: NDArray[np.float32]) -> LowRank | None:
    """The low-rank part that saves most bits of float32[m, n] at any fine enough step; None if none saves any."""
    m, n = w.shape
    most = min(_RANK_UNDER_RESIDUAL, min(m, n) // 4)
    if most < 1:
        return None
    values, vectors = leading(w, most)
    rank, step = _best_rank(values, float(np.einsum("ij,ij->", w, w, dtype=np.float64)), m, n)
    if not rank:
        return None
    return encode_low_rank(w, values, vectors, rank, step)


def encode_low_rank(
    w: NDArray[np.float32], values: NDArray[np.float64], vectors: NDArray[np.float64], rank: int, step: float
) -> LowRank:
    """The first `rank` components of float32[m, n], their factors quantised with a step, as they are decoded."""
    m, n = w.shape
    exponents = np.round(8 * np.log2(values[:rank])).astype(np.int32)
    # On a grid, so that the last bits of a library's arithmetic do not reach the file.
    v = np.ascontiguousarray(np.round(vectors[:, :rank] * 2**14) / 2**14, np.float32)
    p = np.zeros((m, rank), np.float32)
    add_product(np.ascontiguousarray(w), v, np.float32(1), p)
    q = np.ascontiguousarray(np.exp2(exponents / 8).astype(np.float32)[:, None] * v.T)
    stored = encode_integers(exponents, False)
    data = _HEAD.pack(rank, len(stored)) + stored + encode_side_matrix(p, step) + encode_side_matrix(q, step)
    return LowRank.unpack(data, m, n)[0]


def leading(w: NDArray[np.float32], count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Leading singular values and right singular vectors, by subspace iteration (Halko et al., SIAM Rev. 53, 2011)."""
    rng = np.random.default_rng(0)
    width = min(count + _OVERSAMPLING, *w.shape)
    basis = np.linalg.qr(rng.standard_normal((w.shape[1], width)))[0].astype(np.float32)
    for _ in range(_ITERATIONS):
        basis = np.linalg.qr((w.T @ (w @ basis)).astype(np.float64))[0].astype(np.float32)
    projected = (w @ basis).astype(np.float64)
    squares, rotation = np.linalg.eigh(projected.T @ projected)
    order = np.argsort(squares)[::-1][:count]
    vectors = basis.astype(np.float64) @ rotation[:, order]
    vectors *= np.where(vectors[np.abs(vectors).argmax(axis=0), np.arange(order.size)] < 0, -1.0, 1.0)
    return np.sqrt(np.maximum(squares[order], 1e-300)), vectors


def _best_rank(values: NDArray[np.float64], energy: float, m: int, n: int) -> tuple[int, float]:
    """Rank and factor step of least rate, the residual coded at a fine step; (0, 0) for none.

    With rho = r (m + n) / (m n), rate is least where the factors' squared error is rho / (1 - rho) of what is left.
    """
    best, choice = 0.0, (0, 0.0)
    left = energy
    for rank in range(1, values.size + 1):
        left -= float(values[rank - 1]) ** 2
        factors = rank * (m + n)
        rho = factors / (m * n)
        if left <= energy * 1e-12 or rho >= 0.5:
            break
        step_power = left * rho / (1 - rho) / factors
        bits = m * n / 2 * math.log2(left / energy / (1 - rho))
        for size in (m, n):
            power = values[:rank] ** 2 / size
            bits += float(size * (np.maximum(0.5 * np.log2(power / step_power), 0) + _FACTOR_OVERHEAD).sum())
        if bits < best:
            best, choice = bits, (rank, math.sqrt(step_power / STEP_POWER))
    return choice
