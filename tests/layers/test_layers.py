"""Layer normalisation, attention, embedding and activations, each against the plain computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbe_cli.errors import RBEError
from rbe_cli.layers.attention import KeyValueCache, RBEAttention, causal_attention
from rbe_cli.layers.embedding import RBEEmbedding
from rbe_cli.layers.ffn import RBEFFN, gelu, gelu_new, relu
from rbe_cli.layers.layer_norm import RBELayerNorm
from rbe_cli.layers.linear import RBELinear
from rbe_cli.layers.weights import DenseMatrix


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("mean", [0.0, 1e4, -1e7])
def test_layer_norm_is_stable(mean: float) -> None:
    x = (np.float64(mean) + normal(6, 33) * max(1.0, abs(mean) * 1e-4)).astype(np.float32)
    gamma, beta = normal(33, seed=1), normal(33, seed=2)
    exact = x.astype(np.longdouble)
    exact = (exact - exact.mean(1, keepdims=True)) / np.sqrt(exact.var(1, keepdims=True) + 1e-5) * gamma + beta
    got = RBELayerNorm(gamma, beta, 1e-5)(x)
    assert got.dtype == np.float32
    assert abs(got - exact).max() < 2e-6 * abs(exact).max()


def test_layer_norm_of_constants_and_of_nothing() -> None:
    norm = RBELayerNorm(np.ones(8, np.float32), np.full(8, 3, np.float32), 1e-5)
    assert (norm(np.full((2, 8), 1e30, np.float32)) == 3).all()
    assert norm(np.zeros((0, 8), np.float32)).shape == (0, 8)


def naive_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    past = k.shape[0] - q.shape[0]
    out = []
    for i in range(q.shape[0]):
        weights = np.exp([float(q[i] @ k[j]) for j in range(past + i + 1)])
        out.append(sum(weights[j] / weights.sum() * v[j] for j in range(past + i + 1)))
    return np.array(out)


@given(st.integers(0, 3), st.integers(1, 3), st.integers(1, 20), st.integers(0, 9), st.integers(1, 5))
def test_attention_sees_what_is_before(batch: int, heads: int, positions: int, past: int, size: int) -> None:
    q = normal(batch, heads, positions, size)
    k, v = (normal(batch, heads, past + positions, size, seed=seed) for seed in (1, 2))
    got = causal_attention(q, k, v)
    assert got.shape == q.shape
    for b in range(batch):
        for h in range(heads):
            assert abs(got[b, h] - naive_attention(q[b, h], k[b, h], v[b, h])).max() < 1e-4


def test_attention_in_pieces_is_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = normal(1, 2, 50, 4), normal(1, 2, 61, 4, seed=1), normal(1, 2, 61, 4, seed=2)
    whole = causal_attention(q, k, v)
    monkeypatch.setattr("rbe_cli.layers.attention._SCORES", 1)
    assert abs(causal_attention(q, k, v) - whole).max() < 1e-5


def test_attention_survives_huge_scores() -> None:
    x = np.full((1, 1, 3, 2), 1e10, np.float32)
    assert np.isfinite(causal_attention(x, x, x)).all()


def test_attention_with_a_cache() -> None:
    qkv = RBELinear(DenseMatrix(normal(12, 36)), normal(36), in_by_out=True)
    attention = RBEAttention([qkv], RBELinear(DenseMatrix(normal(12, 12)), None, in_by_out=True), 3)
    x = normal(2, 7, 12, seed=5)
    cache = KeyValueCache(2, 3, 7, 4)
    parts = [attention(x[:, :4], cache), attention(x[:, 4:5], cache), attention(x[:, 5:], cache)]
    assert np.allclose(np.concatenate(parts, 1), attention(x), atol=1e-4)
    with pytest.raises(RBEError, match="longer than the 7 positions"):
        attention(x[:, :1], cache)


def test_embedding_of_any_shape() -> None:
    table = normal(9, 4)
    embedding = RBEEmbedding(DenseMatrix(table), "wte")
    ids = np.array([[0, 8, 3], [3, 3, 1]])
    assert (embedding(ids) == table[ids]).all()
    assert embedding(ids[:0]).shape == (0, 3, 4)
    with pytest.raises(RBEError, match="wte: has 9 rows, none of number 9"):
        embedding(np.array([9]))


def test_activations() -> None:
    x = np.linspace(-8, 8, 401, dtype=np.float32)
    exact = np.array([0.5 * a * (1 + math.erf(a / math.sqrt(2))) for a in x.astype(float)])
    inner = math.sqrt(2 / math.pi) * (x.astype(float) + 0.044715 * x.astype(float) ** 3)
    assert abs(gelu(x) - exact).max() < 1e-6
    assert abs(gelu_new(x) - 0.5 * x * (1 + np.tanh(inner))).max() < 1e-6
    assert (relu(x) == np.where(x > 0, x, 0)).all()
    assert gelu(x).dtype == gelu_new(x).dtype == np.float32


def test_ffn() -> None:
    up, down = normal(5, 11), normal(11, 5, seed=1)
    ffn = RBEFFN(
        RBELinear(DenseMatrix(up), None, in_by_out=True), RBELinear(DenseMatrix(down), None, in_by_out=True), relu
    )
    x = normal(4, 5, seed=2)
    assert np.allclose(ffn(x), np.maximum(x @ up, 0) @ down, atol=1e-5)
    assert ffn.nbytes == up.nbytes + down.nbytes
