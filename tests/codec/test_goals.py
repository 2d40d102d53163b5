"""Goals of single tensors: how a search for a multiplier ends, and that size and error are smooth functions of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pytest

from rbe_cli.codec.residual import forecast, tables
from rbe_cli.codec.residual.analysis import Analysis, Corrections, analyse
from rbe_cli.codec.residual.forecast import multiplier_for_error
from rbe_cli.codec.residual.geometry import shaped
from rbe_cli.codec.residual.noise_shaping import PLAIN, Shaping
from rbe_cli.codec.residual.rate_control import MAX_PASSES, TOLERANCE, OwnGoal
from rbe_cli.codec.residual.scale_field import ZERO
from rbe_cli.codec.residual.trellis_codec import Encoding
from rbe_cli.codec.source import Matrix
from rbe_cli.codec.tensor_codec import Choice, coded_with

ELEMENTS = 1000


@dataclass(frozen=True)
class Result:
    """What an encoding of ELEMENTS weights with a sum of squares of 1 might say of itself."""

    squared_error: float
    size: int


@pytest.fixture(scope="module")
def unit() -> Analysis:
    """Of weights with a sum of squares of 1."""
    w = np.random.default_rng(0).standard_normal((20, ELEMENTS // 20)).astype(np.float32)
    found = analyse(Matrix.of(w / np.linalg.norm(w)))
    assert found is not None
    return found


def meet(
    analysis: Analysis, kind: str, value: float, start: float, figure: Callable[[float], float]
) -> tuple[float | None, int]:
    """The figure a search ends with, if any, and the passes it took; `figure` is what a multiplier gives."""
    passes = 0

    def encode(multiplier: float) -> Result:
        nonlocal passes
        passes += 1
        found = figure(multiplier)
        return Result(found**2, 0) if kind == "nrmse" else Result(1 / multiplier, round(found * ELEMENTS / 8))

    goal = OwnGoal(analysis, ELEMENTS, kind, value)
    best = goal.meet(start, encode(start), encode)
    if best is None:
        return None, passes
    return math.sqrt(best.squared_error) if kind == "nrmse" else 8 * best.size / ELEMENTS, passes


@pytest.mark.parametrize("start", [0.02, 0.1, 0.11, 1.0])
@pytest.mark.parametrize("slope", [0.1, 0.5, 1.0, 1.9, 3.0, 8.0])
def test_an_error_is_met_however_fast_it_moves(slope: float, start: float, unit: Analysis) -> None:
    """Steps that go by the error alone swing from side to side for ever where it moves twice as fast as the step."""
    found, passes = meet(unit, "nrmse", 0.1, start, lambda multiplier: 0.1 * (multiplier / 0.1) ** slope)
    assert found is not None
    assert 0.1 * (1 - TOLERANCE) <= found <= 0.1
    assert passes <= MAX_PASSES


@pytest.mark.parametrize("bits", [0.5, 3.0, 7.9])
def test_a_size_is_met(bits: float, unit: Analysis) -> None:
    found, passes = meet(unit, "bits", bits, 1.0, lambda multiplier: max(4 - 0.6 * math.log2(multiplier), 0.2))
    assert found is not None
    assert bits - 0.05 <= found <= bits
    assert passes <= MAX_PASSES


def test_what_cannot_be_told_apart_ends_a_search(unit: Analysis) -> None:
    """An error that is below the goal even if nothing is sent."""
    found, passes = meet(unit, "nrmse", 0.5, 0.1, lambda multiplier: min(multiplier, 0.3))
    assert found == pytest.approx(0.3)
    assert passes <= 4


def test_a_jump_across_the_goal_is_met_from_below(unit: Analysis) -> None:
    found, passes = meet(unit, "nrmse", 0.5, 1.0, lambda multiplier: 0.4 if multiplier < 0.7 else 0.9)
    assert found == pytest.approx(0.4)
    assert passes <= MAX_PASSES


def test_a_goal_out_of_reach_is_none(unit: Analysis) -> None:
    found, passes = meet(unit, "bits", 0.1, 1.0, lambda multiplier: 1 + 1 / multiplier)
    assert found is None
    assert passes <= 2 * MAX_PASSES


@pytest.mark.parametrize("nrmse", [0.9, 0.1, 1e-2, 1e-3, 1e-5, 1e-7])
def test_the_multiplier_for_an_error_gives_that_error(nrmse: float, unit: Analysis) -> None:
    multiplier = multiplier_for_error(unit, nrmse)
    assert math.sqrt(unit.expected_error(multiplier * unit.unit)) == pytest.approx(nrmse)


@pytest.mark.parametrize("error", [0.9, 0.5, 0.1, 1e-3, 1e-6])
def test_the_step_of_an_error_is_that_of_the_error_of_the_step(error: float) -> None:
    family = tables.family(0)
    assert family.error_at(family.step_at(error)) == pytest.approx(error)


@pytest.mark.parametrize("shaping", [PLAIN, Shaping(8, 8, geometric=True)])
def test_steps_against_weights(shaping: Shaping) -> None:
    """So many bits a weight are those of Gaussian weights of one scale, whatever the scales and where steps follow."""
    family = tables.family(0)
    for spread in (0.0, 1.0):
        analysis = analyse(scaled(spread), shaping)
        assert analysis is not None
        step = 1e-3 * analysis.unit
        bits = float(family.bits_at(tables.class_of(np.array(1 / analysis.relative_step(step)))))
        assert analysis.symbol_bits(step) / analysis.elements.sum() == pytest.approx(bits, abs=0.02)


def test_the_share_of_small_weights() -> None:
    """Those of a third of the rows, whose scale is an eighth of the others'."""
    w = np.random.default_rng(6).standard_normal((300, 256))
    w[::3] /= 8
    analysis = analyse(Matrix.of(w.astype(np.float32)))
    assert analysis is not None
    assert analysis.share_below(1.0, 0.8) == pytest.approx(1 / 3)
    assert analysis.share_below(1.0, 0.01) == 0
    assert analysis.share_below(1.0, 10.0) == 1


