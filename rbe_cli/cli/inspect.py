"""`rbe inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rbe_cli.cli import budgets, harmless, options, tables
from rbe_cli.cli.console import stdout
from rbe_cli.errors import RBEError, UsageError
from rbe_cli.files.names import LAYER_SUFFIX, MANIFEST
from rbe_cli.operations.budgets import Budget, judge
from rbe_cli.operations.figures import totals
from rbe_cli.operations.settings import Settings

if TYPE_CHECKING:
    from rbe_cli.codec.parameters import Parameters
    from rbe_cli.operations.inspect import Inspected


#: dB that a checkpoint is profiled for.
_SNR, _SNR_MOST = 24.0, 200.0


@options.grouped
def command(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="A folder `rbe compress` wrote or one .rbe file; or a checkpoint, as for compress, to profile.",
        ),
    ],
    budget: budgets.BudgetOptions,
    status: options.Status,
    snr: Annotated[
        float | None,
        typer.Option(
            "--snr",
            metavar="DB",
            help=f"For a checkpoint: tell the bits this SNR would take.  \\[default: {_SNR:g}]",
        ),
    ] = None,
    revision: options.Revision = None,
    jobs: options.Jobs = 0,
    whole: options.Whole = False,
    *,
    form: options.Form,
) -> None:
    """Show what a compressed folder or a layer file holds: sizes from the files, errors as they were measured.

    The method is the coder, the structure or transform that was chosen for it, and the next best, which may gain a
    little more and take longer to decode. Each with its gain: by how many dB the SNR is expected to be above that of
    the trellis coder alone at the same size. It is below 0 where --structure-only leaves that coder out though it would
    do better. A layer file by itself does not have the gains.

    Of a checkpoint that is not compressed, show what its weights are like and what they would take; of a repository
    that is not in the cache, what the headers say, without fetching weights.

    Examples:

      rbe inspect mini.rbe

      rbe inspect mini.rbe/transformer.wte.rbe

      rbe inspect mini.rbe --json

      rbe inspect mini.rbe --max-size 600kB --min-snr 17 --markdown

      rbe inspect mini-gpt2 --snr 30
    """
    bounds = budget.bounds()
    if not _is_compressed(path):
        if bounds != budgets.NONE:
            raise UsageError(f"{path}: is not compressed, so there is no budget to keep; see `rbe compress --dry-run`")
        _inspect_checkpoint(
            path, revision, _SNR if snr is None else snr, Settings(jobs=jobs).threads, whole, form, status
        )
        return
    if snr is not None or revision is not None:
        raise UsageError(f"{path}: is compressed; --snr and --revision are for a checkpoint that is not")
    from rbe_cli.operations.inspect import inspect

    found = inspect(Path(path))
    judged = judge(bounds, found.tensors, found.size)
    figures = totals(found.tensors, found.size, tables.carried_bytes(found.manifest))
    if form.as_json:
        document: dict[str, Any] = {"command": "inspect", "path": path}
        if found.manifest is not None:
            document |= {
                "source": found.manifest.source,
                "base": tables.base_json(found.manifest),
                "settings": found.manifest.settings,
            }
        document["tensors"] = [
            tables.tensor_json(t) | {"codec": _parameters_json(found.parameters.get(t.name))} for t in found.tensors
        ]
        document |= {"totals": figures, "budget": budgets.as_json(judged)}
        tables.print_json(document)
    else:
        _print(found, figures, judged, whole, form.markdown)
    budgets.require(judged)


def _is_compressed(path: str) -> bool:
    """Whether it is there and one of ours. Raises RBEError for what is there and no checkpoint either."""
    here = Path(path)
    if not path or not here.exists():
        return False
    if here.is_dir():
        compressed, checkpoint = (here / MANIFEST).exists(), any(here.glob("*.safetensors*"))
    else:
        compressed = here.name == MANIFEST or here.name.endswith(LAYER_SUFFIX)
        checkpoint = here.name.endswith((".safetensors", ".safetensors.index.json"))
    if not compressed and not checkpoint:
        raise RBEError(
            f"{path}: nothing to inspect; give a folder that `rbe compress` wrote (with an {MANIFEST}), one "
            f"{LAYER_SUFFIX} file, or a checkpoint of .safetensors files"
        )
    return compressed


def _inspect_checkpoint(
    source: str,
    revision: str | None,
    snr: float,
    threads: int,
    whole: bool,
    form: options.Form,
    status: options.Status,
) -> None:
    if not 0 <= snr <= _SNR_MOST:
        raise UsageError(f"--snr must be from 0 to {_SNR_MOST:g}, not {snr:g}")
    from rbe_cli.checkpoint.source import is_fetched, open_source
    from rbe_cli.cli.profile import show_profile, show_remote

    if is_fetched(source, revision):
        from rbe_cli.checkpoint.hub import read_headers

        show_remote(source, read_headers(source, revision), form)
    else:
        show_profile(open_source(source, revision, cached_only=True), snr, threads, whole, form, status)


def _print(found: Inspected, figures: dict[str, Any], judged: Sequence[Budget], whole: bool, markdown: bool) -> None:
    console = stdout()
    details = {
        tensor.name: _pipeline_text(found.parameters[tensor.name], named=tensor.choice is not None)
        for tensor in found.tensors
        if tensor.name in found.parameters
    }
    if found.manifest is not None:
        settings = ", ".join(f"{key} {value}" for key, value in found.manifest.settings.items())
        revision = f" at {found.manifest.revision}" if found.manifest.revision else ""
        base = found.manifest.base
        update = f" since {base.source}" + (f" at {base.revision}" if base.revision else "") if base else ""
        line = f"{found.manifest.source}{revision}{update}, by {found.manifest.tool}: {settings}"
        line = harmless.short(line, harmless.LONGEST_LINE)
        console.print(harmless.markdown(line) if markdown else line)
    tables.show(console, tables.tensor_table(found.tensors, None, whole, details), markdown)
    tables.print_totals(console, figures)
    if judged:
        tables.show(console, budgets.table(judged), markdown)


def _pipeline_text(parameters: Parameters, named: bool) -> str:
    """Structure and transform, unless they are named already, and blocks and levels: `, dwt in 128x128, 5 levels`."""
    from rbe_cli.codec.parameters import STRUCTURES, TRANSFORMS

    used = (STRUCTURES[parameters.structure], TRANSFORMS[parameters.transform])
    text = "" if named else "".join(f", {name}" for name in used if name != "none")
    if parameters.block:
        text += f" in {parameters.block}x{parameters.block}"
    if parameters.levels:
        text += f", {parameters.levels} levels"
    return text


def _parameters_json(parameters: Any) -> dict[str, Any] | None:
    if parameters is None:
        return None
    from rbe_cli.codec.parameters import STRUCTURES, TRANSFORMS

    return {
        "states": parameters.states,
        "family": parameters.family,
        "step": parameters.step,
        "row_shaping": parameters.row_shaping / 16,
        "column_shaping": parameters.column_shaping / 16,
        "importance": "rows" if parameters.row_importance else "columns" if parameters.column_importance else None,
        "view": [parameters.grid.rows, parameters.grid.columns],
        "tile": [parameters.grid.height, parameters.grid.width],
        "structure": STRUCTURES[parameters.structure],
        "transform": TRANSFORMS[parameters.transform],
        "block": parameters.block or None,
        "levels": parameters.levels or None,
    }
