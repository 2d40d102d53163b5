"""`rbe bench codec`: rate, distortion and speed of the codec."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from rbe_cli.cli import harmless, options, tables
from rbe_cli.cli.console import load_kernels, open_source, progress_bar, stdout
from rbe_cli.cli.figure import check_plot
from rbe_cli.cli.tables import name_text, number, shape_text, show
from rbe_cli.codec.parameters import CHOICES
from rbe_cli.operations.figures import finite
from rbe_cli.operations.settings import OBJECTIVES

if TYPE_CHECKING:
    from rbe_cli.operations.bench_codec import Point, Speed, Timing
    from rbe_cli.operations.bench_sources import BenchSource
    from rbe_cli.operations.settings import Settings

_GRID, _WHAT, _OUTPUT = "Rates and efforts", "What to measure on", "Results"


@options.grouped
def command(
    status: options.Status,
    source: options.SourceOrMini = "mini-gpt2",
    bits: Annotated[
        str, typer.Option(metavar="LIST", help="Bits per weight to ask for.", rich_help_panel=_GRID)
    ] = "2,3,4,6",
    efforts: Annotated[str, typer.Option(metavar="LIST", help="Effort levels.", rich_help_panel=_GRID)] = "0,3,5,9",
    objective: Annotated[
        str,
        typer.Option(
            metavar="mse|balanced",
            help="The bound is one of mean squared error, so mse.",
            rich_help_panel=_GRID,
            autocompletion=options.completing(*OBJECTIVES),
        ),
    ] = "mse",
    transform: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="As for compress.",
            rich_help_panel=_GRID,
            autocompletion=options.completing(*CHOICES),
        ),
    ] = "auto",
    tensors: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="Tensors of SOURCE.  \\[default: the first of each kind: of names that differ in numbers only]",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    max_elements: Annotated[
        int,
        typer.Option(min=1024, metavar="N", help="Take the first rows of what is larger.", rich_help_panel=_WHAT),
    ] = 1 << 22,
    synthetic: Annotated[
        int,
        typer.Option(
            min=0,
            max=1 << 14,
            metavar="N",
            help="Measure on white and on smooth N x N sources too; 0: do not.",
            rich_help_panel=_WHAT,
        ),
    ] = 1024,
    repeat: Annotated[
        int, typer.Option(min=1, max=1000, metavar="N", help="Time everything so often.", rich_help_panel=_OUTPUT)
    ] = 3,
    plot: Annotated[Path | None, options.plot_option(_OUTPUT)] = None,
    force: options.Force = False,
    revision: options.Revision = None,
    jobs: options.Jobs = 0,
    *,
    form: options.Form,
) -> None:
    r"""Bits per weight, SNR, gap to the Shannon bound and speed of the codec, at a list of rates and efforts.

    Each matrix is compressed as a checkpoint of its own to a temporary folder. Bits are all bytes of its .rbe file,
    whose header comes on top of what is asked for; SNR is that of the weights decoded from it. Gap is
    6.02 dB x bits - SNR: 0 is the best any code can do for white Gaussian weights, below 0 is structure that was
    found. Speeds are ns per weight of one pass: processor time on one core, wall time on all, the median of
    some repeats, and the best to the worst.

    The sources: gaussian, white noise; structured, 16 plane cosines and white noise 20 dB below; and
    matrices of SOURCE.

    Examples:

      rbe bench codec

      rbe bench codec --bits 2,3,4,5,6 --efforts 5,9 --plot codec.svg

      rbe bench codec ./model --tensors 'layers\.0\..*weight' --synthetic 0 --json
    """
    from rbe_cli.operations.settings import Settings

    rates = options.values("--bits", bits, "bits", float)
    levels = options.values("--efforts", efforts, "effort", int)
    settings = Settings(bits=rates[0], effort=levels[0], objective=objective, transform=transform, jobs=jobs)
    check_plot(plot, force)
    from rbe_cli.operations import bench_sources

    sources = [bench_sources.gaussian(synthetic), bench_sources.structured(synthetic)] if synthetic else []
    sources += bench_sources.of_checkpoint(open_source(source, revision, status), tensors, max_elements)
    load_kernels(status)
    from rbe_cli.operations.bench_codec import bench_codec

    with progress_bar(status) as bar:
        points = bench_codec(sources, rates, levels, settings, repeat=repeat, progress=bar)
    if plot:
        from rbe_cli.cli.rate_distortion_plot import draw

        draw(plot, points)
    if form.as_json:
        tables.print_json(_document(sources, points, settings))
    else:
        _print(sources, points, settings, form.markdown)


def _print(sources: Sequence[BenchSource], points: Sequence[Point], settings: Settings, markdown: bool) -> None:
    console = stdout()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("source", overflow="fold")
    for column in ("effort", "bits/w", "SNR dB", "gap dB"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("coding", no_wrap=True)
    for column in ("analyse ns/w", "enc ns/w, 1 core", "enc ns/w, all", "dec ns/w, 1 core", "dec ns/w, all"):
        table.add_column(column, justify="right", no_wrap=True)
    for point in points:
        table.add_row(
            name_text(point.source.name), str(point.effort), f"{point.bits_per_weight:.3f}",
            number(point.snr_db, ".2f"), number(point.gap_db, ".2f"),
            point.coding if point.method == "trellis" else point.method,
            number(math.nan if point.analyse_ns is None else point.analyse_ns, ".0f"),
            *_speed_cells(point.encode, 0), *_speed_cells(point.decode, 1),
        )  # fmt: skip
    show(console, table, markdown)
    from rbe_cli.operations.machine import machine

    for source in sources:
        line = f"{source.name}: {shape_text(source.shape)} {source.dtype}, {source.what}"
        console.print(f"- {harmless.markdown(line)}" if markdown else harmless.plain(line))
    console.print(
        ("\n" if markdown else "")
        + f"ns/w: ns per weight, of processor time on one core, of wall time on all {settings.threads}; "
        f"median (best to worst of {points[0].decode.one_core.repeats}). "
        + ", ".join(f"{name} {value}" for name, value in machine().items())
    )


def _speed_cells(speed: Speed | None, digits: int) -> list[str]:
    return ["-", "-"] if speed is None else [_timing(t, digits) for t in (speed.one_core, speed.all_cores)]


def _timing(timing: Timing, digits: int) -> str:
    return f"{timing.median:.{digits}f} ({timing.best:.{digits}f}-{timing.worst:.{digits}f})"


def _document(sources: Sequence[BenchSource], points: Sequence[Point], settings: Settings) -> dict[str, Any]:
    from rbe_cli.operations.machine import machine

    return {
        "command": "bench codec",
        "machine": machine(),
        "threads": settings.threads,
        "objective": settings.objective,
        "transform": settings.transform,
        "sources": [
            {
                "name": source.name,
                "what": source.what,
                "shape": list(source.shape),
                "dtype": source.dtype,
                "points": [_point(point) for point in points if point.source is source],
            }
            for source in sources
        ],
    }


def _point(point: Point) -> dict[str, Any]:
    return {
        "effort": point.effort,
        "bits_asked": point.bits,
        "bytes": point.size,
        "bits_per_weight": point.bits_per_weight,
        "snr_db": finite(point.snr_db),
        "gap_db": finite(point.gap_db),
        "method": point.method,
        "coding": point.coding,
        "analyse_ns_per_weight": point.analyse_ns,
        "encode_ns_per_weight": _speed(point.encode),
        "decode_ns_per_weight": _speed(point.decode),
    }


def _speed(speed: Speed | None) -> Mapping[str, Any] | None:
    return None if speed is None else asdict(speed)
