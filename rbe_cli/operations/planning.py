"""Plan a compression: what every tensor of a checkpoint is going to be, and how large everything may become."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from rbe_cli import dtypes, metrics
from rbe_cli.calibration.importance import Importance
from rbe_cli.calibration.importance_file import read_importance
from rbe_cli.checkpoint.reader import Checkpoint, TensorBytes, TensorInfo
from rbe_cli.codec import lossless, tensor_codec
from rbe_cli.codec.choice.wish import LOOKS, OTHERWISE, Wish, reference_error
from rbe_cli.codec.residual.analysis import Analysis
from rbe_cli.codec.residual.forecast import (
    Expected,
    Forecast,
    expected_size,
    multiplier_for_error,
    multiplier_for_size,
)
from rbe_cli.codec.residual.noise_shaping import Inputs, Shaping, damping
from rbe_cli.codec.residual.rate_control import AIM
from rbe_cli.codec.source import Bytes, Difference, Matrix, view_shape
from rbe_cli.codec.tensor_codec import Choice
from rbe_cli.codec.workspace import make_room, return_freed
from rbe_cli.container.base import BaseTensor, Changes
from rbe_cli.container.names import layer_of
from rbe_cli.container.open_base import AnyBase
from rbe_cli.errors import UsageError
from rbe_cli.operations.looks import Looks
from rbe_cli.operations.plan import EXACT_SHARE, Plan
from rbe_cli.operations.progress import Progress
from rbe_cli.operations.settings import EXACT_BELOW, Goal, Settings

#: Elements that are looked at to know what a tensor takes kept exactly, and those that tell first whether that may be
#: less than so many times what is asked for: tensors that share a step take more or less than that.
EXACT_SAMPLE, _GLANCE, _LIKELY = 1 << 16, 1 << 11, 2.5
#: Bytes of a tensor from which on it is looked at what it takes kept exactly.
_WORTH_A_LOOK = 1 << 14
#: Bytes that are compared to a base's at once.
_COMPARED = 1 << 22
#: Bytes that a fingerprint takes in a layer file and in the manifest.
_FINGERPRINTED = 2 * len('"base":"0123456789abcdef",')
#: From this share of the weights on, it counts for the others that they are kept exactly, and is told where a size is
#: out of reach; and the bits that these others are thought to have at least.
_MANY, _LEAST_BITS = 0.05, 0.03


class Planner:
    """What is known of a checkpoint and of the wish before anything is encoded.

    Attributes
    ----------
    plans : list of Plan
        In the order of the checkpoint; filled by `plan`.
    elements, source_bytes : int
        Of all tensors.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: Settings,
        pool: ThreadPoolExecutor,
        progress: Progress,
        base: AnyBase | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.settings = settings
        self.plans: list[Plan] = []
        self.elements = sum(info.elements for _, info in checkpoint.tensors)
        self.source_bytes = sum(info.nbytes for _, info in checkpoint.tensors)
        self._pool = pool
        self._base = base
        self._progress = progress
        self._finer = 1.0
        self._bits: float | None = None
        self._importance = self._read_importance(settings.importance) if settings.importance else None
        largest = max((info.nbytes for _, info in checkpoint.tensors), default=0)
        make_room(max(largest, self._importance.largest if self._importance else 0))

    def plan(self) -> None:
        """Decide for every tensor how it is coded."""
        self.plans = [
            Plan(
                shard, info, self.settings.tolerance, goal=self.settings.goal(info.name, 1.0), base=self._base_of(info)
            )
            for shard, info in self.checkpoint.tensors
        ]
        list(self._pool.map(self._compare_to_base, [plan for plan in self.plans if plan.base and plan.may_change]))
        if self._base is not None and not any(plan.base for plan in self.plans):
            raise UsageError(f"{self._base.name}: has no tensor of {self.checkpoint.name}, so it is no base of it")
        self._find_identical()
        self._finer = at_first = self._finer_by_base()
        self._progress.phase("analysing", self.elements)
        kept = [plan for plan in self.plans if not plan.may_change]
        if sum(plan.info.elements for plan in kept) > _MANY * self.elements:
            list(self._pool.map(self.look_at_kept, kept))
        self._bits = self._bits_beside(kept)
        self._analyse_every(self.plans)
        looks = Looks()
        for left in reversed(range(LOOKS)):
            again = [plan for plan in self.plans if plan.shares]
            bits = self._bits_beside([plan for plan in self.plans if plan.choice is None])
            if left and bits and self._bits and bits > OTHERWISE * self._bits:
                # More is kept exactly than types and shapes told.
                self._bits, self._finer, looks = bits, at_first, Looks()
            else:
                thought = self._thought()
                as_thought = thought is None or self._is_as_thought(thought)
                if thought is None or (as_thought and not looks):
                    break
                multiplier = multiplier_for_size(self.sharing(), self._room())
                looks.add(multiplier, again)
                octaves = thought - math.log2(multiplier)
                if as_thought or not octaves or not left:
                    break
                self._finer = looks.next(self._finer, octaves)
            self._progress.phase("analysing for other steps", sum(plan.info.elements for plan in again))
            self._analyse_every(again)
        looks.take_best()
        return_freed()

    def jobs(self, plans: list[Plan]) -> list[list[Plan]]:
        """What a thread analyses in one go."""
        return [[plan] for plan in plans]

    def choose(self, matrix: Matrix, shaping: Shaping, wish: Wish, base: Matrix | None) -> Choice | None:
        """Choose structure and transform, and whether to code a tensor or its difference to a base."""
        choice = tensor_codec.prepare(matrix, shaping, wish, base)
        return choice and tensor_codec.coded_with(choice, self.settings.states)

    def by_layer(self) -> dict[str, list[Plan]]:
        """The plans of every layer, in the order of the checkpoint."""
        layers: dict[str, list[Plan]] = {}
        for plan in self.plans:
            layers.setdefault(layer_of(plan.info.name), []).append(plan)
        return layers

    def raw(self, plan: Plan) -> TensorBytes:
        """A tensor's bytes."""
        return self.checkpoint.shards[plan.shard].raw(plan.info)

    def _matrix(self, plan: Plan) -> Matrix:
        return Matrix(self.raw(plan), plan.info.dtype, *view_shape(plan.info.shape))

    def exact(self, plan: Plan) -> Bytes:
        """What is stored of a tensor that is kept exactly: its bytes, or what differs from its base's."""
        raw, changes = self.raw(plan), self._changes(plan)
        if changes is None:
            plan.changes = False
        elif plan.changes is None:
            wanted = (lossless.expected_bytes(each, plan.info.dtype, EXACT_SAMPLE) for each in (changes, raw))
            plan.changes = next(wanted) + _FINGERPRINTED < next(wanted)
        return changes if changes is not None and plan.changes else raw

    def _changes(self, plan: Plan) -> Changes | None:
        """What differs from the bytes of a tensor's base, where that may be stored."""
        base = plan.base
        if not (base and base.exact and base.dtype == plan.info.dtype and base.raw.size and plan.goal.kind != "skip"):
            return None
        return Changes(self.raw(plan), base.raw)

    def exact_chunks(self, plan: Plan, apply: lossless.Apply = map) -> Iterator[bytes]:
        """A tensor's chunks when it is kept exactly; with the `map` of an executor its threads begin at once."""
        return lossless.encode(self.exact(plan), plan.info.dtype, store=plan.goal.kind == "skip", apply=apply)

    def _compare_to_base(self, plan: Plan) -> None:
        """Note whether a tensor has not changed at all, or else how much, about."""
        raw, base = self.raw(plan), plan.base
        if base and base.exact and base.dtype == plan.info.dtype:
            parts = (slice(at, at + _COMPARED) for at in range(0, raw.size, _COMPARED))
            plan.unchanged = all(np.array_equal(raw[part], base.raw[part]) for part in parts)
        matrix = self._matrix(plan)
        base_matrix = None if plan.unchanged else plan.base_matrix(matrix)
        if base_matrix is not None:
            plan.changed = Difference(matrix, base_matrix).share()

    def _finer_by_base(self) -> float:
        """How many times finer the steps are that tensors share, since it is their differences that take the bits."""
        sharing = [plan for plan in self.plans if plan.may_change and plan.goal.kind == "shared"]
        elements = sum(plan.info.elements for plan in sharing)
        octaves = sum(-math.log2(plan.changed) * plan.info.elements for plan in sharing)
        return math.exp2(octaves / elements) if elements else 1.0

    def _base_of(self, info: TensorInfo) -> BaseTensor | None:
        """The base's tensor that one may be stored against."""
        found = self._base.find(info.name) if self._base else None
        return found if found and found.shape == info.shape else None

    def _find_identical(self) -> None:
        """Mark tensors whose bytes another one has, as tied embeddings do; the first by layer order is stored.

        Only of those of which the same is asked.
        """
        groups: dict[tuple[str, tuple[int, ...], Goal, Goal | None], list[Plan]] = {}
        for plan in self.plans:
            info = plan.info
            if info.elements >= EXACT_BELOW:
                asked = (info.dtype, info.shape, plan.goal, self.settings.override(info.name))
                groups.setdefault(asked, []).append(plan)
        for group in groups.values():
            if len(group) < 2:
                continue
            heads: dict[bytes, list[Plan]] = {}
            for plan in group:
                heads.setdefault(self.raw(plan)[:4096].tobytes(), []).append(plan)
            for alike in heads.values():
                first: dict[bytes, str] = {}
                for plan in alike if len(alike) > 1 else []:
                    name = first.setdefault(self.raw(plan).sha256(), plan.info.name)
                    plan.same_as = name if name != plan.info.name else ""

    def _thought(self) -> float | None:
        """The multiplier, in octaves, of the steps that were thought of for those who share them, on average.

        None where no size is asked for, or nothing has steps.
        """
        octaves = elements = 0.0
        for plan in self.plans:
            if plan.shares and isinstance(plan.analysis, Analysis):
                step = plan.analysis.relative_step(plan.analysis.unit)
                octaves += plan.info.elements * math.log2(self._wish(plan).step / step)
                elements += plan.info.elements
        return octaves / elements if elements and self.budget() is not None else None

    def _is_as_thought(self, thought: float) -> bool:
        """Whether the size makes for about these steps, by OTHERWISE: what structure saves all of them get."""
        sharing, room = self.sharing(), self._room()
        # The size falls with the multiplier: at both ends it tells whether the multiplier is between them.
        finest, coarsest = math.exp2(thought) / OTHERWISE, math.exp2(thought) * OTHERWISE
        return expected_size(sharing, finest) > room >= expected_size(sharing, coarsest)

    def _room(self) -> float:
        """Bytes that a size leaves for the tensors that share steps, about."""
        budget = self.budget()
        assert budget is not None
        return budget * AIM - self.overhead(len(self.checkpoint.shards) + len(self.checkpoint.carried))

    def _analyse_every(self, plans: list[Plan]) -> None:
        # The largest first, so that none is left to one thread while the others have nothing to do.
        jobs = self.jobs(sorted(plans, key=lambda plan: -plan.info.elements))
        list(self._pool.map(self._analyse_all, jobs))

    def _analyse_all(self, plans: list[Plan]) -> None:
        for plan in plans:
            self._analyse(plan)

    def _analyse(self, plan: Plan) -> None:
        info = plan.info
        if plan.may_change:
            started = time.thread_time_ns()
            matrix = self._matrix(plan)
            shaping = self.settings.shaping(info.name, self._inputs(plan))
            wish = self._wish(plan)
            choose = partial(self.choose, matrix, shaping, base=plan.base_matrix(matrix))
            if plan.goal.kind == "bits":
                size = AIM * plan.goal.value * info.elements / 8
                plan.choice = tensor_codec.for_size(choose, wish, size)
            else:
                plan.choice = choose(wish)
            if plan.choice is None:
                self._explain_exact(matrix, info.name)
            else:
                plan.goal = self.settings.goal(info.name, plan.choice.analysis.rms)
                self._refine(plan)
                self._look_at_exact(plan, plan.choice.analysis)
                plan.choice.analysis.set_aside()
                self._progress.detail(f"{info.name}: {_choice_text(plan.choice)}")
            plan.analyse_ns += time.thread_time_ns() - started
        if plan.choice is None and math.isinf(plan.exact_bytes):
            self.look_at_kept(plan)
        self._progress.advance(info.elements)

    def look_at_kept(self, plan: Plan) -> None:
        """Note what a tensor takes that is kept exactly, where that is much and a size leaves the others the rest."""
        if self.budget() is None:
            return
        if plan.goal.kind == "skip":
            plan.exact_bytes = plan.info.nbytes
        elif not plan.same_as and (plan.base is not None or plan.info.nbytes >= _WORTH_A_LOOK):
            # With a base it may be next to nothing.
            plan.exact_bytes = lossless.expected_bytes(self.exact(plan), plan.info.dtype, EXACT_SAMPLE)

    def _bits_beside(self, kept: list[Plan]) -> float | None:
        """Bits per weight that a size leaves for the others beside the tensors that are kept exactly.

        Where these are few, it is that of the whole.
        """
        budget = self.budget()
        if budget is None:
            return None
        elements = sum(plan.info.elements for plan in kept)
        if not _MANY * self.elements < elements < self.elements:
            return metrics.bits_per_weight(int(budget), self.elements)
        room = budget - sum(plan.exact_bytes for plan in kept if not plan.same_as and math.isfinite(plan.exact_bytes))
        return max(8 * room / (self.elements - elements), _LEAST_BITS)

    def _look_at_exact(self, plan: Plan, analysis: Forecast) -> None:
        """Note what a tensor takes kept exactly, where that may be less than what it is going to take."""
        dtype, ways = plan.info.dtype, [way for way in (self.raw(plan), self._changes(plan)) if way is not None]
        if plan.goal.kind == "nrmse":
            asked = analysis.expected_bytes(multiplier_for_error(analysis, plan.goal.value) * analysis.unit)
        else:
            asked = self._wish(plan).bits * plan.info.elements / 8
        if min(lossless.expected_bytes(way, dtype, _GLANCE) for way in ways) < _LIKELY * asked:
            plan.exact_bytes = lossless.expected_bytes(self.exact(plan), dtype, EXACT_SAMPLE)

    def _read_importance(self, path: Path) -> Importance:
        """Open the importance file. Raises UsageError if it knows of none of the tensors: it would do nothing."""
        importance = read_importance(path)
        if not any(importance.knows(info.name) for _, info in self.checkpoint.tensors):
            some = ", ".join(importance.names[:3])
            raise UsageError(f"{path}: knows of no tensor of {self.checkpoint.name}; it has {some or 'none'}, ...")
        return importance

    def _inputs(self, plan: Plan) -> Inputs | None:
        """What the importance file knows of a tensor's inputs."""
        importance, info = self._importance, plan.info
        found = importance.mean_square(info.name, info.shape) if importance and len(info.shape) == 2 else None
        if importance is None or found is None:
            return None
        fed = self.settings.feedback and importance.has_moments(info.name)
        moments = partial(importance.moments, info.name, info.shape) if fed else None
        if moments is None:
            return Inputs(*found)
        where = f"{importance.path}: {info.name!r}"
        return Inputs(*found, moments, damping(self._wish(plan).bits), where=where)

    def _refine(self, plan: Plan) -> None:
        """Give a tensor a finer step than its size earns it: a small table of tokens, or what an override says."""
        factor = self.settings.finer(plan.info.name, plan.info.elements / self.elements)
        if plan.goal.kind == "shared" and plan.choice and isinstance(plan.choice.analysis, Analysis) and factor != 1:
            plan.choice = replace(plan.choice, analysis=plan.choice.analysis.finer(factor))

    def _wish(self, plan: Plan) -> Wish:
        """What the choice of structure and transform has to know."""
        bits = plan.goal.value if plan.goal.kind == "bits" else self._bits
        nrmse = plan.goal.value if plan.goal.kind == "nrmse" and self.settings.rmse is None else None
        settings = self.settings
        finer = settings.finer(plan.info.name, plan.info.elements / self.elements) if plan.goal.kind == "shared" else 1
        error = reference_error(bits, nrmse) / finer
        wish = Wish(
            settings.transform, settings.block, settings.k, error, (bits or 4.0) + math.log2(finer),
            settings.structure_only, settings.threshold,
        )  # fmt: skip
        times = {"shared": 1 / self._finer, "bits": plan.changed}.get(plan.goal.kind, 1.0)
        return wish.at_step(wish.step * times) if times != 1 else wish

    def _explain_exact(self, matrix: Matrix, name: str) -> None:
        if not all(np.isfinite(band).all() for _, band in matrix.bands()):
            self._progress.note(f"{name}: holds NaN or infinity in float32, kept exactly")

    # The size of the whole

    def budget(self) -> float | None:
        """Bytes that may be written in all, manifest included; None without a wish for a size, or without weights."""
        if not self.elements:
            return None
        if self.settings.bits is not None:
            return self.settings.bits * self.elements / 8
        if self.settings.ratio is not None:
            return self.source_bytes / self.settings.ratio
        if self.settings.size is not None:
            return float(self.settings.size)
        return None

    def sharing(self) -> Sequence[Expected]:
        """Of the tensors that share the step."""
        return [plan.expected for plan in self.plans if plan.expected is not None and plan.shares]

    def overhead(self, files: int) -> float:
        """Bytes that do not depend on the step: exact tensors, headers, the manifest. A guess, corrected later.

        `files` are those the manifest lists beside the layers.
        """
        total = 600.0 + 120.0 * files
        for plan in self.plans:
            total += 380 + 2 * len(plan.info.name)
            if plan.analysis is None and not plan.same_as:
                guess = plan.info.nbytes * (EXACT_SHARE if plan.info.dtype in dtypes.FLOATS else 0.3)
                total += plan.exact_bytes if math.isfinite(plan.exact_bytes) else guess
            elif plan.expected is not None and plan.own_goal is not None:
                total += plan.expected.expected_bytes(plan.own_goal.first() * plan.expected.unit)
        return total

    def out_of_reach(self, size: float) -> str:
        """What to tell when not even about `size` bytes are few enough."""
        # Rounded to what can be had.
        bits = math.ceil(1000 * 8 * size / self.elements) / 1000
        ratio = math.floor(100 * self.source_bytes / size) / 100
        exact = sum(plan.info.elements for plan in self.plans if plan.analysis is None and not plan.same_as)
        kept = (
            f"; {100 * exact / self.elements:.0f} % of the weights are kept exactly"
            if exact > _MANY * self.elements
            else ""
        )
        return (
            f"{self.checkpoint.name}: cannot be that small; what the codec can do here is about {bits:g} bits per "
            f"weight, a ratio of {ratio:g}{kept}"
        )


def _choice_text(choice: Choice) -> str:
    """What was chosen for a tensor, and what it beat: `klt +1.29 dB, then lowrank +0.20 dB`."""
    text = f"{choice.name} {choice.gain_db:+.2f} dB" if choice.name != "none" else choice.name
    return f"{text}, then {choice.runner_up} {choice.runner_up_db:+.2f} dB" if choice.runner_up else text
