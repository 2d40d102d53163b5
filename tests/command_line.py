"""Running the command line: inside this process where speed matters, as a process of its own where that matters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import rbe_cli
from tests.schema import check_document

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(rbe_cli.__file__).parents[1]), "HF_HUB_OFFLINE": "1"}


class Outcome(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Its standard output, which must be one JSON document as docs/schemas says, without NaN or infinity."""
        document = json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        check_document(document)
        return document

    def complaint(self) -> str:
        """The one line on standard error with which it failed."""
        (line,) = self.err.splitlines()
        assert line.startswith("rbe: ")
        assert "Traceback" not in line
        assert self.out == ""
        return line.removeprefix("rbe: ")


Run = Callable[..., Outcome]


def rbe_process(*arguments: object, cwd: Path | None = None, **environment: str) -> Outcome:
    """`rbe ARGUMENTS` as a process of its own, standard output and error piped."""
    done = subprocess.run(
        [sys.executable, "-m", "rbe_cli", *map(str, arguments)],
        capture_output=True, text=True, errors="replace",
        cwd=cwd, env=ENVIRONMENT | environment, timeout=180, check=False,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr)
