"""The settings of a compression, checked once and written to the manifest."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rbe_cli.codec.parameters import CHOICES
from rbe_cli.errors import UsageError
from rbe_cli.files.plain_file import PlainFile
from rbe_cli.operations.patterns import compile_pattern

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rbe_cli.codec.residual.noise_shaping import Inputs, Shaping

OBJECTIVES = ("balanced", "mse")
#: Trellis states of each effort level.
EFFORT_STATES = (4, 8, 16, 32, 64, 128, 256, 256, 256, 256)
#: How far below the wish a size, or an error, may stay at each: the last levels come closer, in more passes.
EFFORT_TOLERANCE = (0.004,) * 7 + (0.002, 0.001, 0.0005)
DEFAULT_EFFORT = 5
DEFAULT_BITS = 4.0
#: Tensors with fewer elements than this are kept exactly, and so are all vectors: they weigh nothing.
EXACT_BELOW = 1024
#: gr and gc of `balanced`, in sixteenths; tables of embeddings get none, where shaping harms.
BALANCED = (8, 8)
_UNSHAPED = re.compile(r"embed|(^|\.)(wte|wpe|lm_head|tok_emb|pos_emb|shared)(\.|$)", re.IGNORECASE)
#: Tables that are looked up: a row is an output, and what they meet as a head says nothing of that.
_TABLES = re.compile(r"embed(?!_out)|(^|\.)(wte|wpe|tok_emb|pos_emb|shared)(\.|$)", re.IGNORECASE)
_TOKENS = re.compile(r"(^|\.)(wte|lm_head|tok_emb|embed_tokens|word_embeddings|shared|embed_out)(\.|$)", re.IGNORECASE)
_SMALL_SHARE, _FINER = 1 / 16, 4.0
_BLOCKS = range(4, 1025)
#: Kind of an override of so many bits more or less than the tensor's part of the whole.
_MORE = "more bits"


class Goal(NamedTuple):
    """What is asked of one tensor.

    Attributes
    ----------
    kind : str
        `shared`: its part of the size of the whole; `bits` and `nrmse`: a `value` of its own; `lossless`; `skip`.
    """

    kind: str
    value: float = 0.0


EXACT = Goal("lossless")


@dataclass(frozen=True)
class Settings:
    """How to compress.

    Exactly one of `bits`, `ratio`, `size`, `nrmse`, `rmse` and `lossless` says how far; with none of them, 4 bits.

    Attributes
    ----------
    bits : float
        Bits per weight of everything written, 0.03 to 32.
    ratio : float
        Source bytes over bytes written.
    size : int
        Bytes of everything written.
    nrmse : float
        Relative error no tensor may exceed, 0 to 1.
    rmse : float
        The same in the unit of the weights.
    lossless : bool
    objective : str
        `balanced` puts the error where rows and columns are large, `mse` makes it least.
    effort : int
        0 (fast) to 9 (best): how long the encoder searches, and how close it comes to what was asked. The files decode
        alike.
    transform : str
        `auto` chooses structure and transform per tensor; `none`, `dct`, `dwt`, `klt` or `lowrank` is obeyed
        wherever there is one to be had (a `klt` where its basis takes less than half of the bits; of more than 512
        columns only for matrices 8 times longer than wide).
    structure_only : bool
        No coded residual: low rank, or sparse blocks of `dct` or `dwt` with the 8 basis functions. More error at the
        same size, but a layer that runs without forming its weights. Of `effort`, only how close it comes counts then.
    k, block : int
        Levels of the wavelet; size of the blocks of `dct` and `dwt`.
    threshold : float
        Without a coded residual, coefficients below this times the RMS are not stored.
    overrides : tuple of str
        `REGEX=GOAL` for tensors whose name the expression matches (the first that does): `bits:6`, `nrmse:0.01`,
        `bits:+0.5` (a step finer by a factor 2^0.5 than the others' share would be), `lossless`, or `skip` (left
        exactly as it is, not even entropy-coded).
    include, exclude : tuple of str
        Regular expressions: only tensors whose name one of `include` finds, and none of `exclude`, are approximated;
        the others are kept exactly. No `include` is all.
    importance : Path or None
        What `rbe calibrate` (or llama.cpp) measured of the layers' inputs: their steps follow it.
    feedback : bool
        Feed the error of each input's weights into the next ones', where the importance file has second moments.
    jobs : int
        Threads; the bytes do not depend on it. 0: one per core.
    """

    bits: float | None = None
    ratio: float | None = None
    size: int | None = None
    nrmse: float | None = None
    rmse: float | None = None
    lossless: bool = False
    objective: str = "balanced"
    effort: int = DEFAULT_EFFORT
    transform: str = "auto"
    structure_only: bool = False
    k: int = 5
    block: int = 128
    threshold: float = 0.01
    overrides: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    importance: Path | None = None
    feedback: bool = True
    jobs: int = 0
    _overrides: list[tuple[re.Pattern[str], Goal]] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        wishes = [name for name in ("bits", "ratio", "size", "nrmse", "rmse") if getattr(self, name) is not None]
        if self.lossless:
            wishes.append("lossless")
        if len(wishes) > 1:
            raise UsageError("give one of " + " and ".join("--" + wish for wish in wishes) + ", not both")
        if not wishes:
            object.__setattr__(self, "bits", DEFAULT_BITS)
        _within("--bits", self.bits, 0.03, 32)
        _within("--ratio", self.ratio, 1, 1e6)
        if self.size is not None and not 1 <= self.size < 1 << 62:
            raise UsageError(f"--size must be at least 1 byte, not {self.size}")
        _within("--nrmse", self.nrmse, 1e-5, 1)
        _within("--rmse", self.rmse, 1e-30, 1e30)
        _within("--effort", self.effort, 0, len(EFFORT_STATES) - 1)
        _within("--k", self.k, 1, 16)
        _within("--threshold", self.threshold, 0, 1e6)
        _within("--jobs", self.jobs, 0, 1024)
        if self.block not in _BLOCKS:
            raise UsageError(f"--block must be from {_BLOCKS.start} to {_BLOCKS.stop - 1}, not {self.block}")
        if self.objective not in OBJECTIVES:
            raise UsageError(f"--objective must be {' or '.join(OBJECTIVES)}, not {self.objective!r}")
        if self.transform not in CHOICES:
            raise UsageError(f"--transform must be one of {', '.join(CHOICES)}, not {self.transform!r}")
        chosen = self.transform if self.transform != "auto" else None
        # An override may give them something.
        if self.lossless and not self.overrides and (self.structure_only or chosen not in (None, "none")):
            other = "--structure-only" if self.structure_only else f"--transform {chosen}"
            raise UsageError(f"--lossless leaves nothing for {other} to do; give one of them")
        for name in ("include", "exclude"):
            for pattern in getattr(self, name):
                compile_pattern(pattern, f"--{name}")
        object.__setattr__(self, "_overrides", [parse_override(text) for text in self.overrides])
        if self.structure_only:
            self._check_structure_only()

    def _check_structure_only(self) -> None:
        """Raise UsageError for what would do nothing without a coded residual."""
        if self.transform in ("none", "klt"):
            raise UsageError(f"--structure-only needs --transform auto, dct, dwt or lowrank, not {self.transform!r}")
        if self.importance is not None:
            raise UsageError("--structure-only codes no weight whose step could follow --importance; give one of them")
        more = [text for text, (_, goal) in zip(self.overrides, self._overrides, strict=True) if goal.kind == _MORE]
        if more and self.nrmse is None and self.rmse is None:
            raise UsageError(
                f"--override {more[0]!r}: with --structure-only no tensor has a finer step than others; "
                "write bits:N, or ask for --nrmse or --rmse"
            )

    def check_patterns(self, names: Sequence[str]) -> None:
        """Raise UsageError for a pattern that finds none of a checkpoint's tensors: it would do nothing, unnoticed."""
        patterns = [("--override", text.rpartition("=")[0]) for text in self.overrides]
        patterns += [("--include", text) for text in self.include] + [("--exclude", text) for text in self.exclude]
        for option, pattern in patterns:
            if not any(re.search(pattern, name) for name in names):
                raise UsageError(f"{option} {pattern!r}: no tensor has such a name; `rbe inspect SOURCE --all` has all")

    @property
    def states(self) -> int:
        """States of the trellis."""
        return EFFORT_STATES[self.effort]

    @property
    def tolerance(self) -> float:
        """How far below what was asked a result may stay, relative."""
        return EFFORT_TOLERANCE[self.effort]

    @property
    def threads(self) -> int:
        """Threads to use."""
        if self.jobs:
            return self.jobs
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def goal(self, name: str, rms: float) -> Goal:
        """What is asked of one tensor: its override, or the wish for all."""
        override = self.override(name)
        more = 0.0
        if override is not None:
            if override.kind != _MORE:
                return override
            more = override.value
        if self.lossless or not self._chosen(name):
            return EXACT
        if self.nrmse is not None:
            return Goal("nrmse", min(self.nrmse / 2**more, 1.0))
        if self.rmse is not None:
            return Goal("nrmse", min(self.rmse / 2**more / rms, 1.0)) if rms else EXACT
        return Goal("shared")

    def override(self, name: str) -> Goal | None:
        """The goal of the first override that matches."""
        return next((goal for pattern, goal in self._overrides if pattern.search(name)), None)

    def _chosen(self, name: str) -> bool:
        """Whether `include` and `exclude` let a tensor be approximated."""
        if self.include and not any(re.search(pattern, name) for pattern in self.include):
            return False
        return not any(re.search(pattern, name) for pattern in self.exclude)

    def shaping(self, name: str, inputs: Inputs | None = None) -> Shaping:
        """How the step of a tensor varies; what is known of its inputs takes the place of gr or gc along their axis."""
        from rbe_cli.codec.residual.noise_shaping import MOST_DAMPING, Shaping

        row, column = BALANCED if self.objective == "balanced" and not _UNSHAPED.search(name) else (0, 0)
        if _TABLES.search(name):
            inputs = None
        if inputs is not None:
            # Fed back, the error of the outputs is all there is to weigh; but for few bits, where shaping still helps.
            fed = inputs.moments is not None and inputs.damping < MOST_DAMPING
            row, column = (0, 0 if fed else column) if inputs.axis == 0 else (0 if fed else row, 0)
        return Shaping(row, column, self.objective != "mse" or inputs is not None, inputs)

    def finer(self, name: str, share: float) -> float:
        """By what factor the step of a tensor is smaller than the others', for its name and share of all weights.

        Under `balanced`, tables of tokens and output heads that are a small part of the model: on mini-gpt2 at 4 bits,
        the tied table of 3 % of the weights made two thirds of the KL divergence (`make bench-model`). An override
        like `bits:+0.5` says it instead.
        """
        override = self.override(name)
        if override is not None and override.kind == _MORE:
            return float(2**override.value)
        if self.objective == "balanced" and share <= _SMALL_SHARE and _TOKENS.search(name):
            return _FINER
        return 1.0

    def recorded(self) -> dict[str, Any]:
        """What goes to the manifest: everything that the bytes depend on."""
        names = [item.name for item in fields(self) if item.init and item.name != "jobs"]
        settings = {name: getattr(self, name) for name in names}
        settings = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
        if self.importance is None:
            del settings["feedback"]
        else:
            settings["importance"] = "sha256:" + PlainFile(self.importance).sha256()
        return {
            name: value for name, value in settings.items() if value is not None and value is not False and value != []
        }


