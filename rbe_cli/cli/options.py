"""Options that several commands have, so that they are the same everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print tables as Markdown, fit for a pull request.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", metavar="N", help="Threads; 0 is one per core. Same bytes for any.")]
Whole = Annotated[bool, typer.Option("--all", help="A line for every tensor, the small exact ones too.")]
