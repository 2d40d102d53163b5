"""The tables and JSON documents of the commands: one place for their columns, units and names."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from rbe_cli import metrics
from rbe_cli.cli import harmless
from rbe_cli.operations.figures import finite

if TYPE_CHECKING:
    from rbe_cli.container.manifest import Manifest, TensorEntry
    from rbe_cli.operations.model_quality import Estimate

#: Exact tensors with fewer elements than this share a line, and so do those beyond so many lines.
_SMALL, _MOST_LINES = 65536, 1000
#: Files that are named where there may be many.
_NAMED = 5
#: Width of a column of names, and what is around it, in a narrow terminal.
_FOLDED = 12
#: Columns that a narrow terminal does without, the first first.
_SPARE = (
    "enc ns/w", "enc ns/w, all", "dec ns/w, all", "analyse ns/w", "method", "dtype", "shape", "s", "worst NRMSE",
    "dec ns/w", "worst tensor", "RMSE", "size", "ratio", "kurtosis", "field gain dB", "largest/std", "coding", "gap dB",
)  # fmt: skip


def number(value: float, form: str) -> str:
    """A figure, or a dash where there is none."""
    return format(value, form) if math.isfinite(value) else "-"


def estimate_text(estimate: Estimate, form: str) -> str:
    """A mean and its standard error; alone where there was too little to tell that.

    >>> from rbe_cli.operations.model_quality import Estimate
    >>> estimate_text(Estimate(1.25, 0.5), "+.1f"), estimate_text(Estimate(1.25, math.nan), ".2f")
    ('+1.2 +- 0.5', '1.25')
    """
    value = number(estimate.value, form)
    return f"{value} +- {number(estimate.error, form.removeprefix('+'))}" if math.isfinite(estimate.error) else value


def estimate_json(estimate: Estimate) -> dict[str, float | None]:
    """The same in the JSON documents."""
    return {"value": finite(estimate.value), "error": finite(estimate.error)}


def counted(count: int, thing: str) -> str:
    """So many of a thing.

    >>> counted(1, "tensor"), counted(1000, "token")
    ('1 tensor', '1,000 tokens')
    """
    return f"{count:,} {thing}" + ("s" if count != 1 else "")


def shape_text(shape: Sequence[int]) -> str:
    """768x3072; a scalar is `scalar`."""
    return "x".join(map(str, shape)) or "scalar"


def name_text(name: str) -> Text:
    """A name from a file, harmless on a terminal and not endless."""
    return Text(harmless.short(name))


def size_text(size: float) -> str:
    """Bytes for people, in powers of 1000.

    >>> size_text(999), size_text(11_360_000)
    ('999 B', '11.4 MB')
    """
    if size < 1000:
        return f"{size:.0f} B"
    power = min(int(math.log10(size) // 3), 4)
    if round(size / 1000**power) >= 1000 and power < 4:
        power += 1
    return f"{size / 1000**power:.3g} {('', 'k', 'M', 'G', 'T')[power]}B"


def print_json(document: Mapping[str, Any]) -> None:
    """Print the JSON document of a command."""
    json.dump(document, sys.stdout, indent=2)
    print()


def show(console: Console, table: Table, markdown: bool) -> None:
    """Print a table, as Markdown if that is wanted; without some columns, then closer, where the terminal is narrow."""
    if markdown:
        # Only some readers of Markdown begin a table without a blank line above it.
        print("\n" + markdown_table(table), file=console.file)
        return
    whole, left_out = table, []
    spare = [name for name in _SPARE if any(column.header == name for column in table.columns)]
    while not (fits := _natural_width(console, table) <= console.width) and spare:
        left_out.append(spare.pop(0))
        table = _without(table, left_out[-1])
    shown: Table | Text = table
    if not fits:
        shown = closer = _closer(table)
        if _least_width(console, closer) > console.width:
            shown, left_out = _as_list(whole), []
    if console.is_terminal:
        console.print(shown)
    else:
        with console.capture() as captured:
            console.print(shown)
        # In a pipe, no blank lines around it and no blanks behind.
        lines = [line.rstrip() for line in captured.get().splitlines()]
        print("\n".join(filter(None, lines)), file=console.file)
    if left_out:
        console.print(f"for want of width, without: {', '.join(left_out)} (--json has all)", style="dim")


def _natural_width(console: Console, table: Table) -> int:
    """By the widest cell of each column: to measure all of them takes as long as to print them."""
    widest = copy.copy(table)
    widest.columns = [
        dataclasses.replace(column, _cells=[max(column.cells, key=_cell_width, default="")]) for column in table.columns
    ]
    return Measurement.get(console, console.options.update(max_width=1 << 16), widest).maximum


def _cell_width(cell: Any) -> int:
    return cell.cell_len if isinstance(cell, Text) else cell_len(str(cell))


def _least_width(console: Console, table: Table) -> int:
    """So narrow that no cell is cut: names are folded."""
    names = [str(column.header) for column in table.columns if column.overflow == "fold"]
    for name in names:
        table = _without(table, name)
    return _natural_width(console, table) + len(names) * _FOLDED


def _as_list(table: Table) -> Text:
    """A table for very narrow terminals: of each row the first cell, and the others below it."""
    lines = []
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        row = [
            (str(column.header), cell.plain if isinstance(cell, Text) else str(cell))
            for column, cell in zip(table.columns, cells, strict=True)
        ]
        title, *rest = [f"{header} {text}".strip() for header, text in row if text]
        lines += [title, *(f"  {line}" for line in rest)]
    return Text("\n".join(lines))


def _closer(table: Table) -> Table:
    """A table with its columns two blanks apart."""
    closer = copy.copy(table)
    closer.padding = (0, 1, 0, 0)
    return closer


def _without(table: Table, header: str) -> Table:
    """A table without a column."""
    narrower = copy.copy(table)
    kept = [column for column in table.columns if column.header != header]
    narrower.columns = [dataclasses.replace(column, _index=i) for i, column in enumerate(kept)]
    return narrower


def markdown_table(table: Table) -> str:
    """A table in GitHub's Markdown."""
    aligned = ["---:" if column.justify == "right" else "---" for column in table.columns]
    rows = [[str(column.header) for column in table.columns], aligned]
    rows += map(list, zip(*([_markdown_cell(cell) for cell in column.cells] for column in table.columns), strict=True))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _markdown_cell(cell: Any) -> str:
    return harmless.markdown(cell.plain if isinstance(cell, Text) else str(cell))


