"""Compress a checkpoint: plan, find the step, encode layer by layer, write the folder."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rbe_cli import __version__, metrics
from rbe_cli.checkpoint.reader import Checkpoint
from rbe_cli.codec import tensor_codec
from rbe_cli.codec.residual import rate_control, trellis_codec
from rbe_cli.codec.tensor_codec import AnyEncoding, Choice
from rbe_cli.container.folder import Folder, check_carried_bytes
from rbe_cli.container.layer_file import EncodedTensor, write_layer
from rbe_cli.container.manifest import (
    CARRIED,
    BaseEntry,
    ChoiceEntry,
    FileEntry,
    LayerEntry,
    Manifest,
    SourceFile,
    TensorEntry,
)
from rbe_cli.container.methods import LOSSY
from rbe_cli.container.names import file_names, is_layer_file
from rbe_cli.container.open_base import AnyBase
from rbe_cli.errors import CorruptFile, Interrupted, RBEError
from rbe_cli.files.atomic import atomic_folder, check_apart, check_free, check_own
from rbe_cli.files.names import MANIFEST
from rbe_cli.files.plain_file import PlainFile, copy, sha256_of_copy
from rbe_cli.operations.journal import Journal
from rbe_cli.operations.plan import Plan, goal_multiplier
from rbe_cli.operations.planning import Planner
from rbe_cli.operations.progress import Progress, Silent, worker_threads
from rbe_cli.operations.settings import Settings

#: As the manifest names what wrote it.
TOOL = f"rbe {__version__}"
#: Elements that may be under way at once beyond the tensor that is being waited for.
_AHEAD = 1 << 22


@dataclass(frozen=True)
class Compressed:
    """What a compression wrote.

    Attributes
    ----------
    manifest : Manifest
    size : int
        Bytes of the layer files and the manifest.
    seconds : float
        Wall time.
    encode_ns : dict
        Tensor -> nanoseconds of one core per element, of one pass of the coder and its check.
    analyse_ns : float
        Nanoseconds of one core, of choosing structure and transform and fitting scales, all tensors together.
    passes : int
        Times the weights were encoded to meet the size.
    """

    manifest: Manifest
    size: int
    seconds: float
    encode_ns: dict[str, float]
    analyse_ns: float
    passes: int

    @property
    def encode_ns_per_weight(self) -> float | None:
        """Of one pass, of all tensors that are not exact together; None if there is none."""
        inexact = [tensor for tensor in self.manifest.tensors if tensor.name in self.encode_ns]
        work = sum(self.encode_ns[tensor.name] * tensor.elements for tensor in inexact)
        return work / sum(tensor.elements for tensor in inexact) if inexact else None

    @property
    def analyse_ns_per_weight(self) -> float | None:
        """Of those tensors, too."""
        elements = sum(tensor.elements for tensor in self.manifest.tensors if tensor.name in self.encode_ns)
        return self.analyse_ns / elements if elements else None


def compress(
    checkpoint: Checkpoint,
    out: Path,
    settings: Settings,
    *,
    force: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    base: AnyBase | None = None,
) -> Compressed:
    """Compress a checkpoint into the folder `out`, which appears when it is complete.

    With a `base` it is an update: of every tensor that has one of its name and shape there, what changed is stored, if
    that takes less. To decode it takes the base, too.

    With `resume`, go on from what a killed run left, if the source and the settings are the same; the bytes are those
    of a run that was never stopped.

    Raises RBEError if the output is there already or the size asked for is out of reach; with `resume`, Interrupted
    for KeyboardInterrupt.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    maybe_finished = resume and (out / MANIFEST).is_file()
    if not maybe_finished:
        _check_output(checkpoint, base, out, force)
    with worker_threads(settings.threads) as pool:
        sources = _fingerprints(checkpoint, pool)
        if maybe_finished:
            finished = _finished(checkpoint, sources, out, settings, base.entry if base else None)
            if finished is not None:
                progress.note(f"{out} is complete already")
                return Compressed(finished.manifest, finished.size, time.perf_counter() - started, {}, 0.0, 0)
            _check_output(checkpoint, base, out, force)
        try:
            with atomic_folder(out, replace=force, keep=resume) as folder:
                job = _Job(checkpoint, sources, settings, pool, folder, progress, base)
                if resume and job.journal.fresh:
                    progress.note(f"starting at the beginning: {job.journal.fresh}")
                written = job.run()
                if base and not any(tensor.base for tensor in written.manifest.tensors):
                    progress.note(f"no tensor takes less against {base.name}; without --base none would be needed")
                _read_again(folder, out)
        except KeyboardInterrupt:
            if resume:
                raise Interrupted("interrupted; what is finished is kept, and the same command goes on") from None
            raise
    analyse_ns = float(sum(plan.analyse_ns for plan in job.planner.plans))
    seconds = time.perf_counter() - started
    return Compressed(written.manifest, written.size, seconds, job.encode_ns, analyse_ns, job.passes)


