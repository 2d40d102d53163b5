"""The difference of a tensor to a base, as the codec sees it: read, chosen, coded, forecast."""

from __future__ import annotations

import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rbe_cli import elements
from rbe_cli.codec.choice.wish import Wish, reference_error
from rbe_cli.codec.residual.forecast import multiplier_for_error, multiplier_for_size
from rbe_cli.codec.residual.noise_shaping import PLAIN, Inputs, Shaping
from rbe_cli.codec.source import Difference, Matrix
from rbe_cli.codec.tensor_codec import Choice, estimate, for_size, open_tensor, prepare, start
from rbe_cli.codec.tiles import Tile

STATES = 64
BALANCED = Shaping(8, 8, geometric=True)
SHAPE = (260, 96)


def wish(bits: float, transform: str = "auto", structure_only: bool = False) -> Wish:
    return Wish(transform, 32, 5, reference_error(bits, None), bits, structure_only, 0.01)


def noise(seed: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape) * np.exp(0.4 * rng.standard_normal((shape[0], 1)))


def as_type(values: np.ndarray, dtype: str) -> Matrix:
    raw = np.ascontiguousarray(values.astype(np.float32).astype(elements.FLOATS[dtype]))
    return Matrix(raw.view(np.uint8).ravel(), dtype, *values.shape)


OLD = noise(1)
#: A little everywhere, as training makes of all weights; and a product of two factors, as a merged LoRA is, with what
#: rounding leaves.
TRAINED = OLD + 0.03 * noise(2)
MERGED = OLD + 0.05 * noise(3, (SHAPE[0], 4)) @ noise(4, (4, SHAPE[1])) + 0.001 * noise(5)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
@pytest.mark.parametrize("base", ["F32", "BF16"])
def test_difference_is_read_like_a_matrix(dtype: str, base: str) -> None:
    new, old = as_type(TRAINED, dtype), as_type(OLD, base)
    difference = Difference(new, old)
    wanted = new.whole() - old.whole()
    assert np.array_equal(difference.whole(), wanted)
    assert np.array_equal(np.concatenate([band for _, band in difference.bands()]), wanted)
    assert np.array_equal(difference.piece(Tile(3, 4, 7, 50)), wanted[3:4, 7:50])
    rows = np.array([0, 5, 6, 7, 259])
    assert np.array_equal(difference.some(rows), wanted[rows])
    assert np.array_equal(difference.weights().whole(), new.whole())


@pytest.mark.parametrize("shape", [(1, 3000), (3, 7), (260, 96), (5000, 40), (40, 5000)])
def test_some_rows_tell_how_large_a_difference_is(shape: tuple[int, int]) -> None:
    old = noise(1, shape)
    new = old + 0.03 * noise(2, shape)
    share = Difference(as_type(new, "F32"), as_type(old, "F32")).share()
    assert share == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(new), rel=0.2)


def test_share_of_a_difference_is_between_next_to_nothing_and_one() -> None:
    new, zero = as_type(TRAINED, "F32"), as_type(0 * OLD, "F32")
    assert Difference(new, new).share() == 2**-20
    assert Difference(new, as_type(-OLD, "F32")).share() == 1
    assert Difference(zero, new).share() == Difference(zero, zero).share() == 1
    assert Difference(as_type(TRAINED * np.nan, "F32"), new).share() == 1


def test_difference_reads_rows_of_what_is_in_a_file() -> None:
    class InFile:
        def __init__(self, raw: np.ndarray) -> None:
            self.raw, self.size = raw, raw.size

        def __getitem__(self, part: slice) -> np.ndarray:
            return self.raw[part].copy()

    new, old = (Matrix(InFile(as_type(w, "F32").raw[:]), "F32", *SHAPE) for w in (TRAINED, OLD))
    rows = np.array([1, 2, 100])
    assert np.array_equal(Difference(new, old).some(rows), new.whole()[rows] - old.whole()[rows])


def test_error_of_a_difference_is_that_of_the_rounded_sum() -> None:
    new, old = as_type(TRAINED, "BF16"), as_type(OLD, "F32")
    difference, tile = Difference(new, old), Tile(0, SHAPE[0], 0, SHAPE[1])
    coded = difference.whole() + np.float32(0.01)
    decoded = elements.from_float32(coded + old.whole(), "BF16").astype(np.float64)
    wanted = float(np.square(decoded - new.exact(tile)).sum())
    assert math.isclose(difference.squared_error(coded, tile), wanted, rel_tol=1e-12)


