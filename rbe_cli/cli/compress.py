"""`rbe compress`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rbe_cli.cli import budgets, options, tables
from rbe_cli.cli.console import load_kernels, open_base, open_source, progress_bar, stderr, stdout
from rbe_cli.cli.encoder import DetailOptions, EncoderOptions
from rbe_cli.cli.stream import STDOUT, tar_on_stdout
from rbe_cli.cli.tables import counted
from rbe_cli.errors import UsageError
from rbe_cli.files.atomic import check_free
from rbe_cli.operations.budgets import Budget, GroupedBounds, judge
from rbe_cli.operations.figures import totals
from rbe_cli.operations.machine import peak_memory
from rbe_cli.operations.presets import as_toml

if TYPE_CHECKING:
    from rich.console import Console

    from rbe_cli.checkpoint.reader import Checkpoint
    from rbe_cli.container.open_base import AnyBase
    from rbe_cli.operations.compress import Compressed
    from rbe_cli.operations.settings import Settings


@options.grouped
def command(
    source: options.Source,
    encoder: EncoderOptions,
    detail: DetailOptions,
    budget: budgets.BudgetOptions,
    since: options.BaseOptions,
    status: options.Status,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="Where to write; - is a tar on stdout.  \\[default: SOURCE's name + .rbe, here]",
        ),
    ] = None,
    force: options.Force = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on from what a killed run left, if source and settings are the same; when interrupted, keep it.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Forecast sizes and errors, and write nothing.")] = False,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Print the settings as a preset file, and stop.")
    ] = False,
    revision: options.Revision = None,
    jobs: options.Jobs = 0,
    whole: options.Whole = False,
    *,
    form: options.Form,
) -> None:
    """Compress a checkpoint into a folder: one .rbe file per layer, and rbe.json.

    With --base, an update: what changed since that model, which takes a fraction of the size; to decode it takes the
    same model again.

    Then prints, per tensor, its size and its error, both measured on what was written. The gap is how far the SNR is
    below 6.02 dB per bit, the Shannon bound of white Gaussian weights; rows and columns of different scale allow less
    than 0.

    Examples:

      rbe compress mini-gpt2 -o mini.rbe

      rbe compress ./model --bits 3.5 --objective mse

      rbe compress mini-gpt2 --bits 3 --importance importance.safetensors

      rbe compress model.safetensors --nrmse 0.05 --json

      rbe compress mini-gpt2 --preset small --max-size 600kB --max-nrmse 0.15

      rbe compress mini-gpt2 -o - | ssh host tar x

      rbe compress ./finetuned --base org/model --bits 0.5 -o update.rbe
    """
    settings = encoder.settings(detail, jobs)
    if show_config:
        print(as_toml(settings), end="")
        return
    bounds = budget.bounds()
    if out:
        options.check_folder_name(out, "compress writes a folder: name it, like model.rbe, or -o - for a tar on stdout")
    checkpoint = open_source(source, revision, status)
    names = [info.name for _, info in checkpoint.tensors]
    settings.check_patterns(names)
    bounds.check_patterns(names)
    base = open_base(since, status)
    named = Path(checkpoint.name.replace("/", "--").removesuffix(".safetensors") + ".rbe")
    out = out or named
    if not (dry_run or resume or out == STDOUT):
        # Before anything is compiled.
        check_free(out, force)
    feedback = settings.importance is not None and settings.feedback
    load_kernels(status, "structure" if settings.structure_only else "feedback" if feedback else "all")
    if dry_run:
        _dry_run(checkpoint, settings, base, bounds, whole, form, status)
        return
    from rbe_cli.operations.compress import compress

    if resume and out == STDOUT:
        raise UsageError("--resume needs a folder to go on in: name one with -o")
    target = tar_on_stdout(named.name, form.as_json) if out == STDOUT else nullcontext(out)
    with target as folder, progress_bar(status) as bar:
        done = compress(checkpoint, folder, settings, force=force, resume=resume, progress=bar, base=base)
    tensors = done.manifest.tensors
    judged = judge(bounds, tensors, done.size)
    figures = totals(tensors, done.size, tables.carried_bytes(done.manifest))
    figures |= {
        "seconds": done.seconds,
        "analyse_ns_per_weight": done.analyse_ns_per_weight,
        "encode_ns_per_weight": done.encode_ns_per_weight,
        "peak_memory_bytes": peak_memory(),
        "passes": done.passes,
    }
    if form.as_json:
        document = {
            "command": "compress",
            "path": str(out),
            "source": done.manifest.source,
            "base": tables.base_json(done.manifest),
            "settings": done.manifest.settings,
            "tensors": [tables.tensor_json(t) | {"encode_ns_per_weight": done.encode_ns.get(t.name)} for t in tensors],
            "totals": figures,
            "budget": budgets.as_json(judged),
            "left_out": checkpoint.left_out,
        }
        tables.print_json(document)
    else:
        console = stderr() if out == STDOUT else stdout()
        if not (status.quiet and out == STDOUT):
            _print(console, done, figures, judged, settings.threads, whole, form.markdown)
            tables.print_left_out(console, checkpoint.left_out)
            console.print("wrote a tar to stdout" if out == STDOUT else f"wrote {out}")
    budgets.require(judged, f"; {out} is written all the same")


def _dry_run(
    checkpoint: Checkpoint,
    settings: Settings,
    base: AnyBase | None,
    bounds: GroupedBounds,
    whole: bool,
    form: options.Form,
    status: options.Status,
) -> None:
    from rbe_cli.operations.forecast import forecast

    with progress_bar(status) as bar:
        expected = forecast(checkpoint, settings, bar, base)
    tensors = expected.manifest.tensors
    judged = judge(bounds, tensors, expected.size)
    figures = totals(tensors, expected.size, tables.carried_bytes(expected.manifest)) | {"seconds": expected.seconds}
    if form.as_json:
        document = {
            "command": "compress",
            "dry_run": True,
            "source": expected.manifest.source,
            "base": tables.base_json(expected.manifest),
            "settings": expected.manifest.settings,
            "tensors": [tables.tensor_json(tensor) for tensor in tensors],
            "totals": figures,
            "budget": budgets.as_json(judged),
            "left_out": checkpoint.left_out,
        }
        tables.print_json(document)
    else:
        console = stdout()
        tables.show(console, tables.tensor_table(tensors, None, whole), form.markdown)
        tables.print_totals(console, figures)
        if judged:
            tables.show(console, budgets.table(judged), form.markdown)
        tables.print_left_out(console, checkpoint.left_out)
        console.print(f"a forecast, made in {expected.seconds:.1f} s; nothing was written")
    budgets.require(judged, "; a forecast, nothing was written")


def _print(
    console: Console,
    done: Compressed,
    figures: Mapping[str, Any],
    judged: Sequence[Budget],
    threads: int,
    whole: bool,
    markdown: bool,
) -> None:
    tables.show(console, tables.tensor_table(done.manifest.tensors, done.encode_ns, whole), markdown)
    tables.print_totals(console, figures)
    analysed, speed = figures["analyse_ns_per_weight"], figures["encode_ns_per_weight"]
    console.print(
        f"{done.seconds:.1f} s on {counted(threads, 'thread')}, peak memory {tables.size_text(peak_memory())}"
    )
    if speed is not None:
        console.print(f"analysis {analysed:.0f} and a pass of encoding {speed:.0f} ns per weight on one core")
    if judged:
        tables.show(console, budgets.table(judged), markdown)
