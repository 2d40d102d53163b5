"""Commands on hostile input, each in a process of its own whose time and memory are bounded and measured.

The processes are forks of one that has loaded and compiled everything: a trial takes a hundredth of a second, and what
it takes beyond that process is what the input made it take.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rbe_cli import cli, dtypes
from rbe_cli.container.folder import Folder
from rbe_cli.layers.model_files import ModelFiles
from rbe_cli.layers.weight_mapper import WeightMapper
from tests.command_line import ENVIRONMENT

#: In place of a command: what the layers do, which run from the compressed form.
LAYERS = "(layers)"
#: Seconds of processor time after which a trial is ended, and of wall time.
_CPU_LIMIT, _WALL_LIMIT = 60, 240
_APP = cli.app


class Trial(NamedTuple):
    """How a command ended.

    Attributes
    ----------
    code : int
        Exit code; minus the signal that ended it.
    memory : int
        Bytes of resident memory it took beyond the process it was forked from.
    seconds : float
        Of processor time.
    """

    code: int
    out: str
    err: str
    memory: int
    seconds: float

    def complaint(self) -> str:
        """The one line it failed with."""
        assert "Traceback" not in self.err
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("rbe: "), lines[0]
        return lines[0].removeprefix("rbe: ")


class Arena:
    """The process that is forked for every trial."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.attacks.trial"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=ENVIRONMENT | {"OPENBLAS_NUM_THREADS": "1"}, cwd=Path(__file__).resolve().parents[2],
        )  # fmt: skip

    def run(self, *commands: tuple[object, ...]) -> list[Trial]:
        """`rbe ARGUMENTS`, or what `LAYERS` stands for, one command after the other in one process.

        The memory of each is the most that it and those before it took.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps([[str(argument) for argument in command] for command in commands]) + "\n")
        self._server.stdin.flush()
        return [Trial(*values) for values in json.loads(self._server.stdout.readline())]

    def close(self) -> None:
        """End it."""
        self._server.communicate(timeout=60)


def _serve() -> None:
    from tests.attacks.fuzz import GOLDEN, warm_up

    warm_up()
    gc.freeze()
    # What a process takes for a folder of nothing special: a fork maps the pages of libraries only as it needs them.
    base = _in_a_fork(
        [["verify", str(GOLDEN / "v1" / "balanced"), "-q"], ["inspect", str(GOLDEN / "v1" / "balanced")]]
    )[-1][3]
    for line in sys.stdin:
        results = _in_a_fork(json.loads(line))
        print(json.dumps([[*rest, memory - base, seconds] for *rest, memory, seconds in results]), flush=True)


def _in_a_fork(commands: list[list[str]]) -> list[list[Any]]:
    """Run commands in a child: Trial fields of each; of the one that ended it by force, what is known."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(here)
        _run(commands, there)
    os.close(there)
    with os.fdopen(here) as pipe:
        results: list[list[Any]] = [json.loads(line) for line in pipe]
    _, status, usage = os.wait4(child, 0)
    if len(results) < len(commands):
        results.append([os.waitstatus_to_exitcode(status), "", "killed", usage.ru_maxrss << 10, usage.ru_utime])
    return results


def _run(commands: list[list[str]], report: int) -> None:
    """The child."""
    signal.alarm(_WALL_LIMIT)
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_LIMIT, _CPU_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for arguments in commands:
        out, err = io.StringIO(), io.StringIO()
        began = time.process_time()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = _command(arguments)
            except BaseException:
                traceback.print_exc()
                code = 70
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        result = [code, out.getvalue(), err.getvalue(), memory, time.process_time() - began]
        os.write(report, json.dumps(result).encode() + b"\n")
    os._exit(0)


def _command(arguments: list[str]) -> int:
    try:
        if arguments[0] == LAYERS:
            cli.app = lambda **_: _layers(Path(arguments[1]))  # type: ignore[assignment]
        sys.argv = ["rbe", *arguments]
        cli.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    finally:
        cli.app = _APP
    return 0


def _layers(folder: Path) -> None:
    """Open every tensor of a folder as the layers do, and multiply with the matrices."""
    opened = Folder.open(folder)
    ModelFiles(str(folder), folder=opened).file("config.json")
    weights = WeightMapper(opened)
    for tensor in opened.manifest.tensors:
        if len(tensor.shape) == 2 and tensor.dtype in dtypes.FLOATS:
            matrix = weights.matrix(tensor.name)
            matrix.times_transposed(np.ones((1, tensor.shape[1]), np.float32))
        else:
            opened.tensor(tensor.name)


if __name__ == "__main__":
    _serve()