def method_text(tensor: TensorEntry, detail: str | None = None) -> str:
    """`trellis`, or `trellis, klt +1.29 dB` where a structure or transform was chosen and gained so much.

    With `detail` (which may be empty), that, and the runner-up. A coder and a choice of one name are named once.
    """
    choice = tensor.choice
    if choice is None:
        return tensor.method + (", base" if tensor.base else "") + (detail or "")
    text = tensor.method
    if choice.name != "none":
        name = choice.name if choice.name.startswith(text) else f"{text}, {choice.name}"
        text = f"{name} {choice.gain_db:+.2f} dB"
    if detail is not None:
        text += detail
        if choice.runner_up:
            text += f"; next {choice.runner_up} {choice.runner_up_db:+.2f}"
    return text


def tensor_table(
    tensors: Sequence[TensorEntry],
    encode_ns: Mapping[str, float] | None,
    whole: bool,
    details: Mapping[str, str] | None = None,
) -> Table:
    """One line per tensor; unless `whole`, small exact ones share one, as do those beyond a thousand.

    `details` say more of the method, by tensor.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("tensor", overflow="fold", ratio=1)
    table.add_column("shape", no_wrap=True)
    table.add_column("dtype", no_wrap=True)
    table.add_column("method", overflow="fold")
    for column in ("bits/w", "ratio", *ERROR_COLUMNS):
        table.add_column(column, justify="right", no_wrap=True)
    if encode_ns is not None:
        table.add_column("enc ns/w", justify="right", no_wrap=True)
    small = [] if whole else [t for t in tensors if t.method == "lossless" and t.elements < _SMALL]
    if len(small) < 2:
        small = []
    hidden = {tensor.name for tensor in small}
    lines = [tensor for tensor in tensors if tensor.name not in hidden]
    lines, more = (lines, []) if whole else (lines[:_MOST_LINES], lines[_MOST_LINES:])
    for tensor in lines:
        detail = None if details is None else details.get(tensor.name, "")
        row: list[str | Text] = [
            name_text(tensor.name), shape_text(tensor.shape), tensor.dtype, name_text(method_text(tensor, detail)),
            number(tensor.bpw, ".3f"), number(metrics.ratio(tensor.source_bytes, tensor.bytes), ".2f"),
            *error_cells(tensor.rmse, tensor.nrmse, tensor.bpw),
        ]  # fmt: skip
        if encode_ns is not None:
            row.append(number(encode_ns.get(tensor.name, math.nan), ".0f"))
        table.add_row(*row)
    for what, together, method, errors in (
        (f"{len(more)} more, see --all", more, "", ["-"] * len(ERROR_COLUMNS)),
        (f"{len(small)} small tensors", small, "lossless", error_cells(0, 0, 0)),
    ):
        if together:
            elements, size = sum(t.elements for t in together), sum(t.bytes for t in together)
            row = [
                Text(what, style="italic"), f"{elements:,} in all", "", method,
                number(metrics.bits_per_weight(size, elements), ".3f"),
                number(metrics.ratio(sum(t.source_bytes for t in together), size), ".2f"), *errors,
            ]  # fmt: skip
            table.add_row(*row, *(["-"] if encode_ns is not None else []))
    return table


ERROR_COLUMNS = ("RMSE", "NRMSE", "SNR dB", "gap dB")


def error_cells(rmse: float, nrmse: float, bpw: float) -> list[str]:
    """The figures under ERROR_COLUMNS, of what takes so many bits per weight."""
    snr = metrics.snr_db(nrmse)
    return [f"{rmse:.3g}", nrmse_text(nrmse), snr_text(nrmse), number(metrics.gap_db(bpw, snr), ".2f")]


def nrmse_text(nrmse: float) -> str:
    """A relative error, however small.

    >>> nrmse_text(0.07041), nrmse_text(0.0000123), nrmse_text(0.0)
    ('0.0704', '1.2e-05', '0')
    """
    return number(nrmse, ".4f" if nrmse > 0.001 else ".1e") if nrmse else "0"


def snr_text(nrmse: float) -> str:
    """The same in dB, or that there is none."""
    return number(metrics.snr_db(nrmse), ".2f") if nrmse else "exact"


def tensor_json(tensor: TensorEntry) -> dict[str, Any]:
    """One tensor of the JSON documents."""
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "method": tensor.method,
        "choice": dataclasses.asdict(tensor.choice) if tensor.choice else None,
        "base": tensor.base or None,
        "elements": tensor.elements,
        "source_bytes": tensor.source_bytes,
        "bytes": tensor.bytes,
        "bits_per_weight": finite(tensor.bpw),
        "ratio": finite(metrics.ratio(tensor.source_bytes, tensor.bytes)),
        "rmse": tensor.rmse,
        "nrmse": tensor.nrmse,
        "snr_db": finite(tensor.snr),
        "gap_db": finite(tensor.gap),
    }


def base_json(manifest: Manifest) -> dict[str, Any] | None:
    """The model that a folder is an update of."""
    return dataclasses.asdict(manifest.base) if manifest.base else None


def carried_bytes(manifest: Manifest | None) -> int:
    """Size of the files copied along."""
    return sum(file.bytes for file in manifest.carried) if manifest else 0


def print_totals(console: Console, figures: Mapping[str, Any]) -> None:
    """The lines under a table."""
    console.print(
        f"{counted(figures['tensors'], 'tensor')}, {counted(figures['elements'], 'weight')}: "
        f"{size_text(figures['source_bytes'])} -> {size_text(figures['bytes'])} ({figures['bytes']:,} bytes in all)"
    )
    bits = figures["bits_per_weight"]
    line = f"{number(bits if bits is not None else math.nan, '.4f')} bits per weight, ratio {figures['ratio']:.2f}"
    console.print(line if figures["nrmse"] else line + "; every weight exact")
    if figures["nrmse"]:
        console.print(
            f"inexact tensors together: SNR {snr_text(figures['nrmse'])} dB, NRMSE {nrmse_text(figures['nrmse'])}, "
            f"RMSE {figures['rmse']:.3g}; worst NRMSE {nrmse_text(figures['worst_nrmse'])}"
        )
    if figures["carried_bytes"]:
        console.print(f"carried along unchanged: {size_text(figures['carried_bytes'])} of other files")


def print_left_out(console: Console, names: Sequence[str]) -> None:
    """Say which files beside the checkpoint are not in what is written."""
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        console.print(f"left out (other weights, or too large): {harmless.short(', '.join(names[:_NAMED]))}{more}")
