"""Ctrl-C, from the first moment on; imports next to nothing."""

from __future__ import annotations

import os
import signal
import sys

CODE = 130
TEXT = "interrupted; nothing half-written was left behind"


def end_at_once() -> None:
    """Let Ctrl-C end the process, with a line and no traceback: while modules are imported nothing has begun."""

    def end(number: int, frame: object) -> None:
        os.write(2, f"rbe: {TEXT}\n".encode())
        os._exit(CODE)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)


def raise_them() -> None:
    """Raise KeyboardInterrupt for Ctrl-C, and for what a CI system sends first; both clean up alike."""

    def interrupt(number: int, frame: object) -> None:
        numpy = getattr(sys.modules.get("numpy"), "__spec__", None)
        if getattr(numpy, "_initializing", False):
            # Its C code would print a traceback of its own; it takes a tenth of a second.
            signal.signal(signal.SIGALRM, interrupt)
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            return
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    # In the background of a script it is ignored.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)
