"""Names made to be obeyed, by a terminal, a Markdown viewer or a browser, in everything the commands say and write."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.attacks.trial import Arena
from tests.synthetic import scaled_normal

NAMES = (
    "\x1b[31mred", "\x9b31mred", "a\nrbe: all is well", "a\rb", "nul\x00", "\u202eturned", "\u2028line", "\ufeffmark",
    "[red]markup[/red]", "<script>alert(1)</script>", "<!--",
    "|`**[x](javascript:alert(1))<img src=x onerror=alert(1)>",
    "&lt;b&gt;", "'\"><svg onload=alert(1)>", "$\\frac$", "=1+1",
)  # fmt: skip
#: Of a folder: what a file system takes and rbe does.
FOLDER = "model \x1b[31m<script>$\\frac$ -->|x"
#: What a viewer would run or follow, if it is not escaped.
MARKUP = re.compile(r"(?<!\\)(<[a-z!/]|\[x\]\()")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of small matrices with such names, and one with NaN, which is noted."""
    folder = tmp_path_factory.mktemp("names") / "model"
    folder.mkdir()
    tensors = {f"{name}.weight": scaled_normal((64, 128), i) for i, name in enumerate(NAMES)}
    tensors["\x1b[5mwild.weight"] = np.full((64, 64), np.nan, np.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"\x1b[1m": "<b>"})
    return Path(folder.rename(folder.with_name(FOLDER)))


def obeyed(text: str) -> set[str]:
    """What a terminal would not show but do."""
    return {c for c in text if not (c.isprintable() or c == "\n")}


def test_names_on_a_terminal_and_in_markdown(arena: Arena, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    commands: list[tuple[Any, ...]] = [
        ("compress", source, "-o", out, "-v", "--effort", "0"),
        ("compress", source, "-o", out, "--resume", "-v", "--effort", "0"),
        ("compress", source, "--dry-run", "--markdown"),
        ("compress", source, "-o", tmp_path / "over", "--effort", "0", "--max-rmse", "1e-9", "--markdown"),
        ("inspect", out, "--all"),
        ("inspect", out, "--all", "--markdown"),
        ("inspect", source, "--markdown"),
        ("verify", out, "--against", source),
        ("verify", out, "--against", source, "--markdown"),
        ("decode", out, "-o", tmp_path / "\x1b[31mback"),
        ("bench", "codec", source, "--bits", "3", "--efforts", "0", "--repeat", "1", "--markdown"),
        ("compress", source, "-o", tmp_path / "x", "--override", "\x1b=bits:4"),
        ("verify", tmp_path / "\x1b[31mgone"),
    ]  # fmt: skip
    for command, trial in zip(commands, arena.run(*commands), strict=True):
        assert "Traceback" not in trial.err, trial.err
        assert trial.code in (0, 1, 2, 3), command
        assert not obeyed(trial.out + trial.err), command
        # No name begins a line that looks like one of ours.
        assert "\nrbe: all is well" not in "\n" + trial.out + trial.err
        if "--markdown" in command:
            tables = [line for line in trial.out.splitlines() if line.startswith(("| ", "- "))]
            assert tables
            assert not [line for line in tables if MARKUP.search(line)], command


class Page(HTMLParser):
    """Notes the tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_names_in_the_files_of_a_sweep(arena: Arena, source: Path, tmp_path: Path) -> None:
    page, plot, results = tmp_path / "r.html", tmp_path / "r.svg", tmp_path / "r.jsonl"
    files = ("--report", page, "--plot", plot, "--csv", tmp_path / "r.csv", "--results", results)
    (trial,) = arena.run(("sweep", source, "--bits", "4,5", "--efforts", "0", *files))
    assert (trial.code, obeyed(trial.out + trial.err)) == (0, set())
    found = Page()
    found.feed(page.read_text())
    assert not found.tags & {"script", "img", "a", "iframe", "object"}
    assert not {name for name in found.attributes if name.startswith("on")}
    for file in (page, plot):
        assert not obeyed(file.read_text()), file
        assert "<script" not in file.read_text()
    assert all(line.startswith('{"sha256":"') for line in results.read_text().splitlines())
