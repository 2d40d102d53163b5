"""`rbe verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from rbe_cli.cli import harmless, options, tables
from rbe_cli.cli.console import load_kernels, open_base, open_source, progress_bar, stderr, stdout
from rbe_cli.cli.tables import counted
from rbe_cli.operations.figures import finite
from rbe_cli.operations.settings import Settings
from rbe_cli.operations.sizes import parse_size

if TYPE_CHECKING:
    from rbe_cli.operations.verify import Verified


@options.grouped
def command(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder `rbe compress` wrote.")],
    since: options.BaseOptions,
    status: options.Status,
    against: Annotated[
        str | None,
        typer.Option(metavar="ORIGINAL", help="The checkpoint it was made from; the errors are then measured anew."),
    ] = None,
    max_decoded_size: options.MaxDecodedSize = None,
    jobs: options.Jobs = 0,
    *,
    form: options.Form,
) -> None:
    """Check every byte of a compressed folder and decode everything in it, writing nothing.

    With --against, the error of every tensor is measured on the decoded weights and compared with what the manifest
    claims. Exit code 4 if anything is damaged or any claim is not true; the rest is checked all the same, and --json
    lists all problems. Files that the manifest does not name are noted, and count for nothing.

    Examples:

      rbe verify mini.rbe

      rbe verify mini.rbe --against mini-gpt2

      rbe verify update.rbe --base org/model --against ./finetuned
    """
    limit = None if max_decoded_size is None else parse_size(max_decoded_size, "--max-decoded-size")
    settings = Settings(jobs=jobs)
    original = None
    if against is not None:
        original = open_source(against, None, status)
    base = open_base(since, status)
    load_kernels(status, "decoding")
    from rbe_cli.operations.verify import verify

    with progress_bar(status) as bar:
        done = verify(path, original, threads=settings.threads, max_decoded=limit, progress=bar, base=base)
    if form.as_json:
        tables.print_json(_document(path, against, done))
    elif not done.problems:
        _print(done, against, settings.threads, form.markdown)
    if len(done.problems) > 1 and not status.quiet:
        for problem in done.problems:
            stderr().print(harmless.plain(problem), soft_wrap=True)
    done.require_sound()


def _print(done: Verified, against: str | None, threads: int, markdown: bool) -> None:
    console = stdout()
    if done.measured:
        tables.show(console, _table(done), markdown)
    speed = done.decode_ns_per_weight
    decoded = f", decoding {speed:.1f} ns per weight on one core" if speed is not None else ""
    console.print(
        f"{counted(len(done.tensors), 'tensor')}, {counted(done.elements, 'weight')}, {tables.size_text(done.size)}: "
        f"every checksum right, every tile decodes\n"
        f"{done.seconds:.2f} s on {counted(threads, 'thread')}{decoded}"
    )
    if done.same_files is not None:
        files = "the files that were" if done.same_files else "not the files, but the tensors, that were"
        console.print(f"every error is as the manifest claims; {against} has {files} compressed")


def _table(done: Verified) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("tensor", overflow="fold", ratio=1)
    for column in ("RMSE", "NRMSE", "claimed", "SNR dB"):
        table.add_column(column, justify="right", no_wrap=True)
    measured = [tensor for tensor in done.tensors if tensor.name in done.measured]
    for tensor in measured:
        error = done.measured[tensor.name]
        if tensor.nrmse or error.nrmse:
            table.add_row(
                tables.name_text(tensor.name), f"{error.rmse:.3g}", f"{error.nrmse:.6g}", f"{tensor.nrmse:.6g}",
                tables.snr_text(error.nrmse),
            )  # fmt: skip
    exact = sum(1 for tensor in measured if not (tensor.nrmse or done.measured[tensor.name].nrmse))
    if exact:
        table.add_row(f"{counted(exact, 'exact tensor')}", "0", "0", "0", "exact")
    return table


def _document(path: Path, against: str | None, done: Verified) -> dict[str, Any]:
    claimed = {tensor.name: tensor.nrmse for tensor in done.tensors}
    return {
        "command": "verify",
        "path": str(path),
        "against": against,
        "ok": not done.problems,
        "problems": done.problems,
        "unknown_files": done.unknown_files,
        "same_files": done.same_files,
        "tensors": [
            {
                "name": name,
                "rmse": finite(error.rmse),
                "nrmse": finite(error.nrmse),
                "claimed_nrmse": claimed[name],
                "snr_db": finite(error.snr),
                "ok": name not in done.untrue,
            }
            for name, error in done.measured.items()
        ],
        "elements": done.elements,
        "bytes": done.size,
        "seconds": done.seconds,
        "decode_ns_per_weight": done.decode_ns_per_weight,
    }
