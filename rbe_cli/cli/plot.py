"""The plot of a sweep, with matplotlib: rate against SNR, the Pareto front and the Shannon line."""

from __future__ import annotations

from pathlib import Path

from rbe_cli.cli.figure import label_text, save
from rbe_cli.cli.sweep_tables import Outcome
from rbe_cli.metrics import DB_PER_BIT


def draw(path: Path, outcome: Outcome) -> None:
    """Write the plot; the suffix says the format."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    done = [(i, point) for i, point in enumerate(outcome.points) if not point.problem and point.error.nrmse]
    front = sorted((point.bits, point.error.snr) for i, point in done if i in outcome.front)
    others = [(point.bits, point.error.snr) for i, point in done if i not in outcome.front]
    if others:
        axes.scatter(*zip(*others, strict=True), color="0.6", label="other points", zorder=2)
    if front:
        axes.plot(*zip(*front, strict=True), marker="o", color="tab:blue", label="Pareto front", zorder=3)
    if outcome.best is not None and outcome.points[outcome.best].error.nrmse:
        point = outcome.points[outcome.best]
        axes.scatter(
            [point.bits], [point.error.snr], s=120, facecolors="none", edgecolors="tab:red",
            label=f"best for {outcome.objective}", zorder=4,
        )  # fmt: skip
    if done:
        ends = [min(point.bits for _, point in done), max(point.bits for _, point in done)]
        bound = [DB_PER_BIT * bits for bits in ends]
        axes.plot(ends, bound, "--", color="0.3", label="Shannon bound, white Gaussian")
        axes.legend()
    axes.set_xlabel("bits per weight, every byte counted")
    axes.set_ylabel("SNR of the decoded weights, dB")
    axes.set_title(label_text(outcome.title) + (" (a sample)" if outcome.sample else ""))
    axes.grid(alpha=0.3)
    save(figure, path)
