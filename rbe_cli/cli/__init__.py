"""The command line: one module per command. A thin layer: every command is one library call and printing.

Exit codes: 0 good, 1 cannot, 2 wrong usage, 3 over budget, 4 corrupt or hostile file, 130 interrupted, 141 nobody reads
the output any more.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from rbe_cli import __version__, interrupts
from rbe_cli.cli import terminal
from rbe_cli.cli.harmless import plain
from rbe_cli.cli.lazy import Later, add_later
from rbe_cli.errors import RBEError

_OUTPUT_CLOSED = 141

app = typer.Typer(
    name="rbe",
    cls=Later,
    help="Compress models: the most exact weights for their size, and the plain truth about the error.",
    epilog="Try:  rbe compress mini-gpt2 -o demo  &&  rbe inspect demo  &&  rbe decode demo -o back",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
add_later(
    app,
    {
        "compress": "Compress a checkpoint into a folder: one .rbe file per layer, and rbe.json.",
        "inspect": "Show what a compressed folder holds, or what the weights of a checkpoint are like.",
        "decode": "Write the checkpoint back: the same names, shapes, types and files.",
        "verify": "Check every byte of a compressed folder, and its errors against the original.",
        "sweep": "Compress with every combination of some settings, and compare.",
        "bench": "Measure what compression does to a model, and how good and fast the codec is.",
        "calibrate": "Measure on a text how strong each input of each weight is.",
    },
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"rbe {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line. What goes wrong on purpose is one line on stderr and an exit code."""
    terminal.prepare()
    interrupts.raise_them()
    try:
        sys.exit(_run())
    except RBEError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _complain(interrupts.TEXT)
        sys.exit(interrupts.CODE)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_OUTPUT_CLOSED)
    except MemoryError:
        _complain("out of memory")
        sys.exit(1)
    except OSError as error:
        from rbe_cli.files.atomic import FULL

        # Every file that is written is named when the disk is full.
        place = error.filename or ("stdout" if error.errno in FULL else "")
        _complain(f"{place}: {error.strerror or error}" if place else str(error.strerror or error))
        sys.exit(1)
    except Exception as error:
        # What typer raises for wrong usage, whichever version of it.
        if not (hasattr(error, "format_message") and hasattr(error, "exit_code")):
            raise
        _explain_usage(error)
        sys.exit(error.exit_code)


def _run() -> int:
    """The exit code of the command."""
    try:
        code = app(prog_name="rbe", standalone_mode=False)
        sys.stdout.flush()
    except SystemExit as end:
        # So rich and typer leave when nothing reads their output any more; else only completion leaves so.
        return _OUTPUT_CLOSED if end.code == 1 and "_RBE_COMPLETE" not in os.environ else int(end.code or 0)
    if code == interrupts.CODE:
        raise KeyboardInterrupt
    return code or 0


def _complain(text: str) -> None:
    """One line, whatever a file or tensor is called."""
    print(f"rbe: {plain(text)}", file=sys.stderr)


def _explain_usage(error: Any) -> None:
    """One line, and where to read on; the whole help for a command that was given nothing."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    elif context is None:
        _complain(error.format_message())
    else:
        _complain(f"{error.format_message().rstrip('.')}{_value(error)} (see `{context.command_path} --help`)")


def _value(error: Any) -> str:
    """The value that is wrong, where pydantic checked it for typer: its message says what is right alone."""
    found: list[dict[str, Any]] = getattr(error.__cause__, "errors", list)()
    return f", not {found[0]['input']!r}" if found else ""
