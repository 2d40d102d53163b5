"""Sweep: compress a checkpoint with every combination of some settings and measure each, resumably."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rbe_cli import __version__, metrics
from rbe_cli.checkpoint.reader import Checkpoint, TensorInfo
from rbe_cli.container.fields import count, number, text
from rbe_cli.container.manifest import TensorEntry
from rbe_cli.container.open_base import AnyBase
from rbe_cli.errors import CorruptFile, RBEError, UsageError
from rbe_cli.operations import records
from rbe_cli.operations.compress import compress
from rbe_cli.operations.figures import total_error
from rbe_cli.operations.presets import RATES
from rbe_cli.operations.settings import DEFAULT_BITS, EXACT_BELOW, Settings
from rbe_cli.operations.verify import verify

#: Rates of a sweep of nothing else.
DEFAULT_RATES = (2.0, 3.0, 4.0, 5.0, 6.0)
#: Of what can be best; of the rest, less is.
_MORE_IS_BETTER = ("snr",)
#: Sizes up to this much larger count as equal: rate control meets them to half a percent.
_EQUAL = 1.005


@dataclass(frozen=True)
class Point:
    """One combination of settings and what it gave.

    Attributes
    ----------
    settings : dict
        As recorded in a manifest.
    tensors : tuple of TensorEntry
    size : int
        Bytes of all layer files and the manifest.
    seconds : float
        Wall time of the compression.
    encode_ns, decode_ns : float or None
        Processor time per weight of the tensors that are not exact.
    problem : str
        Why it could not be done; empty if it was.
    """

    settings: dict[str, Any]
    tensors: tuple[TensorEntry, ...] = ()
    size: int = 0
    seconds: float = 0.0
    encode_ns: float | None = None
    decode_ns: float | None = None
    problem: str = ""

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Point:
        """The way back from `dataclasses.asdict`, through JSON. Raises ValueError, KeyError, TypeError."""
        tensors = tuple(map(TensorEntry.of, value["tensors"]))
        encode, decode = (None if value[key] is None else number(value[key]) for key in ("encode_ns", "decode_ns"))
        return cls(
            dict(value["settings"]), tensors, count(value["size"]), number(value["seconds"]), encode, decode,
            text(value["problem"]),
        )  # fmt: skip

    @property
    def error(self) -> metrics.Error:
        """Of all inexact tensors together."""
        return total_error(self.tensors)

    @property
    def bits(self) -> float:
        """Bits per weight, every byte counted."""
        return metrics.bits_per_weight(self.size, sum(tensor.elements for tensor in self.tensors))

    @property
    def ratio(self) -> float:
        """Source bytes over bytes."""
        return metrics.ratio(sum(tensor.source_bytes for tensor in self.tensors), self.size)

    @property
    def worst_nrmse(self) -> float:
        """Relative error of the worst tensor."""
        return max((tensor.nrmse for tensor in self.tensors), default=0.0)

    def figure(self, column: str) -> float | None:
        """A figure by the name of its column in SWEEP_OBJECTIVES or SWEEP_SORTS."""
        error = self.error
        figures: dict[str, float | None] = {
            "bits": self.bits,
            "ratio": self.ratio,
            "size": self.size,
            "nrmse": error.nrmse,
            "snr": error.snr,
            "gap": metrics.gap_db(self.bits, error.snr),
            "encode": self.encode_ns,
            "decode": self.decode_ns,
            "seconds": self.seconds,
        }
        return figures[column]


@dataclass(frozen=True)
class Grid:
    """The combinations to try.

    Attributes
    ----------
    axes : dict
        Name of a setting -> its values.
    rates : tuple
        (`bits` or `ratio`, value) pairs; each is one rate.
    fixed : dict
        Settings that are the same for all, where no axis has them; a rate among them is one if there are only axes.
    """

    axes: Mapping[str, Sequence[Any]]
    rates: Sequence[tuple[str, float]] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def settings(self) -> list[Settings]:
        """All combinations. Raises UsageError for a value that is out of range."""
        rates, fixed = list(self.rates), {name: value for name, value in self.fixed.items() if name not in RATES}
        if not rates and self.axes:
            rates = [(name, self.fixed[name]) for name in RATES if name in self.fixed] or [("bits", DEFAULT_BITS)]
        rates = rates or [("bits", bits) for bits in DEFAULT_RATES]
        combinations = [dict(zip(self.axes, values, strict=True)) for values in itertools.product(*self.axes.values())]
        return [Settings(**{**fixed, **axes, name: value}) for axes in combinations for name, value in rates]

    def names(self) -> list[str]:
        """The settings that have more than one value."""
        many = [name for name, values in self.axes.items() if len(values) > 1]
        return many + sorted({name for name, _ in self.rates} if len(self.rates) > 1 else ())


@dataclass(frozen=True)
class Sample:
    """Which part of a checkpoint was swept."""

    tensors: int
    of_tensors: int
    elements: int
    of_elements: int

    @property
    def share(self) -> float:
        """Of the weights."""
        return self.elements / max(self.of_elements, 1)


def sampled(checkpoint: Checkpoint, share: float) -> tuple[Checkpoint, Sample]:
    """A checkpoint of some of the tensors, at most `share` of the weights; the same ones every time.

    Small tensors, which are kept exactly, are no larger a part of it than of the whole: they would take its bits.
    """
    if not 0 < share <= 1:
        raise UsageError(f"--sample must be above 0 and at most 1, not {share:g}")
    everything = [info for _, info in checkpoint.tensors]
    small = [info for info in everything if info.elements < EXACT_BELOW]
    large = [info for info in everything if info.elements >= EXACT_BELOW]
    chosen = _spread(large, share) + _spread(small, share)
    filled = large or [info for info in small if info.elements]
    if filled and not any(info.elements for info in chosen):
        chosen = [min(filled, key=lambda info: info.elements)]
    names = {info.name for info in chosen}
    shards = [replace(shard, tensors=[t for t in shard.tensors if t.name in names]) for shard in checkpoint.shards]
    part = replace(checkpoint, shards=[shard for shard in shards if shard.tensors], carried=[])
    elements = sum(info.elements for info in chosen)
    return part, Sample(len(chosen), len(everything), elements, sum(info.elements for info in everything))


def _spread(tensors: Sequence[TensorInfo], share: float) -> list[TensorInfo]:
    """Some of the tensors, of every size its share as far as whole tensors allow; those of one size as by lot."""
    chosen, owed = [], 0.0
    for info in sorted(tensors, key=lambda info: (-info.elements, hashlib.sha256(info.name.encode()).digest())):
        owed += share * info.elements
        if owed >= info.elements:
            chosen.append(info)
            owed -= info.elements
    return chosen


def sweep(
    checkpoint: Checkpoint,
    settings: Sequence[Settings],
    results: Path | None = None,
    done: Callable[[Point, bool], None] | None = None,
    base: AnyBase | None = None,
) -> list[Point]:
    """Try every one of `settings`; each compression goes to a temporary folder, all of whose bytes are measured.

    With a `base`, each is an update of it.

    `results` is a file of records of finished points: those in it are not tried again, new ones are added as they come.
    `done` is told each point, and whether it came from there.
    """
    source = [shard.sha256() for shard in checkpoint.shards] + ([base.entry.sha256] if base else [])
    known = {} if results is None else _read(results)
    points = []
    for one in settings:
        key = _key(one, source, checkpoint)
        point, old = known.get(key), key in known
        if point is None:
            point = _measure(checkpoint, one, base)
            if results is not None:
                records.add(results, {"key": key, "point": asdict(point)})
        points.append(point)
        if done:
            done(point, old)
    return points


def _measure(checkpoint: Checkpoint, settings: Settings, base: AnyBase | None) -> Point:
    with tempfile.TemporaryDirectory(prefix="rbe-sweep-") as scratch:
        out = Path(scratch) / "point.rbe"
        try:
            written = compress(checkpoint, out, settings, base=base)
        except UsageError:
            raise
        except RBEError as error:
            return Point(settings.recorded(), problem=str(error).removeprefix(f"{checkpoint.name}: "))
        checked = verify(out, threads=settings.threads, base=base)
        checked.require_sound()
        return Point(
            settings.recorded(), tuple(written.manifest.tensors), checked.size, written.seconds,
            written.encode_ns_per_weight, checked.decode_ns_per_weight,
        )  # fmt: skip


def _key(settings: Settings, source: list[str], checkpoint: Checkpoint) -> str:
    """What a point depends on."""
    names = [info.name for _, info in checkpoint.tensors]
    # The manifest, whose bytes count, names the files that are carried along.
    beside = [(relative, path.stat().st_size) for path, relative in checkpoint.carried]
    text = json.dumps([__version__, source, names, beside, settings.recorded()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _read(results: Path) -> dict[str, Point]:
    known = {}

    def take(record: Any) -> None:
        known[text(record["key"])] = Point.of(record["point"])

    try:
        records.read(results, take)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise RBEError(f"{results}: cannot be read ({error.strerror})") from None
    except CorruptFile as error:
        raise CorruptFile(f"{error}; give another --results file") from None
    return known


def pareto_front(points: Sequence[Point]) -> set[int]:
    """Numbers of the points than which no other is both as small and more exact.

    Sizes are met to half a percent, so a point that is larger by no more than that still counts as equally small, after
    its SNR is lowered by 6.02 dB a bit for the difference.
    """
    found = [(i, point.bits, point.error.snr) for i, point in enumerate(points) if not point.problem]

    def beaten(i: int, bits: float, snr: float) -> bool:
        for j, other, others_snr in found:
            at_equal_size = others_snr - metrics.DB_PER_BIT * max(other - bits, 0.0)
            same = (other, others_snr) == (bits, snr)
            if other <= bits * _EQUAL and (
                at_equal_size > snr or (at_equal_size == snr and not same) or (same and j < i)
            ):
                return True
        return False

    return {i for i, bits, snr in found if not beaten(i, bits, snr)}


def best(points: Sequence[Point], allowed: Sequence[int], objective: str) -> int | None:
    """Number of the point, of those allowed, that is best for an objective; None if none has the figure."""
    figures = [(points[i].figure(objective), i) for i in allowed]
    found = [(value, i) for value, i in figures if value is not None and not math.isnan(value)]
    if not found:
        return None
    sign = -1 if objective in _MORE_IS_BETTER else 1
    return min(found, key=lambda entry: (sign * entry[0], entry[1]))[1]


def order(points: Sequence[Point], column: str) -> list[int]:
    """Numbers of the points sorted by a column; those that could not be done come last."""

    def place(i: int) -> tuple[bool, float, int]:
        value = points[i].figure(column) if not points[i].problem else None
        return (True, 0.0, i) if value is None or math.isnan(value) else (False, value, i)

    return sorted(range(len(points)), key=place)


def same_results(points: Sequence[Point]) -> Iterator[list[int]]:
    """Groups of points whose tensors have the same sizes and errors: what differs in settings made no difference."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, point in enumerate(points):
        if not point.problem:
            groups.setdefault(tuple((t.bytes, t.nrmse) for t in point.tensors), []).append(i)
    return (group for group in groups.values() if len(group) > 1)
