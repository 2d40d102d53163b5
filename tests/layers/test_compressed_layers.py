"""Every layer against the dense computation on its decoded weights, whatever its weights are stored as."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from rbe_cli.container.folder import Folder
from rbe_cli.errors import RBEError, UsageError
from rbe_cli.layers.attention import KeyValueCache, RBEAttention
from rbe_cli.layers.embedding import RBEEmbedding
from rbe_cli.layers.encoded import compress_array
from rbe_cli.layers.ffn import RBEFFN, gelu, silu
from rbe_cli.layers.fused_forward import FusedForwardPass
from rbe_cli.layers.layer_norm import RBELayerNorm
from rbe_cli.layers.linear import RBELinear
from rbe_cli.layers.low_rank_matrix import LowRankMatrix
from rbe_cli.layers.sparse_matrix import SparseMatrix
from rbe_cli.layers.tile_cache import TileCache
from rbe_cli.layers.tiled_matrix import TiledMatrix
from rbe_cli.layers.weight_generator import WeightGenerator
from rbe_cli.layers.weight_mapper import WeightMapper, open_matrix
from rbe_cli.layers.weights import WeightMatrix
from tests.synthetic import compress_to

#: Ways to store a matrix, and what it becomes.
KINDS: dict[str, tuple[dict[str, Any], type]] = {
    "low rank": ({"structure_only": True, "transform": "lowrank"}, LowRankMatrix),
    "dct": ({"structure_only": True, "transform": "dct", "block": 16}, SparseMatrix),
    "dwt": ({"structure_only": True, "transform": "dwt", "block": 12, "k": 2}, SparseMatrix),
    "residual": ({"transform": "none"}, TiledMatrix),
    "residual of a low rank": ({"transform": "lowrank"}, TiledMatrix),
    "residual in a dct": ({"transform": "dct", "block": 8}, TiledMatrix),
    "residual in a klt": ({"transform": "klt"}, TiledMatrix),
}


def weights(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """A smooth field and noise, so that every kind of code has something to find."""
    y, x = np.mgrid[:rows, :columns]
    noise = np.random.default_rng(seed).standard_normal((rows, columns))
    return (np.sin(y / 3 + seed) * np.cos(x / 5) + 0.3 * noise).astype(np.float32)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def make(kind: str, rows: int, columns: int, bits: float = 3.0) -> tuple[WeightMatrix, np.ndarray]:
    """A matrix and its decoded weights; small ones get the bits their headers take on top."""
    wishes, expected = KINDS[kind]
    own = bits + 8 * 500 / (rows * columns) + (10 if "klt" in kind else 0)
    encoded = compress_array(weights(rows, columns), bits=own, states=8, **wishes)
    matrix = open_matrix(encoded)
    assert type(matrix) is expected
    return matrix, encoded.decode()


def near(got: np.ndarray, want: np.ndarray, scale: float = 0.0) -> None:
    """Equal to 1e-4 of the norm, or of a typical element's size if it is given."""
    assert got.shape == want.shape
    assert got.dtype == np.float32
    assert np.linalg.norm(got - want) <= 1e-4 * max(np.linalg.norm(want), scale)


def check_matrix(matrix: WeightMatrix, dense: np.ndarray) -> None:
    rows, columns = dense.shape
    assert matrix.shape == dense.shape
    rms = float(np.sqrt(np.mean(dense**2)))
    for count in (0, 1, 2, 7):
        x, z = normal(count, rows, seed=1), normal(count, columns, seed=2)
        near(matrix.times(x), x @ dense, rms)
        near(matrix.times_transposed(z), z @ dense.T, rms)
    generator = WeightGenerator(matrix)
    rng = np.random.default_rng(3)
    for count in (0, 1, 200):
        at = rng.integers(0, rows, count), rng.integers(0, columns, count)
        near(generator.at(*at), dense[at], rms)
        near(generator.rows(at[0]), dense[at[0]], rms)
    for index, tile in enumerate(generator.layout):
        near(generator.block(index), dense[tile.top : tile.bottom, tile.left : tile.right], rms)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(40, 40), (67, 45), (33, 71)])
def test_products_rows_and_weights_are_those_of_the_decoded_matrix(kind: str, shape: tuple[int, int]) -> None:
    check_matrix(*make(kind, *shape))


