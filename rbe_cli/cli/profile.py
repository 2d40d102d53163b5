"""What `rbe inspect` shows of a checkpoint that is not compressed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from rbe_cli.cli import tables
from rbe_cli.cli.console import load_kernels, progress_bar, stdout
from rbe_cli.cli.options import Form, Status
from rbe_cli.cli.tables import counted

if TYPE_CHECKING:
    from rbe_cli.checkpoint.reader import Checkpoint, TensorHeader
    from rbe_cli.operations.profile import TensorProfile

#: Tensors with fewer elements than this share a line.
_SMALL = 1024


def show_profile(checkpoint: Checkpoint, snr: float, threads: int, whole: bool, form: Form, status: Status) -> None:
    """Profile a checkpoint and print it."""
    load_kernels(status, "analysis")
    from rbe_cli.operations.profile import profile

    with progress_bar(status) as bar:
        profiles = profile(checkpoint, snr, threads=threads, progress=bar)
    source = sum(found.info.nbytes for found in profiles)
    elements = sum(found.info.elements for found in profiles)
    if form.as_json:
        document = {
            "command": "inspect",
            "source": checkpoint.name,
            "snr_db": snr,
            "tensors": [_json(found) for found in profiles],
            "totals": {"tensors": len(profiles), "elements": elements, "source_bytes": source},
        }
        tables.print_json(document)
        return
    console = stdout()
    tables.show(console, _table(profiles, snr, whole), form.markdown)
    console.print(
        f"{counted(len(profiles), 'tensor')}, {counted(elements, 'weight')}, {tables.size_text(source)}, not compressed"
    )
    coded = [found for found in profiles if found.bits is not None]
    if coded:
        bits = sum((found.bits or 0) * found.info.elements for found in coded)
        mean = bits / sum(found.info.elements for found in coded)
        console.print(
            f"an SNR of {snr:g} dB would take {mean:.2f} bits per weight without transforms; "
            "`rbe compress --dry-run` forecasts a whole compression"
        )


def _table(profiles: Sequence[TensorProfile], snr: float, whole: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("tensor", overflow="fold", ratio=1)
    table.add_column("shape", no_wrap=True)
    table.add_column("dtype", no_wrap=True)
    heads = ("std", "kurtosis", "largest/std", "field gain dB", "rank 16 %", f"bits/w at {snr:g} dB")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    small = [] if whole else [found for found in profiles if found.info.elements < _SMALL]
    for found in profiles:
        if len(small) > 1 and found in small:
            continue
        share = None if found.low_rank_energy is None else 100 * found.low_rank_energy
        table.add_row(
            tables.name_text(found.info.name), tables.shape_text(found.info.shape), found.info.dtype,
            _cell(found.deviation, ".3g"), _cell(found.kurtosis, ".1f"), _cell(found.largest, ".1f"),
            _cell(found.field_gain_db, ".2f"), _cell(share, ".1f"), _cell(found.bits, ".2f"),
        )  # fmt: skip
    if len(small) > 1:
        elements = sum(found.info.elements for found in small)
        table.add_row(f"{len(small)} small tensors", f"{elements:,} in all", "", *["-"] * len(heads))
    return table


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else tables.number(value, form)


def _json(found: TensorProfile) -> dict[str, Any]:
    return {
        "name": found.info.name,
        "shape": list(found.info.shape),
        "dtype": found.info.dtype,
        "elements": found.info.elements,
        "source_bytes": found.info.nbytes,
        "std": found.deviation,
        "kurtosis": found.kurtosis,
        "largest_over_std": found.largest,
        "field_gain_db": found.field_gain_db,
        "rank_16_energy": found.low_rank_energy,
        "bits_per_weight_at_snr": found.bits,
    }


def show_remote(repo_id: str, tensors: Sequence[TensorHeader], form: Form) -> None:
    """Print what the headers of a repository say."""
    elements = sum(tensor.elements for tensor in tensors)
    size = sum(tensor.nbytes for tensor in tensors)
    if form.as_json:
        document = {
            "command": "inspect",
            "source": repo_id,
            "tensors": [
                {
                    "name": tensor.name,
                    "shape": list(tensor.shape),
                    "dtype": tensor.dtype,
                    "elements": tensor.elements,
                    "source_bytes": tensor.nbytes,
                }
                for tensor in tensors
            ],
            "totals": {"tensors": len(tensors), "elements": elements, "source_bytes": size},
        }
        tables.print_json(document)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("tensor", overflow="fold", ratio=1)
    table.add_column("shape", no_wrap=True)
    table.add_column("dtype", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    for tensor in tensors:
        shape = tables.shape_text(tensor.shape)
        table.add_row(tables.name_text(tensor.name), shape, tensor.dtype, tables.size_text(tensor.nbytes))
    console = stdout()
    tables.show(console, table, form.markdown)
    console.print(
        f"{counted(len(tensors), 'tensor')}, {counted(elements, 'weight')}, {tables.size_text(size)}, on the hub: "
        "read from the headers, no weights were fetched"
    )
