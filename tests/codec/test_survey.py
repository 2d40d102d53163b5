"""Looking at a sample of the rows against looking at all of them: the choice, and the forecast made of it."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rbe_cli.codec.choice import survey
from rbe_cli.codec.choice.promising import guessed_gain, mean_scale
from rbe_cli.codec.choice.survey import SampleSurvey, WholeSurvey, _most_klt_bits
from rbe_cli.codec.choice.wish import Wish, reference_error
from rbe_cli.codec.residual.analysis import Analysis, analyse, extent_of
from rbe_cli.codec.residual.forecast import multiplier_for_error
from rbe_cli.codec.residual.geometry import shaped
from rbe_cli.codec.residual.noise_shaping import PLAIN, Inputs, Shaping
from rbe_cli.codec.source import Description, Matrix
from rbe_cli.codec.structure.components import _of_more_rows, sketch_components
from rbe_cli.codec.structure.pipeline import Pipeline, may_have_basis
from rbe_cli.codec.structure.transform import Blockwise
from rbe_cli.codec.tensor_codec import estimate, prepare, start

STATES = 128
BALANCED = Shaping(8, 8, geometric=True)


def wish(bits: float, transform: str = "auto") -> Wish:
    return Wish(transform, 64, 5, reference_error(bits, None), bits)


def matrix_of(w: np.ndarray) -> Matrix:
    return Matrix.of(w.astype(np.float32))


def white(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(rows + columns).standard_normal((rows, columns))


def scaled(rows: int, columns: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    return white(rows, columns) * np.exp(0.4 * rng.standard_normal((rows, 1)) + 0.4 * rng.standard_normal(columns))


def low(rows: int, columns: int) -> np.ndarray:
    rng = np.random.default_rng(2)
    factors = rng.standard_normal((rows, 12)), rng.standard_normal((12, columns))
    return scaled(rows, columns) + 0.7 * factors[0] @ factors[1]


def smooth(rows: int, columns: int) -> np.ndarray:
    y, x = np.mgrid[:rows, :columns]
    return 0.05 * white(rows, columns) + np.cos(x / 9) * np.sin(y / 7) + np.cos(x * y / 900)


def coloured(rows: int, columns: int) -> np.ndarray:
    """Rows with variances from 1 to 1 / 1000 along axes of their own: what `klt` is for."""
    basis = np.linalg.qr(np.random.default_rng(3).standard_normal((columns, columns)))[0]
    return white(rows, columns) * np.geomspace(1, 0.03, columns) @ basis


@pytest.mark.parametrize("bits", [1.0, 2.5, 5.0])
@pytest.mark.parametrize("shaping", [PLAIN, BALANCED], ids=["mse", "balanced"])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (white, (2000, 96)),
        (scaled, (1200, 96)),
        (scaled, (96, 1200)),
        (low, (1500, 128)),
        (low, (200, 128)),
        (smooth, (1024, 128)),
        (coloured, (4000, 32)),
    ],
)
def test_a_sample_tells_what_the_encoder_does(
    make: object, shape: tuple[int, int], shaping: Shaping, bits: float
) -> None:
    """The same choice, and at one multiplier the size and the error within 6 % and 0.4 dB."""
    matrix, asked = matrix_of(make(*shape)), wish(bits)
    chosen, expected = prepare(matrix, shaping, asked), estimate(matrix, shaping, asked, STATES)
    assert chosen is not None
    assert expected is not None
    assert expected.name == chosen.name
    multiplier = multiplier_for_error(chosen.analysis, asked.nrmse)
    with ThreadPoolExecutor(1) as pool:
        measured = start(chosen, multiplier * chosen.analysis.unit, STATES, pool).result()
    forecast, step = expected.analysis, multiplier * expected.analysis.unit
    if expected.sample is not None and expected.sample.wants(step):
        forecast = expected.sample.coded(step)
    assert forecast.expected_bytes(step) == pytest.approx(measured.size, rel=0.06, abs=150)
    decibels = 10 * math.log10(forecast.expected_error(step) / measured.squared_error)
    assert abs(decibels) < 0.4


@pytest.mark.parametrize("transform", ["none", "dct", "dwt", "klt", "lowrank"])
def test_a_named_transform_is_obeyed(transform: str) -> None:
    matrix = matrix_of(low(1500, 48))
    chosen, expected = prepare(matrix, PLAIN, wish(3, transform)), estimate(matrix, PLAIN, wish(3, transform), STATES)
    assert chosen is not None
    assert expected is not None
    assert (expected.name, expected.runner_up) == (chosen.name, chosen.runner_up)
    assert expected.gain_db == pytest.approx(chosen.gain_db, abs=0.4)


def test_a_named_klt_of_few_rows_is_no_other_transform() -> None:
    """Its basis is a good part of what it takes; the forecast has to say so."""
    matrix, asked = matrix_of(low(80, 64)), wish(12, "klt")
    chosen, expected = prepare(matrix, PLAIN, asked), estimate(matrix, PLAIN, asked, STATES)
    assert chosen is not None
    assert expected is not None
    assert expected.name == chosen.name == "klt"
    step = 0.1 * chosen.analysis.unit
    assert expected.analysis.expected_bytes(step) == pytest.approx(chosen.analysis.expected_bytes(step), rel=0.02)


def test_what_must_be_exact_is_found_in_all_rows() -> None:
    w = white(4000, 64)
    w[2222, 5] = np.nan
    assert estimate(matrix_of(w), PLAIN, wish(4), STATES) is None
    assert estimate(matrix_of(np.zeros((4000, 64))), PLAIN, wish(4), STATES) is None
    w[2222, 5] = 1e4
    found = estimate(matrix_of(w), PLAIN, wish(4), STATES)
    assert found is not None
    assert found.analysis.largest == pytest.approx(1e4)
    assert found.analysis.energy == pytest.approx(float((w.astype(np.float32).astype(np.float64) ** 2).sum()))


def test_few_rows_that_are_not_zero() -> None:
    """A sample of zeros alone says nothing: all rows are looked at."""
    w = np.zeros((4000, 64))
    w[777] = white(1, 64)
    found = estimate(matrix_of(w), PLAIN, wish(4), STATES)
    assert found is not None
    assert found.analysis.expected_bytes(0.1) < 4000


def test_few_rows_that_are_too_long_to_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read piece by piece, with the same result."""
    matrix = matrix_of(scaled(10, 4096))
    held = SampleSurvey(matrix, wish(4)).plain(BALANCED)
    monkeypatch.setattr(survey, "_MOST", 1024)
    read = SampleSurvey(matrix, wish(4)).plain(BALANCED)
    assert held is not None
    assert read is not None
    assert read.matrix is matrix
    assert held.matrix is not matrix
    assert read.expected_bytes(0.1) == held.expected_bytes(0.1)
    assert read.expected_error(0.1) == held.expected_error(0.1)


