from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from rbe_cli.cli import app
from rbe_cli.cli.budgets import require
from rbe_cli.errors import OverBudget, RBEError, UsageError
from rbe_cli.layers.gpt2 import GPT2
from rbe_cli.layers.model_files import ModelFiles
from rbe_cli.operations.bench_model import bench_model
from rbe_cli.operations.budgets import Budget
from rbe_cli.operations.model_quality import Estimate, compare, windows
from rbe_cli.operations.model_text import read_text
from tests.layers import tiny_gpt2
from tests.synthetic import compress_to, read_tensors


@pytest.mark.parametrize(("tokens", "context"), [(2, 8), (8, 8), (9, 8), (10, 8), (100, 8), (57, 7), (5, 2), (9, 1)])
def test_windows_score_each_token_once(tokens: int, context: int) -> None:
    cut = windows(tokens, context)
    assert [i for w in cut for i in range(w.first, w.end)] == list(range(tokens - 1))
    for window in cut:
        assert 0 <= window.begin <= window.first < window.end <= window.begin + context
        assert window.begin == 0 or window.first - window.begin >= context - max(1, context // 2) - (context == 1)


def test_standard_errors_cover_the_truth() -> None:
    """Of 400 samples of correlated tokens, about 68 % of the means are within their error of the true mean."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        counts = rng.integers(5, 40, 60)
        sums = np.array([(rng.standard_normal() + rng.standard_normal(n)).sum() for n in counts])
        estimate = Estimate.of_windows(sums, counts.astype(float))
        inside += abs(estimate.value) < estimate.error
    assert 0.60 < inside / 400 < 0.76
    assert math.isnan(Estimate.of_windows(np.ones(1), np.ones(1)).error)
    assert Estimate(1e6, 1.0).exponential().value == math.inf


def test_figures_are_those_by_the_book(gpt2_source: Path, gpt2_folder: Path) -> None:
    files = ModelFiles.open(str(gpt2_folder))
    assert files.folder is not None
    text = read_text(files, None, 60)
    assert text.are_bytes
    quality = compare(GPT2.load(ModelFiles.open(str(gpt2_source))), GPT2.load(files), text.tokens)
    decoded = {name: files.folder.tensor(name) for name in files.folder.names()}
    losses, divergences, agreements = [], [], []
    for window in windows(60, 48):
        read = text.tokens[window.begin : window.end].tolist()
        p, q = (
            tiny_gpt2.naive_logits(weights, tiny_gpt2.config(), read)[window.first - window.begin :]
            for weights in (read_tensors(gpt2_source), decoded)
        )
        log_p, log_q = (a - np.log(np.exp(a).sum(1, keepdims=True)) for a in (p, q))
        next_tokens = text.tokens[window.first + 1 : window.end + 1]
        losses += [-log_q[i, token] for i, token in enumerate(next_tokens)]
        divergences += (np.exp(log_p) * (log_p - log_q)).sum(1).tolist()
        agreements += (p.argmax(1) == q.argmax(1)).tolist()
    assert quality.tokens == len(losses) == 59
    assert quality.loss.value == pytest.approx(np.mean(losses), rel=1e-5)
    assert quality.kl.value == pytest.approx(np.mean(divergences), rel=1e-3)
    assert quality.top1.value == pytest.approx(np.mean(agreements))
    assert quality.loss_difference.value == pytest.approx(quality.loss.value - quality.reference_loss.value)


def test_a_model_against_itself(gpt2_source: Path) -> None:
    done = bench_model(str(gpt2_source), reference=str(gpt2_source), quality_only=True)
    assert done.quality.kl.value == pytest.approx(0, abs=1e-9)
    assert done.quality.top1.value == 1
    assert done.quality.perplexity_ratio.value == pytest.approx(1)
    assert done.variants == []


def test_everything_is_measured(gpt2_source: Path, gpt2_folder: Path) -> None:
    done = bench_model(str(gpt2_folder), reference=str(gpt2_source), caches=[20_000], limit=64)
    dense, cached = done.variants
    assert (dense.cache_bytes, cached.cache_bytes) == (None, 20_000)
    assert dense.memory.held == sum(tensor.nbytes for tensor in read_tensors(gpt2_source).values())
    assert cached.memory.held < dense.memory.held
    assert 0 < cached.speed.hit_rate < 1
    for variant in done.variants:
        for rate in (variant.speed.prompt, variant.speed.generation):
            assert 0 < rate.low <= rate.median <= rate.high


def test_the_command_and_its_budgets(gpt2_source: Path, gpt2_folder: Path) -> None:
    run = CliRunner()
    command = ["bench", "model", str(gpt2_folder), "--reference", str(gpt2_source), "--quality-only", "--quiet"]
    good = run.invoke(app, [*command, "--json", "--max-kl", "1000", "--min-top1", "0"])
    assert good.exit_code == 0, good.output
    document = json.loads(good.stdout)
    assert document["tokens"] == 231
    assert document["kl_nats_per_token"]["value"] > 0
    assert [budget["kept"] for budget in document["budget"]] == [True, True]
    sizes = run.invoke(app, [*command, "--max-size", "1kB", "--markdown"])
    assert isinstance(sizes.exception, OverBudget)
    assert "must be at most 1,000" in str(sizes.exception)
    assert "| all | size at most |" in sizes.stdout
    bad = run.invoke(app, [*command, "--max-kl", "1e-9", "--max-ppl-ratio", "1e9"])
    assert isinstance(bad.exception, OverBudget)
    assert bad.exception.exit_code == 3
    assert "KL, nats per token is" in str(bad.exception)
    assert "perplexity" not in str(bad.exception)
    assert "bits per byte" in bad.stdout
    assert "over" in bad.stdout


def test_budgets_of_what_is_not_a_number_are_broken() -> None:
    with pytest.raises(OverBudget, match=r"top-1 agreement is nan %, must be at least 90 %$"):
        require([Budget("--min-top1", 0.9, math.nan), Budget("--max-kl", 1.0, 1.0)])


def test_the_reference_must_be_there_and_be_the_one(gpt2_source: Path, gpt2_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RBEError, match="name it with --reference"):
        bench_model(str(gpt2_folder), quality_only=True)
    with pytest.raises(RBEError, match="name what to compare it with"):
        bench_model(str(gpt2_source), quality_only=True)
    other = tiny_gpt2.write(tmp_path / "other", vocab_size=300)
    with pytest.raises(RBEError, match="not the same model"):
        bench_model(str(gpt2_folder), reference=str(other), quality_only=True)
    with pytest.raises(UsageError, match="--engine must be"):
        bench_model(str(gpt2_folder), reference=str(gpt2_source), engine="jax")


def test_a_source_path_that_exists_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_gpt2.write(tmp_path / "model")
    compress_to(Path("model"), Path("out"), bits=6.0)
    assert bench_model("out", quality_only=True).reference == "model"
    shutil.rmtree("model")
    tiny_gpt2.write(tmp_path / "model", seed=5)
    with pytest.raises(RBEError, match="is not what it was made from"):
        bench_model("out", quality_only=True)


def test_texts(gpt2_source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(gpt2_source, tmp_path / "model"))
    (tmp_path / "text").write_bytes(b"\x00\xff!")
    files = ModelFiles.open(str(folder))
    assert read_text(files, tmp_path / "text", 2).tokens.tolist() == [0, 255]
    (folder / "heldout.txt").unlink()
    with pytest.raises(RBEError, match="give a text with --text"):
        read_text(ModelFiles.open(str(folder)), None, None)
    (folder / "config.json").write_text(json.dumps(tiny_gpt2.config(vocab_size=300)))
    with pytest.raises(RBEError, match="its tokens are not bytes"):
        read_text(ModelFiles.open(str(folder)), tmp_path / "text", None)


def test_texts_through_a_tokenizer(gpt2_source: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    from rbe_cli.errors import CorruptFile

    folder = Path(shutil.copytree(gpt2_source, tmp_path / "model"))
    vocabulary = {"in": 0, "the": 1, "beginning": 2, "?": 3}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "?"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "text").write_text("in the beginning was the")
    text = read_text(ModelFiles.open(str(folder)), tmp_path / "text", None)
    assert (text.tokens.tolist(), text.are_bytes) == ([0, 1, 2, 3, 1], False)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CorruptFile, match="not a tokenizer"):
        read_text(ModelFiles.open(str(folder)), tmp_path / "text", None)


def test_several_models_against_the_first(gpt2_source: Path, gpt2_folder: Path, tmp_path: Path) -> None:
    compress_to(gpt2_source, tmp_path / "rough.rbe", nrmse=0.2)
    one = bench_model(str(gpt2_folder), reference=str(gpt2_source), quality_only=True)
    command = ["bench", "model", str(gpt2_folder), str(tmp_path / "rough.rbe"), "--reference", str(gpt2_source), "-q"]
    run = CliRunner()
    done = run.invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    first, rough = document["models"]
    assert document["figure"] == "KL, nats per token"
    assert first["value"]["value"] == pytest.approx(one.quality.kl.value)
    assert first["value"]["error"] == pytest.approx(one.quality.kl.error)
    assert first["of_first"] == {"value": 1.0, "error": 0.0}
    assert rough["of_first"]["value"] == pytest.approx(rough["value"]["value"] / first["value"]["value"])
    assert rough["of_first"]["value"] > 3
    assert rough["bytes"] < first["bytes"]
    shown = run.invoke(app, command)
    assert "rough.rbe" in shown.stdout
    assert "231 tokens" in shown.stdout
    refused = run.invoke(app, [*command, "--max-kl", "1"])
    assert isinstance(refused.exception, UsageError)


@pytest.mark.filterwarnings("error")
def test_logits_that_are_no_numbers_agree_on_nothing(gpt2_source: Path, tmp_path: Path) -> None:
    """Both models would find the first token the likeliest, and a goal for --min-top1 be kept."""
    broken = tmp_path / "broken"
    shutil.copytree(gpt2_source, broken)
    for value in (np.nan, 3e38):
        tensors = read_tensors(broken)
        name = "transformer.h.0.ln_1.weight"
        tensors[name] = np.full_like(tensors[name], value)
        save_file(tensors, broken / "model.safetensors")
        sound, not_sound = (GPT2.load(ModelFiles.open(str(path))) for path in (gpt2_source, broken))
        tokens = np.arange(60) % 50
        for reference, compressed in ((sound, not_sound), (not_sound, sound), (not_sound, not_sound)):
            assert compare(reference, compressed, tokens).top1.value == 0
