"""Which kernel of the codec takes what share of the time: every kernel is replaced by itself and a stopwatch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from rbe_cli.codec import tensor_codec
from rbe_cli.codec.choice.wish import Wish, reference_error
from rbe_cli.codec.residual import tables
from rbe_cli.codec.residual.forecast import multiplier_for_size
from rbe_cli.codec.residual.noise_shaping import Shaping
from rbe_cli.codec.residual.trellis import trellis
from rbe_cli.codec.source import Matrix
from rbe_cli.codec.warm_up import compile_all
from rbe_cli.kernels.trellis import search
from rbe_cli.operations.bench_sources import BenchSource

#: Kernel -> nanoseconds of processor time per weight; `everything else` is numpy and Python.
Shares = dict[str, float]
REST = "everything else"


class Stopwatch:
    """A kernel that adds up the processor time it takes."""

    def __init__(self, kernel: Callable[..., Any]) -> None:
        self.kernel = kernel
        self.nanoseconds = 0

    def __call__(self, *arguments: Any) -> Any:
        started = time.thread_time_ns()
        result = self.kernel(*arguments)
        self.nanoseconds += time.thread_time_ns() - started
        return result


@contextmanager
def stopwatches() -> Iterator[dict[str, Stopwatch]]:
    """Replace what the codec calls of `rbe_cli.kernels`, by module and name, until the end of the block."""
    watches: dict[int, Stopwatch] = {}
    names: dict[str, Stopwatch] = {}
    replaced: list[tuple[Any, str, Any]] = []
    for module in [m for name, m in sys.modules.items() if name.startswith(("rbe_cli.codec", "rbe_cli.kernels."))]:
        for name, value in list(vars(module).items()):
            if not hasattr(value, "py_func") or name.startswith("_"):
                continue
            kernel = value.py_func
            watch = watches.setdefault(id(value), Stopwatch(value))
            names[f"{kernel.__module__.removeprefix('rbe_cli.kernels.')}.{kernel.__name__}"] = watch
            replaced.append((module, name, value))
            setattr(module, name, watch)
    try:
        yield names
    finally:
        for module, name, value in replaced:
            setattr(module, name, value)


def profile(source: BenchSource, bits: float, states: int, repeat: int = 5) -> tuple[Shares, Shares]:
    """Shares of one pass of encoding, its check included, and of decoding; the best of some repeats of each."""
    compile_all()
    matrix = Matrix(source.raw, source.dtype, *source.shape)
    wish = Wish("none", 128, 5, reference_error(bits, None), bits)
    choice = tensor_codec.prepare(matrix, Shaping(), wish)
    assert choice is not None
    step = multiplier_for_size([choice.analysis], bits * source.elements / 8) * choice.analysis.unit
    with ThreadPoolExecutor(1) as pool:

        def encode() -> Any:
            return tensor_codec.start(choice, step, states, pool).result()

        chunks = encode().chunks
        decoder = tensor_codec.open_tensor(chunks[0], source.shape)

        def decode() -> None:
            for stream, tile in zip(chunks[1:], decoder.grid, strict=True):
                decoder.decode(stream, tile)

        encoding = _best(lambda: encode().nanoseconds, source.elements, repeat)
        decoding = _best(lambda: _timed(decode), source.elements, repeat)
    return encoding, decoding


def _timed(work: Callable[[], None]) -> int:
    started = time.thread_time_ns()
    work()
    return time.thread_time_ns() - started


def _best(work: Callable[[], int], elements: int, repeat: int) -> Shares:
    best: Shares = {}
    for _ in range(repeat):
        with stopwatches() as watches:
            total = work()
            each = {name: watch.nanoseconds / elements for name, watch in watches.items() if watch.nanoseconds}
        each[REST] = total / elements - sum(each.values())
        if not best or sum(each.values()) < sum(best.values()):
            best = each
    return dict(sorted(best.items(), key=lambda item: -item[1]))


def search_times(states: tuple[int, ...], lanes: tuple[int, ...], repeat: int = 15) -> dict[tuple[int, int], float]:
    """ns per weight of the Viterbi search alone on 256 Ki Gaussian weights at about 4 bits; the best of `repeat`."""
    weight_class, elements = 40, 1 << 18
    family = tables.family(0)
    times = {}
    for count in states:
        code = trellis(count)
        for width in lanes:
            shape = (elements // width, width)
            x = np.random.default_rng(0).standard_normal(shape) * 2 ** ((weight_class - 15) / 8)
            arguments = (
                x.astype(np.float32), np.full(shape, weight_class, np.uint8), tables.CLASSES, family.coding.price,
                code.butterflies, code.back, np.empty((shape[0], -(-count // 32), width), np.uint32),
                np.empty(shape, np.uint8), np.empty(shape, np.int32), np.empty(shape, np.uint8),
            )  # fmt: skip
            taken = [_timed(lambda arguments=arguments: search(*arguments)) for _ in range(repeat)]
            times[count, width] = min(taken) / x.size
    return times
