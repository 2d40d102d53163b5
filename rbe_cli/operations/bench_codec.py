"""`rbe bench codec`: rate, distortion and speed of the codec, matrix by matrix."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rbe_cli import metrics
from rbe_cli.codec import tensor_codec
from rbe_cli.codec.choice.wish import Wish, reference_error
from rbe_cli.codec.residual.forecast import multiplier_for_size
from rbe_cli.codec.source import Matrix, view_shape
from rbe_cli.container.folder import Folder, StoredTensor
from rbe_cli.operations.bench_sources import BenchSource
from rbe_cli.operations.compress import compress
from rbe_cli.operations.decoding import error_of
from rbe_cli.operations.progress import Progress, Silent, worker_threads
from rbe_cli.operations.settings import Settings

#: A measurement of less than so many elements is made of several runs: threads take a moment to wake.
_LEAST_ELEMENTS, _MOST_RUNS = 1 << 18, 8


@dataclass(frozen=True)
class Timing:
    """Time per element in ns, of some repeats.

    Attributes
    ----------
    best, median, worst : float
    repeats : int
    """

    best: float
    median: float
    worst: float
    repeats: int

    @classmethod
    def of(cls, nanoseconds: Sequence[float], elements: int) -> Timing:
        """From the time of each repeat over all elements.

        >>> Timing.of([30.0, 10.0, 20.0], 10)
        Timing(best=1.0, median=2.0, worst=3.0, repeats=3)
        """
        each = [taken / elements for taken in nanoseconds]
        return cls(min(each), statistics.median(each), max(each), len(each))


@dataclass(frozen=True)
class Speed:
    """Processor time on one core, and wall time on all cores."""

    one_core: Timing
    all_cores: Timing


@dataclass(frozen=True)
class Point:
    """One matrix at one rate and effort.

    Attributes
    ----------
    source : BenchSource
    bits : float
        Asked for, of the coded tensor; headers come on top.
    size : int
        Bytes of the layer file.
    bits_per_weight, snr_db, gap_db : float
        Of the layer file, and of the weights decoded from it.
    method, coding : str
        The codec the layer file names, and the pipeline that was chosen.
    analyse_ns : float or None
        Processor time per element, measured once, of choosing structure and transform and fitting the scale field.
    encode, decode : Speed or None
        Of one pass of the coder, its check included; of decoding, reading and checksums included. Where all is exact
        there is nothing but `decode`.
    """

    source: BenchSource
    effort: int
    bits: float
    size: int
    snr_db: float
    method: str
    coding: str
    analyse_ns: float | None
    encode: Speed | None
    decode: Speed

    @property
    def bits_per_weight(self) -> float:
        """Every byte of the layer file."""
        return metrics.bits_per_weight(self.size, self.source.elements)

    @property
    def gap_db(self) -> float:
        """Distance to the Shannon bound of a white Gaussian source."""
        return metrics.gap_db(self.bits_per_weight, self.snr_db)


def bench_codec(
    sources: Sequence[BenchSource],
    bits: Sequence[float],
    efforts: Sequence[int],
    settings: Settings,
    *,
    repeat: int = 3,
    progress: Progress | None = None,
) -> list[Point]:
    """Compress each source at each rate and effort, for real, and measure what the files decode to.

    `settings` says everything but rate and effort; its threads are `all cores`. What is asked is a goal for the tensor
    rather than for the folder: a manifest weighs more than a small matrix, and says nothing of the codec. Speeds are
    those of one pass at the step that was found: how often a compression looks for its step depends on what is asked.
    """
    progress = progress or Silent()
    progress.phase("measuring", len(bits) * len(efforts) * sum(source.elements for source in sources))
    points = []
    for source in sources:
        for effort in efforts:
            for rate in bits:
                own = replace(settings, bits=None, lossless=True, overrides=(f".=bits:{rate}",), effort=effort)
                points.append(_measure(source, own, rate, repeat))
                progress.advance(source.elements)
    return points


def _measure(source: BenchSource, settings: Settings, bits: float, repeat: int) -> Point:
    with tempfile.TemporaryDirectory(prefix="rbe-bench-") as scratch:
        out = Path(scratch) / "point.rbe"
        compress(source.checkpoint(Path(scratch)), out, settings)
        folder = Folder.open(out)
        (layer,) = folder.manifest.layers
        (entry,) = layer.tensors
        stored = folder.open_tensor(source.name)
        snr = _error(source, stored).snr
        decode = _decode_speed(stored, source.elements, settings.threads, repeat)
        coding, analyse_ns, encode = "none", None, None
        if entry.choice is not None:
            coding = entry.choice.name
            analyse_ns, encode = _encode_speed(source, entry.bytes, settings, bits, repeat)
        return Point(
            source, settings.effort, bits, layer.bytes, snr, entry.method, coding, analyse_ns, encode, decode
        )  # fmt: skip


def _error(source: BenchSource, stored: StoredTensor) -> metrics.Error:
    """Of the weights that the file decodes to."""
    at, total = 0, metrics.Error(0.0, 0.0, 0)
    for piece in stored.pieces():
        decoded = piece.decode()
        total += error_of(source.raw[at : at + decoded.size], decoded, source.dtype)
        at += decoded.size
    return total


def _encode_speed(
    source: BenchSource, size: int, settings: Settings, bits: float, repeat: int
) -> tuple[float | None, Speed | None]:
    """Analysis, and one pass of the coder at about the step with which the file became so large."""
    matrix = Matrix(source.raw, source.dtype, *view_shape(source.shape))
    error = reference_error(bits, None)
    wish = Wish(
        settings.transform, settings.block, settings.k, error, bits, settings.structure_only, settings.threshold
    )
    with worker_threads(1) as one:
        started = time.thread_time_ns()
        choose = partial(tensor_codec.prepare, matrix, settings.shaping(source.name))
        choice = tensor_codec.for_size(choose, wish, size)
        analysed = time.thread_time_ns() - started
        if choice is None:
            return None, None
        step = multiplier_for_size([choice.analysis], size) * choice.analysis.unit

        def encode(pool: ThreadPoolExecutor) -> int:
            return tensor_codec.start(choice, step, settings.states, pool).result().nanoseconds

        with worker_threads(settings.threads) as every:
            speed = _speed(lambda: encode(one), lambda: encode(every), source.elements, repeat)
    return analysed / source.elements, speed


def _decode_speed(stored: StoredTensor, elements: int, threads: int, repeat: int) -> Speed:
    def decode() -> int:
        started = time.thread_time_ns()
        for piece in stored.pieces():
            piece.decode()
        return time.thread_time_ns() - started

    with worker_threads(threads) as pool:

        def decode_on_all() -> None:
            for future in [pool.submit(piece.decode) for piece in stored.pieces()]:
                future.result()

        return _speed(decode, decode_on_all, elements, repeat)


def _speed(one_core: Callable[[], int], all_cores: Callable[[], object], elements: int, repeat: int) -> Speed:
    """Time both, after a run of each that does not count; `one_core` gives its processor time in ns."""
    runs = min(-(-_LEAST_ELEMENTS // elements), _MOST_RUNS)
    one_core()
    all_cores()
    alone = [sum(one_core() for _ in range(runs)) for _ in range(repeat)]
    together = []
    for _ in range(repeat):
        started = time.perf_counter_ns()
        for _ in range(runs):
            all_cores()
        together.append(time.perf_counter_ns() - started)
    return Speed(Timing.of(alone, runs * elements), Timing.of(together, runs * elements))
