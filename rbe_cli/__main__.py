"""The command `rbe`, and `python -m rbe_cli`."""

import os
import sys

from rbe_cli import interrupts
from rbe_cli.imports import uncollected


def main() -> None:
    """Run the command line; Ctrl-C is heeded before it is imported."""
    interrupts.end_at_once()
    with uncollected():
        from rbe_cli.cli import main as run

    try:
        run()
    except SystemExit as end:
        if end.code == interrupts.CODE:
            # Python would wait for threads that are still at work.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(interrupts.CODE)
        raise


if __name__ == "__main__":
    main()
