"""`rbe sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rbe_cli.cli import budgets, options, sweep_tables, tables
from rbe_cli.cli.console import load_kernels, open_base, open_source, progress_bar
from rbe_cli.cli.encoder import DetailOptions
from rbe_cli.cli.figure import check_plot
from rbe_cli.errors import Interrupted, OverBudget, RBEError, UsageError
from rbe_cli.files.atomic import check_file
from rbe_cli.operations.choices import SWEEP_OBJECTIVES, SWEEP_SORTS
from rbe_cli.operations.presets import merged

if TYPE_CHECKING:
    from rbe_cli.cli.sweep_tables import Outcome
    from rbe_cli.operations.sweep import Point

_GRID, _OUTPUT = "Grid (comma-separated lists)", "Results"


def _axis(flag: str, what: str) -> Any:
    return typer.Option(flag, metavar="LIST", help=what, rich_help_panel=_GRID)


@options.grouped
def command(
    budget: budgets.BudgetOptions,
    since: options.BaseOptions,
    status: options.Status,
    source: options.SourceOrMini = "mini-gpt2",
    bits: Annotated[str | None, _axis("--bits", "Bits per weight.  \\[default: 2,3,4,5,6; 4 with other lists]")] = None,
    ratios: Annotated[str | None, _axis("--ratios", "Compression ratios, further rates.")] = None,
    blocks: Annotated[str | None, _axis("--blocks", "Block sizes.")] = None,
    ks: Annotated[str | None, _axis("--ks", "Wavelet levels.")] = None,
    transforms: Annotated[str | None, _axis("--transforms", "Transforms.")] = None,
    efforts: Annotated[str | None, _axis("--efforts", "Effort levels.")] = None,
    objectives: Annotated[str | None, _axis("--objectives", "balanced, mse.")] = None,
    objective: Annotated[
        str,
        typer.Option(
            metavar="WHAT",
            help=f"What makes a point best: {options.either(SWEEP_OBJECTIVES)}.",
            rich_help_panel=_OUTPUT,
            autocompletion=options.completing(*SWEEP_OBJECTIVES),
        ),
    ] = "gap",
    sort: Annotated[
        str,
        typer.Option(
            metavar="COLUMN",
            help=f"Sort by {options.either(SWEEP_SORTS)}.",
            rich_help_panel=_OUTPUT,
            autocompletion=options.completing(*SWEEP_SORTS),
        ),
    ] = "bits",
    sample: Annotated[
        float, typer.Option(metavar="SHARE", help="Sweep only so much of the weights, 0 to 1.", rich_help_panel=_GRID)
    ] = 1.0,
    results: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="Keep finished points here, and go on from what it has.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the table as CSV.", rich_help_panel=_OUTPUT)
    ] = None,
    plot: Annotated[Path | None, options.plot_option(_OUTPUT)] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html", help="Write one self-contained page: plot and tables.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    force: options.Force = False,
    revision: options.Revision = None,
    jobs: options.Jobs = 0,
    *,
    detail: DetailOptions,
    form: options.Form,
) -> None:
    """Compress with every combination of some settings, and compare: size, error, speed.

    What has no list is as compress would have it, --preset, --importance and --override included.
    Every point is written to a temporary folder, all its bytes are counted and decoded again. A * marks the Pareto
    front: no other point is both smaller and more exact. With a budget, the best is chosen among the points within
    it, and the exit code is 3 if there is none.

    Examples:

      rbe sweep --blocks 64,128,256

      rbe sweep mini-gpt2 --bits 2,3,4 --efforts 0,5,9 --report sweep.html

      rbe sweep ./model --ratios 4,8,16 --sample 0.1 --results sweep.jsonl

      rbe sweep ./model --importance calib.safetensors --override 'embed=bits:6' --bits 2,3,4

      rbe sweep ./finetuned --base org/model --bits 0.1,0.25,0.5,1
    """
    bounds = budget.bounds()
    _check_choices(objective, sort)
    _check_files(csv_file, plot, report, results, force)
    from rbe_cli.operations.sweep import Grid

    axes = {
        "block": options.values("--blocks", blocks, "block", int),
        "k": options.values("--ks", ks, "k", int),
        "transform": options.values("--transforms", transforms, "transform", str),
        "effort": options.values("--efforts", efforts, "effort", int),
        "objective": options.values("--objectives", objectives, "objective", str),
    }
    rates = [("bits", b) for b in options.values("--bits", bits, "bits", float)] + [
        ("ratio", r) for r in options.values("--ratios", ratios, "ratio", float)
    ]
    fixed = merged(detail.preset, detail.given()) | {"jobs": jobs}
    grid = Grid({name: values for name, values in axes.items() if values}, rates, fixed)
    settings = grid.settings()
    checkpoint = open_source(source, revision, status)
    base = open_base(since, status)
    for file in filter(None, (csv_file, plot, report, results)):
        checkpoint.check_output(file)
    load_kernels(status)
    from rbe_cli.operations import sweep

    part = None
    if sample != 1:
        checkpoint, part = sweep.sampled(checkpoint, sample)
    bounds.check_patterns([info.name for _, info in checkpoint.tensors])
    with progress_bar(status) as bar:
        if bar:
            bar.phase("sweeping", len(settings))
        count = 0

        def done(point: Point, old: bool) -> None:
            nonlocal count
            count += 1
            if bar:
                what = sweep_tables.settings_text(point, list(grid.axes))
                kept = " (kept from before)" if old else ""
                bar.line(f"{count}/{len(settings)} {what}: {sweep_tables.short(point)}{kept}")
                bar.advance(1)

        try:
            points = sweep.sweep(checkpoint, settings, results, done, base)
        except KeyboardInterrupt:
            if results is None or not results.exists():
                raise
            raise Interrupted(f"interrupted; finished points are in {results}, and the same command goes on") from None
    outcome = sweep_tables.judge_points(
        checkpoint.name, base.name if base else None, points, part, bounds, objective, sort
    )
    _write(outcome, csv_file, plot, report)
    if form.as_json:
        tables.print_json(sweep_tables.document(outcome))
    else:
        sweep_tables.print_outcome(outcome, form.markdown)
    if all(point.problem for point in points):
        raise RBEError(f"{checkpoint.name}: no point can be had; ask for more bits")
    if bounds != budgets.NONE and not outcome.allowed:
        raise OverBudget(f"over budget: {sweep_tables.over_text(outcome)}")


def _check_files(
    csv_file: Path | None, plot: Path | None, report: Path | None, results: Path | None, force: bool
) -> None:
    """Whether they can be written, before the work."""
    check_plot(plot, force)
    options.check_ending("--report", report, (".html", ".htm"))
    for file in filter(None, (csv_file, report)):
        check_file(file, force)
    # A file that is there is added to where it stands, and what is no file of results is said when it is read.
    if results and (results.is_dir() or not results.exists()):
        check_file(results, replace=True)


def _write(outcome: Outcome, csv_file: Path | None, plot: Path | None, report: Path | None) -> None:
    """The files the user asked for."""
    if csv_file:
        sweep_tables.write_csv(csv_file, outcome)
    if plot:
        from rbe_cli.cli.plot import draw

        draw(plot, outcome)
    if report:
        from rbe_cli.cli.report import write_report

        write_report(report, outcome)


def _check_choices(objective: str, sort: str) -> None:
    from rbe_cli.operations.settings import OBJECTIVES as ENCODER

    if objective not in SWEEP_OBJECTIVES:
        advice = "; for the encoder's, write --objectives" if objective in ENCODER else ""
        raise UsageError(f"--objective must be {options.either(SWEEP_OBJECTIVES)}, not {objective!r}{advice}")
    if sort not in SWEEP_SORTS:
        raise UsageError(f"--sort must be {options.either(SWEEP_SORTS)}, not {sort!r}")
