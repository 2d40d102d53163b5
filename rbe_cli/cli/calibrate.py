"""`rbe calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from rbe_cli.cli import options, tables
from rbe_cli.cli.console import fetch, load_kernels, progress_bar, stdout
from rbe_cli.files.atomic import check_file
from rbe_cli.operations.choices import CALIBRATION_TOKENS

if TYPE_CHECKING:
    from rbe_cli.operations.calibrate import Calibrated
    from rbe_cli.operations.sensitivity import Sensitivities


@options.grouped
def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A model's folder with its config.json, a Hugging Face repo id, or mini-gpt2."
        ),
    ],
    status: options.Status,
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Text like what the model will read; an encoder reads lines.  \\[default: mini-gpt2 has one]",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The importance file to write.")] = Path(
        "importance.safetensors"
    ),
    tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Read N tokens at most, from all over the text.")
    ] = CALIBRATION_TOKENS,
    context: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Tokens of a window.  \\[default: the model's context, 1024 at most]"),
    ] = None,
    moments: Annotated[
        bool,
        typer.Option(
            "--moments", help="Also the second moments of each weight's inputs, n x n for n of them: for --feedback."
        ),
    ] = False,
    sensitivity: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="Also measure what the model loses when one matrix alone is coded at 3 bits, and write the bits each "
            "should have: for rbe compress --overrides. Reads a fourth of the tokens once for each matrix.",
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, metavar="N", help="Threads; the last bits may depend on it.")
    ] = 1,
    force: options.Force = False,
    *,
    form: options.Form,
) -> None:
    """Run a model over a text and write how strong each input of each weight is, for `rbe compress --importance`.

    GPT-2 runs in rbe's own layers, every other language model or encoder in transformers. The gain is the arithmetic
    over the geometric mean of the inputs' mean squares: at a high rate, so many dB of output error are saved by steps
    that follow the inputs.

    Examples:

      rbe calibrate mini-gpt2 -o importance.safetensors

      rbe calibrate ./llama --text wiki.txt --tokens 65536 --moments
    """
    options.check_ending("-o", out, (".safetensors",))
    for file in filter(None, (out, sensitivity)):
        check_file(file, force)
    fetch(source, status)
    from rbe_cli.operations.calibrate import calibrate

    with progress_bar(status) as bar:
        done = calibrate(
            source, out, text=text, limit=tokens, context=context, moments=moments, threads=jobs, progress=bar
        )
    found = None
    if sensitivity is not None:
        load_kernels(status, "feedback" if moments else "all")
        from rbe_cli.operations.sensitivity import COARSE_BITS, measure_sensitivity, write_overrides
        from rbe_cli.operations.settings import Settings

        with progress_bar(status) as bar:
            found = measure_sensitivity(
                source, text=text, limit=max(tokens // 4, 1), context=context, threads=jobs, progress=bar,
                settings=Settings(bits=COARSE_BITS, importance=out),
            )  # fmt: skip
        write_overrides(sensitivity, found)
    if form.as_json:
        tables.print_json(_document(source, out, done, found))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("weight", overflow="fold")
    for column in ("inputs", "axis", "gain dB"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, inputs in sorted(done.inputs.items()):
        gain = tables.number(done.gain(name), ".2f") if name in done.mean_squares else "never used"
        table.add_row(tables.name_text(name), str(inputs.channels), str(inputs.axis), gain)
    console = stdout()
    tables.show(console, table, form.markdown)
    again = f", read {done.passes} times" if done.passes > 1 else ""
    console.print(f"{tables.counted(done.tokens, 'token')}{again}, {done.seconds:.1f} s")
    console.print(f"wrote {out}, {tables.size_text(done.bytes)}")
    if found is not None:
        tables.show(console, _sensitivity_table(found), form.markdown)
        console.print(f"{tables.counted(found.tokens, 'token')} for each matrix; wrote {sensitivity}")


def _sensitivity_table(found: Sensitivities) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(f"coded alone at {found.bits:g} bits", overflow="fold")
    for column in ("weights", found.figure, "more bits"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in sorted(found.tensors, key=lambda one: -one.more_bits):
        loss = tables.estimate_text(one.loss, ".6f")
        table.add_row(tables.name_text(one.name), f"{one.elements:,}", loss, f"{one.more_bits:+.2f}")
    return table


def _document(source: str, out: Path, done: Calibrated, found: Sensitivities | None) -> dict[str, Any]:
    from rbe_cli.operations.figures import finite

    document = {
        "command": "calibrate",
        "source": source,
        "out": str(out),
        "tokens": done.tokens,
        "passes": done.passes,
        "bytes": done.bytes,
        "seconds": done.seconds,
        "weights": [
            {
                "name": name,
                "inputs": inputs.channels,
                "axis": inputs.axis,
                "gain_db": finite(done.gain(name)) if name in done.mean_squares else None,
            }
            for name, inputs in sorted(done.inputs.items())
        ],
    }
    if found is not None:
        document["sensitivity"] = {
            "figure": found.figure,
            "tokens": found.tokens,
            "bits": found.bits,
            "tensors": [
                {
                    "name": one.name,
                    "loss": one.loss.value,
                    "loss_error": finite(one.loss.error),
                    "more_bits": one.more_bits,
                }
                for one in found.tensors
            ],
        }
    return document
