"""What only shows in a process of its own: imports, interruption, pipes, memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.command_line import ENVIRONMENT, Run, rbe_process

_IMPORTS = """
import sys
sys.argv = ["rbe", *sys.argv[1:]]
from rbe_cli.cli import main
try:
    main()
except SystemExit:
    pass
heavy = {"numpy", "numba", "llvmlite", "huggingface_hub", "torch", "transformers"}
print("HEAVY", sorted(heavy & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["compress", "--help"], ["inspect", "-h"], ["decode", "-h"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTS, *arguments], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    assert "HEAVY []" in done.stdout
    assert done.stderr == ""


def test_inspect_needs_no_compiled_kernels_nor_arrays(compressed: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTS, "inspect", str(compressed)],
        capture_output=True, text=True, env=ENVIRONMENT, check=True,
    )  # fmt: skip
    assert "h.0.attn.weight" in done.stdout
    assert "HEAVY []" in done.stdout


def test_help_names_every_command_and_option() -> None:
    text = rbe_process("--help").out
    assert all(command in text for command in ("compress", "inspect", "decode"))
    text = rbe_process("compress", "--help", COLUMNS="200").out
    for option in ("--bits", "--ratio", "--nrmse", "--lossless", "--objective", "--effort", "--k", "--block",
                   "--threshold", "--jobs", "--force", "--json", "--out"):  # fmt: skip
        assert option in text


def test_help_shows_no_type_for_what_takes_no_value() -> None:
    for command in ((), ("compress",), ("bench",), ("bench", "model")):
        text = rbe_process(*command, "--help").out
        assert "--help" in text
        assert "<bool>" not in text


def test_version(rbe: Run) -> None:
    from rbe_cli import __version__

    assert rbe("--version").out == f"rbe {__version__}\n"


#: Seconds after which the encoding of `large` has written a layer or so and is not over: it takes 0.9 and more.
_INTO_ENCODING = 0.3


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 MB of weights: seconds of work."""
    path = tmp_path_factory.mktemp("large") / "x.safetensors"
    rng = np.random.default_rng(0)
    save_file({f"h.{i}.weight": rng.standard_normal((2048, 2048), dtype=np.float32) for i in range(4)}, path)
    return path


def heed_interrupts() -> None:
    """In a new process: a job in the background of a script is started with SIGINT ignored, and hands that down."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupted(phase: str, after: float, *arguments: object, timeout: float = 60) -> tuple[int, str, str]:
    """Exit code, stdout and the stderr that follows of a command that gets Ctrl-C so many seconds into a phase."""
    with subprocess.Popen(
        [sys.executable, "-m", "rbe_cli", *map(str, arguments)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        preexec_fn=heed_interrupts,  # noqa: PLW1509 - it only sets a signal's handler
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(phase):
                break
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=timeout)
    return process.returncode, stdout, stderr


@pytest.mark.parametrize(("phase", "after"), [("analysing", 0.1), ("encoding", _INTO_ENCODING)])
def test_interruption_leaves_nothing_behind(large: Path, tmp_path: Path, phase: str, after: float) -> None:
    code, stdout, stderr = interrupted(phase, after, "compress", large, "-o", tmp_path / "m.rbe", "--effort", 7)
    assert code == 130
    assert stdout == ""
    assert "Traceback" not in stderr
    assert [line for line in stderr.splitlines() if "nterrupt" in line or "bort" in line]
    assert os.listdir(tmp_path) == []


def test_interrupted_replacement_keeps_what_was_there(large: Path, tmp_path: Path, tiny_source: Path) -> None:
    out = tmp_path / "m.rbe"
    assert rbe_process("compress", tiny_source, "-o", out, "--bits", 6, "-q").code == 0
    before = (out / "rbe.json").read_bytes()
    code, _, _ = interrupted("encoding", _INTO_ENCODING, "compress", large, "-o", out, "--effort", 7, "--force")
    assert code == 130
    assert os.listdir(tmp_path) == ["m.rbe"]
    assert (out / "rbe.json").read_bytes() == before


def test_interruption_does_not_wait_for_linear_algebra(tmp_path: Path) -> None:
    """The second moments of 1500 columns and their eigenvectors take some seconds."""
    source = tmp_path / "model.safetensors"
    save_file({"a.weight": np.random.default_rng(0).standard_normal((12000, 1500), np.float32)}, source)
    command = ["compress", source, "-o", tmp_path / "out", "--transform", "klt"]
    code, _, stderr = interrupted("analysing", 1, *command, timeout=5)
    assert (code, stderr) == (130, "rbe: interrupted; nothing half-written was left behind\n")
    assert os.listdir(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize("arguments", ["inspect FOLDER --all", "inspect FOLDER --json", "--help", "compress --help"])
def test_closed_pipe_ends_it_like_any_other_tool(compressed: Path, arguments: str) -> None:
    """`rbe inspect m.rbe | head -1`: nothing is said, and the exit code is that of SIGPIPE."""
    command = f"{sys.executable} -m rbe_cli {arguments.replace('FOLDER', str(compressed))}"
    command += " | true; echo ${PIPESTATUS[0]}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stderr == ""
    assert done.stdout == "141\n"


def test_closed_from_the_start(compressed: Path) -> None:
    command = f"{sys.executable} -m rbe_cli inspect {compressed} >&- 2>&-"
    assert subprocess.run(["bash", "-c", command], env=ENVIRONMENT, check=False).returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full disk to try")
@pytest.mark.parametrize("arguments", [["inspect", "--json"], ["inspect"], ["decode", "-q", "-o", "-"]])
def test_full_disk_behind_stdout(compressed: Path, arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "rbe_cli", *arguments, compressed],
            stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "rbe: stdout: No space left on device\n")


@pytest.mark.parametrize("after", [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6])
def test_interrupted_while_it_starts(tiny_source: Path, tmp_path: Path, after: float) -> None:
    """Whatever is being imported then."""
    code = "import threading, os, signal; from rbe_cli import __main__, interrupts; interrupts.end_at_once()\n"
    code += f"threading.Timer({after}, os.kill, [os.getpid(), signal.SIGINT]).start(); __main__.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "compress", str(tiny_source), "-o", str(tmp_path / "m"), "--effort", "9"],
        capture_output=True, text=True, env=ENVIRONMENT, preexec_fn=heed_interrupts, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 130)
    assert "Traceback" not in done.stderr


def test_no_memory_beyond_what_the_work_takes(large: Path, tmp_path: Path) -> None:
    """64 MB of memory-mapped weights and compiled kernels, never the model and its copies many times over."""
    done = rbe_process("compress", large, "-o", tmp_path / "m", "--effort", 0, "--json", "-q")
    assert done.code == 0
    assert 50e6 < done.json()["totals"]["peak_memory_bytes"] < 700e6


def test_locale_without_unicode(tiny_source: Path, tmp_path: Path) -> None:
    done = rbe_process("compress", tiny_source, "-o", tmp_path / "m", "--bits", 6, LC_ALL="C", PYTHONIOENCODING="ascii")
    assert done.code == 0
    assert "Traceback" not in done.err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_names_and_marks_the_output_has_no_letters_for(compressed: Path, encoding: str) -> None:
    folder = compressed.rename(compressed.with_name("my m\N{LATIN SMALL LETTER O WITH DIAERESIS}del \N{SNOWMAN}.rbe"))
    done = rbe_process("decode", folder, "-q", PYTHONIOENCODING=encoding)
    assert done.code == 0
    assert done.out.endswith("del ?.rbe.decoded\n")
    done = rbe_process("inspect", folder.with_name("\N{SNOWMAN}"), PYTHONIOENCODING=encoding)
    assert done.complaint().startswith(f"{folder.parent}/?: ")


def test_ticks_and_crosses_in_any_encoding() -> None:
    options = ("--hidden", 16, "--vocabulary", 16, "--layers", "Embedding", "--seconds", 0.001, "-q")
    done = rbe_process("bench", "layers", "--weights", "white", *options, PYTHONIOENCODING="ascii")
    assert done.code == 0
    assert " v" in done.out or " x" in done.out
    assert "?" not in done.out
