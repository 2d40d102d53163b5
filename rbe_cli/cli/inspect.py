"""`rbe inspect`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rbe_cli.cli import options, tables
from rbe_cli.cli.console import stdout


def command(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder `rbe compress` wrote, or one .rbe file.")],
    whole: options.Whole = False,
    as_json: options.Json = False,
) -> None:
    """Show what a compressed folder or a layer file holds: sizes from the files, errors as they were measured.

    Examples:

      rbe inspect mini.rbe

      rbe inspect mini.rbe/transformer.wte.rbe

      rbe inspect mini.rbe --json
    """
    from rbe_cli.operations.inspect import inspect

    found = inspect(path)
    figures = tables.totals(found.tensors, found.size, tables.carried_bytes(found.manifest))
    if as_json:
        document: dict[str, Any] = {"command": "inspect", "path": str(path)}
        if found.manifest is not None:
            document |= {"source": found.manifest.source, "settings": found.manifest.settings}
        document["tensors"] = [
            tables.tensor_json(t) | {"codec": _parameters_json(found.parameters.get(t.name))} for t in found.tensors
        ]
        document["totals"] = figures
        json.dump(document, sys.stdout, indent=2)
        print()
        return
    console = stdout()
    if found.manifest is not None:
        settings = ", ".join(f"{key} {value}" for key, value in found.manifest.settings.items())
        revision = f" at {found.manifest.revision}" if found.manifest.revision else ""
        console.print(tables.name_text(f"{found.manifest.source}{revision}, by {found.manifest.tool}: {settings}"))
    console.print(tables.tensor_table(found.tensors, None, whole))
    tables.print_totals(console, figures)


def _parameters_json(parameters: Any) -> dict[str, Any] | None:
    if parameters is None:
        return None
    return {
        "states": parameters.states,
        "family": parameters.family,
        "step": parameters.step,
        "row_shaping": parameters.row_shaping / 16,
        "column_shaping": parameters.column_shaping / 16,
        "view": [parameters.grid.rows, parameters.grid.columns],
        "tile": [parameters.grid.height, parameters.grid.width],
        "structure": "none",
        "transform": "none",
    }
