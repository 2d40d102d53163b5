"""`rbe bench`: measure a compressed model against its original."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from rbe_cli.cli import bench_codec, bench_layers, bench_models, budgets, options, tables
from rbe_cli.cli.console import fetch, load_kernels, progress_bar, stdout
from rbe_cli.cli.lazy import Plain, WithDefault
from rbe_cli.cli.tables import counted, estimate_json, estimate_text, number, size_text
from rbe_cli.errors import UsageError
from rbe_cli.operations.budgets import Budget, GroupedBounds, ModelBounds, judge, option_of
from rbe_cli.operations.figures import finite
from rbe_cli.operations.sizes import parse_size

if TYPE_CHECKING:
    from rbe_cli.operations.bench_model import ModelBench, Variant
    from rbe_cli.operations.model_speed import Rate

app = typer.Typer(
    name="bench",
    cls=WithDefault,
    help="Measure what compression does: `rbe bench PATH` is `rbe bench model PATH`.",
    no_args_is_help=True,
    add_completion=False,
)
_MEASURE = "How to measure"


app.command("codec", cls=Plain)(bench_codec.command)
app.command("layers", cls=Plain)(bench_layers.command)


@app.callback()
def _root() -> None:
    pass


@app.command("model", cls=Plain)
@options.grouped
def model(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="A folder `rbe compress` wrote (or any checkpoint, with --reference); of several, the quality alone.",
        ),
    ],
    budget: budgets.BudgetOptions,
    status: options.Status,
    base: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BASE",
            help="The model that PATH is an update of, if it is one. Where that is an update, too, its own base in "
            "another --base after it.",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="ORIGINAL", help="What it was made from.  \\[default: what the manifest names, if it is here]"
        ),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text to score.  \\[default: heldout.txt beside the model]")
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            metavar="numpy|transformers",
            autocompletion=options.completing("numpy", "transformers"),
            help="numpy: rbe's own layers, GPT-2, weights stay compressed. transformers: any causal model, in torch.",
            rich_help_panel=_MEASURE,
        ),
    ] = "numpy",
    tokens: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="Read N tokens of the text at most.", rich_help_panel=_MEASURE),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="N",
            help="Tokens of a window.  \\[default: the model's context, 1024 at most]",
            rich_help_panel=_MEASURE,
        ),
    ] = None,
    cache: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIZE",
            help="Budget of decoded tiles kept; repeat for several.  \\[default: 0, 25, 50 and 100 % of them]",
            rich_help_panel=_MEASURE,
        ),
    ] = None,
    quality_only: Annotated[
        bool, typer.Option("--quality-only", help="Leave speed and memory out.", rich_help_panel=_MEASURE)
    ] = False,
    max_kl: Annotated[float | None, budgets.option("--max-kl", "NATS", "Mean KL divergence per token.")] = None,
    max_ppl_ratio: Annotated[
        float | None, budgets.option("--max-ppl-ratio", "R", "Perplexity over the original's.")
    ] = None,
    min_top1: Annotated[
        float | None, budgets.option("--min-top1", "P", "Part of tokens with the same likeliest token.")
    ] = None,
    jobs: options.Jobs = 1,
    *,
    form: options.Form,
) -> None:
    """Perplexity, KL divergence and top-1 agreement of a compressed language model, its speed and its memory.

    Every figure is measured when it is printed; +- is the standard error over the windows of the text. Of an encoder
    (BERT and its kin, in transformers) it is 1 - cosine of the embeddings of each line of the text.

    Examples:

      rbe bench model mini.rbe

      rbe bench model mini.rbe --quality-only --max-kl 0.01 --max-ppl-ratio 1.02

      rbe bench model llama.rbe --reference ./llama --text wiki.txt --engine transformers --json

      rbe bench model plain.rbe calibrated.rbe
    """
    bounds = budget.bounds(model=True)
    model_bounds = bounds.model.given() | ModelBounds(max_kl, max_ppl_ratio, min_top1).given()
    caches = [parse_size(size, "--cache") for size in cache or []]
    bases = base or []
    for name in filter(None, [*paths, reference, *bases]):
        fetch(name, status)
    load_kernels(status, "decoding")
    from rbe_cli.layers.model_files import ModelFiles
    from rbe_cli.operations.bench_model import bench_model
    from rbe_cli.operations.bench_models import compare_models, is_encoder
    from rbe_cli.operations.settings import Settings

    threads = Settings(jobs=jobs).threads
    path = paths[0]
    if len(paths) > 1 or is_encoder(ModelFiles.open(path, bases), engine):
        if bounds != budgets.NONE or model_bounds:
            raise UsageError("budgets are for one language model at a time")
        with progress_bar(status) as bar:
            original, found = compare_models(
                paths, base=bases, reference=reference, text=text, engine=engine, limit=tokens, context=context,
                threads=threads, progress=bar,
            )  # fmt: skip
        if form.as_json:
            tables.print_json(bench_models.document(original, found))
        else:
            bench_models.show(original, found, form.markdown)
        return
    judged = _judge_folder(path, bounds)
    with progress_bar(status) as bar:
        done = bench_model(
            path, base=bases, reference=reference, text=text, engine=engine, limit=tokens, context=context,
            caches=caches, quality_only=quality_only, threads=threads, progress=bar,
        )  # fmt: skip
    quality = done.quality
    figures = {"max_kl": quality.kl, "max_ppl_ratio": quality.perplexity_ratio, "min_top1": quality.top1}
    judged += [Budget(option_of(name), bound, figures[name].value) for name, bound in model_bounds.items()]
    if form.as_json:
        tables.print_json(_document(path, done, judged))
    else:
        _print(stdout(), path, done, judged, form.markdown)
    budgets.require(judged)


def _judge_folder(path: str, bounds: GroupedBounds) -> list[Budget]:
    """The bounds on sizes and errors, of a compressed folder."""
    if not (bounds.whole.given() or bounds.groups):
        return []
    from rbe_cli.operations.inspect import inspect

    found = inspect(Path(path))
    return judge(bounds, found.tensors, found.size)


def _print(console: Console, path: str, done: ModelBench, judged: list[Budget], markdown: bool) -> None:
    quality = done.quality
    console.print(
        f"{path} ({size_text(done.bytes)}) against {done.reference} ({size_text(done.reference_bytes)}): "
        f"{counted(quality.tokens, 'token')} of {done.text} in {counted(quality.windows, 'window')} of {done.context}, "
        f"engine {done.engine}"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("figure", no_wrap=True)
    for column in ("reference", "compressed", "difference"):
        table.add_column(column, justify="right", no_wrap=True)
    ratio = quality.perplexity_ratio
    rows = [("perplexity", quality.reference_perplexity, quality.perplexity, f"x {estimate_text(ratio, '.5f')}")]
    if done.are_bytes:
        bits = [done.bits_per_byte(e) for e in (quality.reference_loss, quality.loss, quality.loss_difference)]
        rows.append(("bits per byte", bits[0], bits[1], estimate_text(bits[2], "+.5f")))
    for name, original, compressed, difference in rows:
        table.add_row(name, estimate_text(original, ".4f"), estimate_text(compressed, ".4f"), difference)
    table.add_row("KL, nats per token", "", "", estimate_text(quality.kl, ".6f"))
    table.add_row("top-1 agreement, %", "", "", estimate_text(quality.top1.scaled(100), ".3f"))
    tables.show(console, table, markdown)
    if done.variants:
        tables.show(console, _variant_table(done.variants), markdown)
        first = done.variants[0].speed
        console.print(
            f"tok/s: median (10th to 90th percentile) of {first.prompt.measurements} prompts of {first.prompt.tokens} "
            f"tokens and of {first.generation.measurements} tokens written one by one with cached keys and values. "
            "Peak: what a process of its own grew by, loading included."
        )
    if judged:
        tables.show(console, budgets.table(judged), markdown)


def _variant_table(variants: list[Variant]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("run from", no_wrap=True)
    for column in ("tile cache", "hits %", "held", "peak", "prompt tok/s", "generation tok/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for variant in variants:
        speed = variant.speed
        table.add_row(
            variant.name, "-" if variant.cache_bytes is None else size_text(variant.cache_bytes),
            number(100 * speed.hit_rate, ".0f"), size_text(variant.memory.held), size_text(variant.memory.peak),
            _rate(speed.prompt), _rate(speed.generation),
        )  # fmt: skip
    return table


def _rate(rate: Rate) -> str:
    return f"{rate.median:.0f} ({rate.low:.0f} to {rate.high:.0f})"


def _document(path: str, done: ModelBench, judged: list[Budget]) -> dict[str, Any]:
    quality = done.quality
    return {
        "command": "bench model",
        "path": path,
        "reference": done.reference,
        "text": done.text,
        "engine": done.engine,
        "bytes": done.bytes,
        "reference_bytes": done.reference_bytes,
        "tokens": quality.tokens,
        "windows": quality.windows,
        "context": done.context,
        "perplexity": estimate_json(quality.perplexity),
        "reference_perplexity": estimate_json(quality.reference_perplexity),
        "perplexity_ratio": estimate_json(quality.perplexity_ratio),
        "bits_per_byte": estimate_json(done.bits_per_byte(quality.loss)),
        "reference_bits_per_byte": estimate_json(done.bits_per_byte(quality.reference_loss)),
        "kl_nats_per_token": estimate_json(quality.kl),
        "top1_agreement": estimate_json(quality.top1),
        "variants": [
            {
                "name": variant.name,
                "cache_bytes": variant.cache_bytes,
                "hit_rate": finite(variant.speed.hit_rate),
                "held_bytes": variant.memory.held,
                "peak_bytes": variant.memory.peak,
                "prompt_tokens_per_second": asdict(variant.speed.prompt),
                "generation_tokens_per_second": asdict(variant.speed.generation),
            }
            for variant in done.variants
        ],
        "budget": budgets.as_json(judged),
    }
