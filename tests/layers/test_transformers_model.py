"""Against transformers: skipped where torch and transformers are not installed."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rbe_cli.container.folder import Folder
from rbe_cli.errors import RBEError
from rbe_cli.layers.gpt2 import GPT2
from rbe_cli.layers.model_files import ModelFiles
from tests.layers import tiny_gpt2
from tests.synthetic import compress_to

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = np.random.default_rng(0).integers(0, 256, (2, 30))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def logits(model: Any) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(TOKENS)).logits.float().numpy()


def llama(folder: Path, tied: bool = False) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied, bos_token_id=None,
        eos_token_id=None, initializer_range=0.2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "heldout.txt").write_bytes(b"And the light shineth in darkness. " * 5)
    return folder


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_the_numpy_gpt2_gives_the_logits_of_transformers(tmp_path: Path, prefix: str) -> None:
    source = tiny_gpt2.write(tmp_path / "model", prefix)
    theirs = logits(transformers.GPT2LMHeadModel.from_pretrained(source).eval())
    assert abs(GPT2.load(ModelFiles.open(str(source))).logits(TOKENS) - theirs).max() < 1e-3


def test_the_shipped_model_gives_the_logits_of_transformers() -> None:
    from rbe_cli import models

    folder = models.path("mini-gpt2")
    theirs = logits(transformers.GPT2LMHeadModel.from_pretrained(folder).eval())
    assert abs(GPT2.load(ModelFiles.open(str(folder))).logits(TOKENS) - theirs).max() < 1e-3


@pytest.mark.parametrize(
    "make", [tiny_gpt2.write, lambda f: tiny_gpt2.write(f, ""), llama, lambda f: llama(f, tied=True)]
)
def test_a_folder_straight_into_a_model(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    from rbe_cli.layers.transformers_model import load_pretrained
    from rbe_cli.operations.decode import decode

    source = make(tmp_path / "model")
    compress_to(source, tmp_path / "model.rbe", nrmse=0.05)
    decode(tmp_path / "model.rbe", tmp_path / "back")
    want = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    model = load_pretrained(tmp_path / "model.rbe")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {p.device.type for p in (*model.parameters(), *model.buffers())} == {"cpu"}
    assert abs(logits(model) - logits(want)).max() < 1e-3
    tied = want.get_output_embeddings().weight is want.get_input_embeddings().weight
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    half = load_pretrained(Folder.open(tmp_path / "model.rbe"), torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    from rbe_cli.layers.transformers_model import load_pretrained

    source = llama(tmp_path / "model")
    tensors, config = load_file(source / "model.safetensors"), json.loads((source / "config.json").read_text())

    def compressed(name: str, **changes: Any) -> Path:
        (source / "config.json").write_text(json.dumps(config | changes))
        compress_to(source, tmp_path / name, nrmse=0.05)
        return tmp_path / name

    with pytest.raises(RBEError, match=r"has no tensor 'model.layers.2.* needs"):
        load_pretrained(compressed("missing", num_hidden_layers=3))
    with pytest.raises(RBEError, match=r"'model.layers.1.* has no place in a LlamaForCausalLM"):
        load_pretrained(compressed("unexpected", num_hidden_layers=1))
    with pytest.raises(RBEError, match=r"tensor 'model.layers.0.mlp.* the model's is"):
        load_pretrained(compressed("shape", intermediate_size=40))
    with pytest.raises(RBEError, match="differ, but the model ties them"):
        load_pretrained(compressed("tied", tie_word_embeddings=True))
    with pytest.raises(RBEError, match="cannot build this model"):
        load_pretrained(compressed("unknown", model_type="nonesuch"))
    save_file({"extra": np.ones(3, np.float32)} | tensors, source / "model.safetensors")
    with pytest.raises(RBEError, match="tensor 'extra' has no place"):
        load_pretrained(compressed("extra"))


def test_bench_with_the_transformers_engine(tmp_path: Path) -> None:
    from rbe_cli.operations.bench_model import bench_model
    from rbe_cli.operations.engines import load_model
    from rbe_cli.operations.model_speed import measure_speed

    source = llama(tmp_path / "model")
    compress_to(source, tmp_path / "model.rbe", nrmse=0.05)
    done = bench_model(str(tmp_path / "model.rbe"), reference=str(source), engine="transformers", quality_only=True)
    assert done.context == 64
    assert done.quality.kl.value > 0
    model = load_model(ModelFiles.open(str(tmp_path / "model.rbe")), "transformers")
    text = model.continuation()
    text.feed(TOKENS[0, :12])
    assert abs(text.feed(TOKENS[0, 12:13]) - model.logits(TOKENS[:1])[0, 12]).max() < 1e-3
    assert measure_speed(model, TOKENS[0, :8], 4).generation.measurements == 4
    with pytest.raises(RBEError, match="longer than the 64 positions"):
        text.feed(np.zeros(60, np.int64))
    source = tiny_gpt2.write(tmp_path / "gpt2")
    compress_to(source, tmp_path / "gpt2.rbe", nrmse=0.05)
    both = [
        bench_model(str(tmp_path / "gpt2.rbe"), reference=str(source), engine=engine, quality_only=True).quality
        for engine in ("numpy", "transformers")
    ]
    assert both[0].kl.value == pytest.approx(both[1].kl.value, rel=1e-2)
