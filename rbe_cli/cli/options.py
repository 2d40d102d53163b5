"""Options that several commands have, so that they are the same everywhere, and groups of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from rbe_cli.errors import UsageError

_STATUS = "Status on stderr"

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A .safetensors file, a folder with some, a shard index, a Hugging Face repo id, or mini-gpt2.",
    ),
]
SourceOrMini = Annotated[
    str, typer.Argument(metavar="[SOURCE]", help="As for compress.  \\[default: mini-gpt2]", show_default=False)
]
Revision = Annotated[str | None, typer.Option(metavar="REV", help="Branch, tag or commit of a repo id.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print tables as Markdown, fit for a pull request.")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", metavar="N", help="Threads; 0 is one per core. Same bytes for any.")]
MaxDecodedSize = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Refuse what claims to be more.  \\[default: 4GB, or 4000 times the folder]"),
]
Whole = Annotated[bool, typer.Option("--all", help="A line for every tensor, the small exact ones too.")]


@dataclass(frozen=True)
class Status:
    """How much a command tells while it works."""

    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Nothing on stderr but errors.", rich_help_panel=_STATUS)
    ] = False
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Also what is decided on the way, line by line.", rich_help_panel=_STATUS),
    ] = False
    no_progress: Annotated[
        bool, typer.Option("--no-progress", help="No progress bar and no phases, notes only.", rich_help_panel=_STATUS)
    ] = False

    def __post_init__(self) -> None:
        if self.quiet and self.verbose:
            raise UsageError("give --quiet or --verbose, not both")


def grouped(function: Callable[..., None]) -> Callable[..., None]:
    """A command that takes groups of options: for a parameter whose type is a dataclass of options, its fields.

    Typer sees the fields as options of the command; the function gets the dataclass.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in groups:
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hints[name]))
            continue
        kinds = get_type_hints(groups[name], include_extras=True)
        parameters += [
            inspect.Parameter(
                item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=kinds[item.name]
            )
            for item in fields(groups[name])
        ]

    @wraps(function)
    def command(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{item.name: given.pop(item.name) for item in fields(group)})
        function(**given)

    command.__doc__ = _unwrapped(function.__doc__ or "")
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _unwrapped(text: str) -> str:
    """A docstring with each paragraph on one line, for terminals of any width."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(" ".join(paragraph.rstrip().split("\n")) for paragraph in paragraphs)
