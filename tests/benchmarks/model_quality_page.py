"""The page and the plot of `model_quality`, from its results."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from rbe_cli import __version__
from rbe_cli.operations.model_quality import Estimate
from tests.benchmarks.peers import GROUP, PEERS, versions

Rows = dict[str, dict[str, Any]]

MODELS = {
    "mini-gpt2": "mini-gpt2, the GPT-2 that ships with rbe (1,057,152 weights; engine numpy)",
    "tiny-llama": "A small Llama over bytes, trained by the script on the same text (engine transformers)",
}
_FIGURES = {"mini-gpt2": "kl", "tiny-llama": "kl", "minilm": "turned"}
_SHORT = {"mini-gpt2": "mini-gpt2", "tiny-llama": "the small Llama", "minilm": "MiniLM-L6"}
#: Calibrated bits that are held against peers of more.
_CALIBRATED_BITS, _RIVALS = 3, ("bitsandbytes NF4", "gguf Q4_0")
_HEAD = (
    "| | bytes | bits/w | SNR dB | perplexity | x original's | KL, nats per token | top-1 agreement % |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|\n"
)
_INTRO = f"""# What compression does to a language model

One command writes this page and its plot: `make bench-model`. Every figure is measured; +- is the standard error over
the text. Where the rounding falls is not in it: at a size one percent other a KL is about 5 % more or less, at 2 bits
up to 10 %. Text: the first {{tokens:,}} of the 65,536 bytes held out of the King James Bible (neither model ever saw
them), read in windows of 256 that overlap by half, every byte but the first scored once. Tokens are bytes. KL is the
mean KL(original || compressed). Bytes are those of the whole file or folder, every header counted; SNR is that of all
matrices together.

`rbe` runs with its defaults but for the rate. The peers quantise the same tensors, the two-dimensional ones, embeddings
too, each by its own package, and keep vectors in float32:
- **gguf** Q8_0, Q5_0, Q4_0: the gguf package's own quantiser (llama.cpp's reference formats) and its file writer.
- **NF4**: bitsandbytes on the CPU, groups of {GROUP}, double quantisation; its code tables counted once.
- **HQQ** at 4, 3 and 2 bits: groups of {GROUP} along the input, optimiser on, scales and zeros in float16.

NF4 and HQQ name no file format of their own; their arrays are counted as one safetensors file. In practice both leave
embeddings and the output matrix as they are, so their files would be larger and their error smaller.
"""
_EXTREME = """## 100:1 and 1000:1 destroy the model

{figures}

That is no weakness of one codec. At 0.32 and 0.032 bit per weight Shannon's bound leaves at most 36 % and 4 % of the
energy of a white matrix; `a perfect code, simulated` is exactly that, by Shannon's test channel, with every vector
exact. A model that has lost that much is no model any more, whatever wrote the file. Such ratios are for data with
structure, not for trained weights.
"""


_FELT = """## Where the bits are spent

The same sizes, each way to spend them. `mse` makes the error of the weights least, `balanced` is the default. The
others know 16,384 tokens of what the language models were trained on, none of the text above: `importance` lets steps
follow the inputs of each layer (`rbe calibrate`, `--importance`), `feedback` feeds the error of each input's weights
into the next ones' (`--moments`), `allocation` gives each tensor the bits that its own effect on the model calls for
(`--sensitivity`, `--overrides`). MiniLM-L6 (23 million weights) is an encoder: its figure is 1 - cosine of the
embeddings of {sentences} held-out verses. Ratios are on the same windows or sentences, +- their standard error.