def test_importance_of_the_rows_that_are_looked_at() -> None:
    matrix = matrix_of(scaled(3000, 64))
    mean_square = np.exp(np.linspace(-3, 3, 3000))
    shaping = Shaping(0, 8, True, Inputs(0, mean_square))
    whole, sample = WholeSurvey(matrix, wish(4)).plain(shaping), SampleSurvey(matrix, wish(4)).plain(shaping)
    assert whole is not None
    assert sample is not None
    assert sample.share < 0.5
    assert sample.unit == pytest.approx(whole.unit, rel=0.02)
    assert sample.expected_bytes(0.1) == pytest.approx(whole.expected_bytes(0.1), rel=0.02)


def test_steps_of_one_multiplier_have_one_geometric_mean() -> None:
    """Whatever a structure leaves over, and where its scales have their zero."""
    matrix = matrix_of(low(256, 128))
    whole = WholeSurvey(matrix, wish(4))
    plain, look = whole.plain(BALANCED), whole.through("lowrank", BALANCED)
    assert plain is not None
    assert look is not None

    def mean_log_step(analysis: Analysis) -> float:
        field = analysis.field
        steps = [shaped(axis, 8)[0].mean() / 8 for axis in (field.rows, field.columns)]
        return math.log2(analysis.unit) + sum(steps)

    assert mean_log_step(look.analysis.of_tensor(plain)) == pytest.approx(mean_log_step(plain))


