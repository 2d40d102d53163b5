"""The budget options that several commands have, the table of bound, figure and verdict, and exit code 3."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from rbe_cli.cli import tables
from rbe_cli.errors import OverBudget
from rbe_cli.operations.budgets import ALL, Bounds, GroupBudget, GroupedBounds, read_bounds
from rbe_cli.operations.figures import finite
from rbe_cli.operations.sizes import parse_size

_PANEL = "Budget (exit code 3 when broken)"

MaxSize = Annotated[
    str | None,
    typer.Option("--max-size", metavar="SIZE", help="All files together, like 60MB.", rich_help_panel=_PANEL),
]
MinRatio = Annotated[
    float | None,
    typer.Option("--min-ratio", metavar="R", help="Source bytes over bytes, at least.", rich_help_panel=_PANEL),
]
MaxBits = Annotated[
    float | None,
    typer.Option("--max-bits", metavar="B", help="Bits per weight, all files counted.", rich_help_panel=_PANEL),
]
MaxRmse = Annotated[
    float | None,
    typer.Option("--max-rmse", metavar="E", help="Root mean square error of every tensor.", rich_help_panel=_PANEL),
]
MaxNrmse = Annotated[
    float | None,
    typer.Option("--max-nrmse", metavar="E", help="Relative error of every tensor.", rich_help_panel=_PANEL),
]
MinSnr = Annotated[
    float | None,
    typer.Option("--min-snr", metavar="DB", help="Signal-to-noise ratio of every tensor.", rich_help_panel=_PANEL),
]
BudgetFile = Annotated[
    Path | None,
    typer.Option(
        "--budget", metavar="FILE.toml", help="Bounds for the whole and per tensor pattern.", rich_help_panel=_PANEL
    ),
]

#: No bounds at all.
NONE = GroupedBounds()
_NAMES = {
    "max_size": "size at most",
    "min_ratio": "ratio at least",
    "max_bits": "bits/w at most",
    "max_rmse": "RMSE at most",
    "max_nrmse": "NRMSE at most",
    "min_snr": "SNR dB at least",
}


def from_options(
    file: Path | None,
    max_size: str | None,
    min_ratio: float | None,
    max_bits: float | None,
    max_rmse: float | None,
    max_nrmse: float | None,
    min_snr: float | None,
) -> GroupedBounds:
    """The bounds the options say; those on the command line win over the file's bounds on the whole."""
    size = None if max_size is None else parse_size(max_size)
    bounds = GroupedBounds() if file is None else read_bounds(file)
    return bounds.with_whole(Bounds(size, min_ratio, max_bits, max_rmse, max_nrmse, min_snr))


def table(judged: Sequence[GroupBudget]) -> Table:
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


def _text(budget: GroupBudget, value: float) -> str:
    if budget.name == "max_size":
        return f"{value:,.0f}"
    return f"{value:.6g}" if math.isfinite(value) else "exact"


def as_json(judged: Sequence[GroupBudget]) -> list[dict[str, Any]]:
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


def require(judged: Sequence[GroupBudget], addition: str = "") -> None:
    """Raise OverBudget naming every bound that is broken."""
    broken = []
    for budget in judged:
        if not budget.kept:
            place = f" in {budget.tensor}" if budget.tensor else ""
            group = "" if budget.group == ALL else f"{budget.group!r}: "
            what, _, side = _NAMES[budget.name].partition(" at ")
            figure, limit = _text(budget, budget.figure), _text(budget, budget.bound)
            broken.append(f"{group}{what} is {figure}{place}, must be at {side} {limit}")
    if broken:
        raise OverBudget("over budget: " + "; ".join(broken) + addition)
