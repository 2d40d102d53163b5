"""The measured parts of docs/codec.md: `make bench-codec` runs it.

    python -m tests.benchmarks.codec_page EFFORTS.json RATES.json MATRICES.json...

All files are what `rbe bench codec --json` printed. Each part of the page between `<!-- measured: NAME -->` and
`<!-- end -->` is replaced; the words around are written by hand.
"""

from __future__ import annotations

import datetime
import json
import re
import sys
from pathlib import Path
from typing import Any

from rbe_cli import __version__
from rbe_cli.operations.bench_sources import gaussian
from rbe_cli.operations.machine import machine
from rbe_cli.operations.settings import DEFAULT_EFFORT, Settings
from tests.benchmarks.codec_profile import REST, Shares, profile, search_times

PAGE = Path("docs/codec.md")
Document = dict[str, Any]


def efforts_table(document: Document) -> list[str]:
    """Gap and speed of every level on the Gaussian source, and the gain of each over level 0 on every source."""
    sources = document["sources"]
    white = {(p["effort"], p["bits_asked"]): p for p in sources[0]["points"]}
    rates = sorted({rate for _, rate in white})
    lines = [
        "| effort | states |" + "".join(f" gap dB, {rate:g} bits | encode ns |" for rate in rates)
        + "".join(f" gain dB, {source['name'].rpartition('encoder.')[2]} |" for source in sources[1:]),
    ]  # fmt: skip
    lines.append("|" + " ---: |" * (lines[0].count("|") - 1))
    for effort in sorted({effort for effort, _ in white}):
        cells = [str(effort), str(Settings(effort=effort).states)]
        for rate in rates:
            point = white[effort, rate]
            cells += [f"{point['gap_db']:.2f}", _median(point["encode_ns_per_weight"])]
        for source in sources[1:]:
            gaps = {p["effort"]: p["gap_db"] for p in source["points"] if p["bits_asked"] == rates[-1]}
            cells.append(f"{gaps[0] - gaps[effort]:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def rates_table(document: Document) -> list[str]:
    """Gap at every rate, effort and source."""
    rates = sorted({p["bits_asked"] for source in document["sources"] for p in source["points"]})
    lines = ["| source | effort | coding |" + "".join(f" {rate:g} bits |" for rate in rates)]
    lines.append("| --- | ---: | --- |" + " ---: |" * len(rates))
    for source in document["sources"]:
        for effort in sorted({p["effort"] for p in source["points"]}):
            points = {p["bits_asked"]: p for p in source["points"] if p["effort"] == effort}
            coding = ", ".join(dict.fromkeys(p["coding"] for p in points.values()))
            cells = [source["name"], str(effort), coding, *(f"{points[rate]['gap_db']:.2f}" for rate in rates)]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def matrices_table(documents: list[Document]) -> list[str]:
    """Gap and the times of every matrix, at one rate and effort, by its own choice and by transforms named."""
    lines = [
        "| source | asked | coding | bits/w | gap dB | analysis ns | encode ns | decode ns | decode ns, all cores |"
    ]
    lines.append("| --- | --- | --- |" + " ---: |" * 6)
    for document in documents:
        # With a transform named, the built-in sources have nothing to say.
        own = document["transform"] in ("auto", "none")
        for source in document["sources"] if own else document["sources"][2:]:
            for point in source["points"]:
                cells = [source["name"], document["transform"], point["coding"], f"{point['bits_per_weight']:.3f}"]
                cells += [f"{point['gap_db']:.2f}", f"{point['analyse_ns_per_weight']:.0f}"]
                cells += [_median(point["encode_ns_per_weight"]), _median(point["decode_ns_per_weight"], 1)]
                cells.append(f"{point['decode_ns_per_weight']['all_cores']['median']:.1f}")
                lines.append("| " + " | ".join(cells) + " |")
    return lines


def _median(speed: Any, digits: int = 0) -> str:
    one = speed["one_core"]
    return f"{one['median']:.{digits}f} ({one['best']:.{digits}f}-{one['worst']:.{digits}f})"


def kernels_table() -> list[str]:
    """ns per weight of every kernel, encoding at the lowest, the default and the highest effort, and decoding."""
    columns: dict[str, Shares] = {}
    for effort in (0, DEFAULT_EFFORT, 9):
        columns[f"encode, effort {effort}"] = profile(gaussian(), 4.0, Settings(effort=effort).states)[0]
    for bits in (4.0, 2.0):
        columns[f"decode, {bits:g} bits"] = profile(gaussian(), bits, Settings().states)[1]
    kernels = sorted({k for column in columns.values() for k in column}, key=lambda k: (k == REST, k))
    lines = ["| kernel |" + "".join(f" {name} |" for name in columns), "| --- |" + " ---: |" * len(columns)]
    for kernel in kernels:
        cells = [f"{column[kernel]:.2f}" if kernel in column else "" for column in columns.values()]
        lines.append(f"| {kernel} | " + " | ".join(cells) + " |")
    lines.append("| all | " + " | ".join(f"{sum(column.values()):.2f}" for column in columns.values()) + " |")
    return lines


def search_table() -> list[str]:
    """The Viterbi search by states and lanes."""
    states, lanes = (4, 8, 16, 32, 64, 128, 256), (8, 16, 32, 64)
    times = search_times(states, lanes)
    lines = ["| states |" + "".join(f" {width} lanes |" for width in lanes), "|" + " ---: |" * (1 + len(lanes))]
    lines += [f"| {count} | " + " | ".join(f"{times[count, width]:.1f}" for width in lanes) + " |" for count in states]
    return lines


def replace_part(page: str, name: str, lines: list[str]) -> str:
    """The page with other lines in one of its measured parts."""
    pattern = re.compile(rf"(<!-- measured: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(f"{PAGE}: has no part {name}")
    return pattern.sub(lambda match: match[1] + "\n".join(lines) + "\n" + match[2], page)


def main() -> None:
    """Fill the page."""
    efforts, rates, *matrices = (json.loads(Path(name).read_text()) for name in sys.argv[1:])
    page = PAGE.read_text()
    page = replace_part(page, "efforts", efforts_table(efforts))
    page = replace_part(page, "rates", rates_table(rates))
    page = replace_part(page, "matrices", matrices_table(matrices))
    page = replace_part(page, "kernels", kernels_table())
    page = replace_part(page, "search", search_table())
    here = ", ".join(f"{name} {value}" for name, value in machine().items())
    page = replace_part(page, "machine", [f"Measured on {datetime.date.today()}: rbe {__version__}, {here}."])
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