def chosen(matrix: Matrix, base: Matrix | None, bits: float, shaping: Shaping = PLAIN, **how: bool) -> Choice:
    size = bits * matrix.rows * matrix.columns / 8
    choice = for_size(lambda asked: prepare(matrix, shaping, asked, base), wish(bits, **how), size)
    assert choice is not None
    return choice


def encoded(choice: Choice, size: float) -> tuple[list[bytes], float]:
    """Its chunks, of about so many bytes, and their squared error as the encoder tells it."""
    step = multiplier_for_size([choice.analysis], size) * choice.analysis.unit
    with ThreadPoolExecutor(1) as pool:
        result = start(choice, step, STATES, pool).result()
    return result.chunks, result.squared_error


def decoded(choice: Choice, chunks: list[bytes], base: np.ndarray | None) -> np.ndarray:
    decoder = open_tensor(chunks[0], SHAPE, choice.codec)
    out = np.empty(SHAPE, np.float32)
    streams = iter([*chunks[1:], *[b""] * len(decoder.grid)])
    for tile in decoder.grid:
        out[tile.top : tile.bottom, tile.left : tile.right] = decoder.decode(next(streams), tile)
    return out if base is None else out + base.astype(np.float32)


def snr(new: np.ndarray, squared_error: float) -> float:
    return float(10 * np.log10(np.square(new).sum() / squared_error))


@pytest.mark.parametrize("shaping", [PLAIN, BALANCED], ids=["mse", "balanced"])
@pytest.mark.parametrize("bits", [0.3, 1.0, 3.0])
@pytest.mark.parametrize(("new", "least"), [(TRAINED, 27.0), (MERGED, 40.0)], ids=["trained", "merged"])
def test_a_little_change_takes_little(new: np.ndarray, least: float, bits: float, shaping: Shaping) -> None:
    """At any size, much nearer than without the base; and the error told is that of what is decoded."""
    matrix, base, size = as_type(new, "F32"), as_type(OLD, "F32"), bits * new.size / 8
    alone, update = chosen(matrix, None, bits, shaping), chosen(matrix, base, bits, shaping)
    assert update.based
    assert not alone.based
    chunks, error = encoded(update, size)
    assert sum(map(len, chunks)) < 1.1 * size
    assert snr(new, error) > max(least, snr(new, encoded(alone, size)[1]) + 15)
    back = decoded(update, chunks, OLD)
    assert math.isclose(float(np.square(back - new.astype(np.float32)).sum(dtype=np.float64)), error, rel_tol=1e-3)
    assert math.isclose(update.analysis.energy, float(np.square(new).sum()), rel_tol=1e-4)


def test_the_factors_of_a_merged_change_are_found() -> None:
    choice = chosen(as_type(MERGED, "F32"), as_type(OLD, "F32"), 1.0)
    assert choice.name.startswith("lowrank")
    assert choice.name.endswith("on base")


def test_structure_only_of_a_change() -> None:
    matrix, base = as_type(MERGED, "F32"), as_type(OLD, "F32")
    choice = chosen(matrix, base, 0.7, structure_only=True)
    chunks, error = encoded(choice, 0.7 * MERGED.size / 8)
    assert choice.codec == "lowrank"
    assert snr(MERGED, error) > 30
    back = decoded(choice, chunks, OLD)
    assert math.isclose(float(np.square(back - MERGED).sum()), error, rel_tol=1e-3)


def test_a_sparse_change_is_coded_in_blocks() -> None:
    new = OLD.copy()
    new[32:64, 32:64] += np.cos(np.arange(32) / 5)[:, None]
    choice = prepare(as_type(new, "F32"), PLAIN, wish(0.2, "dct", structure_only=True), as_type(OLD, "F32"))
    assert choice is not None
    assert (choice.codec, choice.based) == ("sparse", True)
    chunks, error = encoded(choice, 0.2 * new.size / 8)
    assert snr(new, error) > 25
    assert math.isclose(float(np.square(decoded(choice, chunks, OLD) - new).sum()), error, rel_tol=1e-3)


def test_errors_are_fed_back_against_a_base() -> None:
    matrix, base = as_type(TRAINED, "F32"), as_type(OLD, "F32")
    seen = noise(9, (400, SHAPE[1]))
    second = seen.T @ seen / len(seen)
    shaping = Shaping(0, 0, True, Inputs(1, np.diag(second), lambda: second, 0.01, where="test"))
    choice = chosen(matrix, base, 2.0, shaping)
    assert choice.based
    chunks, error = encoded(choice, 2.0 * TRAINED.size / 8)
    assert snr(TRAINED, error) > 35
    assert math.isclose(float(np.square(decoded(choice, chunks, OLD) - TRAINED).sum()), error, rel_tol=1e-3)


