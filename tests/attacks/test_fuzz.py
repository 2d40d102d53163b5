"""A minute of the fuzzer, always the same inputs; `make fuzz` goes on to others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.command_line import ENVIRONMENT

SECONDS = 60


def test_a_minute_of_fuzzing_finds_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.attacks.fuzz", "--seconds", str(SECONDS)],
        capture_output=True, text=True, env=ENVIRONMENT, cwd=Path(__file__).resolve().parents[2], check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-10_000:]
    assert min(json.loads(done.stdout)["inputs"].values()) > 0
