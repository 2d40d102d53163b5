"""What the commands may take for granted of where they run: open streams that take any text, and a sound width."""

from __future__ import annotations

import codecs
import io
import os
import sys

#: Marks that an encoding without them can show in other letters.
TICK, CROSS = "\N{CHECK MARK}", "\N{BALLOT X}"
_PLAINER = {TICK: "v", CROSS: "x"}


def prepare() -> None:
    """Make it so, before anything is imported that looks."""
    # Closed by the caller: `rbe ... >&-`.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    codecs.register_error("rbe", _plainer)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="rbe")


def _plainer(error: UnicodeError) -> tuple[str, int]:
    """As wide as what the encoding of a stream has no letters for, so that tables stay straight."""
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    return "".join(_PLAINER.get(letter, "?") for letter in missing), error.end