@pytest.mark.parametrize("base", [noise(7), 40 * noise(8), np.zeros(SHAPE)], ids=["other", "large", "zeros"])
def test_a_base_that_saves_nothing_is_not_used(base: np.ndarray) -> None:
    matrix = as_type(OLD, "F32")
    alone, choice = chosen(matrix, None, 3.0), chosen(matrix, as_type(base, "F32"), 3.0)
    assert not choice.based
    assert choice.name == alone.name
    assert encoded(choice, 3.0 * OLD.size / 8) == encoded(alone, 3.0 * OLD.size / 8)


@pytest.mark.parametrize("bits", [0.3, 4.0])
@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_what_has_not_changed_takes_next_to_nothing(dtype: str, bits: float) -> None:
    matrix = as_type(OLD, dtype)
    choice, expected = chosen(matrix, matrix, bits), estimate(matrix, PLAIN, wish(bits), STATES, matrix)
    assert expected is not None
    assert (choice.name, choice.codec, choice.based) == (expected.name, expected.codec, expected.based)
    chunks, error = encoded(choice, bits * OLD.size / 8)
    assert error == 0
    assert sum(map(len, chunks)) < 60
    assert math.isfinite(choice.gain_db)
    assert np.array_equal(decoded(choice, chunks, matrix.whole()), matrix.whole())


@pytest.mark.parametrize("wild", [math.nan, math.inf])
def test_numbers_that_are_none(wild: float) -> None:
    """In the base: it is not used. In the tensor: that is kept exactly."""
    odd = OLD.copy()
    odd[5, 5] = wild
    good, bad = as_type(OLD, "F32"), as_type(odd, "F32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choice = prepare(good, PLAIN, wish(3.0), bad)
        assert choice is not None
        assert not choice.based
        assert prepare(bad, PLAIN, wish(3.0), good) is None
        assert prepare(bad, PLAIN, wish(3.0), bad) is None


@pytest.mark.parametrize("bits", [0.6, 2.0, 4.0])
@pytest.mark.parametrize("new", [TRAINED, MERGED], ids=["trained", "merged"])
def test_a_forecast_is_that_of_the_choice(new: np.ndarray, bits: float) -> None:
    matrix, base, size = as_type(new, "F32"), as_type(OLD, "F32"), bits * new.size / 8
    update = chosen(matrix, base, bits)
    expected = for_size(lambda asked: estimate(matrix, PLAIN, asked, STATES, base), wish(bits), size)
    assert expected is not None
    assert expected.based
    step = multiplier_for_size([update.analysis], size) * update.analysis.unit
    assert math.isclose(expected.analysis.unit, update.analysis.unit, rel_tol=0.02)
    if expected.sample and expected.sample.wants(step):
        coded = expected.sample.coded(step)
        assert math.isclose(coded.energy, update.analysis.energy, rel_tol=1e-3)
    told = expected.analysis.expected_error(step), update.analysis.expected_error(step)
    assert abs(10 * math.log10(told[0] / told[1])) < 0.4
    assert math.isclose(expected.analysis.expected_bytes(step), update.analysis.expected_bytes(step), rel_tol=0.06)


def test_a_tensor_that_is_looked_at_again_keeps_its_error(tmp_path: Path) -> None:
    """What is set aside between passes is the difference's, and comes back."""
    matrix, base = as_type(MERGED, "F32"), as_type(OLD, "F32")
    choice = chosen(matrix, base, 2.0)
    first = encoded(choice, 2.0 * MERGED.size / 8)
    choice.analysis.set_aside()
    assert encoded(choice, 2.0 * MERGED.size / 8) == first


@pytest.mark.parametrize("nrmse", [0.001, 0.003])
def test_rounding_to_half_precision_is_forecast(nrmse: float) -> None:
    """The error of the sum of base and difference is what is left after rounding to the tensor's type."""
    matrix, base = as_type(TRAINED, "BF16"), as_type(OLD, "BF16")
    choice = prepare(matrix, PLAIN, replace(wish(8.0), nrmse=nrmse), base)
    assert choice is not None
    step = multiplier_for_error(choice.analysis, nrmse) * choice.analysis.unit
    with ThreadPoolExecutor(1) as pool:
        error = start(choice, step, STATES, pool).result().squared_error
    assert math.isclose(math.sqrt(error / choice.analysis.energy), nrmse, rel_tol=0.03)