def test_corrections_hold_where_they_were_found_and_go_over_into_each_other(unit: Analysis) -> None:
    corrections = Corrections((-2.0, 0.0), (0.5, 1.5), (3.0, 1.0))
    corrected = replace(unit, corrections=corrections)
    for octave, size, error in ((-9, 0.5, 3.0), (-2, 0.5, 3.0), (-1, 1.0, 2.0), (0, 1.5, 1.0), (4, 1.5, 1.0)):
        step = 2.0**octave
        assert corrected.symbol_bits(step) == pytest.approx(size * unit.symbol_bits(step))
        assert corrected.expected_error(step) == pytest.approx(error * unit.expected_error(step))


@pytest.mark.parametrize("states", [16, 64, 128])
@pytest.mark.parametrize("nrmse", [0.05, 0.01, 1e-3])
def test_one_pass_meets_an_error(nrmse: float, states: int) -> None:
    """The tables know what a trellis of so many states makes of Gaussian weights."""
    matrix = scaled(0.1)
    analysis = analyse(matrix)
    assert analysis is not None
    expected = coded_with(Choice(analysis), states).analysis
    multiplier = OwnGoal(expected, matrix.rows * matrix.columns, "nrmse", nrmse).first()
    with ThreadPoolExecutor(1) as pool:
        result = Encoding(analysis, multiplier * analysis.unit, states, pool).result()
    assert nrmse * (1 - TOLERANCE) <= math.sqrt(result.squared_error / analysis.energy) <= nrmse


def scaled(spread: float) -> Matrix:
    rng = np.random.default_rng(5)
    w = rng.standard_normal((300, 256)) * np.exp2(spread * rng.standard_normal((300, 1)))
    return Matrix.of((w * np.exp2(0.2 * rng.standard_normal(256))).astype(np.float32))


SHAPINGS = [PLAIN, Shaping(4, 4, geometric=True), Shaping(8, 0, geometric=True), Shaping(16, 16, geometric=True)]


@pytest.mark.parametrize("shaping", SHAPINGS)
@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0])
def test_the_mean_step_is_what_was_asked(spread: float, shaping: Shaping) -> None:
    """However the exponents happen to be rounded."""
    analysis = analyse(scaled(spread), shaping)
    assert analysis is not None
    for octave in np.linspace(-4, 0, 33):
        asked = analysis.unit * 2.0**octave
        _, step, field = analysis.aligned(asked)
        axes = (shaped(field.rows, shaping.row), shaped(field.columns, shaping.column))
        logs = sum(steps[classes != ZERO].mean() for steps, classes in axes) / 8
        assert step * 2.0**logs == pytest.approx(asked * analysis.factor)


@pytest.mark.parametrize("shaping", SHAPINGS[:3])
def test_size_and_error_are_smooth(shaping: Shaping) -> None:
    """An octave of steps in 24 parts: each takes 1/24 bit per weight, and moves the error by 1/24 octave."""
    matrix = scaled(0.1)
    analysis = analyse(matrix, shaping)
    assert analysis is not None
    bits, errors = [], []
    with ThreadPoolExecutor(1) as pool:
        for part in range(25):
            result = Encoding(analysis, 0.1 * analysis.unit * 2 ** (part / 24), 4, pool).result()
            bits.append(8 * result.size / (matrix.rows * matrix.columns))
            errors.append(math.log2(result.squared_error) / 2)
    assert -np.diff(bits) == pytest.approx(1 / 24, abs=0.006)
    assert np.diff(errors) == pytest.approx(1 / 24, abs=0.006)


def test_where_steps_follow_all_the_way_scales_stay_as_they_were_fitted() -> None:
    """No class moves with them, and the fit chose where they are rounded: to octaves, perhaps."""
    analysis = analyse(scaled(1.0), SHAPINGS[3])
    assert analysis is not None
    for octave in np.linspace(-1, 0, 9):
        _, step, field = analysis.aligned(analysis.unit * 2.0**octave)
        np.testing.assert_array_equal(field.rows.exponents, analysis.field.rows.exponents)
        assert step == analysis.unit * 2.0**octave


@pytest.mark.parametrize("root", [-25.3, -7.0, -2.0, -0.123, 3.9, 7.9, 30.0, -30.0])
@pytest.mark.parametrize("kind", ["straight", "saturated", "curved", "steps", "infinite"])
def test_a_crossing_is_what_halving_finds(root: float, kind: str) -> None:
    """On the same grid, in fewer evaluations where the function is what forecasts are like."""
    seen = 0

    def excess(m: float) -> float:
        nonlocal seen
        seen += 1
        to_go = root - math.log2(m)
        return {
            "straight": to_go,
            "saturated": max(to_go, 0.0) - 1e-3,
            "curved": math.log2(1 + 4.0**to_go) / 2 - 0.5,
            "steps": float(to_go > 0),
            "infinite": math.inf if to_go > 0.1 else to_go,
        }[kind]

    low, high = forecast._FINEST, forecast._COARSEST
    found = forecast._crossing(excess, low, high, forecast._FIRST)
    assert seen <= (20 if kind in ("straight", "curved") and -24 < root < 6 else 90)
    for _ in range(forecast._BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(2.0**middle) > 0 else (low, middle)
    assert found == high
