"""Multiplying with a matrix that is decoded tile by tile, and the cache of its tiles."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from rbe_cli.codec.tiles import Grid
from rbe_cli.container.folder import Folder
from rbe_cli.errors import CorruptFile, RBEError
from rbe_cli.layers.linear import RBELinear
from rbe_cli.layers.tile_cache import TileCache
from rbe_cli.layers.tiled_matrix import TiledMatrix
from rbe_cli.layers.weight_mapper import WeightMapper
from rbe_cli.layers.weights import DenseMatrix
from tests.attacks.cases import first_chunk, flat_axis, forged, zeros
from tests.synthetic import compress_to, scaled_normal

SHAPES = {"one": (1, 2000), "tall": (2500, 77), "wide": (3, 1001), "square": (190, 701), "long": (2, 300_000)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Matrices of one and several tiles, odd shapes, one whose rows are cut, and one tied to another."""
    path = tmp_path_factory.mktemp("matrices")
    tensors = {f"{name}.weight": scaled_normal(shape, i) for i, (name, shape) in enumerate(SHAPES.items())}
    tensors["tied.weight"] = tensors["tall.weight"].copy()
    tensors["cube.weight"] = scaled_normal((8, 16, 16), 9)
    save_file(tensors, path / "model.safetensors")
    compress_to(path, path / "model.rbe", bits=3.0)
    return Folder.open(path / "model.rbe")


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("cache_bytes", [0, 300_000, 1 << 26])
@pytest.mark.parametrize("threads", [1, 2])
def test_products_equal_those_of_the_decoded_matrix(folder: Folder, name: str, cache_bytes: int, threads: int) -> None:
    weights = WeightMapper(folder, cache_bytes, threads)
    matrix = weights.matrix(f"{name}.weight")
    dense = folder.tensor(f"{name}.weight")
    assert isinstance(matrix, TiledMatrix)
    assert matrix.shape == dense.shape
    rng = np.random.default_rng(1)
    for count in (0, 1, 5):
        x, z = (rng.standard_normal((count, size)).astype(np.float32) for size in dense.shape)
        for got, want in ((matrix.times(x), x @ dense), (matrix.times_transposed(z), z @ dense.T)):
            assert got.shape == want.shape
            assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want)
        ids = rng.integers(0, dense.shape[0], count)
        assert (matrix.take(ids) == dense[ids]).all()
    assert weights.cache.held <= cache_bytes


def test_results_do_not_depend_on_threads_or_cache(folder: Folder) -> None:
    x = np.random.default_rng(2).standard_normal((3, 2500)).astype(np.float32)
    products = [WeightMapper(folder, c, t).matrix("tall.weight").times(x) for c in (0, 1 << 24) for t in (1, 2)]
    assert all((product == products[0]).all() for product in products)


def test_tied_matrices_are_one(folder: Folder) -> None:
    weights = WeightMapper(folder)
    assert weights.matrix("tied.weight") is weights.matrix("tall.weight")


def test_what_is_held_is_the_compressed_size(folder: Folder) -> None:
    matrix = WeightMapper(folder).matrix("square.weight")
    entry = next(tensor for tensor in folder.manifest.tensors if tensor.name == "square.weight")
    axes = 2 * (190 + 701) * 4
    assert entry.bytes - 400 <= matrix.nbytes <= entry.bytes + axes


def test_a_linear_layer_in_both_orders(folder: Folder) -> None:
    dense = folder.tensor("square.weight")
    x = np.random.default_rng(4).standard_normal((2, 3, 190)).astype(np.float32)
    bias = np.arange(701, dtype=np.float32)
    layer = RBELinear(WeightMapper(folder).matrix("square.weight"), bias, in_by_out=True)
    assert np.allclose(layer(x), x @ dense + bias, rtol=1e-4, atol=1e-4)
    turned = RBELinear(DenseMatrix(np.ascontiguousarray(dense.T)), bias, in_by_out=False)
    assert np.allclose(turned(x), layer(x), rtol=1e-4, atol=1e-4)
    assert layer(x[:0]).shape == (0, 3, 701)


def test_no_matrix(folder: Folder) -> None:
    with pytest.raises(RBEError, match="3 dimensions where a matrix is needed"):
        WeightMapper(folder).matrix("cube.weight")
    with pytest.raises(RBEError, match="has no tensor 'none'"):
        WeightMapper(folder).matrix("none")


