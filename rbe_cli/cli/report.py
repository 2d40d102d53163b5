"""The report of a sweep: one HTML page with its plot and tables, nothing fetched, light and dark, wide and narrow."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rbe_cli import __version__
from rbe_cli.cli import harmless, sweep_tables, tables
from rbe_cli.cli.sweep_tables import Outcome
from rbe_cli.cli.tables import counted
from rbe_cli.files.atomic import atomic_file
from rbe_cli.metrics import DB_PER_BIT, gap_db

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5b6675; --line: #d7dce3; --back: #ffffff;
  --panel: #f5f7fa; --front: #0b63c5; --other: #8a94a3; --best: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #a3adba; --line: #39414d; --back: #14181e;
  --panel: #1c222a; --front: #6cb0ff; --other: #7d8896; --best: #ff9a5c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 84rem; color: var(--ink); background: var(--back);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .5rem 0; overflow-wrap: anywhere; }
.soft { color: var(--soft); }
.sample { border-left: 4px solid var(--best); padding: .25rem .75rem; background: var(--panel); }
figure { margin: 1rem 0; }
svg { display: block; width: 100%; height: auto; }
.narrow { display: none; }
@media (max-width: 40rem) { .wide { display: none; } .narrow { display: block; } }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif; }
svg .tick { fill: var(--soft); font-size: 12px; }
svg .grid { stroke: var(--line); }
svg .bound { stroke: var(--soft); stroke-dasharray: 5 4; fill: none; stroke-width: 1.5; }
svg .front { stroke: var(--front); fill: none; stroke-width: 2; }
svg .on { fill: var(--front); }
svg .off { fill: var(--other); }
svg .best { fill: none; stroke: var(--best); stroke-width: 2.5; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: 0; margin: .25rem 0; list-style: none;
  font-size: .9rem; }
.legend li { display: flex; align-items: center; gap: .4rem; }
.legend svg { width: 26px; height: 14px; flex: none; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
th.name, td.name { text-align: left; position: sticky; left: 0; background: var(--back); }
@media (max-width: 40rem) { th.name, td.name { white-space: normal; max-width: 45vw; } }
tr.chosen td { font-weight: 700; background: var(--panel); }
"""


def write_report(path: Path, outcome: Outcome) -> None:
    """Write the page."""
    with atomic_file(path) as file:
        file.write(page(outcome).encode())


