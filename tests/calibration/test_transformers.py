"""Models of transformers: skipped where torch and transformers are not installed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rbe_cli.calibration.importance_file import read_importance
from rbe_cli.errors import RBEError
from rbe_cli.layers.model_files import ModelFiles
from rbe_cli.operations.calibrate import calibrate
from rbe_cli.operations.decode import decode
from rbe_cli.operations.sensitivity import measure_sensitivity
from rbe_cli.operations.settings import Settings
from tests.command_line import Run
from tests.layers.test_transformers_model import llama
from tests.naive import second_moments
from tests.synthetic import compress_to, read_tensors

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")


def bert(folder: Path) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    torch.manual_seed(0)
    words = ["[UNK]", "[CLS]", "[SEP]", "In", "the", "beginning", "line", "of", "words", "and", "more"]
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=3,
        max_position_embeddings=16, initializer_range=0.2,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("tied", [False, True])
def test_a_llama(tmp_path: Path, text: Path, tied: bool) -> None:
    source = llama(tmp_path / "model", tied)
    done = calibrate(str(source), tmp_path / "i.safetensors", text=text, moments=True)
    again = calibrate(str(source), tmp_path / "j.safetensors", text=text, moments=True)
    assert done.tokens == again.tokens == text.stat().st_size
    assert (tmp_path / "i.safetensors").read_bytes() == (tmp_path / "j.safetensors").read_bytes()
    importance, tensors = read_importance(tmp_path / "i.safetensors"), read_tensors(source)
    matrices = {n for n, w in tensors.items() if w.ndim == 2 and (tied or "embed" not in n)}
    assert set(importance.names) == matrices
    for name in matrices:
        found = importance.mean_square(name, tensors[name].shape)
        assert found is not None
        assert found[0] == 1
        moments = importance.moments(name, tensors[name].shape)
        assert moments is not None
        assert moments.diagonal() == pytest.approx(found[1], rel=1e-4)
    layer = "model.layers.1.self_attn.{}_proj.weight"
    shared = [importance.mean_square(layer.format(x), tensors[layer.format(x)].shape) for x in "qkv"]
    assert all(one is not None and (one[1] == shared[0][1]).all() for one in shared if shared[0] is not None)


def test_inputs_are_those_of_the_model_itself(tmp_path: Path, text: Path) -> None:
    source = llama(tmp_path / "model", tied=False)
    calibrate(str(source), tmp_path / "i.safetensors", text=text, context=50)
    model = transformers.AutoModelForCausalLM.from_pretrained(source).eval()
    data = np.frombuffer(text.read_bytes(), np.uint8).astype(np.int64)
    rows = []
    for begin in range(0, data.size, 50):
        with torch.inference_mode():
            rows.append(model.model(torch.from_numpy(data[None, begin : begin + 50])).last_hidden_state[0].numpy())
    found = read_importance(tmp_path / "i.safetensors").mean_square("lm_head.weight", (256, 32))
    assert found is not None
    assert found[1] == pytest.approx(second_moments(np.concatenate(rows)).diagonal(), rel=1e-4)


def test_an_encoder_reads_lines(tmp_path: Path, text: Path) -> None:
    source = bert(tmp_path / "model")
    done = calibrate(str(source), tmp_path / "i.safetensors", text=text)
    lines = text.read_text().splitlines()
    assert done.tokens == sum(min(16, 2 + len(line.replace(",", " ,").replace(".", " .").split())) for line in lines)
    query = "encoder.layer.0.attention.self.query.weight"
    found = read_importance(tmp_path / "i.safetensors").mean_square(query, (48, 48))
    assert found is not None
    assert found[0] == 1
    assert len(done.mean_squares) == 13
    (source / "tokenizer.json").unlink()
    with pytest.raises(RBEError, match=r"no tokenizer.json"):
        calibrate(str(source), tmp_path / "i.safetensors", text=text)


def test_a_compressed_encoder_becomes_a_model(tmp_path: Path) -> None:
    from rbe_cli.layers.transformers_model import load_pretrained

    source = bert(tmp_path / "model")
    compress_to(source, tmp_path / "m.rbe", lossless=True)
    ids = torch.tensor([[1, 3, 4, 5, 2]])
    with torch.inference_mode():
        want = transformers.AutoModel.from_pretrained(source).eval()(ids).last_hidden_state
        got = load_pretrained(tmp_path / "m.rbe")(ids).last_hidden_state
    assert ModelFiles.open(str(tmp_path / "m.rbe")).folder is not None
    assert torch.equal(got, want)


@pytest.mark.parametrize("make", [lambda folder: llama(folder, tied=True), bert])
def test_sensitivity(tmp_path: Path, text: Path, make: Callable[[Path], Path]) -> None:
    source = make(tmp_path / "model")
    found = measure_sensitivity(str(source), text=text, limit=300, settings=Settings(bits=8.0))
    matrices = {name for name, w in read_tensors(source).items() if w.ndim == 2 and w.size >= 1024}
    assert {tensor.name for tensor in found.tensors} == matrices
    # The pooler is no part of an embedding.
    assert all(tensor.loss.value > 1e-7 for tensor in found.tensors if "pooler" not in tensor.name)


def test_bench_of_encoders(rbe: Run, tmp_path: Path, text: Path) -> None:
    """1 - cosine of what the encoder makes of each line, written out."""
    from tokenizers import Tokenizer

    source = bert(tmp_path / "model")
    for name, nrmse in (("fine", 0.05), ("rough", 0.4)):
        compress_to(source, tmp_path / f"{name}.rbe", nrmse=nrmse)
    folders = [tmp_path / "fine.rbe", tmp_path / "rough.rbe"]
    done = rbe(
        "bench", "model", *folders, "--reference", source, "--engine", "transformers", "--text", text, "--json", "-q"
    )
    assert done.code == 0, done.err
    document = done.json()
    assert document["figure"] == "1 - cosine"
    assert document["models"][1]["of_first"]["value"] > 2
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(16)
    for folder, shown in zip(folders, document["models"], strict=True):
        decode(folder, tmp_path / "back", force=True)
        exact, coarse = (transformers.AutoModel.from_pretrained(path).eval() for path in (source, tmp_path / "back"))
        far = []
        for line in text.read_text().splitlines():
            ids = torch.tensor([tokenizer.encode(line).ids])
            with torch.inference_mode():
                p, q = (model(ids).last_hidden_state[0].mean(0) for model in (exact, coarse))
            far.append(1 - float(torch.nn.functional.cosine_similarity(p.double(), q.double(), dim=0)))
        assert shown["value"]["value"] == pytest.approx(np.mean(far), rel=1e-2)
        assert shown["value"]["error"] == pytest.approx(np.std(far, ddof=1) / len(far) ** 0.5, rel=1e-2)