@settings(max_examples=15)
@given(
    st.sampled_from(["low rank", "dct", "dwt", "residual"]), st.integers(2, 50), st.integers(2, 50), st.integers(4, 33)
)
def test_so_are_they_for_any_shape(kind: str, rows: int, columns: int, block: int) -> None:
    wishes = KINDS[kind][0] | {"block": block}
    try:
        encoded = compress_array(weights(rows, columns), bits=2 + 8 * 600 / (rows * columns), states=4, **wishes)
    except UsageError:
        # A few numbers whose factors take more than the numbers themselves.
        assert kind == "low rank"
        assert rows * columns < 1500
        return
    check_matrix(open_matrix(encoded), encoded.decode())


def test_a_matrix_of_several_tiles_and_a_cache() -> None:
    encoded = compress_array(weights(700, 300), bits=2.0, transform="none", states=4)
    dense = encoded.decode()
    cache = TileCache(600_000)
    matrix = open_matrix(encoded, cache)
    assert len(matrix.layout) > 2
    for _ in range(2):
        check_matrix(matrix, dense)
    assert cache.hits > 0
    assert 0 < cache.held <= cache.budget


def test_half_precision_without_a_residual(tmp_path: Path) -> None:
    """The file's decoded weights are rounded to float16; the layer's products are of what they were before."""
    save_file({"a.weight": weights(64, 64).astype(np.float16)}, tmp_path / "m.safetensors")
    compress_to(tmp_path / "m.safetensors", tmp_path / "out", bits=8.0, structure_only=True)
    folder = Folder.open(tmp_path / "out")
    x = normal(3, 64)
    want = x @ folder.tensor("a.weight").astype(np.float32)
    got = WeightMapper(folder).matrix("a.weight").times(x)
    assert np.linalg.norm(got - want) <= 1e-3 * np.linalg.norm(want)


@pytest.mark.parametrize("in_by_out", [False, True])
@pytest.mark.parametrize("kind", ["low rank", "dct", "residual"])
def test_linear(kind: str, in_by_out: bool) -> None:
    bias = normal(45 if in_by_out else 67)
    layer = RBELinear.compress(weights(67, 45), bias, in_by_out=in_by_out, bits=4.0, **KINDS[kind][0])
    dense = layer.weight_generator.rows(np.arange(67))
    matrix = dense if in_by_out else dense.T
    assert (layer.inputs, layer.outputs) == matrix.shape
    assert (layer.block_layout.rows, layer.block_layout.columns) == (67, 45)
    for shape in ((), (1,), (0,), (2, 3), (9,)):
        x = normal(*shape, layer.inputs, seed=4)
        near(layer(x), (x @ matrix + bias).astype(np.float32))
    with pytest.raises(RBEError, match="inputs was given an array of shape"):
        layer(normal(3, 7))


def test_linear_layers_take_what_is_not_float32_or_contiguous() -> None:
    layer = RBELinear.compress(weights(40, 30), bits=6.0, **KINDS["low rank"][0])
    x = normal(60, 2)
    near(layer(x.T[:, ::2]), layer(np.ascontiguousarray(x.T[:, ::2])))
    near(layer(x[:30, 0].astype(np.float64)), layer(np.ascontiguousarray(x[:30, 0])))


@pytest.mark.parametrize("kind", ["low rank", "dct", "residual"])
def test_embedding(kind: str) -> None:
    embedding = RBEEmbedding.compress(weights(300, 20), bits=4.0, name="wte", **KINDS[kind][0])
    table = embedding.table.take(np.arange(300))
    ids = np.random.default_rng(1).integers(0, 300, (5, 60))
    near(embedding(ids), table[ids])
    assert embedding(ids[:0]).shape == (0, 60, 20)
    with pytest.raises(RBEError, match="wte: has 300 rows, none of number 300"):
        embedding(np.array([300]))