def _read_again(folder: Path, out: Path) -> None:
    """Raise RBEError, before it takes its place, if a folder is not one that can be opened."""
    try:
        Folder.open(folder, max_decoded=sys.maxsize)
    except CorruptFile as error:
        raise RBEError(f"{out}: cannot be written so that it can be read again ({error})") from None


def _fingerprints(checkpoint: Checkpoint, pool: ThreadPoolExecutor) -> tuple[SourceFile, ...]:
    sums = pool.map(lambda shard: shard.sha256(), checkpoint.shards)
    return tuple(
        SourceFile(shard.relative, shard.size, sha256, shard.metadata)
        for shard, sha256 in zip(checkpoint.shards, sums, strict=True)
    )


def _finished(
    checkpoint: Checkpoint, sources: tuple[SourceFile, ...], out: Path, settings: Settings, base: BaseEntry | None
) -> _Written | None:
    """What is in `out` if it is just what would be written."""
    manifest = Folder.open(out, whole=True).manifest
    made_of = (manifest.tool, manifest.source, manifest.revision, manifest.settings, manifest.sources, manifest.base)
    if made_of != (TOOL, checkpoint.name, checkpoint.revision, settings.recorded(), sources, base):
        return None
    for entry in manifest.carried:
        check_carried_bytes(out, entry)
    carried = [(relative, sha256_of_copy(path)) for path, relative in checkpoint.carried]
    if carried != [(entry.path, entry.sha256) for entry in manifest.carried]:
        return None
    return _Written(manifest, manifest.stored_bytes)


def _check_output(checkpoint: Checkpoint, base: AnyBase | None, out: Path, force: bool) -> None:
    check_free(out, force)
    check_apart(out, (shard.path for shard in checkpoint.shards), "the source")
    check_apart(out, base.files if base else (), "the base")
    if force and out.exists() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise RBEError(f"{out}: holds something rbe did not write; --force replaces only what `rbe compress` wrote")
    check_own(out, lambda path: path == MANIFEST or path.startswith(f"{CARRIED}/") or is_layer_file(path))


@dataclass(frozen=True)
class _Written:
    manifest: Manifest
    size: int


