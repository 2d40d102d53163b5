"""Low rank under a residual: singular vectors, the metric they are taken in, and the choice that weighs time."""

from __future__ import annotations

import numpy as np
import pytest

from rbe_cli.codec.choice.wish import Wish
from rbe_cli.codec.residual.analysis import analyse
from rbe_cli.codec.residual.forecast import multiplier_for_error
from rbe_cli.codec.residual.noise_shaping import PLAIN
from rbe_cli.codec.source import Matrix
from rbe_cli.codec.structure.components import find_components, sketch_components
from rbe_cli.codec.structure.decode_cost import decode_cost
from rbe_cli.codec.structure.low_rank import fit_low_rank, take_low_rank
from rbe_cli.codec.structure.pipeline import Piped, Pipeline
from rbe_cli.codec.structure.singular_vectors import leading
from rbe_cli.codec.tensor_codec import prepare


def matrix_of(w: np.ndarray) -> Matrix:
    return Matrix.of(w.astype(np.float32))


def mixed(rows: int, columns: int, rank: int, strength: float, seed: int = 0) -> np.ndarray:
    """White noise, and `rank` components that together have `strength` times its energy."""
    rng = np.random.default_rng(seed)
    part = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns)) * np.sqrt(strength / rank)
    return (rng.standard_normal((rows, columns)) + part).astype(np.float32)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (400, 20), (20, 400), (1400, 160), (160, 1400)])
@pytest.mark.parametrize("real", [np.float64, np.float32])
def test_leading_singular_vectors(shape: tuple[int, int], real: type[np.floating]) -> None:
    w = mixed(*shape, 3, 20.0)
    values, vectors = leading(w, 3, real)
    exact = np.linalg.svd(w.astype(np.float64), full_matrices=False)
    assert values == pytest.approx(exact[1][:3], rel=1e-4)
    assert np.abs(np.sum(vectors * exact[2][:3].T, axis=0)) == pytest.approx(np.ones(3), abs=1e-4)


@pytest.mark.parametrize("scale", [1e-16, 1e-10, 1e10, 1e17])
@pytest.mark.parametrize("shape", [(300, 200), (1000, 64)])
def test_no_low_rank_where_factors_may_leave_the_range_of_numbers(scale: float, shape: tuple[int, int]) -> None:
    matrix = matrix_of(mixed(*shape, 2, 20.0) * scale / 5)
    assert sketch_components(matrix, 0.05, matrix.rows) is None
    assert fit_low_rank(matrix, 0.05) is None
    for transform, structure_only, bits in (("auto", False, 4), ("auto", False, 0.5), ("auto", True, 1)):
        choice = prepare(matrix, PLAIN, Wish(transform, 64, 5, 0.1, bits, structure_only))
        assert choice is not None
        assert "lowrank" not in choice.name
    assert prepare(matrix, PLAIN, Wish("lowrank", 64, 5, 0.1, 1, True)) is None


@pytest.mark.parametrize("real", [np.float32, np.float64])
@pytest.mark.parametrize("nrmse", [1e-6, 1e-4, 0.1])
def test_one_number_among_zeros(nrmse: float, real: type[np.floating]) -> None:
    """The scale of its column may be so far from the others' that the grid has nothing of the vectors."""
    w = np.zeros((168, 174), np.float32)
    w[15, 52] = 2e8
    found = find_components(matrix_of(w), nrmse, 168, real)
    part = found and take_low_rank(matrix_of(w), found)
    assert part is None or np.abs(w - part.left @ part.right).max() < 2e8


def test_misfit_is_what_the_sample_missed() -> None:
    """The mean square of the weights in units of their sigma, by hand."""
    w = mixed(400, 30, 1, 0.1) * np.exp(np.random.default_rng(1).normal(0, 1, (400, 1))).astype(np.float32)
    analysis = analyse(matrix_of(w))
    assert analysis is not None
    field = analysis.field
    exponents = (field.rows.exponents[:, None] + field.columns.exponents) / 8 + field.log_sigma0
    power = float(np.mean((w / np.exp2(exponents)) ** 2))
    assert analysis.misfit() == pytest.approx((power - 1) / (2 * np.log(2)), rel=1e-6)


