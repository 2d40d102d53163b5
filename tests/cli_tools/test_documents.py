"""Every command line in the README, docs/calibration.md and docs/ci.md runs, and docs/cli.md is what --help says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text()
    return [block for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) if "make " not in block]


@pytest.mark.parametrize("document", ["README.md", "docs/calibration.md", "docs/ci.md"])
def test_every_command_line_runs(document: str, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    rbe = tmp_path / "bin" / "rbe"
    rbe.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m rbe_cli "$@"\n')
    rbe.chmod(0o755)
    for budget in blocks(document, "toml"):
        (tmp_path / "budget.toml").write_text(budget)
    script = "set -e\n" + "".join(blocks(document, "sh"))
    done = subprocess.run(
        ["sh"], input=script, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False,
        env=ENVIRONMENT | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_command_is_documented() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from make_cli_docs import page
    finally:
        sys.path.pop(0)
    assert (ROOT / "docs" / "cli.md").read_text() == page(), "run: python tools/make_cli_docs.py docs/cli.md"


def test_help_is_fast_because_it_imports_nothing_heavy() -> None:
    """numpy alone takes a third of the time that --help may."""
    code = (
        "import sys; sys.argv = ['rbe', '--help']\nfrom rbe_cli.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    )
    code += "print(sorted({'numpy', 'numba', 'huggingface_hub', 'safetensors', 'ml_dtypes'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert done.stdout.splitlines()[-1] == "[]"
