"""What the commands may take for granted of where they run: open streams that take any text, and a sound width."""

from __future__ import annotations

import codecs
import io
import os
import re
import sys

#: Marks that an encoding without them can show in other letters.
TICK, CROSS = "\N{CHECK MARK}", "\N{BALLOT X}"
_WIDTH = re.compile(r"0*[1-9]\d{0,5}", re.ASCII)
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
    for name in ("COLUMNS", "TERMINAL_WIDTH"):
        # Scripts and some terminals say 0 for what they do not know.
        if not _WIDTH.fullmatch(os.environ.get(name, "")):
            os.environ.pop(name, None)


def _plainer(error: UnicodeError) -> tuple[str, int]:
    """As wide as what the encoding of a stream has no letters for, so that tables stay straight."""
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    return "".join(_PLAINER.get(letter, "?") for letter in missing), error.end
