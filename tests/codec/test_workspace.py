"""Memory that threads share, and how much the encoder's largest steps take of it.

`tracemalloc` counts what numpy allocates, so these figures are the same each time.
"""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest

from rbe_cli.codec import workspace
from rbe_cli.codec.residual.analysis import Analysis, analyse
from rbe_cli.codec.residual.noise_shaping import PLAIN, Inputs, Shaping
from rbe_cli.codec.residual.trellis_codec import Encoding
from rbe_cli.codec.source import Matrix
from rbe_cli.codec.structure import sparse_analysis
from rbe_cli.codec.structure.sparse_analysis import SparseAnalysis
from rbe_cli.codec.structure.sparse_form import sparse_form
from rbe_cli.codec.workspace import Allowance, Inline, make_room, scratch, searching


class Asked(Allowance):
    """An allowance without end that remembers what was asked of it."""

    def __init__(self) -> None:
        super().__init__(1 << 40)
        self.asked: list[int] = []

    def held(self, size: int) -> AbstractContextManager[None]:
        """What `Allowance.held` does."""
        self.asked.append(size)
        return super().held(size)


def peak(work: Callable[[], Any]) -> int:
    """Bytes that numpy and Python had at most while something was done, beyond those before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def analysis_of(rows: int, columns: int, shaping: Shaping = PLAIN) -> Analysis:
    w = np.random.default_rng(0).standard_normal((rows, columns), np.float32)
    analysis = analyse(Matrix(w.view(np.uint8).ravel(), "F32", rows, columns), shaping)
    assert analysis is not None
    return analysis


def moments_of(n: int) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((2 * n, n), np.float32)
    return x.T @ x / (2 * n)


def fed_along(axis: int, n: int) -> Shaping:
    moments = moments_of(n)
    return Shaping(8, 8, True, Inputs(axis, moments.diagonal().astype(np.float64), lambda: moments))


def test_factorising_takes_one_copy_in_float64() -> None:
    """And the matrix before, or the factor after it, in float32."""
    n = 1024
    moments = moments_of(n)
    inputs = Inputs(1, moments.diagonal().astype(np.float64), moments.copy)
    assert peak(inputs.factor) < 1.4 * 12 * n * n


@pytest.mark.parametrize(
    ("rows", "columns", "axis", "states"),
    [(2048, 512, None, 256), (2048, 512, None, 4), (2048, 512, 1, 8), (600, 900, 0, 8)],
)
def test_a_search_takes_what_it_asks_for(
    rows: int, columns: int, axis: int | None, states: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shaping = PLAIN if axis is None else fed_along(axis, columns if axis else rows)
    analysis = analysis_of(rows, columns, shaping)
    searches = Asked()
    monkeypatch.setattr(workspace, "searches", searches)
    encode = lambda: Encoding(analysis, analysis.unit * 0.2, states, Inline()).result()  # noqa: E731
    encode()
    factor = 0 if axis is None else 14 * (columns if axis else rows) ** 2
    assert peak(encode) < 1.2 * max(searches.asked) + factor + (4 << 20)


@pytest.mark.parametrize(("kind", "block"), [("dct", 32), ("dct", 128), ("dwt", 512)])
def test_blocks_take_what_they_ask_for(kind: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    w = np.random.default_rng(0).standard_normal((1024, 1024), np.float32)
    matrix = Matrix(w.view(np.uint8).ravel(), "F32", 1024, 1024)
    form = sparse_form(matrix, kind, block, 3)
    fit = lambda: SparseAnalysis(matrix, form, float((w.astype(float) ** 2).sum()), 0.0)  # noqa: E731
    analysis = fit()
    encode = lambda: analysis.encode(analysis.unit)  # noqa: E731
    for work in (fit, encode):
        work()
        whole = Asked()
        monkeypatch.setattr(sparse_analysis, "whole_matrices", whole)
        assert peak(work) < 1.2 * max(whole.asked) + (4 << 20)


@pytest.mark.parametrize("largest", [0, 1 << 20, 1 << 22, 1 << 25, 48 << 20, 60 << 20, 1 << 26, 1 << 30])
def test_all_allowances_are_within_the_bound(largest: int) -> None:
    """Beside 185 MB of interpreter, libraries and kernels."""
    try:
        make_room(largest)
        allowances = (workspace.whole_matrices, workspace.searches, workspace.kept_matrices, workspace.arrays_aside)
        assert sum(taken_from(allowance) for allowance in allowances) <= 115e6 + 3 * largest
    finally:
        make_room(workspace._LARGEST)


def taken_from(allowance: Allowance) -> int:
    """All that there is of it, found by taking it, in units of 64 KiB."""
    size = 0
    while allowance.take(1 << 16):
        size += 1 << 16
    allowance.give(size)
    return size


def test_whoever_waits_for_more_than_there_is_gets_it_when_alone() -> None:
    allowance = Allowance(10)
    got = threading.Event()

    def want() -> None:
        with allowance.held(9):
            got.set()

    with ThreadPoolExecutor(1) as pool:
        with allowance.held(5):
            waiting = pool.submit(want)
            allowance.resize(4)
            assert not got.wait(0.05)
        waiting.result(10)
    assert got.is_set()


def test_searches_wait_for_room_and_leave_their_buffers_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "searches", Allowance(20))
    under_way, most, buffers, lock = 0, 0, set(), threading.Lock()

    def job(_: int) -> None:
        nonlocal under_way, most
        with searching(10):
            with lock:
                under_way += 1
                most = max(most, under_way)
            buffers.add(scratch("test", (10,), np.uint8).ctypes.data)
            with lock:
                under_way -= 1

    with ThreadPoolExecutor(8) as pool, searching(10):
        list(pool.map(job, range(100)))
    assert most == 1
    assert len(buffers) == 1


def test_a_thread_has_its_own_buffers_again_after_a_search() -> None:
    own = scratch("test", (10,), np.uint8)
    with searching(10):
        assert scratch("test", (10,), np.uint8).ctypes.data != own.ctypes.data
    assert scratch("test", (10,), np.uint8).ctypes.data == own.ctypes.data


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_the_same_bytes_where_every_search_is_alone(axis: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = analysis_of(1200, 256, PLAIN if axis is None else fed_along(axis, 256 if axis else 1200))
    with ThreadPoolExecutor(4) as pool:
        many = Encoding(analysis, analysis.unit * 0.2, 8, pool).result()
        monkeypatch.setattr(workspace, "searches", Allowance(1))
        assert Encoding(analysis, analysis.unit * 0.2, 8, pool).result().chunks == many.chunks
