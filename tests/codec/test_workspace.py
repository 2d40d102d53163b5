"""Memory that threads share, and how much the encoder's largest steps take of it.

`tracemalloc` counts what numpy allocates, so these figures are the same each time.
"""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from rbe_cli.codec import workspace
from rbe_cli.codec.analysis import Analysis, analyse
from rbe_cli.codec.noise_shaping import PLAIN, Inputs, Shaping
from rbe_cli.codec.source import Matrix
from rbe_cli.codec.trellis_codec import Encoding
from rbe_cli.codec.workspace import Allowance, Inline, scratch, searching


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
    asked: list[int] = []

    class Asked(Allowance):
        def take(self, size: int) -> bool:
            asked.append(size)
            return super().take(size)

    monkeypatch.setattr(workspace, "searches", Asked(1 << 40))
    encode = lambda: Encoding(analysis, analysis.unit * 0.2, states, Inline()).result()  # noqa: E731
    encode()
    factor = 0 if axis is None else 14 * (columns if axis else rows) ** 2
    assert peak(encode) < 1.2 * max(asked) + factor + (4 << 20)


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
