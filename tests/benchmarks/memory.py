"""Peak resident memory and throughput of the commands against the size of the checkpoint.

    python -m tests.benchmarks.memory --sizes 0.2,1,5 --tensor F32 --tensor BF16 -o FOLDER    (or `make bench-memory`)

Writes synthetic checkpoints in pieces, runs compress, decode and verify on them as processes of their own, and prints
a table:
what the kernel says was the most that was resident (VmHWM), the bound 3 x the largest tensor + 300 MB, and the
processor time, which others who use the machine do not change much.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from rbe_cli.calibration.importance import MOMENTS
from rbe_cli.checkpoint.writer import layout, write_safetensors
from tests.command_line import ENVIRONMENT

#: Tensors of a shard.
_PER_SHARD = 8
_BOUND_FACTOR, _BOUND_CONSTANT = 3, 300e6
_TYPES = {"BF16": ml_dtypes.bfloat16, "F32": np.float32}


@dataclass(frozen=True)
class Measured:
    """One command on one checkpoint. Sizes in bytes, seconds of processor time over all threads."""

    what: str
    command: str
    source: int
    largest: int
    peak: int
    seconds: float

    @property
    def bound(self) -> float:
        """Three times the largest tensor and 300 MB."""
        return _BOUND_FACTOR * self.largest + _BOUND_CONSTANT

    def row(self) -> str:
        """A line of the table."""
        return (
            f"| {self.what} | {self.command} | {self.source / 1e9:.2f} | {self.largest / 1e6:.0f} | "
            f"{self.peak / 1e6:.0f} | {self.bound / 1e6:.0f} | {'yes' if self.peak <= self.bound else '**no**'} | "
            f"{self.seconds:.0f} | {self.source / 1e6 / self.seconds:.0f} |"
        )


HEAD = (
    "| checkpoint | command | GB | largest tensor, MB | peak, MB | bound, MB | kept | CPU s | MB/s on one core |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def pieces(shape: tuple[int, int], dtype: str, number: int) -> Iterator[np.ndarray]:
    """Bytes of a matrix, a few million elements at a time: one block of noise again and again, no two tensors alike."""
    rng = np.random.default_rng(0)
    rows = max(1, (1 << 22) // shape[1])
    block = 0.02 * rng.standard_normal((rows, shape[1]), np.float32)
    block *= np.exp(0.3 * rng.standard_normal((rows, 1), np.float32))
    block[0] *= 1 + number / 1000
    raw = np.ascontiguousarray(block.astype(_TYPES[dtype])).view(np.uint8)
    for top in range(0, shape[0], rows):
        yield raw[: min(rows, shape[0] - top)].ravel()


def write_checkpoint(folder: Path, size: float, dtype: str, n: int, name: str) -> int:
    """About `size` bytes in shards of _PER_SHARD matrices of n x n; returns how many matrices."""
    folder.mkdir(parents=True)
    shape = n, n
    count = max(1, round(size / (n * n * np.dtype(_TYPES[dtype]).itemsize)))
    for shard in range(0, count, _PER_SHARD):
        numbers = range(shard, min(shard + _PER_SHARD, count))
        tensors = layout((name.format(i), dtype, shape) for i in numbers)
        data = (pieces(shape, dtype, i) for i in numbers)
        write_safetensors(folder / f"model-{shard // _PER_SHARD:05d}.safetensors", tensors, data, None)
    return count


def write_importance(path: Path, count: int, n: int) -> None:
    """Second moments of the inputs of so many matrices of `write_checkpoint`, the same for all: a square matrix."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((256, n), np.float32) * np.exp(0.3 * rng.standard_normal(n, np.float32))
    moments = inputs.T @ inputs / 256
    names = [f"model.layers.{i:04d}.proj.weight" for i in range(count)]
    arrays = {name: moments.diagonal() for name in names} | {names[0] + MOMENTS: moments}
    tensors = layout((name, "F32", array.shape) for name, array in arrays.items())
    data = (iter([np.ascontiguousarray(arrays[name]).view(np.uint8).ravel()]) for name, _, _ in tensors)
    axes, shared = dict.fromkeys(names, 1), dict.fromkeys(names, names[0])
    write_safetensors(path, tensors, data, {"input_axis": json.dumps(axes), "shared": json.dumps(shared)})


