"""docs/updates.md: what an update takes, next to the whole model compressed, of fine-tuned models made here.

    python -m tests.benchmarks.updates                # trains, measures and writes; about 20 minutes

What is there already in the work folder is neither trained nor measured again. Needs torch.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from rbe_cli import __version__, models
from rbe_cli.checkpoint.reader import open_checkpoint
from rbe_cli.codec.warm_up import compile_all
from rbe_cli.container.folder import Folder
from rbe_cli.container.open_base import AnyBase, CheckpointBase, CompressedBase
from rbe_cli.layers.model_files import ModelFiles
from rbe_cli.operations.compress import compress
from rbe_cli.operations.decode import decode
from rbe_cli.operations.engines import load_model
from rbe_cli.operations.figures import total_error
from rbe_cli.operations.forecast import forecast
from rbe_cli.operations.machine import machine
from rbe_cli.operations.model_text import HELD_OUT, read_text
from rbe_cli.operations.settings import Settings
from tests.benchmarks.codec_page import replace_part
from tests.benchmarks.fine_tunes import KINDS, PAGE, fine_tune
from tests.benchmarks.model_quality import Recorded, Subject
from tests.benchmarks.peers import Tensors, is_matrix
from tests.synthetic import read_tensors

RATES: dict[str, dict[str, Any]] = {
    **{f"{bits:g} bits": {"bits": bits} for bits in (0.25, 0.5, 1.0, 2.0, 4.0)},
    "lossless": {"lossless": True},
}
BASE_BITS = 4.0
WAYS = {
    "alone": "by itself",
    "original": "update of the original base",
    "compressed": f"update of the base at {BASE_BITS:g} bits",
}
NAMES = {
    "all": "All weights trained",
    "lora": "LoRA, rank 8 on every matrix of the blocks, merged",
    "last": "The last block trained, the rest frozen",
}
TIMED, TURNS = ("1 bits", "4 bits"), 5


class Bases:
    """What an update can be made against."""

    def __init__(self, work: Path) -> None:
        self._compressed = work / f"base{BASE_BITS:g}.rbe"
        if not self._compressed.exists():
            compress(open_checkpoint(models.path()), self._compressed, Settings(bits=BASE_BITS))

    def open(self, way: str) -> AnyBase | None:
        if way == "compressed":
            return CompressedBase(Folder.open(self._compressed))
        return CheckpointBase(open_checkpoint(models.path())) if way == "original" else None


class FineTuned(Subject):
    """A fine-tuned model and everything that is measured of it."""

    def __init__(self, folder: Path, bases: Bases) -> None:
        self.bases = bases
        super().__init__(folder, "numpy", folder.with_suffix(".json"), None)

    def read(self, files: ModelFiles, limit: int | None) -> None:
        self.reference = Recorded(load_model(files, self.engine))
        self.tokens = read_text(files, self.source / HELD_OUT, limit).tokens

    def measure(self) -> None:
        self.row("the base", self._base)
        for rate, wishes in RATES.items():
            for way in WAYS:
                name = f"{way}, {rate}"
                if name not in self.rows:
                    expected: dict[str, Any] = {}
                    self.row(name, self._compressed(way, wishes, expected))
                    if expected:
                        self._note(name, expected)

    def _note(self, name: str, figures: dict[str, Any]) -> None:
        self.rows[name] |= figures
        self.results.write_text(json.dumps(self.rows, indent=1) + "\n")

    def _base(self, folder: Path) -> tuple[ModelFiles, Tensors, int]:
        """The base as it is, in the place of the fine-tuned model."""
        return ModelFiles.open(str(models.path())), read_tensors(models.path()), 0

    def _compressed(
        self, way: str, wishes: dict[str, Any], expected: dict[str, Any]
    ) -> Callable[[Path], tuple[ModelFiles, Tensors, int]]:
        """The decoded checkpoint of one way at one rate; what --dry-run says goes to `expected`."""

        def make(folder: Path) -> tuple[ModelFiles, Tensors, int]:
            base, settings = self.bases.open(way), Settings(**wishes)
            checkpoint, out = open_checkpoint(self.source), folder / "out.rbe"
            done = compress(checkpoint, out, settings, base=base)
            assert done.size == sum(path.stat().st_size for path in out.iterdir() if path.is_file())
            told = forecast(checkpoint, settings, base=base)
            errors = [total_error(manifest.tensors) for manifest in (told.manifest, done.manifest)]
            expected["size off"] = told.size / done.size - 1
            expected["SNR off"] = errors[0].snr / errors[1].snr - 1 if errors[1].squared_error else 0.0
            stored = [tensor for tensor in done.manifest.tensors if tensor.base]
            expected["methods"] = {
                method: sum(tensor.method == method for tensor in stored)
                for method in sorted({tensor.method for tensor in stored})
            }
            decode(out, folder / "back", base=self.bases.open(way))
            back = folder / "back"
            return ModelFiles.open(str(back)), read_tensors(back), done.size

        return make

    def time(self) -> dict[str, Any]:
        """Seconds to compress and to decode, by way and rate: medians of some turns."""
        taken: dict[str, dict[str, list[float]]] = {}
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            for turn in range(TURNS):
                for rate in TIMED:
                    for way in WAYS:
                        out, back = folder / f"{way} {rate} {turn}", folder / f"{way} {rate} {turn} back"
                        done = compress(
                            open_checkpoint(self.source),
                            out,
                            Settings(jobs=1, **RATES[rate]),
                            base=self.bases.open(way),
                        )
                        seconds = taken.setdefault(rate, {}).setdefault(way, [])
                        seconds += [done.seconds, decode(out, back, base=self.bases.open(way)).seconds, done.passes]
        return {
            rate: {way: [median(seconds[i::3]) for i in range(3)] for way, seconds in ways.items()}
            for rate, ways in taken.items()
        }


def change(source: Path) -> float:
    """Root mean square of what changed over that of the base, all matrices together."""
    base, new = read_tensors(models.path()), read_tensors(source)
    pairs = [(base[name].astype(np.float64), new[name]) for name in base if is_matrix(base[name])]
    return math.sqrt(sum(np.square(b - a).sum() for a, b in pairs) / sum(np.square(a).sum() for a, _ in pairs))


def lines(work: Path) -> list[str]:
    """The measured part of the page."""
    page: list[str] = []
    for kind in KINDS:
        rows = json.loads((work / f"{kind}.json").read_text())
        learned = json.loads((work / kind / "learned.json").read_text())
        page += [*_about(kind, rows, learned, change(work / kind)), "", *_table(rows), ""]
    updates = [
        row for kind in KINDS for name, row in json.loads((work / f"{kind}.json").read_text()).items()
        if not name.startswith("alone")
    ]  # fmt: skip
    off = {key: 100 * max(abs(row.get(key, 0.0)) for row in updates) for key in ("size off", "SNR off")}
    page += [
        f"`--dry-run` told the size of every update within {off['size off']:.1f} % and its SNR in dB within "
        f"{off['SNR off']:.1f} %.",
        "",
        *_times(json.loads((work / "times.json").read_text())),
        "",
    ]
    here = ", ".join(f"{name} {value}" for name, value in machine().items())
    return [*page, f"Measured on {datetime.date.today()}: rbe {__version__}, {here}."]


def _about(kind: str, rows: dict[str, Any], learned: dict[str, Any], changed: float) -> list[str]:
    base = rows["the base"]
    return [
        f"### {NAMES[kind]}",
        "",
        f"{learned['steps']} steps. On the held-out text {learned['after']:.3f} bits per byte, the base "
        f"{learned['bits per byte before']:.3f}: a KL of {_kl(base['kl'][0])}. The change is "
        f"{100 * changed:.2f} % of the base's matrices (root mean square).",
    ]


def _table(rows: dict[str, Any]) -> list[str]:
    table = [
        "| asked |" + "".join(f" {way}: bytes | SNR dB | KL |" for way in WAYS.values()),
        "| --- |" + " ---: | ---: | ---: |" * len(WAYS),
    ]
    for rate in RATES:
        cells = [rate]
        for way in WAYS:
            row = rows[f"{way}, {rate}"]
            if "unreachable" in row:
                cells += [f"out of reach: {_least(row['unreachable'])}", "", ""]
            else:
                snr = "exact" if math.isinf(row["snr"]) else f"{row['snr']:.2f}"
                cells += [f"{row['bytes']:,}", snr, _kl(row["kl"][0])]
        table.append("| " + " | ".join(cells) + " |")
    return table


def _least(refusal: str) -> str:
    """The bits that can be had, of what a refusal says."""
    found = re.search(r"about ([\d.]+ bits)", refusal)
    return f"at least {found[1]}" if found else refusal


def _kl(value: float) -> str:
    if value < 1e-7:
        return "0" if value == 0 else "< 1e-7"
    return f"{value:.1e}" if value < 0.001 else f"{value:.4f}"


def _times(times: dict[str, Any]) -> list[str]:
    table = [
        f"Seconds on one thread for the first of these models, medians of {TURNS} turns, and how many times as long as "
        "without a base:",
        "",
        "| asked | | compress s | x | passes | decode s | x |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for rate, ways in times.items():
        alone = ways["alone"]
        for way, (compressing, decoding, passes) in ways.items():
            table.append(
                f"| {rate} | {WAYS[way]} | {compressing:.2f} | {compressing / alone[0]:.2f} | {passes:g} "
                f"| {decoding:.3f} | {decoding / alone[1]:.2f} |"
            )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/updates"), help="where models and results are kept")
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        if not (work / kind / HELD_OUT).exists():
            fine_tune(kind, work / kind)
    compile_all()
    bases = Bases(work)
    for kind in KINDS:
        FineTuned(work / kind, bases).measure()
    times = work / "times.json"
    if not times.exists():
        times.write_text(json.dumps(FineTuned(work / next(iter(KINDS)), bases).time(), indent=1) + "\n")
    measured = lines(work)
    print("\n".join(measured))
    PAGE.write_text(replace_part(PAGE.read_text(), "updates", measured))


if __name__ == "__main__":
    main()
