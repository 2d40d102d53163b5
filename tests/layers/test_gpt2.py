from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rbe_cli.container.folder import Folder
from rbe_cli.errors import CorruptFile, RBEError, UsageError
from rbe_cli.layers.generation import choose, generate
from rbe_cli.layers.gpt2 import GPT2
from rbe_cli.layers.gpt2_config import GPT2Config
from rbe_cli.layers.model_files import ModelFiles
from tests.layers import tiny_gpt2
from tests.synthetic import compress_to, read_tensors

TEXT = list(b"And God said, Let there be light.")


def tokens(batch: int, positions: int, vocabulary: int = 256) -> np.ndarray:
    return np.random.default_rng(3).integers(0, vocabulary, (batch, positions))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_embd": 21, "n_head": 3, "n_inner": 17, "vocab_size": 300, "n_layer": 1},
        {"activation_function": "gelu", "n_head": 1},
        {"tie_word_embeddings": False, "n_head": 40},
    ],
)
def test_dense_is_the_computation_by_the_book(tmp_path: Path, changes: dict[str, object]) -> None:
    folder = tiny_gpt2.write(tmp_path / "model", **changes)
    want = tiny_gpt2.naive_logits(read_tensors(folder), tiny_gpt2.config(**changes), TEXT)
    got = GPT2.load(ModelFiles.open(str(folder))).logits(np.array([TEXT, TEXT]))
    assert got.dtype == np.float32
    assert abs(got - want).max() < 1e-4 * abs(want).max()


@pytest.mark.parametrize("prefix", ["transformer.", ""])
@pytest.mark.parametrize("wishes", [{"bits": 5.0}, {"lossless": True}])
def test_compressed_gives_the_logits_of_the_decoded_weights(tmp_path: Path, prefix: str, wishes: dict) -> None:
    source = tiny_gpt2.write(tmp_path / "model", prefix, n_embd=36, n_head=4)
    compress_to(source, tmp_path / "model.rbe", **wishes)
    folder = Folder.open(tmp_path / "model.rbe")
    decoded = {name: folder.tensor(name) for name in folder.names()}
    want = tiny_gpt2.naive_logits(decoded, tiny_gpt2.config(n_embd=36, n_head=4), TEXT)
    for options in ({}, {"threads": 2}, {"cache_bytes": 1 << 24, "threads": 2}):
        model = GPT2.load(ModelFiles("model", folder=folder), **options)
        assert abs(model.logits(np.array([TEXT])) - want).max() < 1e-3


