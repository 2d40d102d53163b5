"""The budget options that several commands have, the table of bound, figure and verdict, and exit code 3."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from rbe_cli.cli import tables
from rbe_cli.errors import OverBudget, UsageError
from rbe_cli.operations.budgets import ALL, Bounds, Budget, GroupedBounds, read_bounds
from rbe_cli.operations.figures import finite
from rbe_cli.operations.sizes import parse_size

_PANEL = "Budget (exit code 3 when broken)"

#: No bounds at all.
NONE = GroupedBounds()
_NAMES = {
    "max_size": "size at most",
    "min_ratio": "ratio at least",
    "max_bits": "bits/w at most",
    "max_rmse": "RMSE at most",
    "max_nrmse": "NRMSE at most",
    "min_snr": "SNR dB at least",
    "max_kl": "KL, nats per token at most",
    "max_ppl_ratio": "perplexity ratio at most",
    "min_top1": "top-1 agreement at least",
}


def option(flag: str, metavar: str, text: str) -> Any:
    """A bound of the command line."""
    return typer.Option(flag, metavar=metavar, help=text, rich_help_panel=_PANEL)


@dataclass(frozen=True)
class BudgetOptions:
    """The bounds a command line gives."""

    max_size: Annotated[str | None, option("--max-size", "SIZE", "The .rbe files and rbe.json, like 60MB.")] = None
    min_ratio: Annotated[
        float | None, option("--min-ratio", "R", "Bytes of the source's tensors over those, at least.")
    ] = None
    max_bits: Annotated[float | None, option("--max-bits", "B", "Bits per weight, all those bytes counted.")] = None
    max_rmse: Annotated[float | None, option("--max-rmse", "E", "Root mean square error of every tensor.")] = None
    max_nrmse: Annotated[float | None, option("--max-nrmse", "E", "Relative error of every tensor.")] = None
    min_snr: Annotated[float | None, option("--min-snr", "DB", "Signal-to-noise ratio of every tensor.")] = None
    budget_file: Annotated[
        Path | None, option("--budget", "FILE.toml", "Bounds for the whole and per tensor pattern.")
    ] = None

    def bounds(self, model: bool = False) -> GroupedBounds:
        """Those on the command line win over the file's bounds on the whole. Raises RBEError, UsageError.

        Bounds on what a language model does are for the command that measures a `model`.
        """
        size = None if self.max_size is None else parse_size(self.max_size, "--max-size")
        whole = Bounds(size, self.min_ratio, self.max_bits, self.max_rmse, self.max_nrmse, self.min_snr)
        bounds = NONE if self.budget_file is None else read_bounds(self.budget_file)
        if bounds.model.given() and not model:
            names = " and ".join(bounds.model.given())
            raise UsageError(f"{self.budget_file}: only `rbe bench` measures {names}; keep that in a file of its own")
        return bounds.with_whole(whole)


def table(judged: Sequence[Budget]) -> Table:
    """Bound, figure, verdict."""
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    out.add_column("budget for", overflow="fold")
    out.add_column("bound", no_wrap=True)
    out.add_column("limit", justify="right", no_wrap=True)
    out.add_column("figure", justify="right", no_wrap=True)
    out.add_column("verdict", no_wrap=True)
    out.add_column("worst tensor", overflow="fold")
    for budget in judged:
        out.add_row(
            tables.name_text(budget.group), _NAMES[budget.name], _text(budget, budget.bound),
            _text(budget, budget.figure), budget.verdict, tables.name_text(budget.tensor),
            style="" if budget.kept else "bold red",
        )  # fmt: skip
    return out


def _text(budget: Budget, value: float) -> str:
    if budget.name == "max_size":
        return f"{value:,.0f} bytes"
    if budget.name == "min_top1":
        return f"{100 * value:.5g} %"
    return "exact" if math.isinf(value) else f"{value:.6g}"


def as_json(judged: Sequence[Budget]) -> list[dict[str, Any]]:
    """The `budget` of the JSON documents; a figure of null is an exact tensor's SNR."""
    return [
        {
            "group": budget.group,
            "bound": budget.name,
            "limit": budget.bound,
            "figure": finite(budget.figure),
            "tensor": budget.tensor or None,
            "kept": budget.kept,
        }
        for budget in judged
    ]


def require(judged: Sequence[Budget], addition: str = "") -> None:
    """Raise OverBudget naming every bound that is broken."""
    broken = broken_text(judged)
    if broken:
        raise OverBudget(f"over budget: {broken}{addition}")


def broken_text(judged: Sequence[Budget]) -> str:
    """Every bound that is broken, with its figure and where; empty if none is."""
    broken = []
    for budget in judged:
        if not budget.kept:
            place = f" in {budget.tensor}" if budget.tensor else ""
            group = "" if budget.group == ALL else f"{budget.group!r}: "
            what, _, side = _NAMES[budget.name].partition(" at ")
            figure, limit = _text(budget, budget.figure), _text(budget, budget.bound)
            broken.append(f"{group}{what} is {figure}{place}, must be at {side} {limit}")
    return "; ".join(broken)