def page(outcome: Outcome) -> str:
    """The whole page."""
    source = harmless.page(outcome.title)
    parts = [f"<h1>Sweep of {source}</h1>", f'<p class="soft">{_subject(outcome)}</p>']
    if outcome.sample:
        parts.append(f'<p class="sample">This is {harmless.page(outcome.sample_text)}.</p>')
    if outcome.best is not None:
        point = outcome.points[outcome.best]
        text = f"{sweep_tables.settings_text(point, outcome.varied)}: {sweep_tables.short(point)}"
        parts.append(f"<p>Best for <b>{outcome.objective}</b>: {harmless.page(text)}.</p>")
    parts += ["<h2>Size against accuracy</h2>", _figures(outcome), "<h2>Every point</h2>", _points_table(outcome)]
    remarks = [line for line in sweep_tables.remarks(outcome) if line != outcome.sample_text][1:]
    parts += [f'<p class="soft">{harmless.page(line)}.</p>' for line in remarks]
    if outcome.best is not None:
        parts += ["<h2>The best, tensor by tensor</h2>", _tensors_table(outcome, outcome.best)]
    parts.append(
        '<p class="soft">Sizes count every byte of the layer files and the manifest. Errors are measured on the '
        "decoded weights, over all tensors that are not exact. The gap is 6.02 dB a bit less the SNR: the distance to "
        f"the Shannon bound of white Gaussian weights. Made by rbe {__version__}.</p>"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>rbe sweep: {source}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _subject(outcome: Outcome) -> str:
    done = next((point for point in outcome.points if not point.problem), None)
    if done is None:
        return "No point could be done."
    elements = sum(tensor.elements for tensor in done.tensors)
    size = tables.size_text(sum(tensor.source_bytes for tensor in done.tensors))
    points, tensors = counted(len(outcome.points), "point"), counted(len(done.tensors), "tensor")
    return f"{points} on {tensors}, {counted(elements, 'weight')}, {size}"


def _figures(outcome: Outcome) -> str:
    """Both plots, each drawn for a wide and a narrow page, and their legend."""
    shown = [(i, p) for i, p in enumerate(outcome.points) if not p.problem and p.error.nrmse]
    if not shown:
        return '<p class="soft">Every point is exact: there is no error to draw.</p>'
    snr = _Plot("SNR, dB: higher is better", {i: (p.bits, p.error.snr) for i, p in shown}, DB_PER_BIT)
    gap = _Plot(
        "gap to the Shannon bound, dB: lower is better",
        {i: (p.bits, gap_db(p.bits, p.error.snr)) for i, p in shown},
        0.0,
    )
    legend = [
        ('<path class="front" d="M1 7H25"/><circle class="on" cx="13" cy="7" r="4"/>', "Pareto front"),
        ('<path class="bound" d="M1 7H25"/>', "Shannon bound, white Gaussian weights"),
    ]
    if any(i not in outcome.front for i, _ in shown):
        legend.append(('<circle class="off" cx="13" cy="7" r="4"/>', "other points"))
    if outcome.best is not None:
        legend.append(('<circle class="best" cx="13" cy="7" r="5"/>', f"best for {outcome.objective}"))
    items = "".join(f'<li><svg viewBox="0 0 26 14">{drawing}</svg>{text}</li>' for drawing, text in legend)
    return (
        f"<figure>{snr.draw(outcome, 880, 420, 'wide')}{snr.draw(outcome, 360, 320, 'narrow')}"
        f"{gap.draw(outcome, 880, 300, 'wide')}{gap.draw(outcome, 360, 280, 'narrow')}"
        f'<figcaption><ul class="legend">{items}</ul></figcaption></figure>'
    )


@dataclass(frozen=True)
class _Plot:
    """A figure of the points against their bits per weight.

    Attributes
    ----------
    label : str
        Of the figure, with its unit.
    places : dict
        Number of the point -> bits per weight, figure.
    slope : float
        The Shannon bound is this many units per bit.
    """

    label: str
    places: dict[int, tuple[float, float]]
    slope: float

    def draw(self, outcome: Outcome, width: int, height: int, kind: str) -> str:
        """As SVG."""
        low, high = min(x for x, _ in self.places.values()), max(x for x, _ in self.places.values())
        margin = 0.08 * (high - low) or 0.5
        low, high = low - margin, high + margin
        ys = [y for _, y in self.places.values()] + [self.slope * low, self.slope * high]
        margin = 0.08 * (max(ys) - min(ys)) or 0.5
        bottom, top = min(ys) - margin, max(ys) + margin
        left, right, above, below = 48, width - 12, 28, height - 44

        def across(x: float) -> float:
            return left + (x - low) / (high - low) * (right - left)

        def up(y: float) -> float:
            return below - (y - bottom) / (top - bottom) * (below - above)

        parts = [f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{self.label}">']
        for x in _ticks(low, high, 4 if kind == "narrow" else 8):
            parts.append(f'<path class="grid" d="M{across(x):.1f} {above}V{below}"/>')
            parts.append(f'<text class="tick" x="{across(x):.1f}" y="{below + 16}" text-anchor="middle">{x:g}</text>')
        for y in _ticks(bottom, top, 6):
            parts.append(f'<path class="grid" d="M{left} {up(y):.1f}H{right}"/>')
            parts.append(f'<text class="tick" x="{left - 6}" y="{up(y) + 4:.1f}" text-anchor="end">{y:g}</text>')
        parts.append(f'<text x="{(left + right) / 2}" y="{height - 8}" text-anchor="middle">bits per weight</text>')
        parts.append(f'<text x="4" y="16">{self.label}</text>')
        ends = ((across(x), up(self.slope * x)) for x in (low, high))
        parts.append(f'<path class="bound" d="{_path(ends)}"/>')
        front = sorted(self.places[i] for i in outcome.front if i in self.places)
        parts.append(f'<path class="front" d="{_path((across(x), up(y)) for x, y in front)}"/>')
        for i in sorted(self.places, key=lambda i: i in outcome.front):
            x, y = self.places[i]
            point = outcome.points[i]
            title = harmless.page(f"{sweep_tables.settings_text(point, outcome.varied)}: {sweep_tables.short(point)}")
            on = "on" if i in outcome.front else "off"
            at = f'cx="{across(x):.1f}" cy="{up(y):.1f}"'
            parts.append(f'<circle class="{on}" {at} r="4.5"><title>{title}</title></circle>')
            if i == outcome.best:
                parts.append(f'<circle class="best" {at} r="8"/>')
        return "".join(parts) + "</svg>"


def _path(places: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def _ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers between two.

    >>> _ticks(0.3, 4.2, 4)
    [1.0, 2.0, 3.0, 4.0]
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    unit = next(step * power for step in (1, 2, 5, 10) if step * power >= rough)
    first = math.ceil(low / unit)
    return [round(n * unit, 10) for n in range(first, math.floor(high / unit) + 1)]


def _points_table(outcome: Outcome) -> str:
    rows = [
        [
            sweep_tables.mark(outcome, i).replace(" ", "\N{NO-BREAK SPACE}"),
            *sweep_tables.setting_cells(outcome, i),
            *sweep_tables.cells(outcome.points[i]),
        ]
        for i in outcome.order
    ]
    chosen = outcome.order.index(outcome.best) if outcome.best is not None else None
    return _table(["", *outcome.varied, *sweep_tables.COLUMNS], rows, chosen)


def _tensors_table(outcome: Outcome, best: int) -> str:
    tensors = [tensor for tensor in outcome.points[best].tensors if tensor.nrmse]
    exact = len(outcome.points[best].tensors) - len(tensors)
    rows = [
        [
            tensor.name, tables.shape_text(tensor.shape), tensor.dtype, tables.number(tensor.bpw, ".3f"),
            *tables.error_cells(tensor.rmse, tensor.nrmse, tensor.bpw),
        ]
        for tensor in tensors
    ]  # fmt: skip
    table = _table(["tensor", "shape", "dtype", "bits/w", *tables.ERROR_COLUMNS], rows, None)
    return table + (f'<p class="soft">and {exact} exact tensors</p>' if exact else "")


def _breakable(text: str) -> str:
    """Escaped; the name of a tensor may be broken after its dots."""
    return re.sub(r"(?<=[a-z]\.)|(?<=\.)(?=[a-z])", "<wbr>", harmless.page(text))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], chosen: int | None) -> str:
    def line(cells: Sequence[str], tag: str, row: str = "") -> str:
        kinds = [' class="name"', *[""] * (len(cells) - 1)]
        inside = "".join(f"<{tag}{kind}>{_breakable(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True))
        return f"<tr{row}>{inside}</tr>"

    body = "".join(line(row, "td", ' class="chosen"' if i == chosen else "") for i, row in enumerate(rows))
    return f'<div class="scroll"><table><thead>{line(head, "th")}</thead><tbody>{body}</tbody></table></div>'
