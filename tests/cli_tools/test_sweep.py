"""`rbe sweep`: the grid, resuming, the Pareto front, what it writes."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rbe_cli import interrupts, models
from rbe_cli.checkpoint.reader import TensorInfo, open_checkpoint
from rbe_cli.container.manifest import TensorEntry
from rbe_cli.operations import sweep
from rbe_cli.operations.settings import EXACT_BELOW
from rbe_cli.operations.sweep import Grid, Point, best, order, pareto_front, sampled
from tests.command_line import Run

MINI_GPT2 = Path(models.__path__[0]) / "mini_gpt2"


def point(bits: float, nrmse: float) -> Point:
    tensor = TensorEntry("w", "F32", (100, 100), "trellis", round(1250 * bits), nrmse, nrmse, 0)
    return Point({"bits": bits}, (tensor,), round(1250 * bits))


def test_grid_is_every_combination() -> None:
    grid = Grid({"block": [64, 128], "effort": [0, 1]}, [("bits", 2.0), ("ratio", 8.0)])
    found = [(s.block, s.effort, s.bits, s.ratio) for s in grid.settings()]
    assert len(set(found)) == 8
    assert (128, 0, None, 8.0) in found
    assert [s.bits for s in Grid({"block": [64, 128]}).settings()] == [4.0, 4.0]
    assert len(Grid({}).settings()) == 5


def test_what_is_the_same_for_all_gives_way_to_lists() -> None:
    """And a rate among it to rates; where there are other lists alone, it is the rate."""
    small = {"bits": 3.0, "effort": 9, "exclude": ("wte",)}
    (one,) = Grid({"effort": [0]}, fixed=small).settings()
    assert (one.bits, one.effort, one.exclude) == (3.0, 0, ("wte",))
    (one,) = Grid({"block": [64]}, [("ratio", 8.0)], small).settings()
    assert (one.bits, one.ratio, one.effort, one.block) == (None, 8.0, 9, 64)
    assert [one.bits for one in Grid({}, fixed=small).settings()] == [2.0, 3.0, 4.0, 5.0, 6.0]
    assert [one.nrmse for one in Grid({"effort": [0, 1]}, fixed={"nrmse": 0.1}).settings()] == [0.1, 0.1]


def test_what_is_swept_is_what_will_be_shipped(run: Run) -> None:
    """With a preset, overrides and tensors left out, every point is that of a compression with the same."""
    Path("p.toml").write_text('effort = 0\ntransform = "none"\n')
    Path("o.toml").write_text('overrides = ["c_fc=bits:+0.5"]\n')
    same = ["--preset", "p.toml", "--override", "wte=lossless", "--overrides", "o.toml", "--exclude", "wpe"]
    points = json.loads(run("sweep", "mini-gpt2", *same, "--bits", "7,8", "--json").out)["points"]
    for bits, found in zip((7, 8), points, strict=True):
        told = json.loads(run("compress", "mini-gpt2", *same, "--bits", str(bits), "-o", f"{bits}.rbe", "--json").out)
        assert found["bytes"] == told["totals"]["bytes"]
        assert found["settings"] == told["settings"]
        assert found["settings"]["overrides"] == ["wte=lossless", "c_fc=bits:+0.5"]
    wrong = run("sweep", "mini-gpt2", "--override", "wte=bits:99")
    assert (wrong.code, "must be" in wrong.err) == (2, True)


def test_front_allows_for_the_tolerance_of_rate_control() -> None:
    points = [point(2, 0.25), point(3, 0.2), point(4, 0.06), point(3.99, 0.08), Point({}, problem="no")]
    assert pareto_front(points) == {0, 1, 2}
    assert best(points, [0, 1, 3], "snr") == 3
    assert best(points, [0, 1, 2, 3], "gap") == 2
    assert order(points, "bits") == [0, 1, 3, 2, 4]


def test_as_typed(run: Run) -> None:
    done = run("sweep", "--blocks", "64,128,256")
    assert done.code == 0, done.err
    assert all(f"{i}/3 bits 4.0, block {b}" in done.err for i, b in ((1, 64), (2, 128), (3, 256)))
    assert "best for gap" in done.out


def test_results_are_kept_and_written(run: Run, tmp_path: Path) -> None:
    arguments = ("sweep", "--bits", "3,5", "--efforts", "0", "--sample", "0.2", "--results", "r.jsonl")
    first = run(*arguments, "--json", "-q", "--csv", "r.csv", "--report", "r.html")
    assert first.code == 0, first.err
    document = json.loads(first.out)
    assert 0 < document["sample"]["share"] <= 0.2
    assert [round(p["bits_per_weight"], 1) for p in document["points"]] == [3.0, 5.0]
    with Path("r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["bytes"]) for row in rows] == [p["bytes"] for p in document["points"]]
    lines = Path("r.jsonl").read_text().splitlines()
    Path("r.jsonl").write_text(lines[0] + "\n" + lines[1][:100])
    again = run(*arguments)
    assert "1/2 bits 3.0, effort 0" in again.err
    assert again.err.count("kept from before") == 1
    assert "a sample" in again.out
    # What the cut line would have been stands in its place, so that the file is sound for the next time.
    assert len(Path("r.jsonl").read_text().splitlines()) == 2
    assert run(*arguments).err.count("kept from before") == 2


def test_report_is_one_page_that_asks_for_nothing(run: Run) -> None:
    assert run("sweep", "--bits", "3,5", "--efforts", "0", "--sample", "0.2", "-q", "--report", "r.html").code == 0
    page = Path("r.html").read_text()
    assert not re.search(r"(src|href|url\()\s*=?\s*[\"'(]?(https?:)?//", page)
    assert "<script" not in page
    assert "prefers-color-scheme: dark" in page
    assert "a sample" in page
    assert page.count("<svg") == page.count("</svg>") == 7


def test_plots(run: Run, tmp_path: Path) -> None:
    """The same points give the same file, and every axis has its unit."""
    for suffix in ("svg", "png", "pdf"):
        arguments = ("sweep", "--bits", "3,5", "--efforts", "0", "--sample", "0.2", "-q", "--results", "r.jsonl")
        assert run(*arguments, "--plot", f"plot.{suffix}").code == 0
        assert (tmp_path / f"plot.{suffix}").stat().st_size > 5000
    before = (tmp_path / "plot.svg").read_text()
    assert "bits per weight, every byte counted" in before
    assert "SNR of the decoded weights, dB" in before
    assert run(*arguments, "--plot", "plot.svg", "--force").code == 0
    assert (tmp_path / "plot.svg").read_text() == before


def test_budget_of_a_sweep(run: Run) -> None:
    arguments = ("sweep", "--bits", "3,5", "--efforts", "0", "--sample", "0.2", "-q", "--results", "r.jsonl")
    done = run(*arguments, "--min-snr", "20", "--objective", "bits", "--json")
    assert done.code == 0
    assert [(p["within_budget"], p["best"]) for p in json.loads(done.out)["points"]] == [(False, False), (True, True)]
    done = run(*arguments, "--min-snr", "90", "--max-bits", "4", "--json")
    assert done.code == 3
    assert "no point keeps every bound; of the nearest, bits 3.0, SNR dB is " in done.err
    bounds = [[(b["bound"], b["kept"]) for b in p["budget"]] for p in done.json()["points"]]
    assert bounds == [[("max_bits", True), ("min_snr", False)], [("max_bits", False), ("min_snr", False)]]
    assert "budget for" in run(*arguments, "--max-bits", "4").out
    assert "of the nearest, bits 5.0, SNR dB is " in run(*arguments, "--min-snr", "90").err
    assert "of the nearest, bits 3.0, bits/w is " in run(*arguments, "--max-bits", "2").err


def test_interrupted_with_points_and_without(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "sweep", interrupted)
    arguments = ("sweep", "--bits", "3", "--results", "r.jsonl", "-q")
    for text in (interrupts.TEXT, "interrupted; finished points are in r.jsonl, and the same command goes on"):
        done = run(*arguments)
        assert (done.code, done.complaint()) == (130, text)
        Path("r.jsonl").touch()


def test_what_cannot_be_done_is_said(run: Run) -> None:
    done = run("sweep", "--bits", "0.03,4", "--efforts", "0", "-q")
    assert done.code == 0
    assert "cannot be that small" in done.out


def test_markdown_has_no_list_where_none_is_meant(run: Run) -> None:
    done = run("sweep", "--bits", "6", "--efforts", "0", "--sample", "0.1", "-q", "--markdown")
    assert "\n\\* is on the Pareto front" in done.out
    assert "\n* " not in done.out


def test_nothing_can_be_done(run: Run) -> None:
    done = run("sweep", "--bits", "0.03", "--efforts", "0", "-q")
    assert done.code == 1
    assert "no point can be had" in done.err


def test_where_results_cannot_go_is_said_before_anything_is_measured(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("one line of a file that is not ours\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "page.html").mkdir()
    for option, name in (("--results", "folder"), ("--csv", "folder"), ("--report", "page.html")):
        assert "there is no folder gone" in run("sweep", option, f"gone/{name}", "--bits", "3").complaint()
        assert "is a folder" in run("sweep", option, name, "--bits", "3").complaint()
    assert "--report p.pdf: end it in .html or .htm" in run("sweep", "--report", "p.pdf", "--bits", "3").complaint()
    assert (
        "line 1 is damaged, or of another kind of file"
        in run("sweep", "--results", "notes.txt", "--bits", "3", "-q").complaint()
    )
    assert (tmp_path / "notes.txt").read_text() == "one line of a file that is not ours\n"


def test_files_that_are_there_are_kept_without_force(run: Run, tmp_path: Path) -> None:
    """But --results goes on from what is there."""
    arguments = ("sweep", "--bits", "3", "--efforts", "0", "--sample", "0.2", "-q", "--results", "r.jsonl")
    for option, name in (("--csv", "r.csv"), ("--report", "r.html"), ("--plot", "r.svg")):
        (tmp_path / name).write_text("mine")
        assert "already there; use --force" in run(*arguments, option, name).complaint()
        assert (tmp_path / name).read_text() == "mine"
    assert not (tmp_path / "r.jsonl").exists(), "nothing was measured"
    assert run(*arguments, "--csv", "r.csv", "--report", "r.html", "--plot", "r.svg", "--force").code == 0
    assert "mine" not in [(tmp_path / name).read_text() for name in ("r.csv", "r.html", "r.svg")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--blocks", "64;128"], "write a list with commas"),
        (["--objective", "mse"], "for the encoder's, write --objectives"),
        (["--bits", ""], "write a list with commas"),
        (["--plot", "x.gif"], "end it in .svg, .png or .pdf"),
        (["--json", "--markdown"], "not both"),
        (["--sort", "beauty"], "--sort must be"),
        (["--sample", "2"], "--sample must be"),
        (["--efforts", "12"], "--efforts must be"),
        (["--ks", "5,0"], "--ks must be"),
    ],
)
def test_wrong_usage(run: Run, arguments: list[str], words: str) -> None:
    done = run("sweep", *arguments)
    assert done.code == 2
    assert words in done.err


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3, 0.7])
def test_a_sample_has_as_little_of_small_tensors_as_the_whole(share: float) -> None:
    checkpoint = open_checkpoint(MINI_GPT2)
    part, sample = sampled(checkpoint, share)
    assert sample.share <= share
    assert sampled(checkpoint, share)[0].tensors == part.tensors

    def small(tensors: list[tuple[int, TensorInfo]]) -> float:
        sizes = [info.elements for _, info in tensors]
        return sum(size for size in sizes if size < EXACT_BELOW) / sum(sizes)

    assert small(part.tensors) <= 2 * small(checkpoint.tensors)


def test_a_sample_is_not_of_empty_tensors_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"none": np.zeros((0, 3), np.float32), "w": np.ones((40, 50), np.float32)}, path)
    _, sample = sampled(open_checkpoint(path), 0.1)
    assert (sample.elements, sample.of_tensors) == (2000, 2)


def test_a_sweep_of_nothing_has_no_bits_per_weight(run: Run, tmp_path: Path) -> None:
    """The document had NaN, which is not JSON."""
    path = tmp_path / "x.safetensors"
    save_file({"none": np.zeros((0, 3), np.float32)}, path)
    (point,) = run("sweep", path, "--bits", "4", "--json", "-q").json()["points"]
    assert point["bits_per_weight"] is None
    assert "nan" not in run("sweep", path, "--bits", "4").out


def test_a_sweep_has_the_bytes_of_a_compression(run: Run) -> None:
    document = json.loads(run("sweep", "--bits", "4", "--json", "-q").out)
    assert run("compress", "mini-gpt2", "--bits", "4", "-o", "m", "-q").code == 0
    assert json.loads(run("inspect", "m", "--json").out)["totals"]["bytes"] == document["points"][0]["bytes"]


@pytest.mark.parametrize("option", ["--csv", "--report", "--results", "--plot"])
def test_what_is_written_is_no_file_of_the_source(option: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "model" / name).write_bytes((MINI_GPT2 / name).read_bytes())
    (tmp_path / "model" / "figure.svg").touch()
    (tmp_path / "model" / "card.html").touch()
    own = {"--plot": ["figure.svg"], "--report": ["card.html"]}
    for name in own.get(option, ["model.safetensors", "config.json"]):
        result = run("sweep", "model", "--bits", "3", "-q", "--force", option, f"model/{name}")
        assert "is a file of model itself" in result.complaint()
