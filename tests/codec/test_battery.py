"""Every matrix, every type, through the trellis coder: what comes back, how exact, the same every time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.codec import battery

#: What has no weight of a magnitude the trellis coder can take, in any type.
ALWAYS_EXACT = {"zeros", "minus zero", "beyond any scale", "denormals"}


@pytest.mark.parametrize("dtype", battery.DTYPES)
@pytest.mark.parametrize("name", battery.MATRICES)
def test_round_trip(name: str, dtype: str) -> None:
    """The error the encoder measured is that of what the decoder gives, and no element is lost."""
    w = battery.cast(name, dtype)
    coded = battery.trellis_encode(w, dtype)
    if coded is None:
        magnitudes = np.abs(w.astype(np.float64))
        alike = w.size and (w == w.ravel()[0]).all()
        assert alike or magnitudes.max() < 1e-17 or magnitudes.max() > 1e17
        return
    assert name not in ALWAYS_EXACT or dtype == "F16"
    back = battery.trellis_decode(coded.chunks, w.shape, dtype)
    assert (back.dtype, back.shape) == (w.dtype, w.shape)
    assert np.isfinite(back.astype(np.float64)).all()
    error = battery.measured_error(w, back)
    assert coded.squared_error == pytest.approx(error, rel=1e-9)
    energy = battery.measured_error(w, np.zeros_like(w))
    assert error < 0.15 * energy
    assert (back[w == 0] == 0).all() or name not in ("rows of zeros", "columns of zeros", "half empty", "zeros")


@pytest.mark.parametrize("shaping", battery.SHAPINGS)
@pytest.mark.parametrize("states", [4, 32, 256])
@pytest.mark.parametrize("step", [2.5, 0.6, 0.02, 0.0003])
def test_steps_states_and_shapings(step: float, states: int, shaping: str) -> None:
    for name in ("scaled rows and columns", "outliers", "rows and columns of zeros", "wildly scaled", "primes"):
        w = battery.cast(name, "F32")
        coded = battery.trellis_encode(w, "F32", step=step, states=states, shaping=shaping)
        if coded is None:
            # Only steps too fine for float32 have to be exact, against the smallest of all where they are shaped.
            assert step < 0.001 or (name == "wildly scaled" and shaping != "mse")
            continue
        back = battery.trellis_decode(coded.chunks, w.shape, "F32")
        assert coded.squared_error == pytest.approx(battery.measured_error(w, back), rel=1e-9)
        if shaping == "mse":
            # Half the step of a union, and a margin for what rate-distortion optimisation trades.
            largest = np.abs(w.astype(np.float64) - back).max()
            assert largest <= 3 * step * coded.analysis.unit + 1e-6 * np.abs(w).max()


@pytest.mark.parametrize("name", ["five tiles", "a very long row", "scaled rows and columns", "3-d"])
def test_same_bytes_for_any_number_of_threads_and_every_run(name: str) -> None:
    w = battery.cast(name, "F32")
    runs = [battery.trellis_encode(w, "F32", states=16, threads=threads) for threads in (1, 2, 8, 2)]
    assert all(run is not None and run.chunks == runs[0].chunks for run in runs)
    assert len({run.squared_error for run in runs if run}) == 1


def test_tensor_of_float64_and_float32_have_the_same_streams() -> None:
    """Float64 is rounded to float32 before it is coded."""
    w = battery.cast("gaussian", "F32")
    one, other = battery.trellis_encode(w, "F32"), battery.trellis_encode(w.astype(np.float64), "F64")
    assert one is not None
    assert other is not None
    assert one.chunks == other.chunks


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", battery.DTYPES)
def test_what_is_not_finite_is_never_approximated(bad: float, dtype: str) -> None:
    for place in (0, 777, -1):
        w = battery.cast("gaussian", dtype).copy()
        w.ravel()[place] = bad
        assert battery.trellis_encode(w, dtype) is None


def test_infinity_only_in_float32() -> None:
    """A finite float64 beyond float32 is not finite for the coder either."""
    w = battery.cast("gaussian", "F64").copy()
    w[3, 3] = 1e200
    assert battery.trellis_encode(w, "F64") is None


@pytest.mark.parametrize("name", ["gaussian", "laplace", "scaled rows and columns", "five tiles"])
@pytest.mark.parametrize("step", [1.2, 0.4, 0.1, 0.02])
def test_forecasts_are_near_what_is_measured(name: str, step: float) -> None:
    w = battery.cast(name, "F32")
    coded = battery.trellis_encode(w, "F32", step=step, states=128)
    assert coded is not None
    absolute = step * coded.analysis.unit
    size = sum(map(len, coded.chunks))
    assert size == pytest.approx(coded.analysis.expected_bytes(absolute), rel=0.06 if step < 1 else 0.2, abs=60)
    # Below one bit, where neighbours differ in class, the trellis does worse than the tables made of one class say.
    mixed = name == "scaled rows and columns" and step > 1
    assert coded.squared_error == pytest.approx(coded.analysis.expected_error(absolute), rel=0.8 if mixed else 0.25)


@pytest.mark.parametrize("step", [1.2, 0.6, 0.2, 0.05])
def test_forecast_of_a_gaussian_is_within_a_hundredth(step: float) -> None:
    w = np.random.default_rng(5).standard_normal((600, 512)).astype(np.float32)
    coded = battery.trellis_encode(w, "F32", step=step, states=256)
    assert coded is not None
    size = sum(map(len, coded.chunks))
    assert size == pytest.approx(coded.analysis.expected_bytes(step * coded.analysis.unit), rel=0.015)


def test_scale_of_the_whole_changes_nothing_but_the_step() -> None:
    """Powers of two: the same symbols, scaled."""
    w = battery.cast("scaled rows and columns", "F32")
    one = battery.trellis_encode(w, "F32")
    other = battery.trellis_encode(w * np.float32(2.0**-20), "F32")
    assert one is not None
    assert other is not None
    assert one.chunks[1:] == other.chunks[1:]


def test_float16_never_overflows() -> None:
    w = np.full((64, 64), 65504.0, np.float16)
    w[::2] *= -1
    for step in (0.1, 0.5, 1.0, 2.0):
        coded = battery.trellis_encode(w, "F16", step=step)
        assert coded is not None
        assert np.isfinite(battery.trellis_decode(coded.chunks, w.shape, "F16")).all()
