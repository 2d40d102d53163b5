"""How near `--dry-run` comes to the run it forecasts, and in what part of its time.

    python -m tests.benchmarks.dry_run MODEL ...     # a folder, a file, mini-gpt2

Prints, at some rates: how far the size and the SNR of the whole are from what was then measured, the worst tensor's
size, and wall time and processor time of the forecast over those of the run.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from rbe_cli.checkpoint.source import open_source
from rbe_cli.codec.warm_up import compile_all
from rbe_cli.operations.compress import compress
from rbe_cli.operations.figures import total_error
from rbe_cli.operations.forecast import forecast
from rbe_cli.operations.settings import Settings

RATES = (2.0, 4.0, 6.0)
_SMALL = 4096


def main(models: list[str]) -> None:
    compile_all()
    print("| model | bits/w | size | SNR | worst tensor's size | wall time | processor time |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for model in models:
        for bits in RATES:
            print("| " + " | ".join([Path(model).name, f"{bits:g}", *_cells(model, Settings(bits=bits))]) + " |")


def _cells(model: str, settings: Settings) -> list[str]:
    checkpoint = open_source(model)
    cpu = time.process_time()
    expected = forecast(checkpoint, settings)
    forecast_cpu = time.process_time() - cpu
    with tempfile.TemporaryDirectory() as folder:
        cpu = time.process_time()
        done = compress(checkpoint, Path(folder) / "out", settings)
        run_cpu = time.process_time() - cpu
    sizes = {tensor.name: tensor.bytes for tensor in done.manifest.tensors}
    large = [tensor for tensor in expected.manifest.tensors if tensor.elements >= _SMALL]
    worst = max((abs(tensor.bytes / max(sizes[tensor.name], 1) - 1) for tensor in large), default=0.0)
    snr, measured = (total_error(manifest.tensors).snr for manifest in (expected.manifest, done.manifest))
    return [
        f"{100 * (expected.size / done.size - 1):+.2f} %", f"{100 * (snr / measured - 1):+.2f} %",
        f"{100 * worst:.2f} %",
        f"{expected.seconds / done.seconds:.2f}", f"{forecast_cpu / run_cpu:.2f}",
    ]  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
