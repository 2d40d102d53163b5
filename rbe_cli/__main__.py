"""`rbe`, and `python -m rbe_cli`, which is the same."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is being loaded is a line, too."""
    try:
        from rbe_cli.cli import main as run
    except KeyboardInterrupt:
        print("rbe: interrupted; nothing half-written was left behind", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