def parse_override(text: str) -> tuple[re.Pattern[str], Goal]:
    """Read `REGEX=GOAL`. Raises UsageError.

    >>> parse_override("wte=bits:6")[1]
    Goal(kind='bits', value=6.0)
    """
    pattern, _, wish = text.rpartition("=")
    kind, colon, number = wish.partition(":")
    try:
        value = float(number) if colon else 0.0
    except ValueError:
        kind, value = "", 0.0
    if kind == "bits" and number.startswith(("+", "-")):
        kind = _MORE
    limits = {"bits": (0.03, 32.0), _MORE: (-16.0, 16.0), "nrmse": (1e-5, 1.0)}.get(kind)
    if not pattern or not (limits if colon else kind in ("lossless", "skip")):
        raise UsageError(
            f"--override {text!r}: write REGEX=bits:6, REGEX=bits:+0.5, REGEX=nrmse:0.01, REGEX=lossless or REGEX=skip"
        )
    compiled = compile_pattern(pattern, "--override")
    if limits is None:
        return compiled, Goal(kind)
    _within(f"--override {text!r}: {kind}", value, *limits)
    return compiled, Goal(kind, value)


def _within(option: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not (math.isfinite(value) and low <= value <= high):
        raise UsageError(f"{option} must be from {low:g} to {high:g}, not {value:g}")
