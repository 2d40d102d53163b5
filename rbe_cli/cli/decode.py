"""`rbe decode`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rbe_cli.cli import options, tables
from rbe_cli.cli.console import load_kernels, open_base, progress_bar, stderr, stdout
from rbe_cli.cli.stream import STDOUT, binary_stdout
from rbe_cli.cli.tables import counted
from rbe_cli.operations.settings import Settings
from rbe_cli.operations.sizes import parse_size


@options.grouped
def command(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder `rbe compress` wrote.")],
    since: options.BaseOptions,
    status: options.Status,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT",
            help="A folder, a .safetensors file, or - for one on stdout.  \\[default: PATH + .decoded]",
        ),
    ] = None,
    force: options.Force = False,
    max_decoded_size: options.MaxDecodedSize = None,
    jobs: options.Jobs = 0,
    as_json: options.Json = False,
) -> None:
    """Write the checkpoint back: the same names, shapes, types, shards and metadata, and the files beside them.

    Every checksum is verified first; a damaged folder writes nothing.

    Examples:

      rbe decode mini.rbe -o back

      rbe decode mini.rbe -o model.safetensors

      rbe decode mini.rbe -o - | sha256sum

      rbe decode update.rbe --base org/model -o finetuned
    """
    from rbe_cli.checkpoint.weight_files import SUFFIX
    from rbe_cli.container.headers import check_base
    from rbe_cli.container.manifest import Manifest

    limit = None if max_decoded_size is None else parse_size(max_decoded_size, "--max-decoded-size")
    settings = Settings(jobs=jobs)
    if out and not out.name.endswith(SUFFIX):
        options.check_folder_name(out, f"decode writes {SUFFIX}: name a folder, or a file that ends in that")
    base = open_base(since, status)
    # Before anything is compiled.
    check_base(path, Manifest.read(path), base)
    load_kernels(status, "decoding")
    from rbe_cli.operations.decode import decode

    named = path if path.name else path.resolve()
    out = out or named.with_name(named.name + ".decoded")
    target = binary_stdout(as_json) if out == STDOUT else out
    with progress_bar(status) as bar:
        done = decode(path, target, force=force, threads=settings.threads, max_decoded=limit, progress=bar, base=base)
    speed = done.decode_ns_per_weight
    if as_json:
        document = {
            "command": "decode",
            "path": str(path),
            "out": str(out),
            "files": [str(file) for file in done.files],
            "elements": done.elements,
            "decoded_bytes": done.decoded_bytes,
            "seconds": done.seconds,
            "decode_ns_per_weight": speed,
        }
        tables.print_json(document)
        return
    console = stderr() if out == STDOUT else stdout()
    if out == STDOUT and status.quiet:
        return
    decoded = f", decoding {speed:.1f} ns per weight on one core" if speed is not None else ""
    console.print(
        f"{counted(len(done.manifest.tensors), 'tensor')}, {counted(done.elements, 'weight')}, "
        f"{tables.size_text(done.decoded_bytes)}\n"
        f"{done.seconds:.2f} s on {counted(settings.threads, 'thread')}{decoded}"
    )
    console.print("wrote it to stdout" if out == STDOUT else f"wrote {out}")