![KL and 1 - cosine against size, calibrated](calibrated.svg)
"""


def write(work: Path, docs: Path) -> None:
    """Write `model-quality.md` and `model-quality.svg` from the results in `work`."""
    results: dict[str, Rows] = {
        name: json.loads((work / f"{name}.json").read_text()) for name in MODELS if (work / f"{name}.json").exists()
    }
    tokens = max(row.get("tokens", 0) for rows in results.values() for row in rows.values())
    page = [_INTRO.format(tokens=tokens + 1), "![KL divergence against size](model-quality.svg)\n"]
    for name, rows in results.items():
        page += [f"## {MODELS[name]}\n", _original(rows), _HEAD + "".join(_lines(rows)), _against_peers(rows)]
    felt: dict[str, Rows] = {
        name: json.loads((work / f"{name}.json").read_text()) for name in _FIGURES if (work / f"{name}.json").exists()
    }
    page.append(_FELT.format(sentences=max(row.get("sentences", 0) for rows in felt.values() for row in rows.values())))
    for name, rows in felt.items():
        page += [f"### {_SHORT[name]}\n", _ways(rows, _FIGURES[name]), _rivals(rows, _FIGURES[name])]
    page.append(_EXTREME.format(figures="\n".join(_extremes(name, rows) for name, rows in results.items())))
    page.append(f"Measured on {_machine()}.\n")
    docs.mkdir(exist_ok=True)
    (docs / "model-quality.md").write_text("\n".join(page))
    _plot(results, docs / "model-quality.svg")
    _plot_ways(felt, docs / "calibrated.svg")


def _measured(rows: Rows) -> Rows:
    return {name: row for name, row in rows.items() if "unreachable" not in row}


def _original(rows: Rows) -> str:
    value, error = next(iter(_measured(rows).values()))["reference"]
    return f"The original: perplexity {value:.4f} +- {error:.4f} per byte.\n"


def _line(name: str, row: dict[str, Any]) -> str:
    if "unreachable" in row:
        return f"| {name} | out of reach: {row['unreachable']} | | | | | | |\n"
    return (
        f"| {name} | {row['bytes']:,} | {row['bits']:.3f} | {row['snr']:.2f} | {_pm(row['perplexity'], 3)} "
        f"| {_pm(row['ratio'], 4)} | {_pm(row['kl'], 5)} | {_pm([100 * v for v in row['top1']], 2)} |\n"
    )


def _pm(estimate: list[float], digits: int) -> str:
    return f"{estimate[0]:.{digits}f} +- {estimate[1]:.{digits}f}"


def _lines(rows: Rows) -> list[str]:
    """rbe's rates and the peers, largest file first; what is out of reach last."""
    shown = [(name, row) for name, row in rows.items() if "peer" not in row and "way" not in row]
    shown.sort(key=lambda item: -item[1].get("bytes", 0))
    return [_line(name, row) for name, row in shown]


def _against_peers(rows: Rows) -> str:
    head = "| at the size of | bytes | its KL | rbe's bytes | rbe's KL | rbe's is |\n|---|---:|---:|---:|---:|---|\n"
    lines = []
    for name in PEERS:
        peer, own = rows.get(name, {}), rows.get(f"rbe at the size of {name}", {})
        if "kl" not in peer or "kl" not in own:
            continue
        factor = peer["kl"][0] / own["kl"][0]
        verdict = f"{factor:.2f} times lower" if factor >= 1 else f"**{1 / factor:.2f} times higher**"
        lines.append(
            f"| {name} | {peer['bytes']:,} | {_pm(peer['kl'], 5)} | {own['bytes']:,} | {_pm(own['kl'], 5)} "
            f"| {verdict} |\n"
        )
    return "\nrbe at each peer's size (`--size`):\n\n" + head + "".join(lines)


def _ways(rows: Rows, figure: str) -> str:
    """Each way at each rate, beside balanced's and importance's figure."""
    named = "KL, nats per token" if figure == "kl" else "1 - cosine"
    page = [
        f"| | bytes | bits/w | {named} | x perplexity | of balanced's | of importance's |\n|---|" + "---:|" * 6 + "\n"
    ]
    for name, row in rows.items():
        if "way" not in row:
            continue
        if "unreachable" in row:
            page.append(f"| {name} | out of reach: {row['unreachable']} | | | | | |\n")
            continue
        bits = name.rpartition(" at ")[2]
        ratios = [_ratio(row, rows.get(f"{way} at {bits}")) for way in ("balanced", "importance")]
        perplexity = _pm(row["ratio"], 4) if "ratio" in row else "-"
        page.append(
            f"| {name} | {row['bytes']:,} | {row['bits']:.3f} | {_pm(row[figure], 5)} | {perplexity} "
            f"| {ratios[0]} | {ratios[1]} |\n"
        )
    return "".join(page)


def _ratio(row: dict[str, Any], other: dict[str, Any] | None) -> str:
    """One figure over another, and the standard error from the pairs."""
    if other is None or other is row or "windows" not in other:
        return "1" if other is row else "-"
    estimate = Estimate.of_windows(np.array(row["windows"]), np.array(other["windows"]))
    return f"{estimate.value:.3f} +- {estimate.error:.3f}"


