"""Bounds that a user sets: on the size and error of groups of tensors, and on what a model does; the verdict on each.

A group is all tensors, or those whose name a regular expression finds. Size, ratio and bits are those of the group
together, of the whole with headers and manifest; errors are those of its worst tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbe_cli import metrics
from rbe_cli.errors import UsageError
from rbe_cli.operations.patterns import compile_pattern
from rbe_cli.operations.sizes import parse_size
from rbe_cli.operations.toml import read_toml, unknown_key

if TYPE_CHECKING:
    from rbe_cli.container.manifest import TensorEntry

#: Table of a budget file with bounds per group.
_GROUPS = "tensors"
ALL = "all"


@dataclass(frozen=True)
class _Bounds:
    """Bounds, None where there is none. Raises UsageError for one that is out of range."""

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            least = -math.inf if name == "min_snr" else 0
            check_bound(option_of(name), value, least=least, most=1 if name == "min_top1" else math.inf)

    def given(self) -> dict[str, Any]:
        """The bounds there are, by name."""
        found = {name: getattr(self, name) for name in self.names()}
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def names(cls) -> list[str]:
        """Names of all."""
        return [item.name for item in fields(cls)]


@dataclass(frozen=True)
class Bounds(_Bounds):
    """What a group of tensors must keep; None is no bound.

    Attributes
    ----------
    max_size : int
        Bytes of the group together.
    min_ratio, max_bits : float
        Source bytes over bytes, and bits per weight, of the group together.
    max_rmse, max_nrmse : float
        Of the worst tensor of the group.
    min_snr : float
        In dB, of the worst tensor of the group.
    """

    max_size: int | None = None
    min_ratio: float | None = None
    max_bits: float | None = None
    max_rmse: float | None = None
    max_nrmse: float | None = None
    min_snr: float | None = None


@dataclass(frozen=True)
class ModelBounds(_Bounds):
    """What a language model must keep of the original's answers, which only `rbe bench` measures.

    Attributes
    ----------
    max_kl : float
        Mean KL divergence from the original, in nats per token.
    max_ppl_ratio : float
        Perplexity over the original's.
    min_top1 : float
        Part of the tokens, 0 to 1, with the same likeliest token.
    """

    max_kl: float | None = None
    max_ppl_ratio: float | None = None
    min_top1: float | None = None


@dataclass(frozen=True)
class GroupedBounds:
    """Bounds on the whole, on groups of tensors by a pattern their names match, and on what the model does."""

    whole: Bounds = Bounds()
    groups: tuple[tuple[str, Bounds], ...] = ()
    model: ModelBounds = ModelBounds()

    def check_patterns(self, names: Sequence[str]) -> None:
        """Raise UsageError for a pattern that finds none of the tensors' names."""
        for pattern, _ in self.groups:
            if not any(re.search(pattern, name) for name in names):
                raise UsageError(f"budget for {pattern!r}: no tensor has such a name, so it would guard nothing")

    def with_whole(self, bounds: Bounds) -> GroupedBounds:
        """The same with some bounds on the whole in the place of its own."""
        return replace(self, whole=replace(self.whole, **bounds.given()))


@dataclass(frozen=True)
class Budget:
    """One bound on one group, and what was found.

    Attributes
    ----------
    option : str
        As on the command line, `--max-kl`; `--max-` bounds from above, `--min-` from below.
    bound, figure : float
    group : str
        The pattern, or `all`.
    tensor : str
        Where the figure was found; empty for the figures of a group together.
    """

    option: str
    bound: float
    figure: float
    group: str = ALL
    tensor: str = ""

    @property
    def kept(self) -> bool:
        """Whether the figure is within the bound; a figure that is not a number never is.

        >>> Budget("--max-kl", 0.1, 0.1).kept, Budget("--min-top1", 0.9, 0.8).kept
        (True, False)
        """
        if math.isnan(self.figure):
            return False
        return self.figure >= self.bound if self.option.startswith("--min-") else self.figure <= self.bound

    @property
    def excess(self) -> float:
        """How far the figure is beyond the bound, in parts of that; 0 if it is kept.

        >>> Budget("--min-snr", 20, 15).excess
        0.25
        """
        if self.kept:
            return 0.0
        return abs(self.figure - self.bound) / (abs(self.bound) or 1.0)

    @property
    def verdict(self) -> str:
        """`kept` or `over`, `under`."""
        if self.kept:
            return "kept"
        return "under" if self.option.startswith("--min-") else "over"

    @property
    def name(self) -> str:
        """Name of the bound as in files and JSON, such as `max_nrmse`."""
        return self.option.removeprefix("--").replace("-", "_")


