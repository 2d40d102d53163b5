"""`rbe bench layers`: the layers that run from their compressed form, against the guide's targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from rbe_cli.cli import harmless, options, tables
from rbe_cli.cli.console import load_kernels, open_source, progress_bar, stdout
from rbe_cli.cli.tables import number, show, size_text
from rbe_cli.cli.terminal import CROSS, TICK
from rbe_cli.errors import UsageError
from rbe_cli.operations.figures import finite
from rbe_cli.operations.patterns import compile_pattern

if TYPE_CHECKING:
    from rbe_cli.operations.bench_layers import Row, Span
    from rbe_cli.operations.layer_subjects import Subject

_SOURCES = ("structured", "white", "model")
_WHAT = "What to measure"


@options.grouped
def command(
    status: options.Status,
    source: options.SourceOrMini = "mini-gpt2",
    weights: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="structured: of the guide's own model; white: Gaussian noise; model: of SOURCE.",
            rich_help_panel=_WHAT,
        ),
    ] = "structured,model",
    layers: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Layers to measure.  \\[default: all]", rich_help_panel=_WHAT),
    ] = None,
    hidden: Annotated[
        int,
        typer.Option(min=16, max=8192, metavar="N", help="Size of structured and white layers.", rich_help_panel=_WHAT),
    ] = 768,
    vocabulary: Annotated[
        int,
        typer.Option(min=16, max=1 << 18, metavar="N", help="Rows of their embedding.", rich_help_panel=_WHAT),
    ] = 32000,
    seconds: Annotated[
        float,
        typer.Option(min=0.001, max=60, metavar="S", help="How long to time each layer.", rich_help_panel=_WHAT),
    ] = 0.5,
    revision: options.Revision = None,
    jobs: options.Jobs = 0,
    *,
    form: options.Form,
) -> None:
    """Ratio, error, speed and memory of layers that run from their compressed form, against the guide's targets.

    Each layer is compressed at the ratio the guide names, without a coded residual and with one, and at 4 bits; then it
    is timed, and beside it the same layer by numpy on the decoded weights as dense float32. Ratio counts all bytes of
    the layer's .rbe file. Times are of single calls after some that do not count: the median, and the 10th to the
    90th percentile. Efficiency is that of a batch on all cores against one. A tick or a cross says whether a figure
    reaches its target.

    Examples:

      rbe bench layers

      rbe bench layers --weights structured,white --layers 'Linear|FFN'

      rbe bench layers ./model --weights model --json
    """
    kinds = list(dict.fromkeys(weights.split(",")))
    if not set(kinds) <= set(_SOURCES):
        raise UsageError(f"--weights {weights!r}: write some of {','.join(_SOURCES)}")
    wanted = compile_pattern(layers or "", "--layers")
    checkpoint = open_source(source, revision, status) if "model" in kinds else None
    load_kernels(status)
    from rbe_cli.layers.warm_up import compile_layers
    from rbe_cli.operations import layer_subjects
    from rbe_cli.operations.bench_layers import bench_layers
    from rbe_cli.operations.settings import Settings

    compile_layers()
    subjects: list[Subject] = []
    for kind in kinds:
        if kind != "model":
            subjects += layer_subjects.guide_subjects(kind, hidden, vocabulary)
        elif checkpoint is not None:
            subjects += layer_subjects.model_subjects(checkpoint)
    subjects = [subject for subject in subjects if wanted.search(subject.layer)]
    if not subjects:
        raise UsageError(f"--layers {layers!r}: no layer has such a name")
    with progress_bar(status) as bar:
        rows = bench_layers(subjects, seconds=seconds, threads=Settings(jobs=jobs).threads, progress=bar)
    if form.as_json:
        tables.print_json(_document(rows))
    else:
        _print(rows, form.markdown)


def _print(rows: Sequence[Row], markdown: bool) -> None:
    console = stdout()
    for source in dict.fromkeys(row.subject.source for row in rows):
        console.print(f"**{harmless.markdown(source)}**\n" if markdown else f"{harmless.plain(source)}\n")
        show(console, _table([row for row in rows if row.subject.source == source]), markdown)
        print()
    from rbe_cli.operations.machine import machine

    console.print(
        "time: per call, token or element as the target has it; ns/number: per number a call returns; numpy: the same "
        "layer on dense float32 weights, and how many times faster this one is; memory: weights held, and how much "
        f"less than dense. {', '.join(f'{k} {v}' for k, v in machine().items())}"
    )


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("layer", "weights", "stored as"):
        table.add_column(column, overflow="fold")
    for column in (
        "ratio", "B/block", "RMSE", "NRMSE", "SNR dB", "time", "ns/number", "efficiency", "memory", "numpy", "target"
    ):  # fmt: skip
        table.add_column(column, justify="right", overflow="fold")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: Row) -> list[str]:
    subject, verdicts = row.subject, row.verdicts()

    def judged(text: str, name: str) -> str:
        return f"{text} {TICK if verdicts[name] else CROSS}" if name in verdicts else text

    sized = bool(row.size)
    return [
        subject.layer,
        f"{subject.shape}, block {subject.block}" if sized else "-",
        f"{row.storage} ({row.coding})" if sized else row.storage,
        judged(f"{row.ratio:.1f}", "ratio") if sized else "-",
        judged(f"{row.block_bytes:.0f}", "block") if sized else "-",
        judged(f"{row.error.rmse:.3g}", "RMSE") if sized else "-",
        f"{row.error.nrmse:.3g}" if sized else "-",
        number(row.error.snr, ".2f") if sized else "-",
        judged(_span(row.call, subject), "speed"),
        f"{row.call.median / subject.numbers:.3g}",
        number(100 * row.efficiency, ".0f") + (" %" if math.isfinite(row.efficiency) else ""),
        judged(f"{size_text(row.resident)}, {-100 * row.smaller:+.1f} %", "memory") if sized else "-",
        f"{_time(row.dense.median / subject.units)}, x {row.dense.median / row.call.median:.3g}" if sized else "-",
        _target(subject),
    ]


def _span(span: Span, subject: Subject) -> str:
    low, high = (_time(ns / subject.units) for ns in (span.low, span.high))
    unit = "" if subject.unit == "call" else f"/{subject.unit}"
    return f"{_time(span.median / subject.units)}{unit} ({low} to {high})"


def _time(nanoseconds: float) -> str:
    """In the unit that fits.

    >>> _time(85.4), _time(8540), _time(8.54e6)
    ('85.4 ns', '8.54 us', '8.54 ms')
    """
    for scale, unit in ((1.0, "ns"), (1e3, "us")):
        if nanoseconds < 999.5 * scale:
            return f"{nanoseconds / scale:.3g} {unit}"
    return f"{nanoseconds / 1e6:.3g} ms"


def _target(subject: Subject) -> str:
    target = subject.target
    parts = [f"{target.ratio:.0f}:1"] if subject.matrices else []
    if target.block_bytes is not None:
        parts.append(f"{target.block_bytes:g} B")
    if target.rmse is not None:
        parts.append(f"RMSE {target.rmse:g}")
    if target.nanoseconds is not None:
        parts.append(_time(target.nanoseconds) + ("" if subject.unit == "call" else f"/{subject.unit}"))
    if target.smaller is not None:
        parts.append(f"-{100 * target.smaller:.0f} %")
    return ", ".join(parts)


def _document(rows: Sequence[Row]) -> dict[str, Any]:
    from rbe_cli.operations.machine import machine

    return {"command": "bench layers", "machine": machine(), "layers": [_row(row) for row in rows]}


def _row(row: Row) -> dict[str, Any]:
    subject = row.subject
    return {
        "layer": subject.layer,
        "weights": subject.source,
        "shapes": [list(matrix.shape) for matrix in subject.matrices.values()],
        "block": subject.block,
        "storage": row.storage,
        "coding": row.coding,
        "bytes": row.size,
        "ratio": finite(row.ratio),
        "bytes_per_block": finite(row.block_bytes),
        "rmse": row.error.rmse,
        "nrmse": row.error.nrmse,
        "snr_db": finite(row.error.snr),
        "unit": subject.unit,
        "units_per_call": subject.units,
        "call_ns": asdict(row.call),
        "ns_per_number": row.call.median / subject.numbers,
        "parallel_efficiency": finite(row.efficiency),
        "resident_bytes": row.resident,
        "dense_bytes": row.source_bytes,
        "dense_call_ns": asdict(row.dense),
        "target": asdict(subject.target),
        "reached": row.verdicts(),
    }