def _rivals(rows: Rows, figure: str) -> str:
    """The best calibrated way against peers of more bits."""
    at = f" at {_CALIBRATED_BITS}"
    known = {name: row for name, row in rows.items() if "way" in row and name.endswith(at) and figure in row}
    if not known:
        return ""
    best = min(known, key=lambda name: float(known[name][figure][0]))
    lines = [
        f"- {rival}, {rows[rival]['bits']:.2f} bits per weight: {_pm(rows[rival][figure], 5)}; `{best}` is "
        f"{_ratio(known[best], rows[rival])} of that.\n"
        for rival in _RIVALS
        if figure in rows.get(rival, {})
    ]
    return "\n" + "".join(lines)


def _extremes(model: str, rows: Rows) -> str:
    text = []
    for name, row in rows.items():
        if not ("--ratio" in name or "perfect" in name):
            continue
        if "unreachable" in row:
            text.append(f"- {model}, `{name}`: out of reach: {row['unreachable']}.")
            continue
        before, after, same = row["reference"][0], row["perplexity"][0], 100 * row["top1"][0]
        text.append(
            f"- {model}, `{name}` ({row['bytes']:,} bytes): perplexity {after:.2f}, the original's {before:.2f}; "
            f"the likeliest next byte is the same in {same:.0f} % of all places."
        )
    return "\n".join(text)


def _machine() -> str:
    cpu = platform.processor() or "unknown"
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    packages = ", ".join(f"{name} {version}" for name, version in {"rbe": __version__, **versions()}.items())
    return f"{cpu}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, {packages}"


def _axes(count: int, width: float) -> tuple[Any, Any]:
    """A figure and its axes beside each other; the same bytes every time it is saved."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "rbe"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, count, figsize=(width * count, 4.2), squeeze=False)
    return figure, axes[0]


def _plot(results: dict[str, Rows], path: Path) -> None:
    figure, axes = _axes(len(results), 5.5)
    for axis, (model, rows) in zip(axes, results.items(), strict=True):
        known = _measured(rows)
        own = sorted((row["bits"], *row["kl"]) for name, row in known.items() if name.startswith("rbe"))
        x, y, error = zip(*own, strict=True)
        axis.errorbar(x, y, error, marker="o", markersize=3, linewidth=1.2, label="rbe")
        _plot_peers(axis, known, "kl")
        axis.set(
            title=model, yscale="log", xscale="log", xlabel="bits per weight, every byte counted",
            ylabel="KL, nats per token",
        )  # fmt: skip
        axis.set_xticks([1, 2, 3, 4, 5, 6, 8], ["1", "2", "3", "4", "5", "6", "8"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, loc="lower left")
    _save(figure, path)


def _plot_ways(felt: dict[str, Rows], path: Path) -> None:
    figure, axes = _axes(len(felt), 4.4)
    for axis, (model, rows) in zip(axes, felt.items(), strict=True):
        name, known = _FIGURES[model], _measured(rows)
        for way in dict.fromkeys(row["way"] for row in known.values() if "way" in row):
            points = sorted((row["bits"], *row[name]) for row in known.values() if row.get("way") == way)
            x, y, error = zip(*points, strict=True)
            axis.errorbar(x, y, error, marker="o", markersize=3, linewidth=1.2, label=way)
        _plot_peers(axis, {peer: row for peer, row in known.items() if row["bits"] < 6}, name)
        unit = "KL, nats per token" if name == "kl" else "1 - cosine"
        axis.set(title=_SHORT[model], yscale="log", xlabel="bits per weight, every byte counted", ylabel=unit)
        axis.grid(alpha=0.3)
    # One for all, below: inside it would lie on points.
    entries = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), fontsize=8, loc="lower center", ncols=5)
    _save(figure, path, below=0.15)


def _plot_peers(axis: Any, known: Rows, figure: str) -> None:
    for marker, name in zip("sDv^<>P", PEERS, strict=True):
        if name in known:
            row = known[name]
            value, error = row[figure]
            axis.errorbar(row["bits"], value, error, marker=marker, linestyle="none", color="0.3", label=name)


def _save(figure: Any, path: Path, below: float = 0.0) -> None:
    """Write a figure, with a part of its height left free below the axes."""
    import matplotlib.pyplot as plt

    figure.tight_layout(rect=(0, below, 1, 1))
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
