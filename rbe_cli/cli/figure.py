"""What the plots share: the check before anything is measured, and the file they are written to, with matplotlib."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rbe_cli.cli.options import check_ending
from rbe_cli.errors import RBEError
from rbe_cli.files.atomic import atomic_file, check_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SUFFIXES = (".svg", ".png", ".pdf")


def check_plot(path: Path | None, force: bool) -> None:
    """Raise UsageError or RBEError if there can be no plot `path`."""
    if path is None:
        return
    check_ending("--plot", path, _SUFFIXES)
    check_file(path, force)
    if find_spec("matplotlib") is None:
        raise RBEError("--plot needs matplotlib: pip install matplotlib")


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format its suffix says; the same figures give the same file: no date, no random names."""
    from matplotlib import rc_context

    kind = path.suffix.lower().removeprefix(".")
    with rc_context({"svg.hashsalt": "rbe"}), warnings.catch_warnings(), atomic_file(path) as file:
        # A name may have letters the font has not.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)


def label_text(name: str) -> str:
    """The end of a long name, harmless in a plot.

    >>> label_text("a$b")
    'a?b'
    """
    plain = "".join(c if c.isprintable() and c not in "$\\" else "?" for c in name)
    return plain if len(plain) < 45 else "..." + plain[-42:]
