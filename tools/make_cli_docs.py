"""Write docs/cli.md from the commands' own --help: `python tools/make_cli_docs.py docs/cli.md`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMANDS = (
    "",
    "compress",
    "inspect",
    "decode",
    "verify",
    "calibrate",
    "bench",
    "bench model",
    "bench codec",
    "bench layers",
    "sweep",
)
_WIDTH = "100"


def main(path: str) -> None:
    Path(path).write_text(page())


def page() -> str:
    """The whole page."""
    parts = ["# The commands\n\nWritten by `tools/make_cli_docs.py` from the commands' own `--help`.\n"]
    for command in COMMANDS:
        name = f"rbe {command}".strip()
        parts.append(f"\n## {name}\n\n```text\n{_help(command)}\n```\n")
    return "".join(parts)


def _help(command: str) -> str:
    plain = {"COLUMNS": _WIDTH, "TERMINAL_WIDTH": _WIDTH, "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-m", "rbe_cli", *command.split(), "--help"],
        capture_output=True, text=True, check=True, env=os.environ | plain,
    )  # fmt: skip
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    return "\n".join(lines).strip("\n")


if __name__ == "__main__":
    main(sys.argv[1])