def test_a_sketch_tells_low_rank_from_noise() -> None:
    assert sketch_components(matrix_of(white(300, 200)), 0.05, 300) is None
    assert sketch_components(matrix_of(scaled(300, 200)), 0.05, 300) is None
    found = sketch_components(matrix_of(low(300, 200)), 0.05, 300)
    assert found is not None
    assert found.rank == 12
    assert sketch_components(matrix_of(white(3, 3)), 0.05, 3) is None
    assert sketch_components(matrix_of(np.zeros((64, 64))), 0.05, 64) is None
    for scale in (1e-17, 9e17):
        assert sketch_components(matrix_of(scale * white(300, 200) / 5), 0.05, 300) is None
        assert sketch_components(matrix_of(scale * low(300, 200) / 50), 0.05, 300) is None


def test_a_sketch_of_rows_and_columns_that_are_zero() -> None:
    w = low(300, 200)
    w[::3], w[:, ::4] = 0, 0
    found = sketch_components(matrix_of(w), 0.05, 300)
    assert found is not None
    assert math.isfinite(found.octaves)
    assert found.octaves < 0


@pytest.mark.parametrize("shape", [(600, 400), (400, 600), (1500, 300)])
@pytest.mark.parametrize("part", [1, 2])
def test_a_sketch_says_what_low_rank_saves(shape: tuple[int, int], part: int) -> None:
    """Of all rows, or of every second one of them: little, by few components, as the encoder then finds it."""
    rng = np.random.default_rng(5)
    strength = np.geomspace(0.3, 0.1, 6)
    w = white(*shape) + rng.standard_normal((shape[0], 6)) * strength @ rng.standard_normal((6, shape[1]))
    w *= np.exp2(rng.standard_normal((shape[0], 1))) * np.exp2(rng.standard_normal(shape[1]))
    chosen = prepare(matrix_of(w), BALANCED, wish(4))
    assert chosen is not None
    assert chosen.name == "lowrank"
    assert 0.2 < chosen.gain_db < 1.0
    found = sketch_components(matrix_of(w[::part]), reference_error(4, None), shape[0])
    assert found is not None
    assert found.gain(w.size) == pytest.approx(chosen.gain_db, abs=0.1)


@pytest.mark.parametrize("rows", [200, 1000])
def test_singular_values_of_more_rows(rows: int) -> None:
    """Components far above noise, some of them hidden in that of few rows."""
    n, of_rows = 300, 2000
    rng = np.random.default_rng(9)
    basis = np.linalg.qr(rng.standard_normal((n, 4)))[0]
    w = rng.standard_normal((of_rows, n)) + rng.standard_normal((of_rows, 4)) * [8, 4, 3, 0.1] @ basis.T
    exact = np.linalg.svd(w, compute_uv=False)[:4] ** 2
    some = np.linalg.svd(w[:rows], compute_uv=False)[:8] ** 2
    found = _of_more_rows(some, float((w[:rows] ** 2).sum()), (rows, n), of_rows)
    assert found.size == 3
    assert found == pytest.approx(exact[:3], rel=0.25)
    assert _of_more_rows(some, float((w[:rows] ** 2).sum()), (rows, n), rows) == pytest.approx(some[:3])


