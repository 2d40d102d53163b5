"""Compress a checkpoint: analyse every tensor, find the step, encode layer by layer, write the folder."""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rbe_cli import __version__, dtypes, metrics
from rbe_cli.checkpoint.reader import Checkpoint, TensorInfo
from rbe_cli.codec import lossless, rate_control, tensor_codec, trellis_codec
from rbe_cli.codec.analysis import Analysis
from rbe_cli.codec.rate_control import Forecast
from rbe_cli.codec.source import Matrix, view_shape
from rbe_cli.codec.tensor_codec import AnyEncoding, Choice, Wish
from rbe_cli.container.atomic import atomic_folder, check_free
from rbe_cli.container.layer_file import LOSSY, EncodedTensor, write_layer
from rbe_cli.container.manifest import (
    CARRIED,
    NAME,
    SAME_AS,
    ChoiceEntry,
    FileEntry,
    LayerEntry,
    Manifest,
    SourceFile,
    TensorEntry,
)
from rbe_cli.container.names import file_names, layer_of
from rbe_cli.errors import RBEError
from rbe_cli.operations.progress import Progress, Silent, worker_threads
from rbe_cli.operations.settings import EXACT, EXACT_BELOW, Goal, Settings

_MAX_PASSES = 12
#: Elements that may be under way at once beyond the tensor that is being waited for.
_AHEAD = 1 << 22


@dataclass
class Plan:
    """How one tensor is going to be coded.

    Attributes
    ----------
    choice : Choice or None
        For the trellis coder; None is exact.
    goal : Goal
        What is asked of it.
    same_as : str
        An identical tensor that is stored already.
    """

    shard: int
    info: TensorInfo
    choice: Choice | None = None
    goal: Goal = EXACT
    same_as: str = ""

    @property
    def analysis(self) -> Forecast | None:
        """Of the pipeline that was chosen."""
        return self.choice.analysis if self.choice else None


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
        Tensor -> nanoseconds of one core per element, of the trellis coder and its check.
    passes : int
        Times the weights were encoded to meet the size.
    """

    manifest: Manifest
    size: int
    seconds: float
    encode_ns: dict[str, float]
    passes: int


def compress(
    checkpoint: Checkpoint, out: Path, settings: Settings, *, force: bool = False, progress: Progress | None = None
) -> Compressed:
    """Compress a checkpoint into the folder `out`, which appears when it is complete.

    Raises RBEError if the output is there already or the size asked for is out of reach.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    _check_output(checkpoint, out, force)
    with worker_threads(settings.threads) as pool, atomic_folder(out, replace=force) as folder:
        job = Job(checkpoint, settings, pool, folder, progress)
        written = job.run()
    return Compressed(written.manifest, written.size, time.perf_counter() - started, job.encode_ns, job.passes)


def _check_output(checkpoint: Checkpoint, out: Path, force: bool) -> None:
    check_free(out, force)
    there = out.resolve()
    for shard in checkpoint.shards:
        if there in shard.path.resolve().parents:
            raise RBEError(f"{out}: holds the source; choose another output with -o")
    if force and out.exists() and any(out.iterdir()) and not (out / NAME).is_file():
        raise RBEError(f"{out}: holds something rbe did not write; --force replaces only what `rbe compress` wrote")


@dataclass(frozen=True)
class _Written:
    manifest: Manifest
    size: int