def test_components_are_those_of_rows_of_one_scale() -> None:
    """A few loud rows of noise do not take the place of a component that all rows share."""
    w = mixed(512, 64, 2, 1.0)
    w[:16] = 100 * np.random.default_rng(2).standard_normal((16, 64))
    part = fit_low_rank(matrix_of(w), 0.05)
    assert part is not None
    quiet = w[16:].astype(np.float64)
    left = quiet - part.left[16:].astype(np.float64) @ part.right
    assert (left**2).sum() < 0.6 * (quiet**2).sum()


def cost(w: np.ndarray, nrmse: float) -> float:
    """Bytes at an error, of a matrix as `fit_low_rank` takes it apart."""
    matrix = matrix_of(w)
    plain, part = analyse(matrix), fit_low_rank(matrix, nrmse)
    assert plain is not None
    assert part is not None
    piped = analyse(Piped(matrix, Pipeline.of(part, "none", 0, 0, matrix.columns)))
    assert piped is not None
    analysis = piped.of_tensor(plain)
    return analysis.expected_bytes(multiplier_for_error(analysis, nrmse) * analysis.unit)


def test_low_rank_costs_what_it_should() -> None:
    """Little more than the rate-distortion bound of components and noise."""
    m, n, rank, strength = 1024, 128, 4, 4.0
    w = mixed(m, n, rank, strength)
    numbers = rank * (m + n)
    bits = m * n * (np.log2(1 / (0.05 * np.sqrt(1 + strength))) + 0.06)
    bits += numbers * (0.5 * np.log2(strength / rank * n) + 0.5)
    assert 8 * cost(w, 0.05) < 1.01 * bits


def test_time_to_decode_is_weighed() -> None:
    """A rank that gains less than its time is worth is not taken; one that gains more is."""
    for strength, chosen in ((0.02, "none"), (3.0, "lowrank")):
        wish = Wish("auto", 128, 5, 0.065)
        choice = prepare(matrix_of(mixed(256, 256, 2, strength)), PLAIN, wish)
        assert choice is not None
        assert choice.name == chosen
        gain = choice.gain_db if chosen != "none" else choice.runner_up_db
        assert (gain > decode_cost(2, 0)) == (chosen != "none")


def test_a_matrix_of_rank_one() -> None:
    """Next to nothing is left."""
    w = np.outer(np.linspace(1, 2, 64), np.linspace(-1, 1, 48)).astype(np.float32)
    part = fit_low_rank(matrix_of(w + 1e-3 * mixed(64, 48, 1, 0.0)), 0.05)
    assert part is not None
    assert part.left @ part.right == pytest.approx(w, abs=0.1)


@pytest.mark.parametrize("nrmse", [0.2, 0.01, 1e-3])
@pytest.mark.parametrize("rank", [1, 16])
@pytest.mark.parametrize("shape", [(256, 192), (192, 1024), (128, 2048)])
def test_an_exactly_low_rank_is_found(shape: tuple[int, int], rank: int, nrmse: float) -> None:
    """As the difference that a low-rank adapter makes, of which nothing but rounding is left."""
    m, n = shape
    rng = np.random.default_rng(7)
    matrix = matrix_of(rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n)) * 1e-2)
    plain, part = analyse(matrix), fit_low_rank(matrix, nrmse)
    assert plain is not None
    assert part is not None
    assert part.left.shape[1] == rank
    left = matrix.whole().astype(np.float64) - part.left.astype(np.float64) @ part.right
    assert (left**2).sum() < 1.5 * nrmse**2 * plain.energy
    # Few numbers that all weights depend on are worth being more exact.
    each = np.log2(1 / nrmse) + 0.5 * np.log2(m * n / (rank * (m + n))) + 2
    assert 8 * len(part.data) < 2000 + rank * (m + n) * each


def test_errors_that_are_not_wanted_are_not_paid_for() -> None:
    """At a coarse step fewer components are worth their bits, and coarser ones, than at a fine one."""
    rng = np.random.default_rng(8)
    w = rng.standard_normal((400, 40)) * np.exp2(-np.arange(40) / 2) @ rng.standard_normal((40, 300))
    fine, coarse = (find_components(matrix_of(w), nrmse) for nrmse in (1e-3, 0.1))
    assert fine is not None
    assert coarse is not None
    assert coarse.rank < fine.rank
    assert coarse.step > 20 * fine.step