def test_slight_low_rank_is_forecast_by_a_sketch(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not looked for."""
    rng = np.random.default_rng(5)
    w = white(900, 300) + rng.standard_normal((900, 3)) * 0.25 @ rng.standard_normal((3, 300))
    w *= np.exp2(rng.standard_normal((900, 1)))
    matrix = matrix_of(w)
    chosen = prepare(matrix, BALANCED, wish(4))
    assert chosen is not None
    assert 0 < chosen.gain_db < survey._SLIGHT
    monkeypatch.setattr(survey, "find_components", None)
    found = estimate(matrix, BALANCED, wish(4), STATES)
    assert found is not None
    assert found.name == chosen.name == "lowrank"
    for multiplier in (0.5, 0.06):
        with ThreadPoolExecutor(1) as pool:
            measured = start(chosen, multiplier * chosen.analysis.unit, STATES, pool).result()
        forecast, step = found.analysis, multiplier * found.analysis.unit
        assert forecast.expected_bytes(step) == pytest.approx(measured.size, rel=0.02)
        assert forecast.expected_error(step) == pytest.approx(measured.squared_error, rel=0.06)


def test_scales_that_few_rows_tell_flatter_them() -> None:
    """Raised by what is known of the logarithm of a mean square, the forecast of all rows is not too small."""
    excess = []
    for seed in range(24):
        w = np.random.default_rng(seed).standard_normal((1024, 512)) * np.exp2(np.linspace(-2, 2, 512))
        whole, sample = analyse(matrix_of(w), BALANCED), SampleSurvey(matrix_of(w), wish(4))
        plain = sample.plain(BALANCED)
        assert whole is not None
        assert plain is not None
        raised = sample.levelled(plain, "none")
        excess.append(math.log2(raised.scale / whole.scale))
    assert abs(float(np.mean(excess))) < 0.003


def test_guess_at_a_blockwise_gain() -> None:
    transform = Blockwise("dct", 64, 0, 128)

    def gain(w: np.ndarray) -> float:
        part = w.astype(np.float32)
        return guessed_gain(part, mean_scale(part), Pipeline(None, transform, Description()))

    assert gain(smooth(64, 128)) > 5
    assert abs(gain(white(64, 128))) < 0.2
    assert gain(np.zeros((64, 128))) == math.inf


@pytest.mark.parametrize("kind", ["dct", "dwt"])
def test_a_rough_transform_is_the_same_but_for_rounding(kind: str) -> None:
    part = white(100, 150).astype(np.float32)
    transform = Blockwise(kind, 64, 3, 150)
    assert transform.roughly(part) == pytest.approx(transform.forward(part), rel=1e-4, abs=1e-4)


def test_extent() -> None:
    w = white(50, 7).astype(np.float32)
    extent = extent_of(matrix_of(w))
    assert extent is not None
    assert extent.energy == pytest.approx(float((w.astype(np.float64) ** 2).sum()))
    assert extent.largest == float(np.abs(w).max())
    for odd in (np.nan, np.inf, -np.inf):
        w[3, 3] = odd
        assert extent_of(matrix_of(w)) is None
        assert analyse(matrix_of(w)) is None


def test_no_basis_where_it_would_take_much_of_the_bits() -> None:
    assert may_have_basis(512, 512, 12)
    assert not may_have_basis(512, 512, 4)
    assert may_have_basis(4096, 512, 0.1), "a basis costs little there"
    matrix = matrix_of(low(128, 120))
    chosen, otherwise = (prepare(matrix, PLAIN, wish(bits, "klt")) for bits in (3, 14))
    assert chosen is not None
    assert otherwise is not None
    assert (chosen.name, otherwise.name) == ("none", "klt")


def test_no_basis_where_it_would_take_more_than_the_matrix_is_allowed() -> None:
    assert may_have_basis(1536, 512, 4)
    assert may_have_basis(32768, 4096, 4)
    assert not may_have_basis(4096, 4096, 16)
    assert not may_have_basis(1 << 20, 4097, 16)
    matrix = matrix_of(low(600, 576))
    chosen = prepare(matrix, PLAIN, wish(3, "klt"))
    assert chosen is not None
    assert chosen.name == "none"


@pytest.mark.parametrize("shaping", [PLAIN, BALANCED, Shaping(0, 8, geometric=True)])
def test_a_sample_is_raised_to_the_level_of_all_rows(shaping: Shaping) -> None:
    """Rows whose scales grow, of which the sample, by the luck of the draw, has the smaller ones."""
    w = white(2000, 512) * np.exp2(np.linspace(0, 3, 2000))[:, None]
    sample, whole = SampleSurvey(matrix_of(w), wish(4)), analyse(matrix_of(w), shaping)
    assert whole is not None
    few = sample._few.rows // 2 * 2 % 1000
    sample._few = sample._few._replace(matrix=matrix_of(w[few]), rows=few)
    analysis = sample.plain(shaping)
    assert analysis is not None
    raised = sample.levelled(analysis, "none")
    for multiplier in (0.05, 0.2):
        size, error = whole.expected_bytes(multiplier * whole.unit), whole.expected_error(multiplier * whole.unit)
        assert raised.expected_bytes(multiplier * raised.unit) == pytest.approx(size, rel=0.02)
        assert raised.expected_error(multiplier * raised.unit) == pytest.approx(error, rel=0.2)
    if not shaping.geometric:
        unit = analysis.unit
        assert analysis.expected_bytes(0.2 * unit) < 0.9 * whole.expected_bytes(0.2 * whole.unit)


def test_rows_of_one_scale_are_raised_by_their_energy() -> None:
    w = white(4000, 64)
    sample = SampleSurvey(matrix_of(w), wish(4))
    some = sample._few.rows
    sample._few = sample._few._replace(matrix=matrix_of(w[some] / 2), rows=some)
    sample._row_power[some] /= 4
    analysis = sample.plain(PLAIN)
    assert analysis is not None
    raised = sample.levelled(analysis, "none")
    step = 0.1
    more = 8 * (raised.expected_bytes(step) - analysis.expected_bytes(step)) / w.size
    assert more == pytest.approx(math.log2(sample._row_power.mean() / sample._row_power[some].mean()) / 2, rel=0.02)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_what_a_klt_saves_is_told_by_a_determinant(correlation: float) -> None:
    """Half the mean logarithm of the variances over the eigenvalues, of columns that are alike next to each other."""
    n = 256
    covariance = correlation ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    w = white(8 * n, n) @ np.linalg.cholesky(covariance).T
    saved = -np.linalg.slogdet(covariance)[1] / n / (2 * math.log(2))
    assert _most_klt_bits(matrix_of(w)) == pytest.approx(saved, rel=0.05, abs=0.01)
    w[:, 7] = w[:, 8]
    assert _most_klt_bits(matrix_of(w)) > saved + 0.02


def test_a_sample_is_coded_where_that_tells_more() -> None:
    """At few bits; and again at another step only."""
    matrix, asked = matrix_of(white(1000, 256) ** 3), wish(1.0)
    found = estimate(matrix, PLAIN, asked, STATES)
    assert found is not None
    assert found.sample is not None
    step = found.analysis.unit
    assert not found.sample.wants(step / 16)
    found.sample.set_aside()
    assert found.sample.wants(step)
    coded = found.sample.coded(step)
    assert not found.sample.wants(step * 1.01)
    assert found.sample.wants(step * 1.2)
    chosen = prepare(matrix, PLAIN, asked)
    assert chosen is not None
    with ThreadPoolExecutor(1) as pool:
        measured = start(chosen, step, STATES, pool).result()
    assert coded.expected_bytes(step) == pytest.approx(measured.size, rel=0.02)
    assert coded.expected_error(step) == pytest.approx(measured.squared_error, rel=0.1)
    assert found.analysis.expected_bytes(step) != pytest.approx(measured.size, rel=0.02)


@pytest.mark.parametrize("bits", [0.3, 1.6, 3.0])
@pytest.mark.parametrize("power", [1, 3])
def test_the_tables_are_believed_of_weights_they_know(power: int, bits: float) -> None:
    """Of normal ones until next to nothing is sent; of their cubes not even at a bit more."""
    matrix = matrix_of(white(1000, 256) ** power)
    found = estimate(matrix, BALANCED, wish(bits), STATES)
    assert found is not None
    assert (found.sample is not None) == (bits < (2.0 if power == 3 else 0.5))


def test_no_sample_is_kept_at_many_bits() -> None:
    found = estimate(matrix_of(white(1000, 256)), PLAIN, wish(4.0), STATES)
    assert found is not None
    assert found.sample is None


@pytest.mark.parametrize(("name", "near"), [("lowrank", 0.02), ("dct", 0.05)])
def test_what_a_pipeline_leaves_is_levelled_by_its_own_rows(name: str, near: float) -> None:
    """Rows whose scales grow under a structure whose scales shrink; of a dct some blocks are looked at."""
    rows = np.exp2(np.linspace(-2, 2, 1024))[:, None]
    structure = low(1024, 128) if name == "lowrank" else 4 * smooth(1024, 128)
    matrix, asked = matrix_of(20 * structure / rows + white(1024, 128) * rows), wish(4, name)
    chosen, expected = prepare(matrix, PLAIN, asked), estimate(matrix, PLAIN, asked, STATES)
    assert chosen is not None
    assert expected is not None
    for multiplier in (0.002, 0.01):
        size = chosen.analysis.expected_bytes(multiplier * chosen.analysis.unit)
        assert expected.analysis.expected_bytes(multiplier * expected.analysis.unit) == pytest.approx(size, rel=near)
