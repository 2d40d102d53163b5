"""Groups of commands that are imported when they are run, so that help and completion are quick."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from rbe_cli.imports import uncollected


def add_later(app: typer.Typer, commands: Mapping[str, str]) -> None:
    """Add commands by their names and one line of help; `Later` imports them."""
    for name, text in commands.items():
        app.command(name, help=text)(lambda: None)


class _PlainFlags:
    """Help that shows no type, `<bool>`, for options that take no value."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """The options as given; typer imports what reads them."""
        with uncollected():
            return super().make_context(*args, **extra)  # type: ignore[misc]

    def get_params(self, ctx: Any) -> Any:
        """The parameters of a command."""
        params = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params


class Plain(_PlainFlags, TyperCommand):
    """A command."""


class Later(_PlainFlags, TyperGroup):
    """A group whose command `name` is `command` (or the group `app`) of the module `rbe_cli.cli.name`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command itself, where `get_command` has no more than its line of help."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and _load(str(name)), rest


def _load(name: str) -> Any:
    with uncollected():
        module = import_module(f"rbe_cli.cli.{name}")
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False)
        app.command(name, cls=Plain)(module.command)
    return typer.main.get_command(app)


class WithDefault(_PlainFlags, TyperGroup):
    """A group that takes what begins with no command of its own for its command `model`."""

    default = "model"

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """`rbe bench mini.rbe` is `rbe bench model mini.rbe`."""
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = [self.default, *args]
        return super().parse_args(ctx, args)
