"""The table of `rbe bench model` for several models or encoders: quality alone, each against the first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from rbe_cli.cli import tables
from rbe_cli.cli.console import stdout
from rbe_cli.cli.tables import counted, estimate_json, estimate_text, name_text, size_text

if TYPE_CHECKING:
    from rbe_cli.operations.bench_models import Closeness


def show(reference: str, found: list[Closeness], markdown: bool) -> None:
    """Print it."""
    encoder = found[0].quality is None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model", overflow="fold")
    columns = ["size", "bits/w"] + ([] if encoder else ["x perplexity"]) + [_figure(found[0]), "of the first's"]
    for column in [*columns, *([] if encoder else ["top-1 agreement, %"])]:
        table.add_column(column, justify="right", no_wrap=True)
    for one in found:
        quality = one.quality
        cells = [size_text(one.bytes), f"{one.bits:.3f}"]
        cells += [estimate_text(quality.perplexity_ratio, ".5f")] if quality else []
        of_first = "1" if one is found[0] else estimate_text(one.over(found[0]), ".3f")
        cells += [estimate_text(one.figure, ".6f"), of_first]
        cells += [estimate_text(quality.top1.scaled(100), ".3f")] if quality else []
        table.add_row(name_text(one.path), *cells)
    console = stdout()
    tables.show(console, table, markdown)
    parts = counted(found[0].sums.size, "line") if encoder else counted(int(found[0].counts.sum()), "token")
    console.print(f"against {reference}, on {parts}; +- is the standard error, of a ratio that of the pairs")


def document(reference: str, found: list[Closeness]) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "command": "bench model",
        "reference": reference,
        "figure": _figure(found[0]),
        "models": [
            {
                "path": one.path,
                "bytes": one.bytes,
                "bits_per_weight": one.bits,
                "value": estimate_json(one.figure),
                "of_first": estimate_json(one.over(found[0])),
                "perplexity_ratio": estimate_json(one.quality.perplexity_ratio) if one.quality else None,
                "top1_agreement": estimate_json(one.quality.top1) if one.quality else None,
            }
            for one in found
        ],
    }


def _figure(one: Closeness) -> str:
    return "1 - cosine" if one.quality is None else "KL, nats per token"
