"""What a compression would give: the size and error of every tensor and of the whole, without encoding."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import cached_property

from rbe_cli import metrics
from rbe_cli.checkpoint.reader import Checkpoint
from rbe_cli.codec import lossless, tensor_codec
from rbe_cli.codec.choice.sample import Sample
from rbe_cli.codec.choice.wish import Wish
from rbe_cli.codec.residual import trellis_codec
from rbe_cli.codec.residual.forecast import multiplier_for_size
from rbe_cli.codec.residual.noise_shaping import Shaping
from rbe_cli.codec.residual.rate_control import AIM
from rbe_cli.codec.source import Matrix, view_shape
from rbe_cli.codec.tensor_codec import Choice
from rbe_cli.codec.tiles import Grid
from rbe_cli.container.fields import FINGERPRINT
from rbe_cli.container.layer_file import EncodedTensor
from rbe_cli.container.manifest import BaseEntry, FileEntry, LayerEntry, Manifest, SourceFile, TensorEntry
from rbe_cli.container.methods import LOSSY, method_of
from rbe_cli.container.names import file_names
from rbe_cli.container.open_base import AnyBase
from rbe_cli.errors import RBEError
from rbe_cli.operations.compress import TOOL, choice_entry
from rbe_cli.operations.plan import Plan, goal_multiplier
from rbe_cli.operations.planning import EXACT_SAMPLE, Planner
from rbe_cli.operations.progress import Progress, Silent, worker_threads
from rbe_cli.operations.settings import Settings

#: Elements of tensors that one thread looks at, one after the other, at most and at least; and of what is left, a
#: thread's share is cut into so many. A look at a small one is all Python and small arrays: threads that do so at once
#: wait for each other.
_TOGETHER, _LEAST_TOGETHER, _CUTS = 1 << 21, 1 << 18, 2
#: Bytes of a layer file that belong to no tensor.
_LAYER = 38
_SHA256, _FINGERPRINT = "0" * 64, "0" * FINGERPRINT
#: Times samples are coded, at most, until their steps stay where they are.
_ROUNDS = 6
#: How far off a forecast of the size may be, relative.
_UNSURE = 0.02


@dataclass(frozen=True)
class Forecast:
    """What is to be expected.

    Attributes
    ----------
    manifest : Manifest
        With the sizes and errors expected.
    size : int
        Bytes of the layer files and the manifest.
    seconds : float
        Wall time of the forecast.
    """

    manifest: Manifest
    size: int
    seconds: float


def forecast(
    checkpoint: Checkpoint, settings: Settings, progress: Progress | None = None, base: AnyBase | None = None
) -> Forecast:
    """Analyse a checkpoint as `compress` does, find the step, and write nothing.

    Raises RBEError if the size asked for is out of reach.
    """
    started = time.perf_counter()
    with worker_threads(settings.threads) as pool:
        manifest, size = _Forecasting(checkpoint, settings, pool, progress or Silent(), base).expected()
    return Forecast(manifest, size, time.perf_counter() - started)


class _Forecasting(Planner):
    """A compression that stops before it encodes, and looks at samples only."""

    def jobs(self, plans: list[Plan]) -> list[list[Plan]]:
        """As many as a thread is to look at in one go: fewer towards the end, so that all threads end together."""
        jobs: list[list[Plan]] = []
        left = sum(plan.info.elements for plan in plans)
        room = 0
        for plan in plans:
            if not jobs or plan.info.elements > room:
                jobs.append([])
                room = min(max(left // (_CUTS * self.settings.threads), _LEAST_TOGETHER), _TOGETHER)
            jobs[-1].append(plan)
            room -= plan.info.elements
            left -= plan.info.elements
        return jobs

    def _analyse(self, plan: Plan) -> None:
        super()._analyse(plan)
        if plan.choice is not None and plan.choice.sample is not None:
            plan.choice.sample.set_aside()

    def look_at_kept(self, plan: Plan) -> None:
        """Note what a tensor takes that is kept exactly."""
        self._exact_size(plan)

    def choose(self, matrix: Matrix, shaping: Shaping, wish: Wish, base: Matrix | None) -> Choice | None:
        """Choose as the compression is going to, by a sample."""
        return tensor_codec.estimate(matrix, shaping, wish, self.settings.states, base)

    def expected(self) -> tuple[Manifest, int]:
        """The manifest that is to be expected, and the size of everything."""
        self.sources = tuple(
            SourceFile(shard.relative, shard.size, _SHA256, shard.metadata) for shard in self.checkpoint.shards
        )
        self.carried = tuple(
            FileEntry(relative, path.stat().st_size, _SHA256) for path, relative in self.checkpoint.carried
        )
        self.plan()
        budget = self.budget()
        multiplier = self._multiplier(budget)
        for _ in range(_ROUNDS):
            if not self._code_samples(multiplier):
                break
            multiplier = self._multiplier(budget)
        manifest = self._written(multiplier)
        size = manifest.stored_bytes
        if budget is not None and size > budget:
            self._check(budget)
        return manifest, size

    def _multiplier(self, budget: float | None) -> float:
        """That of the tensors that share their step, 0 if none do."""
        if budget is None:
            return 0.0
        rest = self._written(None).stored_bytes
        return multiplier_for_size(self.sharing(), budget * AIM - rest)

    def _code_samples(self, multiplier: float) -> bool:
        """Correct forecasts by coding samples where these tell more at the steps there are now; whether any did.

        At few bits what a tensor is going to be depends on its step, which depends on all tensors.
        """
        wanted = [
            (plan, plan.choice.sample, step)
            for plan in self.plans
            if plan.choice and plan.choice.sample and plan.choice.sample.wants(step := self._step(plan, multiplier))
        ]

        def code(plan: Plan, sample: Sample, step: float) -> None:
            assert plan.choice is not None
            corrected = replace(sample.coded(step), unit=plan.choice.analysis.unit)
            corrected.set_aside()
            plan.choice = replace(plan.choice, analysis=corrected)

        list(self._pool.map(code, *zip(*wanted, strict=True)) if wanted else ())
        return bool(wanted)

    def _step(self, plan: Plan, multiplier: float) -> float:
        assert plan.analysis is not None
        return goal_multiplier(plan, multiplier) * plan.analysis.unit

    def _check(self, budget: float) -> None:
        """Raise RBEError if the size asked for is out of reach, as the compression does; note what is too close."""
        least = self._written(multiplier_for_size(self.sharing(), 0)).stored_bytes
        if least > budget * (1 + _UNSURE):
            raise RBEError(self.out_of_reach(least))
        if least > budget:
            self._progress.note(
                f"{least:,} bytes is the least to be expected, {budget:,.0f} are asked for: too close to tell whether "
                "the compression comes to it, or says that it cannot be that small"
            )

    def _written(self, multiplier: float | None) -> Manifest:
        """The manifest at a step; with None, of what does not depend on it."""
        layers = []
        for file, plans in self._files.items():
            entries = [self._entry(plan, multiplier, i == 0) for i, plan in enumerate(plans)]
            layers.append(LayerEntry(file, sum(entry.bytes for entry in entries), _SHA256, tuple(entries)))
        base = BaseEntry(self._base.name, None, _SHA256) if self._base else None
        return Manifest(
            TOOL, self.checkpoint.name, self.checkpoint.revision, self.settings.recorded(),
            self.sources, tuple(layers), self.carried, base,
        )  # fmt: skip

    @cached_property
    def _files(self) -> dict[str, list[Plan]]:
        """The tensors of every layer file."""
        by_layer = self.by_layer()
        names = file_names(by_layer)
        return {names[layer]: plans for layer, plans in by_layer.items()}

    def _entry(self, plan: Plan, multiplier: float | None, first: bool) -> TensorEntry:
        info = plan.info
        size, chunks, error, method = self._body(plan, multiplier)
        base = _FINGERPRINT if plan.is_based(method) else ""
        side = EncodedTensor(
            info.name, info.dtype, info.shape, method.split()[0], [b""] * chunks, plan.same_as, base=base
        ).size()
        total = size + side + (_LAYER if first else 1)
        return TensorEntry(
            info.name, info.dtype, info.shape, method, round(total), error.rmse, error.nrmse, plan.shard,
            choice_entry(plan.choice) if method in LOSSY else None, base,
        )  # fmt: skip

    def _body(self, plan: Plan, multiplier: float | None) -> tuple[float, int, metrics.Error, str]:
        """Bytes and number of the chunks, error, and method."""
        info = plan.info
        exact = metrics.Error(0.0, 0.0, info.elements)
        if plan.same_as:
            return 0, 0, self._error_of(plan.same_as, multiplier), method_of("same", plan.same_as)
        if plan.choice is not None:
            analysis, codec = plan.choice.analysis, plan.choice.codec
            chunks = 1 + len(Grid.of(*view_shape(info.shape)))
            if multiplier is None and plan.goal.kind == "shared":
                return 0, chunks, exact, codec
            step = self._step(plan, multiplier or 0.0)
            size = analysis.expected_bytes(step)
            fits = analysis.largest / step <= trellis_codec.MAX_INDEX
            error = metrics.Error(analysis.expected_error(step), analysis.energy, info.elements)
            if plan.goal.kind == "nrmse":
                # Without a coded residual, what is below the threshold is lost at any step.
                fits = fits and error.nrmse <= plan.goal.value * (1 + _UNSURE)
            if fits and (not plan.may_be_less_exactly(size) or size < self._exact_size(plan)):
                return size, chunks, error, codec
        return self._exact_size(plan), lossless.chunk_count(info.dtype, info.shape), exact, "lossless"

    def _error_of(self, name: str, multiplier: float | None) -> metrics.Error:
        other = next(plan for plan in self.plans if plan.info.name == name)
        return self._body(other, multiplier)[2]

    def _exact_size(self, plan: Plan) -> float:
        """Bytes of a tensor's chunks when it is kept exactly, worked out once."""
        if math.isinf(plan.exact_bytes):
            plan.exact_bytes = self._exact_bytes(plan)
        return plan.exact_bytes

    def _exact_bytes(self, plan: Plan) -> float:
        info = plan.info
        if plan.same_as:
            return 0.0
        if plan.analysis is None and (plan.goal.kind == "skip" or info.elements <= EXACT_SAMPLE):
            return sum(map(len, self.exact_chunks(plan)))
        return lossless.expected_bytes(self.exact(plan), info.dtype, EXACT_SAMPLE)