def check_bound(option: str, value: float, least: float = 0, most: float = math.inf) -> None:
    """Raise UsageError for a bound that is no number, or out of range."""
    if not (math.isfinite(value) and least <= value <= most):
        within = f"from {least:g} to {most:g}" if most < math.inf else f"{least:g} or more"
        raise UsageError(f"{option} must be {within if least > -math.inf else 'a number'}, not {value:g}")


def option_of(name: str) -> str:
    """A bound as on the command line, `--max-kl`, by its name."""
    return "--" + name.replace("_", "-")


def read_bounds(path: Path) -> GroupedBounds:
    """Read a budget file: bounds on the whole and the model at the top, `[tensors."REGEX"]` with bounds on groups.

    Raises RBEError if it cannot be read, UsageError for what it must not hold.
    """
    values = read_toml(path)
    groups = values.pop(_GROUPS, {})
    if not isinstance(groups, dict) or not all(isinstance(bounds, dict) for bounds in groups.values()):
        raise UsageError(f'{path}: write bounds per tensor as [tensors."REGEX"], with a line for each below')
    for pattern in groups:
        compile_pattern(pattern, f"{path}: {_GROUPS}:")
    top = _read(values, [*Bounds.names(), *ModelBounds.names()], str(path))
    model = {key: top.pop(key) for key in ModelBounds.names() if key in top}
    own = {pattern: _read(bounds, Bounds.names(), f"{path}: {pattern!r}") for pattern, bounds in groups.items()}
    try:
        found = GroupedBounds(
            Bounds(**top), tuple((pattern, Bounds(**bounds)) for pattern, bounds in own.items()), ModelBounds(**model)
        )
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    if not (top or model or any(bounds.given() for _, bounds in found.groups)):
        raise UsageError(f"{path}: holds no bounds, so it would guard nothing")
    return found


def _read(values: Mapping[str, Any], names: Sequence[str], where: str) -> dict[str, Any]:
    """The bounds of a table of a file, which may have some names."""
    read: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            raise unknown_key(key, [*names, _GROUPS], where)
        if key == "max_size" and isinstance(value, str):
            read[key] = parse_size(value, f"{where}: {key}")
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"{where}: {key} must be a number, not {value!r}")
        else:
            read[key] = value
    return read


def judge(bounds: GroupedBounds, tensors: Sequence[TensorEntry], size: int) -> list[Budget]:
    """Every bound with its figure; `size` is that of all files. Raises UsageError for a pattern without a tensor."""
    bounds.check_patterns([tensor.name for tensor in tensors])
    judged = _judge_group(ALL, bounds.whole, tensors, size)
    for pattern, own in bounds.groups:
        group = [tensor for tensor in tensors if re.search(pattern, tensor.name)]
        judged += _judge_group(pattern, own, group, sum(tensor.bytes for tensor in group))
    return judged


def _judge_group(group: str, bounds: Bounds, tensors: Sequence[TensorEntry], size: int) -> list[Budget]:
    together = {
        "max_size": float(size),
        "min_ratio": metrics.ratio(sum(tensor.source_bytes for tensor in tensors), size),
        "max_bits": metrics.bits_per_weight(size, sum(tensor.elements for tensor in tensors)),
    }
    judged = []
    for name, bound in bounds.given().items():
        if name in together:
            judged.append(Budget(option_of(name), bound, together[name], group))
        elif tensors:
            worst = _worst(name, tensors)
            judged.append(Budget(option_of(name), bound, _figure(name, worst), group, worst.name))
    return judged


def _figure(bound: str, tensor: TensorEntry) -> float:
    return float(getattr(tensor, bound.partition("_")[2]))


def _worst(bound: str, tensors: Sequence[TensorEntry]) -> TensorEntry:
    sign = -1 if bound.startswith("min_") else 1
    return max(tensors, key=lambda tensor: sign * _figure(bound, tensor))
