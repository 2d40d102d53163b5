"""Every command line of the README and docs runs and gives what is shown; docs/cli.md is what --help says.

Blocks of `sh` and `console` are run as they are. The command lines of docs/layers.md and docs/codec.md, whose figures
take minutes to measure, are run on less. All others, in a sentence or in an example of --help, are read by the
command's own parser.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rbe_cli import models
from tests.command_line import ENVIRONMENT, Run

ROOT = Path(__file__).resolve().parents[2]


#: Lines with figures of the machine, of which the words are compared.
_VOLATILE = re.compile(r" s on \d+|\bns per weight|peak memory|made in|tok/s|dB, [\d.]+ s\)")
PAGES = [
    page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    if re.search(r"^```(sh|console)$", page.read_text(), re.MULTILINE)
]  # fmt: skip


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One in which `rbe` is this one."""
    rbe = tmp_path_factory.mktemp("bin") / "rbe"
    rbe.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m rbe_cli "$@"\n')
    rbe.chmod(0o755)
    return ENVIRONMENT | {"PATH": f"{rbe.parent}:{os.environ['PATH']}"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_line_gives_what_is_shown(page: Path, environment: dict[str, str]) -> None:
    from tools.run_docs import rendered

    shown, given = page.read_text().splitlines(), rendered(page, environment).splitlines()
    advice = f"run: python tools/run_docs.py {page.relative_to(ROOT)}"
    assert len(shown) == len(given), advice
    for one, other in zip(shown, given, strict=True):
        assert alike(one, other), f"{one!r} is now {other!r}; {advice}"


def alike(shown: str, given: str) -> bool:
    """Whether two lines differ at most by 2 % in their numbers, and by any time and speed."""
    one, other = shown.split(), given.split()
    if _VOLATILE.search(shown):
        return [re.sub(r"[\d.]+", "0", word) for word in one] == [re.sub(r"[\d.]+", "0", word) for word in other]
    return len(one) == len(other) and all(map(_alike, one, other))


def _alike(shown: str, given: str) -> bool:
    if shown == given:
        return True
    one, other = (re.fullmatch(r"([+-]?[\d,]*\.?\d+)(\D*)", word.lstrip("(")) for word in (shown, given))
    if one is None or other is None:
        return False
    first, second = (float(found[1].replace(",", "")) for found in (one, other))
    return one[2] == other[2] and abs(first - second) <= 0.02 * abs(first) + 0.03


def test_the_workflow_runs(tmp_path: Path, environment: dict[str, str]) -> None:
    """The commands of the GitHub Actions example, on the shipped model in the place of ./model."""
    text = (ROOT / "docs" / "ci.md").read_text()
    (tmp_path / "budget.toml").write_text(re.findall(r"```toml\n(.*?)```", text, re.DOTALL)[0])
    (tmp_path / "model").symlink_to(models.path("mini-gpt2"))
    commands = [line.partition("run: ")[2] for line in text.splitlines() if "run: rbe" in line]
    assert commands
    for command in commands:
        done = subprocess.run(["sh", "-ec", command], cwd=tmp_path, env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    assert "| size at most |" in (tmp_path / "comment.md").read_text()


COMMANDS = ("compress", "inspect", "decode", "verify", "sweep", "bench", "calibrate")


def command_lines(page: Path) -> list[str]:
    """Those outside the blocks that are run: in a sentence, in a block of text, among the examples of --help."""
    text = re.sub(r"^```(sh|console|yaml|python)\n.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"^ *(rbe [a-z].*)$", text, re.MULTILINE) + re.findall(r"`(rbe [a-z][^`]*)`", text)
    found += re.findall(r"^\$ (rbe .*)$", text, re.MULTILINE) if page.name != "first-ten-minutes.md" else []
    return [re.split(r" \| | && | > |  #", " ".join(line.split()))[0] for line in found if " --help" not in line]


LINES = [
    (page, line)
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "SECURITY.md"]
    for line in dict.fromkeys(command_lines(page))
    if len(line.split()) > 2 + ("bench" in line) and line.split()[1] in COMMANDS
]


@pytest.mark.parametrize(("page", "line"), LINES, ids=lambda value: value if isinstance(value, str) else value.name)
def test_every_other_command_line_can_be_parsed(page: Path, line: str) -> None:
    from typer.main import get_command

    from rbe_cli.cli import app

    group, words = get_command(app), shlex.split(line)[1:]
    context = group.make_context("rbe", [words[0]], resilient_parsing=True)
    while hasattr(group, "resolve_command"):
        name, group, words = group.resolve_command(context, words)
        try:
            resilient = hasattr(group, "commands")
            context = group.make_context(name, list(words), parent=context, resilient_parsing=resilient)
        except Exception as error:
            # A sentence may name an option alone.
            if not re.search(r"Missing (argument|parameter)|requires an argument", str(error)):
                raise
            return
    assert not context.args, f"{page.name}: {line}"


@pytest.mark.parametrize("line", [line for page, line in LINES if page.name in ("layers.md", "codec.md")])
def test_what_takes_long_is_run_on_less(line: str, run: Run, tiny_source: Path) -> None:
    less = {
        "layers": ("--seconds", 0.001, "--hidden", 64, "--vocabulary", 256),
        "codec": ("--bits", 6, "--efforts", 0, "--repeat", 1, "--synthetic", 0),
    }
    words = [str(tiny_source) if word == "SOURCE" else word for word in shlex.split(line)[1:]]
    if words[0] != "bench":
        pytest.skip("run on other pages")
    done = run(*words, *less[words[1]], "-q")
    assert done.code == 0, done.err


def test_every_command_is_documented() -> None:
    from tools.make_cli_docs import page

    assert (ROOT / "docs" / "cli.md").read_text() == page(), "run: python tools/make_cli_docs.py docs/cli.md"


def test_help_is_fast_because_it_imports_nothing_heavy() -> None:
    """numpy alone takes a third of the time that --help may."""
    code = (
        "import sys; sys.argv = ['rbe', '--help']\nfrom rbe_cli.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    )
    code += "print(sorted({'numpy', 'numba', 'huggingface_hub', 'safetensors', 'ml_dtypes'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert done.stdout.splitlines()[-1] == "[]"