class Job:
    """One compression under way; a forecast is one that stops before it encodes."""

    def __init__(
        self, checkpoint: Checkpoint, settings: Settings, pool: ThreadPoolExecutor, folder: Path, progress: Progress
    ) -> None:
        self.checkpoint = checkpoint
        self.settings = settings
        self.pool = pool
        self.folder = folder
        self.progress = progress
        self.encode_ns: dict[str, float] = {}
        self.passes = 0
        self.elements = sum(info.elements for _, info in checkpoint.tensors)
        self.source_bytes = sum(info.nbytes for _, info in checkpoint.tensors)

    def run(self) -> _Written:
        """Do it."""
        self.sources = tuple(
            SourceFile(shard.relative, shard.size, sha256, shard.metadata)
            for shard, sha256 in zip(
                self.checkpoint.shards, self.pool.map(lambda shard: shard.sha256(), self.checkpoint.shards), strict=True
            )
        )
        self.carried = tuple(self._carry())
        self.plans = self._plan()
        return self._meet_size() if self._budget() is not None else self._encode(0.0)

    # What to do with each tensor

    def _plan(self) -> list[Plan]:
        plans = [Plan(shard, info) for shard, info in self.checkpoint.tensors]
        self._find_identical(plans)
        self.progress.phase("analysing", self.elements)
        list(self.pool.map(self._analyse, plans))
        return plans

    def _find_identical(self, plans: list[Plan]) -> None:
        """Mark tensors whose bytes another one has, as tied embeddings do; the first by layer order is stored."""
        groups: dict[tuple[str, tuple[int, ...]], list[Plan]] = {}
        for plan in plans:
            if plan.info.elements >= EXACT_BELOW:
                groups.setdefault((plan.info.dtype, plan.info.shape), []).append(plan)
        for group in groups.values():
            if len(group) < 2:
                continue
            heads: dict[bytes, list[Plan]] = {}
            for plan in group:
                heads.setdefault(self._raw(plan)[:4096].tobytes(), []).append(plan)
            for alike in heads.values():
                first: dict[bytes, str] = {}
                for plan in alike if len(alike) > 1 else []:
                    name = first.setdefault(hashlib.sha256(self._raw(plan).data).digest(), plan.info.name)
                    plan.same_as = name if name != plan.info.name else ""

    def _raw(self, plan: Plan) -> np.ndarray:
        return self.checkpoint.shards[plan.shard].raw(plan.info)

    def _analyse(self, plan: Plan) -> None:
        info = plan.info
        plan.goal = self.settings.goal(info.name, 1.0)
        lossy = (
            plan.goal.kind not in ("lossless", "skip")
            and not plan.same_as
            and info.dtype in dtypes.FLOATS
            and len(info.shape) > 1
            and info.elements >= EXACT_BELOW
        )
        if lossy:
            matrix = Matrix(self._raw(plan), info.dtype, *view_shape(info.shape))
            shaped = self.settings.objective != "mse"
            plan.choice = tensor_codec.prepare(matrix, *self.settings.shaping(info.name), shaped, self._wish(plan))
            if plan.choice is None:
                self._explain_exact(matrix, info.name)
            else:
                plan.goal = self.settings.goal(info.name, plan.choice.analysis.rms)
                self._refine(plan)
        self.progress.advance(info.elements)

    def _refine(self, plan: Plan) -> None:
        """Give a small table of tokens, which the whole model speaks through, a finer step than its size earns it."""
        factor = self.settings.finer(plan.info.name, plan.info.elements / self.elements)
        if plan.goal.kind == "shared" and plan.choice and isinstance(plan.choice.analysis, Analysis) and factor > 1:
            plan.choice = replace(plan.choice, analysis=plan.choice.analysis.finer(factor))

    def _wish(self, plan: Plan) -> Wish:
        """What the choice of structure and transform has to know."""
        bits = plan.goal.value if plan.goal.kind == "bits" else None
        nrmse = plan.goal.value if plan.goal.kind == "nrmse" and self.settings.rmse is None else None
        budget = self._budget()
        if bits is None and budget is not None:
            bits = metrics.bits_per_weight(int(budget), self.elements)
        settings = self.settings
        return Wish(
            settings.transform, settings.block, settings.k, tensor_codec.reference_error(bits, nrmse), bits or 4.0,
            settings.structure_only, settings.threshold,
        )  # fmt: skip

    def _explain_exact(self, matrix: Matrix, name: str) -> None:
        if not all(np.isfinite(band).all() for _, band in matrix.bands()):
            self.progress.note(f"{name}: holds NaN or infinity, kept exactly")

    # Meeting the size

    def _budget(self) -> float | None:
        """Bytes that may be written in all, manifest included; None if the wish is not a size."""
        if self.settings.bits is not None:
            return self.settings.bits * self.elements / 8
        if self.settings.ratio is not None:
            return self.source_bytes / self.settings.ratio
        if self.settings.size is not None:
            return float(self.settings.size)
        return None

    def _meet_size(self) -> _Written:
        """Encode, measure, correct the step, until the size is at most what was asked and close to it."""
        budget = self._budget()
        assert budget is not None
        analyses = [plan.analysis for plan in self.plans if plan.analysis is not None and plan.goal.kind == "shared"]
        shared = {plan.info.name for plan in self.plans if plan.goal.kind == "shared"}
        search = rate_control.SizeSearch(analyses, budget, self._overhead())
        while True:
            written = self._encode(search.multiplier)
            if search.found(written.size):
                return written
            lossy = sum(
                tensor.bytes for tensor in written.manifest.tensors if tensor.method in LOSSY and tensor.name in shared
            )
            if not search.measured(written.size, lossy) or self.passes >= _MAX_PASSES:
                break
        if search.best is None:
            raise RBEError(self._out_of_reach(written.size))
        return written if written.size == search.best[0] else self._encode(search.best[1])

    def _overhead(self) -> float:
        """Bytes that do not depend on the step: exact tensors, headers, the manifest. A guess, corrected later."""
        total = 600.0 + 120.0 * (len(self.sources) + len(self.carried))
        for plan in self.plans:
            total += 380 + 2 * len(plan.info.name)
            if plan.analysis is None and not plan.same_as:
                total += plan.info.nbytes * (0.85 if plan.info.dtype in dtypes.FLOATS else 0.3)
            elif plan.analysis is not None and plan.goal.kind != "shared":
                total += plan.analysis.expected_bytes(self._own_multiplier(plan, 0.0) * plan.analysis.unit)
        return total

    def _out_of_reach(self, size: int) -> str:
        bits = metrics.bits_per_weight(size, self.elements)
        return (
            f"{self.checkpoint.name}: cannot be that small; what the codec can do here is {bits:.3g} bits per weight, "
            f"a ratio of {metrics.ratio(self.source_bytes, size):.4g}"
        )

    # Encoding

    def _encode(self, multiplier: float) -> _Written:
        """Encode everything once and write it; `multiplier` is for the tensors without a goal of their own."""
        self.passes += 1
        self.progress.phase("encoding" if self.passes == 1 else f"encoding, pass {self.passes}", self.elements)
        by_layer: dict[str, list[Plan]] = {}
        for plan in self.plans:
            by_layer.setdefault(layer_of(plan.info.name), []).append(plan)
        files = file_names(by_layer)
        encoded = self._encoded_tensors([plan for plans in by_layer.values() for plan in plans], multiplier)
        layers = []
        for layer, plans in by_layer.items():
            tensors = [next(encoded) for _ in plans]
            layers.append(self._write_layer(files[layer], plans, tensors))
        layers = _with_errors_of_identical(layers)
        manifest = Manifest(
            f"rbe {__version__}", self.checkpoint.name, self.checkpoint.revision, self.settings.recorded(),
            self.sources, tuple(layers), self.carried,
        )  # fmt: skip
        size = manifest.write(self.folder)
        return _Written(manifest, size + sum(layer.bytes for layer in layers))

    def _encoded_tensors(self, plans: list[Plan], multiplier: float) -> Iterator[tuple[EncodedTensor, metrics.Error]]:
        """Encode in order, with the jobs of the tensors ahead already under way."""
        ahead: deque[tuple[Plan, float, AnyEncoding | None]] = deque()
        waiting = iter(plans)
        under_way = 0
        exhausted = False
        while ahead or not exhausted:
            while not exhausted and (not ahead or under_way < _AHEAD):
                plan = next(waiting, None)
                if plan is None:
                    exhausted = True
                    break
                own = self._own_multiplier(plan, multiplier)
                encoding = self._start(plan.choice, own) if plan.choice is not None else None
                ahead.append((plan, own, encoding))
                under_way += plan.info.elements
            if not ahead:
                return
            plan, own, encoding = ahead.popleft()
            yield self._finish(plan, own, encoding)
            under_way -= plan.info.elements
            self.progress.advance(plan.info.elements)

    def _own_multiplier(self, plan: Plan, shared: float) -> float:
        """The multiplier a tensor starts with."""
        if plan.analysis is None or plan.goal.kind == "shared":
            return shared
        if plan.goal.kind == "bits":
            size = plan.goal.value * plan.info.elements / 8 * rate_control.AIM
            return rate_control.multiplier_for_size([plan.analysis], size)
        return rate_control.multiplier_for_error(plan.analysis, plan.goal.value)

    def _start(self, choice: Choice, multiplier: float) -> AnyEncoding | None:
        """Begin to encode; None if some weight is too many steps large to be coded but exactly."""
        step = multiplier * choice.analysis.unit
        if choice.analysis.largest / step > trellis_codec.MAX_INDEX:
            return None
        return tensor_codec.start(choice, step, self.settings.states, self.pool)

    def _finish(
        self, plan: Plan, multiplier: float, encoding: AnyEncoding | None
    ) -> tuple[EncodedTensor, metrics.Error]:
        info = plan.info
        exact = metrics.Error(0.0, 0.0, info.elements)
        if plan.same_as:
            return EncodedTensor(info.name, info.dtype, info.shape, "same", [], plan.same_as), exact
        if plan.choice is not None and plan.analysis is not None and encoding is not None:
            result = self._meet_goal(plan, multiplier, encoding.result())
            if result is not None:
                size = result.size
                self.encode_ns[info.name] = result.nanoseconds / info.elements
                if size < info.nbytes * 0.6 or size < sum(map(len, self._exact_chunks(plan))):
                    error = metrics.Error(result.squared_error, plan.analysis.energy, info.elements)
                    return EncodedTensor(info.name, info.dtype, info.shape, plan.choice.codec, result.chunks), error
        return EncodedTensor(info.name, info.dtype, info.shape, "lossless", self._exact_chunks(plan)), exact

    def _exact_chunks(self, plan: Plan) -> list[bytes]:
        return list(lossless.encode(self._raw(plan), plan.info.dtype, store=plan.goal.kind == "skip"))

    def _meet_goal(self, plan: Plan, multiplier: float, first: trellis_codec.Encoded) -> trellis_codec.Encoded | None:
        """Encode again until a tensor's own goal is met, or just so; None if only exact will do."""
        if plan.goal.kind == "shared":
            return first
        assert plan.choice is not None
        best: trellis_codec.Encoded | None = None
        result = first
        for _ in range(_MAX_PASSES):
            measured, following = self._against_goal(plan, multiplier, result)
            if measured <= plan.goal.value and (best is None or result.squared_error != best.squared_error):
                best = result
            if rate_control.close(measured, plan.goal.value):
                break
            multiplier = following
            encoding = self._start(plan.choice, multiplier)
            if encoding is None:
                return best
            result = encoding.result()
        return best or self._close_in(plan, multiplier)

    def _close_in(self, plan: Plan, multiplier: float) -> trellis_codec.Encoded | None:
        """Meet a goal near which the figure hardly moves with the step: stride away, then halve the way back."""
        assert plan.choice is not None
        best: trellis_codec.Encoded | None = None
        outside, stride = multiplier, 0.7 if plan.goal.kind == "nrmse" else 1.4
        inside = multiplier
        for _ in range(_MAX_PASSES):
            multiplier = inside * stride if best is None else math.sqrt(inside * outside)
            encoding = self._start(plan.choice, multiplier)
            if encoding is None:
                break
            result = encoding.result()
            measured, _ = self._against_goal(plan, multiplier, result)
            if measured <= plan.goal.value:
                best, inside = result, multiplier
                if rate_control.close(measured, plan.goal.value):
                    break
            elif best is None:
                outside = inside = multiplier
            else:
                outside = multiplier
        return best

    def _against_goal(self, plan: Plan, multiplier: float, result: trellis_codec.Encoded) -> tuple[float, float]:
        """What was measured of the figure a tensor's goal is about, and the multiplier to try next."""
        assert plan.analysis is not None
        if plan.goal.kind == "nrmse":
            measured = math.sqrt(result.squared_error / plan.analysis.energy)
            return measured, rate_control.corrected_for_error(multiplier, measured, plan.goal.value)
        measured = metrics.bits_per_weight(result.size, plan.info.elements)
        return measured, rate_control.corrected_for_bits(multiplier, measured, plan.goal.value)

    # Writing

    def _write_layer(
        self, file: str, plans: list[Plan], encoded: list[tuple[EncodedTensor, metrics.Error]]
    ) -> LayerEntry:
        path = self.folder / file
        write_layer(path, [tensor for tensor, _ in encoded])
        size = path.stat().st_size
        common = size - sum(tensor.size() for tensor, _ in encoded)
        entries = []
        for i, (plan, (tensor, error)) in enumerate(zip(plans, encoded, strict=True)):
            method = SAME_AS + tensor.same_as if tensor.same_as else tensor.codec
            # The part of the file that belongs to no tensor is counted with the first.
            own = tensor.size() + (common if i == 0 else 0)
            entries.append(
                TensorEntry(
                    tensor.name,
                    tensor.dtype,
                    tensor.shape,
                    method,
                    own,
                    error.rmse,
                    error.nrmse,
                    plan.shard,
                    choice_entry(plan.choice) if tensor.codec in LOSSY else None,
                )
            )
        with path.open("rb") as handle:
            sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
        return LayerEntry(file, size, sha256, tuple(entries))

    def _carry(self) -> Iterator[FileEntry]:
        for path, relative in self.checkpoint.carried:
            target = self.folder / CARRIED / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            with target.open("rb") as handle:
                yield FileEntry(relative, target.stat().st_size, hashlib.file_digest(handle, "sha256").hexdigest())


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
        if not tensor.method.startswith(SAME_AS):
            return tensor
        other = stored[tensor.method.removeprefix(SAME_AS)]
        return replace(tensor, rmse=other.rmse, nrmse=other.nrmse)

    return [replace(layer, tensors=tuple(map(entry, layer.tensors))) for layer in layers]