class _Job:
    """One compression under way."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        sources: tuple[SourceFile, ...],
        settings: Settings,
        pool: ThreadPoolExecutor,
        folder: Path,
        progress: Progress,
        base: AnyBase | None,
    ) -> None:
        self.checkpoint = checkpoint
        self.sources = sources
        self.settings = settings
        self.pool = pool
        self.folder = folder
        self.progress = progress
        self.encode_ns: dict[str, float] = {}
        self.passes = 0
        self.base = base.entry if base else None
        self.planner = Planner(checkpoint, settings, pool, progress, base)
        self.journal = Journal(
            folder.with_name("journal"),
            folder,
            {
                # Names and what is carried along, too: the manifest, which counts, has them.
                "source": [
                    [checkpoint.name, checkpoint.revision],
                    [[file.path, file.bytes, file.sha256] for file in sources],
                    [[relative, path.stat().st_size] for path, relative in checkpoint.carried],
                ],
                "set of settings": settings.recorded(),
                "version of rbe": TOOL,
                "base": asdict(self.base) if self.base else None,
            },
        )

    def run(self) -> _Written:
        """Do it."""
        self.carried = tuple(self._carry())
        self.planner.plan()
        budget = self.planner.budget()
        if budget is not None:
            return self._meet_size(budget)
        self.passes = 1
        return self._encode(0.0)

    # Meeting the size

    def _meet_size(self, budget: float) -> _Written:
        """Encode, measure, correct the step, until the size is at most what was asked and close to it."""
        sharing = {plan.info.name for plan in self.planner.plans if plan.shares}
        overhead = self.planner.overhead(len(self.sources) + len(self.carried))
        search = rate_control.SizeSearch(self.planner.sharing(), budget, overhead, self.settings.tolerance)
        most = rate_control.MAX_PASSES
        while True:
            multiplier = search.multiplier
            self.passes += 1
            size, shares = self.journal.measured(multiplier) or (0, 0)
            if not size or search.found(size):
                written = self._encode(multiplier)
                size = written.size
                shares = sum(t.bytes for t in written.manifest.tensors if t.name in sharing)
                self.journal.add_pass(multiplier, size, shares)
                if size <= budget and not any(t.lossy for t in written.manifest.tensors if t.name in sharing):
                    # All there is: nothing is left to spend more bytes on.
                    return written
            self.progress.detail(
                f"pass {self.passes}: step multiplier {multiplier:.6g}, {size:,} of {budget:,.0f} bytes"
            )
            if search.found(size):
                return written
            if search.measured(size, shares) and self.passes < most:
                continue
            most = 2 * rate_control.MAX_PASSES
            if self.passes >= most or not search.coarser():
                break
        if search.best is None:
            raise RBEError(self.planner.out_of_reach(search.least()))
        # What is there is of the last pass: if that is the best, every layer is kept.
        return self._encode(search.best[1])

    # Encoding

    def _encode(self, multiplier: float) -> _Written:
        """Encode everything once and write it; `multiplier` is for the tensors without a goal of their own."""
        by_layer = self.planner.by_layer()
        files = file_names(by_layer)
        kept = {
            layer: entry if entry and _is_of(entry, plans) else None
            for layer, plans in by_layer.items()
            for entry in [self.journal.layer(files[layer], multiplier)]
        }
        if not all(kept.values()):
            name = "encoding" if self.passes == 1 else f"encoding, pass {self.passes}"
            self.progress.phase(name, self.planner.elements)
        encoded = self._encoded_tensors(
            [plan for layer, plans in by_layer.items() if not kept[layer] for plan in plans], multiplier
        )
        layers = []
        for layer, plans in by_layer.items():
            entry = kept[layer]
            if entry is None:
                entry = self._write_layer(files[layer], plans, encoded)
                self.journal.add_layer(multiplier, entry)
            else:
                self.progress.detail(f"{entry.file}: finished before")
                self.progress.advance(sum(plan.info.elements for plan in plans))
            layers.append(entry)
        layers = _with_errors_of_identical(layers)
        manifest = Manifest(
            TOOL, self.checkpoint.name, self.checkpoint.revision, self.settings.recorded(),
            self.sources, tuple(layers), self.carried, self.base,
        )  # fmt: skip
        size = manifest.write(self.folder)
        return _Written(manifest, size + sum(layer.bytes for layer in layers))

    def _encoded_tensors(self, plans: list[Plan], multiplier: float) -> Iterator[tuple[EncodedTensor, metrics.Error]]:
        """Encode in order, with the jobs of the tensors ahead already under way."""
        ahead: deque[tuple[Plan, float, AnyEncoding | None, Iterator[bytes] | None]] = deque()
        waiting = iter(plans)
        under_way = 0
        exhausted = False
        while ahead or not exhausted:
            while not exhausted and (not ahead or under_way < _AHEAD):
                plan = next(waiting, None)
                if plan is None:
                    exhausted = True
                    break
                own = goal_multiplier(plan, multiplier)
                encoding = self._start(plan.choice, own) if plan.choice is not None else None
                chunks = None if encoding or plan.same_as else self._exact_chunks(plan)
                ahead.append((plan, own, encoding, chunks))
                under_way += plan.info.elements
            if not ahead:
                return
            plan, own, encoding, chunks = ahead.popleft()
            yield self._finish(plan, own, encoding, chunks)
            under_way -= plan.info.elements
            self.progress.advance(plan.info.elements)

    def _start(self, choice: Choice, multiplier: float) -> AnyEncoding | None:
        """Begin to encode; None if some weight is too many steps large to be coded but exactly."""
        step = multiplier * choice.analysis.unit
        if choice.analysis.largest / step > trellis_codec.MAX_INDEX:
            return None
        return tensor_codec.start(choice, step, self.settings.states, self.pool)

    def _finish(
        self, plan: Plan, multiplier: float, encoding: AnyEncoding | None, exact: Iterator[bytes] | None
    ) -> tuple[EncodedTensor, metrics.Error]:
        """Wait for what was begun, the `encoding` or the chunks of a tensor that is kept exactly.

        One whose encoding meets no goal, or is larger, is kept exactly, too.
        """
        info = plan.info
        no_error = metrics.Error(0.0, 0.0, info.elements)
        if plan.same_as:
            return EncodedTensor(info.name, info.dtype, info.shape, "same", [], plan.same_as), no_error
        chunks = None
        if plan.choice is not None and plan.analysis is not None and encoding is not None:
            result = self._meet_goal(plan, plan.choice, multiplier, encoding.result())
            if result is not None:
                self.encode_ns[info.name] = result.nanoseconds / info.elements
                chunks = list(self._exact_chunks(plan)) if plan.may_be_less_exactly(result.size) else None
                if chunks is None or result.size < sum(map(len, chunks)):
                    error = metrics.Error(result.squared_error, plan.analysis.energy, info.elements)
                    codec = plan.choice.codec
                    return EncodedTensor(
                        info.name, info.dtype, info.shape, codec, result.chunks, version=result.version,
                        base=plan.fingerprint(codec),
                    ), error  # fmt: skip
        if chunks is None:
            chunks = list(self._exact_chunks(plan) if exact is None else exact)
        return EncodedTensor(
            info.name, info.dtype, info.shape, "lossless", chunks, base=plan.fingerprint("lossless")
        ), no_error

    def _exact_chunks(self, plan: Plan) -> Iterator[bytes]:
        """Begin to keep a tensor exactly."""
        return self.planner.exact_chunks(plan, self.pool.map)

    def _meet_goal(
        self, plan: Plan, choice: Choice, multiplier: float, first: trellis_codec.Encoded
    ) -> trellis_codec.Encoded | None:
        """What meets a tensor's own goal, if it has one; None if only exact will do."""

        def encode(other: float) -> trellis_codec.Encoded | None:
            encoding = self._start(choice, other)
            return None if encoding is None else encoding.result()

        return first if plan.own_goal is None else plan.own_goal.meet(multiplier, first, encode)

    # Writing

    def _write_layer(
        self, file: str, plans: list[Plan], encoded: Iterator[tuple[EncodedTensor, metrics.Error]]
    ) -> LayerEntry:
        """Write the next of `encoded`, one for each plan."""
        entries: list[TensorEntry] = []

        def tensors() -> Iterator[EncodedTensor]:
            for plan in plans:
                tensor, error = next(encoded)
                entries.append(_tensor_entry(plan, tensor, error))
                yield tensor

        path = self.folder / file
        write_layer(path, tensors())
        size = path.stat().st_size
        # The part of the file that belongs to no tensor is counted with the first.
        common = size - sum(entry.bytes for entry in entries)
        entries[0] = replace(entries[0], bytes=entries[0].bytes + common)
        return LayerEntry(file, size, PlainFile(path).sha256(), tuple(entries))

    def _carry(self) -> Iterator[FileEntry]:
        shutil.rmtree(self.folder / CARRIED, ignore_errors=True)
        for path, relative in self.checkpoint.carried:
            target = self.folder / CARRIED / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            sha256 = copy(path, target)
            yield FileEntry(relative, target.stat().st_size, sha256)


