"""What a sweep found, as a table, as JSON and as CSV; the plot and the report draw on it too."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from rbe_cli.cli import budgets, harmless, tables
from rbe_cli.cli.console import stdout
from rbe_cli.files.atomic import atomic_file
from rbe_cli.operations.figures import finite
from rbe_cli.operations.presets import RATES

if TYPE_CHECKING:
    from rbe_cli.operations.budgets import Budget, GroupedBounds
    from rbe_cli.operations.sweep import Point, Sample


@dataclass(frozen=True)
class Outcome:
    """What a sweep found, ready to be shown.

    Attributes
    ----------
    base : str or None
        What the points are updates of.
    order : list of int
        The points as sorted.
    front, allowed : set of int
        Those of the Pareto front, and those within the budget.
    judged : list of list of Budget
        The verdicts on each point.
    best : int or None
    """

    source: str
    base: str | None
    points: Sequence[Point]
    sample: Sample | None
    order: list[int]
    front: set[int]
    allowed: set[int]
    judged: list[list[Budget]]
    best: int | None
    objective: str
    varied: list[str]

    @property
    def title(self) -> str:
        """What was swept."""
        return self.source + (f" since {self.base}" if self.base else "")

    @property
    def nearest(self) -> int | None:
        """The best, or if none is within the budget the one that breaks the fewest bounds, and by least."""
        if self.best is not None:
            return self.best
        done = [i for i in self.order if not self.points[i].problem]

        def distance(i: int) -> tuple[int, float]:
            broken = [budget.excess for budget in self.judged[i] if not budget.kept]
            return len(broken), sum(broken)

        return min(done, key=distance, default=None)

    @property
    def sample_text(self) -> str:
        """What was swept, when it was not all."""
        if self.sample is None:
            return ""
        part = self.sample
        return (
            f"a sample: {part.tensors} of {part.of_tensors} tensors, {part.elements:,} of {part.of_elements:,} weights "
            f"({100 * part.share:.3g} %); the whole may differ"
        )


def judge_points(
    source: str,
    base: str | None,
    points: Sequence[Point],
    part: Sample | None,
    bounds: GroupedBounds,
    objective: str,
    sort: str,
) -> Outcome:
    """Sort the points, hold them against the budget, and choose the best."""
    from rbe_cli.operations import sweep
    from rbe_cli.operations.budgets import judge

    judged = [[] if point.problem else judge(bounds, point.tensors, point.size) for point in points]
    allowed = {i for i, point in enumerate(points) if not point.problem and all(budget.kept for budget in judged[i])}
    names = list(dict.fromkeys(name for point in points for name in point.settings))
    varied = [name for name in names if len({str(point.settings.get(name)) for point in points}) > 1]
    return Outcome(
        source, base, points, part, sweep.order(points, sort), sweep.pareto_front(points), allowed, judged,
        sweep.best(points, sorted(allowed), objective), objective, varied,
    )  # fmt: skip


def settings_text(point: Point, varied: Sequence[str] = ()) -> str:
    """The rate of a point and the settings that differ between points."""
    names = [*RATES, *(name for name in varied if name not in RATES)]
    return ", ".join(f"{name} {point.settings[name]}" for name in names if name in point.settings)


def short(point: Point) -> str:
    """What a point gave, in a few words."""
    if point.problem:
        return point.problem
    error = f"SNR {tables.snr_text(point.error.nrmse)} dB" if point.error.nrmse else "exact"
    return f"{tables.number(point.bits, '.3f')} bits/w, {error}, {point.seconds:.1f} s"


COLUMNS = ("bits/w", "ratio", "size", *tables.ERROR_COLUMNS, "worst NRMSE", "enc ns/w", "dec ns/w", "s")


def cells(point: Point) -> list[str]:
    """The figures of a point under COLUMNS."""
    if point.problem:
        return ["-"] * len(COLUMNS)
    return [
        tables.number(point.bits, ".3f"), f"{point.ratio:.2f}", tables.size_text(point.size),
        *tables.error_cells(point.error.rmse, point.error.nrmse, point.bits), tables.nrmse_text(point.worst_nrmse),
        _time(point.encode_ns), _time(point.decode_ns), f"{point.seconds:.1f}",
    ]  # fmt: skip


def _time(nanoseconds: float | None) -> str:
    return "-" if nanoseconds is None else f"{nanoseconds:.3g}"


def mark(outcome: Outcome, i: int) -> str:
    """`best`, `*` for the front, `over` for what breaks the budget."""
    if outcome.points[i].problem:
        return "cannot"
    front = "*" if i in outcome.front else ""
    if i == outcome.best:
        return f"{front} best".strip()
    return front if i in outcome.allowed else f"{front} over".strip()


def setting_cells(outcome: Outcome, i: int) -> list[str]:
    """The settings of a point that differ between points."""
    return [str(outcome.points[i].settings.get(name, "-")) for name in outcome.varied]


def print_outcome(outcome: Outcome, markdown: bool) -> None:
    """The table and what is to be said of it."""
    console = stdout()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in outcome.varied:
        table.add_column(name, justify="right", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for i in outcome.order:
        style = "bold" if i == outcome.best else ""
        table.add_row(mark(outcome, i), *setting_cells(outcome, i), *cells(outcome.points[i]), style=style)
    tables.show(console, table, markdown)
    for line in remarks(outcome):
        console.print(harmless.markdown(line) if markdown else line)
    if outcome.nearest is not None and outcome.judged[outcome.nearest]:
        what = "best" if outcome.best is not None else "nearest to the budget"
        console.print(f"the {what}, {settings_text(outcome.points[outcome.nearest], outcome.varied)}:")
        tables.show(console, budgets.table(outcome.judged[outcome.nearest]), markdown)


def remarks(outcome: Outcome) -> list[str]:
    """What a reader of the table should know."""
    from rbe_cli.operations.sweep import same_results

    lines = []
    if outcome.best is not None:
        point = outcome.points[outcome.best]
        lines.append(f"best for {outcome.objective}: {settings_text(point, outcome.varied)} ({short(point)})")
    lines.append("* is on the Pareto front of bits per weight and SNR")
    if outcome.sample is not None:
        lines.append(outcome.sample_text)
    for group in same_results(outcome.points):
        first = outcome.points[group[0]].settings
        names = [n for n in outcome.varied if any(outcome.points[i].settings.get(n) != first.get(n) for i in group)]
        alike = settings_text(outcome.points[group[0]], [n for n in outcome.varied if n not in names])
        lines.append(f"{alike}: {' and '.join(names)} made no difference ({len(group)} points of equal size and error)")
    problems: dict[str, list[Point]] = {}
    for point in outcome.points:
        if point.problem:
            problems.setdefault(point.problem, []).append(point)
    return lines + [f"{_common_text(points, outcome.varied)}: {problem}" for problem, points in problems.items()]


def _common_text(points: Sequence[Point], varied: Sequence[str]) -> str:
    """The settings of a point, or those that several points share and how many these are."""
    if len(points) == 1:
        return settings_text(points[0], varied)
    first = points[0].settings
    shared = [name for name in varied if all(point.settings.get(name) == first.get(name) for point in points)]
    text = ", ".join(f"{name} {first[name]}" for name in shared if name in first)
    return f"{text} ({len(points)} points)" if text else f"{len(points)} points"


def _row(outcome: Outcome, i: int) -> dict[str, Any]:
    point = outcome.points[i]
    error, gap = point.error, point.figure("gap")
    measured = {
        "bytes": point.size,
        "bits_per_weight": finite(point.bits),
        "ratio": point.ratio,
        "rmse": error.rmse,
        "nrmse": error.nrmse,
        "snr_db": finite(error.snr),
        "gap_db": finite(gap) if gap is not None else None,
        "worst_nrmse": point.worst_nrmse,
        "encode_ns_per_weight": point.encode_ns,
        "decode_ns_per_weight": point.decode_ns,
        "seconds": point.seconds,
    }
    if point.problem:
        measured = dict.fromkeys(measured)
    flags = {"front": i in outcome.front, "best": i == outcome.best, "within_budget": i in outcome.allowed}
    return {"settings": point.settings} | measured | flags | {"problem": point.problem or None}


def _document_row(outcome: Outcome, i: int) -> dict[str, Any]:
    return _row(outcome, i) | {"budget": budgets.as_json(outcome.judged[i])}


def over_text(outcome: Outcome) -> str:
    """Why no point is within the budget."""
    text = "no point keeps every bound"
    if outcome.nearest is None:
        return text
    point, judged = outcome.points[outcome.nearest], outcome.judged[outcome.nearest]
    return f"{text}; of the nearest, {settings_text(point, outcome.varied)}, {budgets.broken_text(judged)}"


def document(outcome: Outcome) -> dict[str, Any]:
    """The JSON document."""
    return {
        "command": "sweep",
        "source": outcome.source,
        "base": outcome.base,
        "objective": outcome.objective,
        "sample": outcome.sample and outcome.sample.__dict__ | {"share": outcome.sample.share},
        "points": [_document_row(outcome, i) for i in outcome.order],
    }


def write_csv(path: Path, outcome: Outcome) -> None:
    """A line per point, sorted as the table is."""
    rows = [_row(outcome, i) for i in outcome.order]
    names = list(dict.fromkeys(name for row in rows for name in row["settings"]))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*names, *(key for key in rows[0] if key != "settings")])
    for row in rows:
        writer.writerow([row["settings"].get(name, "") for name in names] + list(row.values())[1:])
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())