def test_half_precision_weights_are_rounded_as_decode_rounds_them(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    source = tiny_gpt2.write(tmp_path / "model")
    half = {name: tensor.astype(np.float16) for name, tensor in read_tensors(source).items()}
    save_file(half, source / "model.safetensors")
    compress_to(source, tmp_path / "model.rbe", bits=6.0)
    model = GPT2.load(ModelFiles.open(str(tmp_path / "model.rbe")))
    want = Folder.open(tmp_path / "model.rbe").tensor("transformer.wte.weight")
    assert (model.tokens(np.arange(256)) == want.astype(np.float32)).all()


@pytest.mark.parametrize("cache_bytes", [0, 30_000, 1 << 24])
def test_text_token_by_token_equals_all_at_once(gpt2_folder: Path, cache_bytes: int) -> None:
    model = GPT2.load(ModelFiles.open(str(gpt2_folder)), cache_bytes=cache_bytes)
    text = tokens(1, 48)
    want = model.logits(text)[0]
    grown = model.continuation()
    got = [grown.feed(text[0, :7]), grown.feed(text[0, 7:9]), *(grown.feed(text[0, i : i + 1]) for i in range(9, 48))]
    assert abs(np.array(got) - want[[6, 8, *range(9, 48)]]).max() < 1e-3
    with pytest.raises(RBEError, match="49 tokens is longer"):
        grown.feed(text[0, :1])


def test_batches_of_none_and_many(gpt2_folder: Path) -> None:
    model = GPT2.load(ModelFiles.open(str(gpt2_folder)))
    many = tokens(5, 11)
    assert model.logits(many[:0]).shape == (0, 11, 256)
    assert model.logits(many[:, :0]).shape == (5, 0, 256)
    alone = np.concatenate([model.logits(row[None]) for row in many])
    assert abs(model.logits(many) - alone).max() < 1e-3
    assert abs(model.logits(many, first=8) - alone[:, 8:]).max() < 1e-3


def test_tokens_and_lengths_out_of_range(gpt2_folder: Path) -> None:
    model = GPT2.load(ModelFiles.open(str(gpt2_folder)))
    with pytest.raises(RBEError, match=r"wte.weight'.*none of number 256"):
        model.logits(np.array([[256]]))
    with pytest.raises(RBEError, match="none of number -1"):
        model.logits(np.array([[-1]]))
    with pytest.raises(RBEError, match="longer than the model's 48 positions"):
        model.logits(tokens(1, 49))


def test_generation_is_greedy_or_repeatable(gpt2_folder: Path) -> None:
    model = GPT2.load(ModelFiles.open(str(gpt2_folder)), cache_bytes=1 << 20)
    prompt = np.array(TEXT[:5])
    greedy = generate(model, prompt, 6)
    read = np.concatenate([prompt, greedy[:-1]])
    assert (model.logits(read[None])[0, 4:].argmax(1) == greedy).all()
    sampled = [generate(model, prompt, 6, temperature=1.5, top_k=40, seed=seed) for seed in (1, 1, 2)]
    assert (sampled[0] == sampled[1]).all()
    assert (sampled[0] != sampled[2]).any()
    assert (generate(model, prompt, 6, temperature=1.0, top_k=1) == greedy).all()
    assert generate(model, prompt, 44).size == 44
    with pytest.raises(UsageError, match="more than the model's context"):
        generate(model, prompt, 45)
    with pytest.raises(UsageError, match="at least one token"):
        generate(model, prompt[:0], 4)


def test_choices_follow_the_softmax() -> None:
    logits = np.log(np.array([0.1, 0.6, 0.3], np.float32))
    rng = np.random.default_rng(0)
    drawn = np.bincount([choose(logits, 1.0, 0, rng) for _ in range(4000)], minlength=3) / 4000
    assert abs(drawn - [0.1, 0.6, 0.3]).max() < 0.03
    assert {choose(logits, 1.0, 2, rng) for _ in range(200)} == {1, 2}


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"model_type": "llama"}, RBEError, "--engine transformers"),
        ({"model_type": "gpt2", "n_embd": 10, "n_head": 3}, CorruptFile, "do not divide"),
        ({"model_type": "gpt2", "n_embd": -1}, CorruptFile, "n_embd is -1"),
        ({"model_type": "gpt2", "n_layer": True}, CorruptFile, "n_layer is True"),
        ({"model_type": "gpt2", "layer_norm_epsilon": "x"}, CorruptFile, "layer_norm_epsilon"),
        ({"model_type": "gpt2", "activation_function": "swish"}, RBEError, "'swish'"),
    ],
)
def test_configurations_that_cannot_be(config: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GPT2Config.from_json(config, "config.json")


def test_shapes_that_do_not_fit_the_configuration(gpt2_source: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(gpt2_source, tmp_path / "model"))
    (folder / "config.json").write_text(json.dumps(tiny_gpt2.config(n_positions=64)))
    with pytest.raises(RBEError, match=r"'transformer.wpe.weight' is 48x40, the configuration says 64x40"):
        GPT2.load(ModelFiles.open(str(folder)))
    (folder / "config.json").write_text(json.dumps(tiny_gpt2.config(n_layer=3)))
    with pytest.raises(RBEError, match=r"has no tensor 'h.2.ln_1.weight'"):
        GPT2.load(ModelFiles.open(str(folder)))
    (folder / "config.json").write_text("[]")
    with pytest.raises(CorruptFile, match="not a JSON object"):
        GPT2.load(ModelFiles.open(str(folder)))
    (folder / "config.json").unlink()
    with pytest.raises(RBEError, match=r"no config.json beside"):
        GPT2.load(ModelFiles.open(str(folder)))