def _is_of(entry: LayerEntry, plans: list[Plan]) -> bool:
    """Whether what a journal says of a layer is of the tensors that are planned, and nothing a stranger made up."""
    return [(plan.info.name, plan.info.dtype, plan.info.shape, plan.shard, plan.same_as) for plan in plans] == [
        (tensor.name, tensor.dtype, tensor.shape, tensor.source, tensor.same_as) for tensor in entry.tensors
    ]


def _tensor_entry(plan: Plan, tensor: EncodedTensor, error: metrics.Error) -> TensorEntry:
    choice = choice_entry(plan.choice) if tensor.codec in LOSSY else None
    return TensorEntry(
        tensor.name, tensor.dtype, tensor.shape, tensor.method, tensor.size(), error.rmse, error.nrmse, plan.shard,
        choice, tensor.base,
    )  # fmt: skip


def choice_entry(choice: Choice | None) -> ChoiceEntry | None:
    """What the manifest says of a choice."""
    if choice is None:
        return None
    gains = (float(f"{gain:.6g}") for gain in (choice.gain_db, choice.runner_up_db))
    return ChoiceEntry(choice.name, next(gains), choice.runner_up, next(gains))


def _with_errors_of_identical(layers: list[LayerEntry]) -> list[LayerEntry]:
    """Give tensors that are stored as another one the error that one has."""
    stored = {tensor.name: tensor for layer in layers for tensor in layer.tensors}

    def entry(tensor: TensorEntry) -> TensorEntry:
        if not tensor.same_as:
            return tensor
        other = stored[tensor.same_as]
        return replace(tensor, rmse=other.rmse, nrmse=other.nrmse)

    return [replace(layer, tensors=tuple(map(entry, layer.tensors))) for layer in layers]
