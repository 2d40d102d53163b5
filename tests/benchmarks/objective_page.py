"""The page of `objective`, from its results."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from rbe_cli.operations.model_quality import Estimate
from tests.benchmarks.objective import AGAIN, GRID, GUESSES, RATES, TABLES, Candidate

MODELS = {"mini-gpt2": "mini-gpt2", "tiny-llama": "Llama", "minilm": "MiniLM-L6"}
DEFAULT = Candidate(0.5, 0.5)
Rows = dict[str, dict[str, Any]]

_HEAD = "| |" + "".join(f" {short} {bits:g} |" for short in MODELS.values() for bits in RATES) + " mean |\n"
_HEAD += "|---|" + "---:|" * (len(MODELS) * len(RATES) + 1) + "\n"


def write(work: Path, docs: Path) -> None:
    """Write `objective.md` from the results in `work`, around the text that is there."""
    results = {name: json.loads((work / f"objective-{name}.json").read_text()) for name in MODELS}
    page = (docs / "objective.md").read_text()
    for key, text in {
        "figures": _figures(results),
        "grid": _table(results, GRID),
        "tables": _table(results, TABLES),
        "guesses": _table(results, GUESSES),
        "again": _table(results, AGAIN),
    }.items():
        begin, end = f"<!-- {key} -->\n", f"<!-- end of {key} -->\n"
        before, _, rest = page.partition(begin)
        page = before + begin + text + end + rest.partition(end)[2]
    (docs / "objective.md").write_text(page)


def _figures(results: dict[str, Rows]) -> str:
    """What the default does, in the figure's own unit."""
    lines = ["| bits per weight | " + " | ".join(MODELS.values()) + " |\n", "|---|" + "---:|" * len(MODELS) + "\n"]
    for bits in RATES:
        cells = []
        for name in MODELS:
            row = results[name][f"{DEFAULT.key} at {bits:g}"]
            estimate = Estimate.of_windows(np.array(row["sums"]), np.array(row["counts"]))
            cells.append(f"{estimate.value:.5f} +- {estimate.error:.5f}")
        lines.append(f"| {bits:g} | " + " | ".join(cells) + " |\n")
    return "".join(lines)


def _table(results: dict[str, Rows], candidates: list[Candidate]) -> str:
    """Each candidate's figure over the default's, and the standard error of that from the pairs."""
    lines = [_HEAD]
    for candidate in candidates:
        cells, logs = [], []
        for name in MODELS:
            for bits in RATES:
                row = results[name].get(f"{candidate.key} at {bits:g}")
                default = results[name][f"{DEFAULT.key} at {bits:g}"]
                if row is None:
                    cells.append("")
                    continue
                ratio = Estimate.of_windows(np.array(row["sums"]), np.array(default["sums"]))
                cells.append(f"{ratio.value:.3f} +- {ratio.error:.3f}" if candidate != DEFAULT else "1")
                logs.append(math.log(ratio.value))
        mean = math.exp(sum(logs) / len(logs))
        lines.append(f"| {_name(candidate)} | " + " | ".join(cells) + f" | {mean:.3f} |\n")
    return "".join(lines)


def _name(candidate: Candidate) -> str:
    """In words."""
    name = f"in {candidate.inputs:g}, out {candidate.outputs:g}"
    if candidate.tables:
        name += ", tables too"
    if candidate.finer != DEFAULT.finer:
        name += f", tables {candidate.finer:g} times finer"
    if candidate.guess:
        name += {"gains": ", norm gains", "measured": ", calibrated"}[candidate.guess]
    if candidate.effort != DEFAULT.effort:
        name += f", effort {candidate.effort}"
    return name
