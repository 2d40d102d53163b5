"""`rbe compress`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from rbe_cli.cli import options, tables
from rbe_cli.cli.console import load_kernels, progress_bar, stdout
from rbe_cli.cli.options import parse_size
from rbe_cli.operations.settings import DEFAULT_EFFORT, EFFORT_STATES, Settings

_RATE, _ENCODER, _STRUCTURE = "How far (one of)", "How", "Structure (recorded; governs a stage still to come)"


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
        bool, typer.Option("--lossless", help="Every bit of every tensor.", rich_help_panel=_RATE)
    ] = False,
    objective: Annotated[
        str,
        typer.Option(
            metavar="balanced|mse",
            help="balanced: more error where rows and columns are large, which models feel least. mse: least error.",
            rich_help_panel=_ENCODER,
        ),
    ] = "balanced",
    effort: Annotated[
        int,
        typer.Option(
            metavar="0..9",
            help=f"How long to search ({EFFORT_STATES[0]} to {EFFORT_STATES[-1]} trellis states); decoding is alike.",
            rich_help_panel=_ENCODER,
        ),
    ] = DEFAULT_EFFORT,
    override: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REGEX=GOAL",
            help="For tensors that match: bits:6, nrmse:0.01, lossless or skip. Repeatable; the first match counts.",
            rich_help_panel=_RATE,
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="REV", help="Branch, tag or commit of a repo id.", rich_help_panel=_ENCODER)
    ] = None,
    jobs: options.Jobs = 0,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an output rbe wrote before.")] = False,
    k: Annotated[
        int, typer.Option("--k", metavar="1..16", help="Wavelet levels of a block.", rich_help_panel=_STRUCTURE)
    ] = 5,
    block: Annotated[
        int, typer.Option("--block", metavar="N", help="Blocks of N x N.", rich_help_panel=_STRUCTURE)
    ] = 128,
    threshold: Annotated[
        float,
        typer.Option("--threshold", metavar="T", help="Drop coefficients below T x RMS.", rich_help_panel=_STRUCTURE),
    ] = 0.01,
    whole: options.Whole = False,
    as_json: options.Json = False,
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
    """
    settings = Settings(
        bits=bits,
        ratio=ratio,
        size=None if size is None else parse_size(size),
        nrmse=nrmse,
        rmse=rmse,
        lossless=lossless,
        objective=objective,
        effort=effort,
        k=k,
        block=block,
        threshold=threshold,
        overrides=tuple(override or ()),
        jobs=jobs,
    )
    from rbe_cli.checkpoint.source import open_source

    checkpoint = open_source(source, revision)
    out = out or Path(checkpoint.name.replace("/", "--").removesuffix(".safetensors") + ".rbe")
    load_kernels(quiet)
    from rbe_cli.operations.compress import compress

    with progress_bar(quiet) as bar:
        done = compress(checkpoint, out, settings, force=force, progress=bar)
    tensors = done.manifest.tensors
    figures = tables.totals(tensors, done.size, tables.carried_bytes(done.manifest))
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
        }
        json.dump(document, sys.stdout, indent=2)
        print()
        return
    console = stdout()
    console.print(tables.tensor_table(tensors, done.encode_ns, whole))
    tables.print_totals(console, figures)
    speed = figures["encode_ns_per_element"]
    encoded = f", encoding {speed:.0f} ns per weight on one core" if speed is not None else ""
    console.print(
        f"{done.seconds:.1f} s on {settings.threads} threads{encoded}, peak memory {tables.size_text(peak_memory())}"
    )
    console.print(f"wrote {out}")


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
