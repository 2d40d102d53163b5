"""Run every command of a page of documentation and write the output it gives below it: `run_docs.py README.md ...`.

Fenced blocks, in their order, in an empty folder:
- `console`: lines that begin with `$ ` are commands, what follows is their output, which is written anew;
- `sh`: a script, which must succeed;
- `toml`: a file, by the name in its first line, `# NAME.toml`.

And below a comment `<!-- rows of PAGE: REGEX -->` and the head of a table, write the rows of PAGE that match, the first
of each name: figures are measured in one place. Below `<!-- rates of PAGE, SECTION, column N: REGEX -->` and a head
such as `| | 4 bits | 3 bits |`, write a row of each name that matches, with what PAGE has in the column N of that
section's rows `NAME at 4` and `NAME at 3`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"^```(console|sh|toml)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_ROWS = re.compile(r"^(<!-- rows of (\S+): (.*) -->\n(?:\|.*\n){2})((?:\|.*\n)*)", re.MULTILINE)
_RATES = re.compile(r"^(<!-- rates of (\S+), (.+), column (\d+): (.*) -->\n(\|.*)\n\|.*\n)((?:\|.*\n)*)", re.MULTILINE)
#: So narrow that tables have no columns of times.
_WIDTH = "88"


def rendered(page: Path, environment: Mapping[str, str]) -> str:
    """The page with the output its commands give now. Raises RuntimeError for one that fails unexpectedly."""
    with tempfile.TemporaryDirectory() as folder:

        def block(found: re.Match[str]) -> str:
            kind, text = found.groups()
            if kind == "toml":
                (Path(folder) / text.split()[1].rstrip(":")).write_text(text)
            elif kind == "sh" and "make " not in text:
                _run(text, folder, environment)
            elif kind == "console":
                commands = [line for line in text.splitlines() if line.startswith("$ ")]
                text = "".join(f"{line}\n{_run(line[2:], folder, environment)}" for line in commands)
            return f"```{kind}\n{text}```"

        return _RATES.sub(_rates, _ROWS.sub(_rows, _BLOCK.sub(block, page.read_text())))


def _rows(found: re.Match[str]) -> str:
    head, page, pattern, _ = found.groups()
    rows: dict[str, str] = {}
    for line in (_ROOT / page).read_text().splitlines():
        if re.match(rf"\| {pattern}", line):
            rows.setdefault(line.split("|")[1], line)
    return head + "".join(f"{row}\n" for row in rows.values())


def _rates(found: re.Match[str]) -> str:
    above, page, section, column, pattern, head, _ = found.groups()
    text = (_ROOT / page).read_text().partition(f"\n### {section}\n")[2].partition("\n#")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    figures = {row[0]: row[int(column) - 1] for row in rows}
    names = dict.fromkeys(name.rpartition(" at ")[0] for name in figures if re.match(rf"{pattern} at ", name))
    rates = re.findall(r"([\d.]+) bits", head)
    return above + "".join(
        f"| {name} | " + " | ".join(figures[f"{name} at {rate}"] for rate in rates) + " |\n" for name in names
    )


def _run(script: str, folder: str, environment: Mapping[str, str]) -> str:
    """What a script prints; a line `exit code N` where it ends with one that budgets and damage have."""
    plain = {"COLUMNS": _WIDTH, "TERMINAL_WIDTH": _WIDTH, "NO_COLOR": "1"}
    done = subprocess.run(
        ["sh", "-e"],
        input=script,
        cwd=folder,
        env={**environment, **plain},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 3, 4):
        raise RuntimeError(f"{script}: {done.stderr}")
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("rbe: ")]
        lines += [*errors, f"exit code {done.returncode}"]
    return "".join(f"{line}\n" for line in lines if line)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(rendered(Path(name), os.environ))
