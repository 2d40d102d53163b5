"""The plot of `rbe bench codec`, with matplotlib: SNR and gap over bits per weight, and the Shannon bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rbe_cli.cli.figure import label_text, save
from rbe_cli.metrics import DB_PER_BIT
from rbe_cli.operations.bench_codec import Point

_MARKERS = "ovs^Dp*Xh+"
#: Gaps below minus this many dB are drawn on a logarithmic axis, linear from -1 to 1, with these ticks.
_WIDE = 3.0
_TICKS = (-40, -20, -10, -5, -2, -1, -0.5, 0, 0.5, 1, 2, 5, 10, 20)


def draw(path: Path, points: Sequence[Point]) -> None:
    """Write the plot; the suffix says the format.

    Above, SNR at the highest effort; below, the gap at all of them. Colour is the source, marker the effort.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import NullLocator

    points = [point for point in points if math.isfinite(point.snr_db)]
    sources = list(dict.fromkeys(point.source for point in points))
    efforts = sorted({point.effort for point in points})
    figure = Figure(figsize=(9, 8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for i, source in enumerate(sources):
        for effort in efforts:
            chosen = sorted(
                (p.bits_per_weight, p.snr_db, p.gap_db) for p in points if p.source is source and p.effort == effort
            )
            if not chosen:
                continue
            rate, snr, gap = zip(*chosen, strict=True)
            highest = effort == efforts[-1]
            style = {
                "color": f"C{i % 10}",
                "linestyle": "-" if i < 10 else "--",
                "marker": _MARKERS[efforts.index(effort) % len(_MARKERS)],
                "markersize": 4,
                "alpha": 1.0 if highest else 0.5,
                "linewidth": 1.5 if highest else 0.8,
            }
            if highest:
                above.plot(rate, snr, **style)
            below.plot(rate, gap, **style)
    ends = [0.0, max((point.bits_per_weight for point in points), default=1.0) * 1.03]
    above.plot(ends, [DB_PER_BIT * bits for bits in ends], "k--", linewidth=1)
    below.axhline(0, color="k", linestyle="--", linewidth=1)
    lowest = min((point.gap_db for point in points), default=0.0)
    if lowest < -_WIDE:
        # Tenths of a dB between efforts, and tens of them between sources.
        below.set_yscale("symlog", linthresh=1)
        worst = max(point.gap_db for point in points)
        below.set_yticks([tick for tick in _TICKS if min(-1.0, 1.3 * lowest) <= tick <= max(1.0, 1.3 * worst)])
        below.yaxis.set_major_formatter("{x:g}")
        below.yaxis.set_minor_locator(NullLocator())
    above.set_ylabel(f"SNR of the decoded weights, dB (effort {efforts[-1] if efforts else '-'})")
    below.set_ylabel("gap to the bound, dB (lower is better)")
    below.set_xlabel("bits per weight, every byte of the layer file")
    names = [Line2D([], [], color=f"C{i % 10}", linestyle="-" if i < 10 else "--") for i in range(len(sources))]
    shapes = [
        Line2D([], [], color="0.3", marker=_MARKERS[i % len(_MARKERS)], linestyle="none") for i in range(len(efforts))
    ]
    bound = Line2D([], [], color="k", linestyle="--")
    above.legend(
        [bound, *names],
        [
            f"Shannon bound of white Gaussian weights, {DB_PER_BIT:.2f} dB per bit",
            *(label_text(source.name) for source in sources),
        ],
        fontsize="small",
    )
    below.legend(shapes, [f"effort {effort}" for effort in efforts], fontsize="small", ncols=2)
    for axes in (above, below):
        axes.grid(alpha=0.3)
    save(figure, path)