def test_a_damaged_tile_names_its_tensor(tmp_path: Path) -> None:
    from tests.forge import edit_chunk

    save_file({"a.weight": scaled_normal((64, 64), 1)}, tmp_path / "model.safetensors")
    compress_to(tmp_path / "model.safetensors", tmp_path / "out", bits=3.0)

    def ruin(chunk: bytearray) -> bytes:
        return bytes(chunk[:40])

    edit_chunk(tmp_path / "out", "a.rbe", 1, ruin)
    matrix = WeightMapper(Folder.open(tmp_path / "out")).matrix("a.weight")
    with pytest.raises(CorruptFile, match=r"a\.rbe: tensor 'a\.weight': tile is"):
        matrix.times(np.ones((1, 64), np.float32))


def tile(value: float, elements: int = 4) -> np.ndarray:
    return np.full(elements, value, np.float32)


def test_the_cache_keeps_what_is_used_most() -> None:
    cache = TileCache(budget=32)
    for _ in range(3):
        for key in "ab":
            if cache.get(key) is None:
                cache.offer(key, tile(ord(key)))
    assert (cache.hits, cache.misses, cache.held) == (4, 2, 32)
    # A newcomer does not push out what is used more, however recent it is ...
    assert cache.get("c") is None
    cache.offer("c", tile(3))
    assert "c" not in cache
    # ... until it is used more itself.
    cache.get("b")
    for _ in range(3):
        cache.get("c")
    cache.offer("c", tile(3))
    assert "c" in cache
    assert "a" not in cache
    assert "b" in cache
    assert cache.held == 32


def test_a_walk_through_more_than_fits_hits_on_the_part_that_fits() -> None:
    cache = TileCache(budget=3 * 16)
    for _ in range(50):
        for key in range(10):
            if cache.get(key) is None:
                cache.offer(key, tile(key))
    assert cache.hits == 49 * 3
    assert cache.misses == 500 - cache.hits


def test_a_large_tile_pushes_out_several_or_none() -> None:
    cache = TileCache(budget=64)
    for key in "abcd":
        cache.get(key)
        cache.offer(key, tile(1))
    for _ in range(2):
        cache.get("big")
    cache.get("d")
    cache.get("d")
    cache.offer("big", tile(2, 12))
    assert "big" in cache
    assert "d" in cache
    assert len(cache) == 2
    cache.offer("huge", tile(2, 17))
    assert cache.held == 64


def test_old_fame_fades() -> None:
    cache = TileCache(budget=16)
    for _ in range(200):
        cache.get("old")
    cache.offer("old", tile(1))
    for _ in range(700):
        cache.get("new")
        cache.offer("new", tile(2))
    assert "new" in cache


def test_no_budget_keeps_nothing() -> None:
    cache = TileCache(0)
    cache.get("a")
    cache.offer("a", tile(1))
    assert (len(cache), cache.held, cache.misses) == (0, 0, 1)


def test_a_kept_tile_is_a_copy_nobody_can_write() -> None:
    cache, original = TileCache(64), tile(1)
    cache.offer("a", original)
    original[:] = 5
    kept = cache.get("a")
    assert kept is not None
    assert (kept == 1).all()
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 2


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6)), max_size=300), st.integers(0, 80))
def test_the_budget_holds_whatever_happens(requests: list[tuple[int, int]], budget: int) -> None:
    cache = TileCache(budget)
    for key, _ in requests:
        if cache.get(key) is None:
            cache.offer(key, tile(key, 1 + key % 5))
        assert cache.held <= budget
    assert cache.hits + cache.misses == len(requests)
    held = [cache.get(key) for key in range(13)]
    assert sum(kept.nbytes for kept in held if kept is not None) == cache.held


def test_many_threads_share_a_cache() -> None:
    cache = TileCache(20 * 16)

    def work(seed: int) -> None:
        for key in np.random.default_rng(seed).integers(0, 60, 500):
            held = cache.get(int(key))
            if held is None:
                cache.offer(int(key), tile(float(key)))
            else:
                assert held[0] == key

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert cache.hits + cache.misses == 2000
    assert cache.held <= 20 * 16


def test_matrix_that_is_coded_as_one_of_another_shape(tmp_path: Path) -> None:
    """Its elements decode all the same; the layers would multiply with the other one."""
    (tmp_path / "m").mkdir()
    chunks = [first_chunk(Grid(32, 2, 32, 2), flat_axis(32), flat_axis(2, dead=True)), zeros(64)]
    forged(tmp_path / "m", "F32", (8, 8), "trellis", chunks)
    folder = Folder.open(tmp_path / "m")
    assert folder.tensor("x.w").shape == (8, 8)
    with pytest.raises(CorruptFile, match="another shape"):
        WeightMapper(folder).matrix("x.w")
