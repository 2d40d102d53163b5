"""What the commands share on a terminal: progress on stderr, tables on stdout, plain lines in a pipe."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from rbe_cli.cli.harmless import lines, plain
from rbe_cli.cli.options import BaseOptions, Status
from rbe_cli.errors import UsageError
from rbe_cli.files.names import MANIFEST
from rbe_cli.imports import uncollected

if TYPE_CHECKING:
    from rbe_cli.checkpoint.reader import Checkpoint
    from rbe_cli.container.open_base import AnyBase

#: Wider than any table, for output that is not a terminal and no $COLUMNS: no line is cut there.
_PIPE_WIDTH = 200
_SHARE = 10
#: From so many columns on, a progress bar has room for the numbers, too.
_ROOMY = 80
#: Loading kernels that are compiled already takes less, in seconds.
_PATIENCE = 4.0


def stdout() -> Console:
    """For results."""
    return _console(sys.stdout.isatty(), False)


def stderr() -> Console:
    """For status."""
    return _console(sys.stderr.isatty(), True)


def _console(terminal: bool, status: bool) -> Console:
    width = None if terminal or "COLUMNS" in os.environ else _PIPE_WIDTH
    return _Console(stderr=status, highlight=False, width=width, emoji=False, markup=False)


class _Console(Console):
    """Strings come out without what a terminal would obey; colours are for rich's own objects."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(lines(o) if isinstance(o, str) else o for o in objects), **options)


class Bar:
    """Progress of an operation: a bar with the time left on a terminal, a line per phase and tenth in a pipe.

    Threads may tell how far they are at once.
    """

    def __init__(self, console: Console, progress: Progress | None, status: Status) -> None:
        self._console = console
        self._progress = progress
        self._status = status
        self._task: TaskID | None = None
        self._name, self._total, self._done, self._said = "", 0, 0, 0
        self._started = 0.0
        self._lock = threading.Lock()

    def phase(self, name: str, total: int) -> None:
        """A new phase begins."""
        self._name, self._total, self._done, self._said = name, total, 0, 0
        self._started = time.perf_counter()
        if self._progress is None:
            if not self._status.no_progress:
                self._console.print(f"{name} ...")
            return
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(name, total=total)

    def advance(self, elements: int) -> None:
        """Some of it is done."""
        if self._progress is not None:
            if self._task is not None:
                self._progress.advance(self._task, elements)
            return
        with self._lock:
            self._done += elements
            tenth = self._done * _SHARE // max(self._total, 1)
            if self._status.no_progress:
                return
            if self._said < tenth < _SHARE and time.perf_counter() - self._started > 2:
                self._said = tenth
                self._console.print(f"{self._name}: {tenth * 100 // _SHARE} %")

    def note(self, text: str) -> None:
        """Something a person should know."""
        self.line(f"note: {text}")

    def detail(self, text: str) -> None:
        """Something a person should know who asked for everything."""
        if self._status.verbose:
            self.line(text)

    def line(self, text: str) -> None:
        """A result as it comes, above the bar."""
        (self._progress.console if self._progress else self._console).print(plain(text))


@contextmanager
def progress_bar(status: Status) -> Iterator[Bar | None]:
    """A Bar for an operation; None when quiet."""
    if status.quiet:
        yield None
        return
    console = stderr()
    if status.no_progress or not console.is_terminal:
        yield Bar(console, None, status)
        return
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
        *([MofNCompleteColumn()] if console.width >= _ROOMY else []), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bar(console, progress, status)


def open_source(source: str, revision: str | None, status: Status) -> Checkpoint:
    """Open a checkpoint; if it has to be fetched, with the hub's bars on a terminal, a line in a pipe."""
    with uncollected():
        from rbe_cli.checkpoint import source as sources

    shown, console = not (status.quiet or status.no_progress), stderr()
    if shown and not console.is_terminal and sources.is_fetched(source, revision):
        console.print(f"fetching {source} from the hub")
    return sources.open_source(source, revision, progress=shown and console.is_terminal)


def open_base(given: BaseOptions, status: Status) -> AnyBase | None:
    """Open the base of an update, if one is given."""
    if not given.base:
        return None
    from rbe_cli.container import open_base as bases

    if given.base_revision is not None and (Path(given.base[-1]) / MANIFEST).is_file():
        raise UsageError(f"{given.base[-1]}: is not of the hub, so it has no --base-revision {given.base_revision}")
    return bases.open_base(given.base, lambda source: open_source(source, given.base_revision, status))


def fetch(source: str, status: Status) -> None:
    """Have a repository in the cache before an operation opens it, and show that."""
    from rbe_cli.checkpoint.source import is_fetched

    if is_fetched(source):
        open_source(source, None, status)


def load_kernels(
    status: Status, wanted: Literal["all", "analysis", "decoding", "structure", "feedback"] = "all"
) -> None:
    """Import the numba kernels, and say so if they have to be compiled: the first run on a machine does that.

    What looks at weights, or decodes them, wants half of the kernels, in half of the time; what has no residual or
    feeds errors back wants more than what is called all.
    """
    console = stderr()
    started = time.perf_counter()

    def take_time() -> None:
        # What compiling leaves behind is collected: it would be 100 MB.
        gc.enable()
        if not status.quiet:
            console.print("compiling the kernels, only this first time; it takes up to half a minute ...")

    later = threading.Timer(_PATIENCE, take_time)
    later.daemon = True
    later.start()
    try:
        with uncollected():
            from rbe_cli.codec import warm_up

            getattr(warm_up, f"compile_{wanted}")()
    finally:
        later.cancel()
    taken = time.perf_counter() - started
    if not status.quiet and taken > _PATIENCE:
        console.print(f"compiled in {taken:.0f} s")
