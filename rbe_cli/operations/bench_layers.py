"""`rbe bench layers`: size, error, speed and memory of the layers that run from their compressed form."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from rbe_cli import metrics
from rbe_cli.container.layer_file import write_layer
from rbe_cli.errors import UsageError
from rbe_cli.layers.encoded import EncodedMatrix, compress_array
from rbe_cli.layers.tile_cache import TileCache
from rbe_cli.layers.weight_mapper import open_matrix
from rbe_cli.layers.weights import DenseMatrix
from rbe_cli.operations.layer_subjects import Call, Subject
from rbe_cli.operations.progress import Progress, Silent

#: Ways to store a layer: without a coded residual and with one at the target's ratio, and with one at 4 bits.
STRUCTURE, RESIDUAL, FOUR_BITS = "structure only", "coded residual", "4 bits"
_LEAST_CALLS, _MOST_CALLS = 5, 2000
#: Of the trellis: what is measured here is the layers, not the last tenth of a dB.
_STATES = 8


@dataclass(frozen=True)
class Span:
    """Nanoseconds of a call: the median, and the 10th and 90th percentile."""

    median: float
    low: float
    high: float
    calls: int

    @classmethod
    def of(cls, nanoseconds: Sequence[float]) -> Span:
        """From single calls.

        >>> Span.of([1.0, 2.0, 3.0]).median
        2.0
        """
        low, high = np.percentile(nanoseconds, (10, 90))
        return cls(statistics.median(nanoseconds), float(low), float(high), len(nanoseconds))


@dataclass(frozen=True)
class Row:
    """One layer in one form.

    Attributes
    ----------
    storage : str
        STRUCTURE, RESIDUAL, FOUR_BITS, or `exact` for what is not compressed.
    coding : str
        Codec of each matrix.
    size : int
        Bytes of the layer's .rbe file; 0 if it has none.
    error : metrics.Error
        Of the weights, all matrices together.
    call, dense : Span
        Of the layer, and of the same layer on the decoded weights as dense float32, by numpy, on as many cores.
    efficiency : float
        Of a batch: the time on one core over that on all, over the number of cores; NaN where it is not taken.
    resident : int
        Bytes of the weights in memory.
    """

    subject: Subject
    storage: str
    coding: str
    size: int
    error: metrics.Error
    call: Span
    dense: Span
    efficiency: float
    resident: int

    @property
    def source_bytes(self) -> int:
        """Bytes of the dense float32 weights."""
        return 4 * self.error.elements

    @property
    def ratio(self) -> float:
        """Of those over all bytes of the file."""
        return metrics.ratio(self.source_bytes, self.size)

    @property
    def block_bytes(self) -> float:
        """Of the file, for as many weights as a block has."""
        return self.size * self.subject.block**2 / self.error.elements if self.error.elements else math.nan

    @property
    def unit_ns(self) -> float:
        """Median time of a unit: a call, a token or an element."""
        return self.call.median / self.subject.units

    @property
    def smaller(self) -> float:
        """Part of the dense bytes that are not in memory."""
        return 1 - self.resident / self.source_bytes if self.source_bytes else math.nan

    def verdicts(self) -> dict[str, bool]:
        """What the guide asks for -> whether it is reached."""
        target = self.subject.target
        asked = (
            ("ratio", target.ratio if self.size else None, self.ratio),
            ("block", target.block_bytes, -self.block_bytes),
            ("RMSE", target.rmse, -self.error.rmse),
            ("speed", target.nanoseconds, -self.unit_ns),
            ("memory", target.smaller, self.smaller),
        )
        # Of a ratio and of memory saved the bound is the least, of the others the most.
        return {name: figure >= (bound if figure > 0 else -bound) for name, bound, figure in asked if bound is not None}


def bench_layers(
    subjects: Sequence[Subject], *, seconds: float = 0.5, threads: int = 1, progress: Progress | None = None
) -> list[Row]:
    """Compress each layer in each form, for real, and time it.

    Parameters
    ----------
    seconds : float
        How long to time a layer.
    threads : int
        What `all cores` are.

    What cannot be as small as it should is left out, with a note.
    """
    progress = progress or Silent()
    progress.phase("measuring layers", len(subjects))
    bench = _Bench(seconds, threads)
    rows = []
    for subject in subjects:
        for storage in _forms(subject):
            try:
                rows.append(bench.measure(subject, storage))
            except UsageError as error:
                progress.note(f"{subject.layer} of {subject.source}, {storage}: {error}; left out")
        progress.advance(1)
    return rows


def _forms(subject: Subject) -> tuple[str, ...]:
    if not subject.matrices:
        return ("exact",)
    # Where a layer is there a second time for its low rank, only that form is another one.
    again = "rank" in subject.wishes and subject.source != "white"
    return (STRUCTURE,) if again else (STRUCTURE, RESIDUAL, FOUR_BITS)


class _Bench:
    """Measures layer after layer; layers made of the same matrix share what it is compressed to."""

    def __init__(self, seconds: float, threads: int) -> None:
        self.seconds = seconds
        self.threads = threads
        self._encoded: dict[tuple[Any, ...], EncodedMatrix] = {}

    def measure(self, subject: Subject, storage: str) -> Row:
        encoded = [self._encode(subject, name, storage) for name in subject.matrices]
        dense = [DenseMatrix(matrix.decode()) for matrix in encoded]
        with _cores(self.threads, storage) as pool:
            own = [open_matrix(matrix, TileCache(0), pool) for matrix in encoded]
            call = self._time(subject.ready(own, subject.tokens))
            together = self._time(subject.ready(own, subject.batch)) if subject.batch else None
        with threadpool_limits(limits=self.threads, user_api="blas"):
            beside = self._time(subject.ready(dense, subject.tokens))
        efficiency = math.nan
        if together is not None and self.threads > 1:
            with _cores(1, storage):
                alone = self._time(subject.ready([open_matrix(matrix) for matrix in encoded], subject.batch))
            efficiency = alone.median / together.median / self.threads
        coding = ", ".join(dict.fromkeys(matrix.record.codec for matrix in encoded))
        resident = sum(matrix.nbytes for matrix in own)
        error = _error(subject, encoded)
        return Row(subject, storage, coding, _file_size(encoded), error, call, beside, efficiency, resident)

    def _encode(self, subject: Subject, name: str, storage: str) -> EncodedMatrix:
        wishes = dict(subject.wishes)
        if storage != STRUCTURE:
            # A residual finds the generator's own model in the DCT; the others have nothing under it that pays.
            wishes = {"block": subject.block, "transform": "dct" if subject.source == "structured" else "none"}
        wishes["bits"] = 4.0 if storage == FOUR_BITS else 32 / subject.target.ratio
        wishes["structure_only"] = storage == STRUCTURE
        matrix = subject.matrices[name]
        key = id(matrix), *sorted(wishes.items())
        if key not in self._encoded:
            self._encoded[key] = compress_array(matrix, states=_STATES, threads=self.threads, name=name, **wishes)
        return self._encoded[key]

    def _time(self, call: Call) -> Span:
        """Time single calls for so long, after some that do not count."""
        _repeat(call, self.seconds / 4)
        return Span.of(_repeat(call, self.seconds))


def _error(subject: Subject, encoded: Sequence[EncodedMatrix]) -> metrics.Error:
    """Of all matrices together."""
    error = metrics.Error(0.0, 0.0, 0)
    for matrix, weights in zip(encoded, subject.matrices.values(), strict=True):
        energy = float(np.einsum("ij,ij->", weights, weights, dtype=np.float64))
        error += metrics.Error(matrix.squared_error, energy, weights.size)
    return error


@contextmanager
def _cores(threads: int, storage: str) -> Iterator[Executor | None]:
    """So many cores: of the linear algebra library, or with a coded residual of the threads that decode its tiles."""
    library = threads if storage == STRUCTURE else 1
    with ThreadPoolExecutor(threads) as pool, threadpool_limits(limits=library, user_api="blas"):
        yield pool if threads > 1 else None


def _file_size(encoded: Sequence[EncodedMatrix]) -> int:
    """Bytes of a layer file of these tensors, written for real."""
    if not encoded:
        return 0
    with tempfile.TemporaryDirectory(prefix="rbe-bench-") as scratch:
        path = Path(scratch) / "layer.rbe"
        write_layer(path, [matrix.tensor for matrix in encoded])
        return path.stat().st_size


def _repeat(call: Callable[[], object], seconds: float) -> list[float]:
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < _LEAST_CALLS or (len(taken) < _MOST_CALLS and time.perf_counter() < end):
        started = time.perf_counter_ns()
        call()
        taken.append(time.perf_counter_ns() - started)
    return taken
