"""Options that several commands have, so that they are the same everywhere, and groups of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from rbe_cli.errors import UsageError
from rbe_cli.operations.settings import Settings

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
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace an output that is there.")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", metavar="N", help="Threads; 0 is one per core. Same bytes for any.")]
MaxDecodedSize = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Refuse what claims to be more.  \\[default: 4GiB, or 4000 times the folder]"),
]
Whole = Annotated[bool, typer.Option("--all", help="A line for every tensor, the small exact ones too.")]


@dataclass(frozen=True)
class BaseOptions:
    """The model that something is an update of."""

    base: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BASE",
            help="The model it is an update of: what compress takes, or a folder it wrote. Where that is an update, "
            "too, its own base in another --base after it.",
        ),
    ] = None
    base_revision: Annotated[str | None, typer.Option(metavar="REV", help="Branch, tag or commit of that.")] = None

    def __post_init__(self) -> None:
        if self.base_revision is not None and not self.base:
            raise UsageError("--base-revision is of no model without --base")


@dataclass(frozen=True)
class Form:
    """In which form a command prints its results."""

    as_json: Json = False
    markdown: Annotated[bool, typer.Option("--markdown", help="Print tables as Markdown, fit for a pull request.")] = (
        False
    )

    def __post_init__(self) -> None:
        if self.as_json and self.markdown:
            raise UsageError("give --json or --markdown, not both")


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


#: Endings that say one file to whoever writes them.
_ONE_FILE = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".npz", ".onnx", ".h5", ".tar", ".gz", ".zip")


def check_folder_name(out: Path, advice: str) -> None:
    """Raise UsageError, with advice, for an output folder whose name is one of a file."""
    if out.name.lower().endswith(_ONE_FILE) and not out.is_dir():
        raise UsageError(f"-o {out}: {advice}")


def check_ending(flag: str, path: Path | None, endings: Sequence[str]) -> None:
    """Raise UsageError for a file that says by its name that it is of another kind than what is written to it."""
    if path is not None and path.suffix.lower() not in endings:
        raise UsageError(f"{flag} {path}: end it in {either(endings)}")


def completing(*names: str) -> Callable[[str], list[str]]:
    """For shells: which of the values an option takes begin with what is typed."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def either(names: Sequence[str]) -> str:
    """The values an option takes, as words.

    >>> either(["gap", "snr", "bits"]), either(["gap"])
    ('gap, snr or bits', 'gap')
    """
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def plot_option(panel: str) -> Any:
    """Where to draw."""
    return typer.Option(metavar="FILE", help="Draw rate against SNR: .svg, .png or .pdf.", rich_help_panel=panel)


def values(flag: str, text: str | None, setting: str, kind: Callable[[str], Any]) -> list[Any]:
    """What a comma-separated list has for a setting, each once; of None, nothing. Raises UsageError.

    >>> values("--blocks", "64,128,64", "block", int)
    [64, 128]
    """
    if text is None:
        return []
    try:
        found = [kind(part.strip()) for part in text.split(",")]
    except ValueError:
        found = [""]
    if "" in found:
        example = "64,128,256" if kind is int else "2,3.5,4" if kind is float else "dct,dwt"
        raise UsageError(f"{flag} {text!r}: write a list with commas, like {example}")
    for value in found:
        try:
            Settings(**{setting: value})
        except UsageError as error:
            raise UsageError(str(error).replace(f"--{setting}", flag, 1)) from None
    return list(dict.fromkeys(found))


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
