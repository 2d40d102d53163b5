"""`rbe compress`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rbe_cli.cli import budgets, options, tables
from rbe_cli.cli.console import load_kernels, progress_bar, stdout
from rbe_cli.codec.parameters import CHOICES
from rbe_cli.operations.budgets import GroupBudget, GroupedBounds, judge
from rbe_cli.operations.figures import totals
from rbe_cli.operations.presets import as_toml, resolve
from rbe_cli.operations.settings import EFFORT_STATES, Settings
from rbe_cli.operations.sizes import parse_size

if TYPE_CHECKING:
    from rbe_cli.checkpoint.reader import Checkpoint
    from rbe_cli.operations.compress import Compressed

_RATE, _ENCODER, _STRUCTURE = "How far (one of)", "How", "Structure"


def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A .safetensors file, a folder with some, a shard index, a Hugging Face repo id, or mini-gpt2.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Where to write; by default SOURCE's name + .rbe, here."),
    ] = None,
    bits: Annotated[
        float | None,
        typer.Option(
            "--bits",
            metavar="B",
            help="At most B bits per weight, every byte counted.  [default: 4]",
            rich_help_panel=_RATE,
        ),
    ] = None,
    ratio: Annotated[
        float | None, typer.Option("--ratio", metavar="R", help="At least R times smaller.", rich_help_panel=_RATE)
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="SIZE", help="At most this large in all, like 60MB.", rich_help_panel=_RATE),
    ] = None,
    nrmse: Annotated[
        float | None,
        typer.Option(
            "--nrmse",
            metavar="E",
            help="Relative error of at most E in every tensor (0.07 is 23 dB).",
            rich_help_panel=_RATE,
        ),
    ] = None,
    rmse: Annotated[
        float | None,
        typer.Option("--rmse", metavar="E", help="The same in the weights' own unit.", rich_help_panel=_RATE),
    ] = None,
    lossless: Annotated[
        bool | None, typer.Option("--lossless", help="Every bit of every tensor.", rich_help_panel=_RATE)
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.toml",
            help="Settings to start from: balanced, small, near-lossless, lossless, extreme, or a file; "
            "what else the command line says wins.",
            rich_help_panel=_ENCODER,
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="balanced|mse",
            help="balanced: more error where rows and columns are large, which models feel least. mse: least error. "
            f" [default: {Settings.objective}]",
            rich_help_panel=_ENCODER,
        ),
    ] = None,
    effort: Annotated[
        int | None,
        typer.Option(
            metavar="0..9",
            help=f"How long to search ({EFFORT_STATES[0]} to {EFFORT_STATES[-1]} trellis states); decoding is alike. "
            f" [default: {Settings.effort}]",
            rich_help_panel=_ENCODER,
        ),
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REGEX=GOAL",
            help="For tensors that match: bits:6, nrmse:0.01, lossless or skip. Repeatable; the first match counts.",
            rich_help_panel=_RATE,
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REGEX",
            help="Approximate only tensors that match; the others stay exact. Repeatable.",
            rich_help_panel=_ENCODER,
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX", help="Keep tensors that match exactly. Repeatable.", rich_help_panel=_ENCODER),
    ] = None,
    structure_only: Annotated[
        bool,
        typer.Option(
            "--structure-only",
            help="No coded residual: low rank, or sparse blocks with the 8 basis functions.",
            rich_help_panel=_STRUCTURE,
        ),
    ] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="REV", help="Branch, tag or commit of a repo id.", rich_help_panel=_ENCODER)
    ] = None,
    jobs: options.Jobs = 0,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an output rbe wrote before.")] = False,
    transform: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"{', '.join(CHOICES)}; auto chooses per tensor.  [default: {Settings.transform}]",
            rich_help_panel=_STRUCTURE,
        ),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option(
            "--k",
            metavar="1..16",
            help=f"Wavelet levels of a block.  [default: {Settings.k}]",
            rich_help_panel=_STRUCTURE,
        ),
    ] = None,
    block: Annotated[
        int | None,
        typer.Option(
            "--block",
            metavar="N",
            help=f"Blocks of N x N.  [default: {Settings.block}]",
            rich_help_panel=_STRUCTURE,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            metavar="T",
            help=f"Drop coefficients below T x RMS.  [default: {Settings.threshold}]",
            rich_help_panel=_STRUCTURE,
        ),
    ] = None,
    max_size: budgets.MaxSize = None,
    min_ratio: budgets.MinRatio = None,
    max_bits: budgets.MaxBits = None,
    max_rmse: budgets.MaxRmse = None,
    max_nrmse: budgets.MaxNrmse = None,
    min_snr: budgets.MinSnr = None,
    budget_file: budgets.BudgetFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Forecast sizes and errors, and write nothing.")] = False,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Print the settings as a preset file, and stop.")
    ] = False,
    whole: options.Whole = False,
    as_json: options.Json = False,
    markdown: options.Markdown = False,
    quiet: options.Quiet = False,
) -> None:
    """Compress a checkpoint into a folder: one .rbe file per layer, and rbe.json.

    Then prints, per tensor, its size and its error, both measured on what was written. The gap is how far the SNR is
    below 6.02 dB per bit, the Shannon bound of white Gaussian weights; rows and columns of different scale allow less
    than 0.

    Examples:

      rbe compress mini-gpt2 -o mini.rbe

      rbe compress ./model --bits 3.5 --objective mse

      rbe compress model.safetensors --nrmse 0.05 --json

      rbe compress mini-gpt2 --preset small --max-size 600kB --max-nrmse 0.15
    """
    given = {
        "bits": bits,
        "ratio": ratio,
        "size": None if size is None else parse_size(size),
        "nrmse": nrmse,
        "rmse": rmse,
        "lossless": lossless,
        "objective": objective,
        "effort": effort,
        "k": k,
        "block": block,
        "threshold": threshold,
        "transform": transform,
        "structure_only": structure_only or None,
        "overrides": tuple(override) if override else None,
        "include": tuple(include) if include else None,
        "exclude": tuple(exclude) if exclude else None,
        "jobs": jobs,
    }
    settings = resolve(preset, given)
    if show_config:
        print(as_toml(settings), end="")
        return
    bounds = budgets.from_options(budget_file, max_size, min_ratio, max_bits, max_rmse, max_nrmse, min_snr)
    from rbe_cli.checkpoint.source import open_source

    checkpoint = open_source(source, revision)
    out = out or Path(checkpoint.name.replace("/", "--").removesuffix(".safetensors") + ".rbe")
    load_kernels(quiet)
    if dry_run:
        _dry_run(checkpoint, settings, bounds, whole, as_json, markdown, quiet)
        return
    from rbe_cli.operations.compress import compress

    with progress_bar(quiet) as bar:
        done = compress(checkpoint, out, settings, force=force, progress=bar)
    tensors = done.manifest.tensors
    judged = judge(bounds, tensors, done.size)
    figures = totals(tensors, done.size, tables.carried_bytes(done.manifest))
    inexact = [t for t in tensors if t.name in done.encode_ns]
    work = sum(done.encode_ns[t.name] * t.elements for t in inexact)
    figures |= {
        "seconds": done.seconds,
        "encode_ns_per_element": work / sum(t.elements for t in inexact) if inexact else None,
        "peak_memory_bytes": peak_memory(),
        "passes": done.passes,
    }
    if as_json:
        document = {
            "command": "compress",
            "path": str(out),
            "source": done.manifest.source,
            "settings": done.manifest.settings,
            "tensors": [tables.tensor_json(t) | {"encode_ns_per_element": done.encode_ns.get(t.name)} for t in tensors],
            "totals": figures,
            "budget": budgets.as_json(judged),
        }
        json.dump(document, sys.stdout, indent=2)
        print()
    else:
        _print(done, figures, judged, settings.threads, out, whole, markdown)
    budgets.require(judged, f"; {out} is written all the same")


def _dry_run(
    checkpoint: Checkpoint,
    settings: Settings,
    bounds: GroupedBounds,
    whole: bool,
    as_json: bool,
    markdown: bool,
    quiet: bool,
) -> None:
    from rbe_cli.operations.forecast import forecast

    with progress_bar(quiet) as bar:
        expected = forecast(checkpoint, settings, bar)
    tensors = expected.manifest.tensors
    judged = judge(bounds, tensors, expected.size)
    figures = totals(tensors, expected.size, tables.carried_bytes(expected.manifest)) | {"seconds": expected.seconds}
    if as_json:
        document = {
            "command": "compress",
            "dry_run": True,
            "source": expected.manifest.source,
            "settings": expected.manifest.settings,
            "tensors": [tables.tensor_json(tensor) for tensor in tensors],
            "totals": figures,
            "budget": budgets.as_json(judged),
        }
        json.dump(document, sys.stdout, indent=2)
        print()
    else:
        console = stdout()
        tables.show(console, tables.tensor_table(tensors, None, whole), markdown)
        tables.print_totals(console, figures)
        if judged:
            tables.show(console, budgets.table(judged), markdown)
        console.print(f"a forecast, made in {expected.seconds:.1f} s; nothing was written")
    budgets.require(judged, "; a forecast, nothing was written")


def _print(
    done: Compressed,
    figures: Mapping[str, Any],
    judged: Sequence[GroupBudget],
    threads: int,
    out: Path,
    whole: bool,
    markdown: bool,
) -> None:
    console = stdout()
    tables.show(console, tables.tensor_table(done.manifest.tensors, done.encode_ns, whole), markdown)
    tables.print_totals(console, figures)
    speed = figures["encode_ns_per_element"]
    encoded = f", encoding {speed:.0f} ns per weight on one core" if speed is not None else ""
    console.print(f"{done.seconds:.1f} s on {threads} threads{encoded}, peak memory {tables.size_text(peak_memory())}")
    if judged:
        tables.show(console, budgets.table(judged), markdown)
    console.print(f"wrote {out}")


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