@pytest.mark.parametrize("kind", ["low rank", "dct", "residual"])
@pytest.mark.parametrize("fused", [True, False])
def test_attention(kind: str, fused: bool) -> None:
    hidden, heads = 24, 3
    matrices = [weights(hidden, 3 * hidden)] if fused else [weights(hidden, hidden, seed) for seed in range(3)]
    attention = RBEAttention.compress(
        matrices, weights(hidden, hidden, 7), heads, in_by_out=fused, bits=8.0, **KINDS[kind][0]
    )
    x = normal(2, 6, hidden)
    dense = [p.weight.take(np.arange(hidden)) for p in (*attention.projections, attention.out)]
    parts = np.split(x @ dense[0], 3, axis=2) if fused else [x @ w.T for w in dense[:3]]
    q, k, v = (part.reshape(2, 6, heads, -1).swapaxes(1, 2).astype(np.float64) for part in parts)
    scores = q @ k.swapaxes(2, 3) / np.sqrt(hidden / heads)
    scores[..., ~np.tri(6, dtype=bool)] = -np.inf
    seen = np.exp(scores - scores.max(-1, keepdims=True))
    seen /= seen.sum(-1, keepdims=True)
    attended = (seen @ v).swapaxes(1, 2).reshape(2, 6, hidden)
    want = (attended @ (dense[-1] if fused else dense[-1].T)).astype(np.float32)
    near(attention(x), want)
    cache = KeyValueCache(2, heads, 6, hidden // heads)
    near(np.concatenate([attention(x[:, i : i + n], cache) for i, n in ((0, 3), (3, 1), (4, 1), (5, 1))], 1), want)
    assert attention(x[:, :0]).shape == (2, 0, hidden)


def test_projections_that_do_not_fit() -> None:
    square, wide = (RBELinear.compress(weights(24, n), bits=8.0) for n in (24, 72))
    with pytest.raises(RBEError, match="attention of 5 heads"):
        RBEAttention([square] * 3, square, 5)
    with pytest.raises(RBEError, match="projections of these shapes"):
        RBEAttention([square, wide], square, 3)
    with pytest.raises(RBEError, match="feed-forward layer"):
        RBEFFN(square, wide)


@pytest.mark.parametrize("kind", ["low rank", "dct", "residual"])
@pytest.mark.parametrize("gated", [True, False])
def test_ffn(kind: str, gated: bool) -> None:
    up, down, gate = weights(56, 14), weights(14, 56, 1), weights(56, 14, 2) if gated else None
    ffn = RBEFFN.compress(up, down, silu if gated else gelu, gate, bits=12.0, **KINDS[kind][0])
    x = normal(2, 3, 14)
    up, down = ffn.up.weight.take(np.arange(56)), ffn.down.weight.take(np.arange(14))
    gate = x @ ffn.gate.weight.take(np.arange(56)).T if ffn.gate is not None else None
    inner = gelu(x @ up.T) if gate is None else silu(gate) * (x @ up.T)
    near(ffn(x), inner @ down.T)
    assert ffn(x[:0]).shape == (0, 3, 14)


def test_silu() -> None:
    x = np.linspace(-20, 20, 101, dtype=np.float32)
    assert abs(silu(x) - x / (1 + np.exp(-x.astype(np.float64)))).max() < 2e-6


@pytest.mark.parametrize(("hidden", "compressed"), [(1023, False), (1024, True), (1500, True)])
def test_layer_norm_is_compressed_from_1024_elements_on(hidden: int, compressed: bool) -> None:
    gamma, beta, x = 1 + normal(hidden) / 10, normal(hidden, seed=1), normal(4, hidden, seed=2)
    norm = RBELayerNorm.compress(gamma, beta, 1e-5)
    plain = RBELayerNorm(gamma, beta, 1e-5)
    assert (norm.nbytes < 0.6 * plain.nbytes) == compressed
    error = np.linalg.norm(norm(x) - plain(x)) / np.linalg.norm(plain(x))
    assert (0 < error < 0.02) if compressed else error == 0
    assert norm(x[:0]).shape == (0, hidden)
    assert RBELayerNorm.compress(np.ones(2000, np.float32), beta, 1e-5).nbytes >= 8000
    with pytest.raises(RBEError, match="layer norm of"):
        plain(x[:, :-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Layers by name, without a coded residual."""
    path = tmp_path_factory.mktemp("layers")
    tensors = {
        "attn.q.weight": weights(48, 48), "attn.k.weight": weights(48, 48, 1), "attn.v.weight": weights(48, 48, 2),
        "attn.o.weight": weights(48, 48, 3), "attn.o.bias": normal(48), "norm.weight": normal(48),
        "norm.bias": normal(48), "mlp.up.weight": weights(96, 48), "mlp.down.weight": weights(48, 96),
        "mlp.gate.weight": weights(96, 48, 5), "table.weight": weights(200, 48),
    }  # fmt: skip
    save_file(tensors, path / "model.safetensors")
    compress_to(path, path / "model.rbe", bits=8.0, structure_only=True, effort=1)
    return Folder.open(path / "model.rbe")


def test_layers_load_by_name(folder: Folder) -> None:
    mapper = WeightMapper(folder)
    dense = {name: folder.tensor(name) for name in folder.names()}
    x = normal(2, 5, 48)
    out = RBELinear.load(mapper, "attn.o")
    near(out(x), x @ dense["attn.o.weight"].T + dense["attn.o.bias"])
    assert RBELinear.load(mapper, "attn.q").bias is None
    attention = RBEAttention.load(mapper, ["attn.q", "attn.k", "attn.v"], "attn.o", 4)
    assert attention(x).shape == x.shape
    assert attention.out.weight is out.weight
    ffn = RBEFFN.load(mapper, "mlp.up", "mlp.down", silu, "mlp.gate")
    inner = silu(x @ dense["mlp.gate.weight"].T) * (x @ dense["mlp.up.weight"].T)
    near(ffn(x), inner @ dense["mlp.down.weight"].T)
    norm = RBELayerNorm.load(mapper, "norm")
    assert (norm.gamma == dense["norm.weight"]).all()
    ids = np.array([3, 199, 3])
    near(RBEEmbedding.load(mapper, "table")(ids), dense["table.weight"][ids])
    near(mapper.decode_row("table.weight", 77), dense["table.weight"][77])
    near(mapper.generator("table.weight").at(ids, ids % 48), dense["table.weight"][ids, ids % 48])
    with pytest.raises(IndexError):
        mapper.decode_row("table.weight", 200)
    with pytest.raises(RBEError, match=r"has no tensor 'attn\.z\.weight'"):
        RBELinear.load(mapper, "attn.z")


def test_positions_outside() -> None:
    generator = WeightGenerator(make("dct", 40, 30)[0])
    for block, row, column in ((0, 16, 0), (0, 0, -1), (5, 8, 0), (6, 0, 0), (-1, 0, 0)):
        with pytest.raises(IndexError):
            generator(block, np.array([row]), np.array([column]))
    assert generator(5, np.array([7]), np.array([13])).shape == (1,)


def test_what_cannot_be_compressed() -> None:
    with pytest.raises(UsageError, match="one number only"):
        RBELinear.compress(np.ones((40, 40), np.float32), bits=4.0)
    with pytest.raises(UsageError, match="cannot be as small"):
        RBELinear.compress(weights(16, 16), bits=0.1)
    with pytest.raises(UsageError, match="so many bits or to a ratio"):
        RBELinear.compress(weights(16, 16))


def test_rank_is_a_bound() -> None:
    matrix = open_matrix(compress_array(weights(90, 80), bits=4.0, structure_only=True, transform="lowrank", rank=3))
    assert isinstance(matrix, LowRankMatrix)
    assert matrix.rank <= 3
    assert matrix.nbytes <= 4 * 16 * 170 + 16 * 4


def test_structure_only_layers_are_small() -> None:
    w = weights(400, 300)
    for kind in ("low rank", "dct"):
        layer = RBELinear.compress(w, ratio=50, **KINDS[kind][0] | {"block": 64})
        assert layer.nbytes < w.nbytes / 3


def test_peak_memory_of_a_forward_pass() -> None:
    """With a coded residual: the compressed size, the cache's budget, and 16 MiB, where the weights are 36."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((3072, 3072), np.float32)
    encoded = compress_array(w, bits=2.0, transform="none", states=4, threads=2)
    size, budget = encoded.nbytes, 4 << 20
    del w
    x = rng.standard_normal((4, 3072), np.float32)
    tracemalloc.start()
    try:
        matrix = open_matrix(encoded, TileCache(budget))
        FusedForwardPass(matrix)(x)
        FusedForwardPass(matrix, in_by_out=True)(x)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 1 << 20 < peak <= size + budget + (16 << 20)
