"""Leading singular vectors of a matrix, exactly or by subspace iteration (Halko et al., SIAM Rev. 53, 2011)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Vectors that are iterated beyond those that are wanted.
OVERSAMPLING = 8
_ITERATIONS = 3
#: A side so many times the other one is summed over first.
_LONG = 8
_BAND = 1 << 20
#: A side up to which its products are taken apart exactly in no more time than it takes to iterate.
_SOON_EXACT = 128
#: What is added to a Gram matrix that may be singular, of its trace, and at least.
_RIDGE, _TINY = 1e-10, np.float32(1e-35)


def leading(
    w: NDArray[np.float32], count: int, real: type[np.floating] = np.float64
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Leading singular values, float64[count], and right singular vectors, float64[n, count], of float32[m, n].

    Computed in `real` numbers, by way of the products of the shorter side: of a matrix many times longer than wide, or
    the reverse, exactly (in float32, only if that side is short); else by subspace iteration.
    """
    m, n = w.shape
    tall = w if m >= n else w.T
    products = _products(tall, real) if is_long(m, n) else None
    if products is not None and (real is np.float64 or len(products) <= _SOON_EXACT):
        found = np.linalg.eigh(products)
        squares, vectors = (part[..., ::-1][..., :count].astype(np.float64) for part in found)
    else:
        squares, vectors = _iterated(tall, products, count, real)
    if m < n:
        vectors = (w.T @ vectors.astype(np.float32)) / np.sqrt(np.maximum(squares, squares[0] * 1e-24))
    return np.sqrt(np.maximum(squares, 1e-300)), of_one_sign(vectors)


def is_long(m: int, n: int) -> bool:
    """Whether a side is so much longer than the other that its products are summed up first."""
    return max(m, n) >= _LONG * min(m, n)


def _products(w: NDArray[np.float32], real: type[np.floating]) -> NDArray[Any]:
    """w^T w, some rows at a time."""
    moments = np.zeros((w.shape[1], w.shape[1]), real)
    height = max(1, _BAND // w.shape[1])
    for top in range(0, w.shape[0], height):
        wide = w[top : top + height].astype(real, copy=False)
        moments += wide.T @ wide
    return moments


def _inverse_root(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """R, lower triangular, with R gram R^T = 1: by R^T the columns of a basis whose products are `gram` become
    orthonormal, in a third of the time of a QR. Directions it hardly has stay too short.
    """
    ridge = max(float(np.trace(gram)) * _RIDGE, float(_TINY))
    return np.asarray(np.linalg.inv(np.linalg.cholesky(gram + ridge * np.eye(len(gram)))))


def orthonormal_basis(basis: NDArray[np.float32], real: type[np.floating]) -> NDArray[np.float32]:
    """A basis, float32[n, width], made orthonormal; computed in `real` numbers."""
    if real is np.float64:
        return np.linalg.qr(basis.astype(np.float64))[0].astype(np.float32)
    wide = basis.astype(np.float64)
    return basis @ _inverse_root(wide.T @ wide).T.astype(np.float32)


def _iterated(
    w: NDArray[np.float32], products: NDArray[np.float32] | None, count: int, real: type[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Leading eigenvalues and eigenvectors of w^T w, which `products` is if it is at hand."""
    basis = random_basis(w.shape[1], min(count + OVERSAMPLING, *w.shape))
    for _ in range(_ITERATIONS):
        basis = orthonormal_basis(w.T @ (w @ basis) if products is None else products @ basis, real)
    if products is None:
        projected = (w @ basis).astype(real, copy=False)
        seen = projected.T @ projected
    else:
        seen = basis.T @ (products @ basis)
    squares, rotation = (found.astype(np.float64) for found in np.linalg.eigh(seen))
    order = np.argsort(squares)[::-1][:count]
    return squares[order], basis.astype(np.float64) @ rotation[:, order]


@lru_cache(maxsize=4)
def random_basis(n: int, width: int) -> NDArray[np.float32]:
    """Random columns to begin with, float32[n, width]: always the same."""
    return np.random.default_rng(0).standard_normal((n, width), np.float32)


def of_one_sign(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Vectors, float64[n, r], each with the sign that makes its largest number positive: a library has no say in it."""
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
    return vectors * np.where(largest < 0, -1.0, 1.0)