def write_tensor(folder: Path, shape: tuple[int, int], dtype: str) -> None:
    """One matrix in one file."""
    folder.mkdir(parents=True)
    write_safetensors(
        folder / "model.safetensors", [("model.embed.weight", dtype, shape)], iter([pieces(shape, dtype, 0)]), None
    )


def run(what: str, source: Path, largest: int, *arguments: object) -> Measured:
    """A command as a process of its own."""
    command = [sys.executable, "-m", "rbe_cli", *map(str, arguments), "-q", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, env=ENVIRONMENT | {"OPENBLAS_NUM_THREADS": "1"}
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}")
    size = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    words = [arguments[0], *arguments[4:]] if arguments[0] == "compress" else arguments[:1]
    shown = " ".join(Path(str(word)).name for word in words)
    return Measured(what, shown, size, largest, usage.ru_maxrss << 10, usage.ru_utime + usage.ru_stime)


def measure(what: str, source: Path, largest: int, options: list[str]) -> Iterator[Measured]:
    """Compress, decode and verify a checkpoint, and delete what they wrote."""
    packed, back = source.with_suffix(".rbe"), source.with_suffix(".back")
    yield run(what, source, largest, "compress", source, "-o", packed, *options)
    yield run(what, source, largest, "decode", packed, "-o", back, "--max-decoded-size", "100GB")
    yield run(what, source, largest, "verify", packed, "--max-decoded-size", "100GB")
    if "--lossless" in options:
        for file in source.iterdir():
            subprocess.run(["cmp", file, back / file.name], check=True)
    shutil.rmtree(packed)
    shutil.rmtree(back)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="0.2,1,5", help="checkpoints of so many GB")
    parser.add_argument("--dtype", choices=list(_TYPES), default="BF16", help="their type")
    parser.add_argument("--columns", type=int, default=4096, help="columns and rows of their matrices")
    parser.add_argument("--tensor", action="append", default=[], help="one tensor of a G elements: BF16 or F32")
    parser.add_argument("--one-layer", action="store_true", help="all matrices are of one layer")
    parser.add_argument("--moments", action="store_true", help="compress with second moments of all inputs")
    parser.add_argument("--options", default="--effort 0", help="of compress")
    parser.add_argument("-o", "--folder", type=Path, help="where there is room")
    parser.add_argument("--json", type=Path, help="add the figures to this file")
    arguments = parser.parse_args()
    options = arguments.options.split()
    n, stored = arguments.columns, arguments.dtype
    matrices = "shards" if n == 4096 else f"shards of {n} x {n}"
    jobs: list[tuple[str, float, str]] = [(matrices, float(s) * 1e9, stored) for s in arguments.sizes.split(",") if s]
    jobs += [("one tensor of 1 G elements", 0.0, dtype) for dtype in arguments.tensor]
    results: list[Measured] = []
    print(HEAD, flush=True)
    for what, size, dtype in jobs:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            source = Path(folder) / "source"
            if size:
                name = "model.proj.{:04d}" if arguments.one_layer else "model.layers.{:04d}.proj.weight"
                count = write_checkpoint(source, size, dtype, n, name)
                largest = n * n * np.dtype(_TYPES[dtype]).itemsize
                if arguments.moments:
                    write_importance(source.with_name("moments.safetensors"), count, n)
                    # The largest tensor that is read.
                    largest = n * n * 4
            else:
                write_tensor(source, (1 << 17, 1 << 13), dtype)
                largest = (1 << 30) * np.dtype(_TYPES[dtype]).itemsize
            more = ["--importance", str(source.with_name("moments.safetensors"))] if arguments.moments else []
            title = f"{what}, {dtype}" + (", one layer" if arguments.one_layer else "")
            for result in measure(title, source, largest, options + more):
                print(result.row(), flush=True)
                results.append(result)
    if arguments.json:
        old = json.loads(arguments.json.read_text()) if arguments.json.exists() else []
        arguments.json.write_text(json.dumps(old + [vars(result) for result in results], indent=1))


if __name__ == "__main__":
    main()
