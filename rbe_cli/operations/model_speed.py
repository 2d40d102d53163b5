"""How fast a model reads a prompt and writes text, and how much memory that takes."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rbe_cli.layers.causal_model import CausalModel, Tokens
from rbe_cli.layers.model_files import ModelFiles
from rbe_cli.operations.engines import load_model, math_threads, warm_up
from rbe_cli.operations.machine import peak_memory, status

_REPEATS = 7


@dataclass(frozen=True)
class Rate:
    """Tokens per second.

    Attributes
    ----------
    median, low, high : float
        The median and the 10th and 90th percentile of the single measurements.
    tokens, measurements : int
        Tokens of one measurement, and how many were made.
    """

    median: float
    low: float
    high: float
    tokens: int
    measurements: int

    @classmethod
    def of(cls, seconds: list[float], tokens: int) -> Rate:
        """From the time of each measurement of `tokens` tokens.

        >>> Rate.of([0.5, 1.0, 2.0], 10).median
        10.0
        """
        low, median, high = np.percentile(tokens / np.maximum(seconds, 1e-9), (10, 50, 90))
        return cls(float(median), float(low), float(high), tokens, len(seconds))


@dataclass(frozen=True)
class Speed:
    """Rates of reading a prompt at once and of writing token by token with cached keys and values.

    Attributes
    ----------
    hit_rate : float
        Part of the tiles that were found decoded while writing; NaN where there are none.
    """

    prompt: Rate
    generation: Rate
    hit_rate: float


def measure_speed(model: CausalModel, prompt: Tokens, generated: int) -> Speed:
    """Read `prompt` several times, then write `generated` tokens greedily, timing each; one of both before, unmeasured.

    A model's tile cache is as the unmeasured pass left it.
    """
    tiles = getattr(model, "tiles", None)
    _write(model, prompt, min(generated, 4))
    prompt_seconds = []
    for _ in range(_REPEATS):
        text = model.continuation()
        started = time.perf_counter()
        text.feed(prompt)
        prompt_seconds.append(time.perf_counter() - started)
    if tiles is not None:
        tiles.clear_counts()
    seconds = _write(model, prompt, generated)
    asked = tiles.hits + tiles.misses if tiles is not None else 0
    hit_rate = tiles.hits / asked if tiles is not None and asked else float("nan")
    return Speed(Rate.of(prompt_seconds, prompt.size), Rate.of(seconds, 1), hit_rate)


def _write(model: CausalModel, prompt: Tokens, count: int) -> list[float]:
    """Seconds each of `count` greedy tokens after the prompt took."""
    text = model.continuation()
    token = np.array([text.feed(prompt).argmax()])
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        logits = text.feed(token)
        seconds.append(time.perf_counter() - started)
        token = np.array([logits.argmax()])
    return seconds


@dataclass(frozen=True)
class Memory:
    """Memory of a model that reads a prompt and writes some tokens.

    Attributes
    ----------
    held : int
        Bytes of weights, compressed or dense, and of decoded tiles, after that.
    peak : int
        Most the process grew by at any time, loading included, in bytes, keys, values and scratch memory with it.
        Measured by the system in a process of its own, against what it had before it opened the model.
    """

    held: int
    peak: int


def measure_memory(
    files: ModelFiles, engine: str, cache_bytes: int, threads: int, prompt: Tokens, generated: int
) -> Memory:
    """Open and load the model in a fresh process, read the prompt, write, and report."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        opened = files.name, files.base
        return process.submit(_memory, opened, engine, cache_bytes, threads, prompt, generated).result()


def _memory(
    opened: tuple[str, tuple[str, ...]], engine: str, cache_bytes: int, threads: int, prompt: Tokens, generated: int
) -> Memory:
    files = ModelFiles.open(*opened)
    warm_up(files, engine)
    before = _reset_peak()
    model = load_model(files, engine, cache_bytes=cache_bytes, threads=threads)
    with math_threads(threads):
        _write(model, prompt, generated)
    return Memory(model.nbytes, max(0, peak_memory() - before))


def _reset_peak() -> int:
    """Resident bytes now, and the system's record of the peak set to it where it can be (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return peak_memory()
    return status("VmRSS")
