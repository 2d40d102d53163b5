"""How near `--dry-run` comes to the run it forecasts, and in what part of its time.

    python -m tests.benchmarks.dry_run MODEL ...              # a folder, a file, mini-gpt2; prints the table
    python -m tests.benchmarks.dry_run --page MODEL ...       # and writes it to docs/codec.md

At some rates: how far the size and the SNR of the whole are from what was then measured, and those of the worst tensor
of at least 4096 weights; and seconds, the median of some turns of each, of two processes as a user starts them and of
the work alone.
`noise` is 24 matrices of 2048 x 2048 whose rows and columns differ in scale, made here, `noise4` four times as many, at
4 bits only: where the start of a process no longer counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from safetensors.numpy import save_file

from rbe_cli.codec.warm_up import compile_all
from tests.benchmarks.codec_page import PAGE, replace_part
from tests.synthetic import scaled_normal

WISHES = (
    ("--bits", "1.5"),
    ("--bits", "2"),
    ("--bits", "2", "--objective", "mse"),
    ("--bits", "4"),
    ("--bits", "4", "--objective", "mse"),
    ("--bits", "6"),
)
#: Models made here: how many matrices, and the wishes.
NOISE = {"noise": (24, WISHES), "noise4": (96, (("--bits", "4"),))}
_SMALL, _TURNS = 4096, 5


def table(models: Sequence[str], folder: Path) -> list[str]:
    """The rows, measured one after the other."""
    lines = [
        "| model | wish | size | SNR | worst tensor's size | and SNR | forecast s | run s | ratio | whole process |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for model in models:
        matrices, wishes = NOISE.get(model, (0, WISHES))
        source = str(_noise(folder, matrices)) if matrices else model
        name = Path(source).parent.parent.name if model.endswith(".safetensors") else model
        lines += ["| " + " | ".join([name, " ".join(wish), *_cells(source, wish, folder)]) + " |" for wish in wishes]
    return lines


def _noise(folder: Path, matrices: int) -> Path:
    path = folder / "noise.safetensors"
    save_file({f"h.{i}.weight": scaled_normal((2048, 2048), i).astype("float32") for i in range(matrices)}, path)
    return path


def _cells(source: str, wish: Sequence[str], folder: Path) -> list[str]:
    turns = [
        (_run(source, *wish, "--dry-run"), _run(source, *wish, "--force", "-o", str(folder / "out")))
        for _ in range(_TURNS)
    ]
    (forecast, _), (run, _) = turns[0]
    found = {tensor["name"]: tensor for tensor in run["tensors"]}
    large = [(tensor, found[tensor["name"]]) for tensor in forecast["tensors"] if tensor["elements"] >= _SMALL]

    def worst(figure: str) -> float:
        return max((abs(ours[figure] / theirs[figure] - 1) for ours, theirs in large if theirs[figure]), default=0.0)

    expected, measured = forecast["totals"], run["totals"]
    seconds, run_seconds = (median(turn[i][0]["totals"]["seconds"] for turn in turns) for i in (0, 1))
    process, run_process = (median(turn[i][1] for turn in turns) for i in (0, 1))
    return [
        f"{100 * (expected['bytes'] / measured['bytes'] - 1):+.2f} %",
        f"{100 * (expected['snr_db'] / measured['snr_db'] - 1):+.2f} %",
        f"{100 * worst('bytes'):.1f} %", f"{100 * worst('snr_db'):.1f} %",
        f"{seconds:.2f}", f"{run_seconds:.2f}", f"{seconds / run_seconds:.3f}", f"{process / run_process:.2f}",
    ]  # fmt: skip


def _run(*arguments: str) -> tuple[dict[str, Any], float]:
    """What a compression says of itself, and the seconds of its process."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "rbe_cli", "compress", *arguments, "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, check=True)
    return json.loads(done.stdout), time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--page", action="store_true", help=f"write the table to {PAGE}, too")
    arguments = parser.parse_args()
    compile_all()
    with tempfile.TemporaryDirectory() as folder:
        lines = table(arguments.models, Path(folder))
    print("\n".join(lines))
    if arguments.page:
        PAGE.write_text(replace_part(PAGE.read_text(), "forecasts", lines))


if __name__ == "__main__":
    main()
