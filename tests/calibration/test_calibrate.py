"""`rbe calibrate` on GPT-2, against inputs that are written down as they pass."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from rbe_cli import models
from rbe_cli.calibration.batches import spread
from rbe_cli.calibration.importance_file import read_importance
from rbe_cli.calibration.observed import ObservedGPT2
from rbe_cli.errors import CorruptFile, RBEError, UsageError
from rbe_cli.layers.model_files import ModelFiles
from rbe_cli.operations import calibrate as operation
from rbe_cli.operations.calibrate import calibrate
from rbe_cli.operations.model_text import read_text
from tests.command_line import Run
from tests.layers import tiny_gpt2
from tests.naive import second_moments
from tests.synthetic import read_tensors


def inputs_seen(source: Path, text: Path, context: int) -> dict[str, np.ndarray]:
    """Every input of every weight, float32[tokens, channels]."""
    files = ModelFiles.open(str(source))
    model = ObservedGPT2(files)
    seen: dict[str, list[np.ndarray]] = {name: [] for name in model.inputs()}
    tokens = read_text(files, text, None).tokens
    for begin in range(0, tokens.size, context):
        model.read(tokens[None, begin : begin + context], {name: rows.append for name, rows in seen.items()})
    return {name: np.concatenate(rows) for name, rows in seen.items()}


def test_what_is_written_is_what_passed(gpt2: Path, text: Path, tmp_path: Path) -> None:
    done = calibrate(str(gpt2), tmp_path / "i.safetensors", text=text, moments=True)
    assert done.tokens == text.stat().st_size
    importance = read_importance(tmp_path / "i.safetensors")
    seen, tensors = inputs_seen(gpt2, text, 48), read_tensors(gpt2)
    assert sorted(seen) == importance.names
    assert len(seen) == 9
    for name, x in seen.items():
        shape, want = tensors[name].shape, second_moments(x)
        found = importance.mean_square(name, shape)
        moments = importance.moments(name, shape)
        assert found is not None
        assert moments is not None
        axis, squares = found
        assert axis == (1 if name == "transformer.wte.weight" else 0)
        assert shape[axis] == x.shape[1] == squares.size
        assert squares == pytest.approx(want.diagonal(), rel=1e-5)
        assert abs(moments - want).max() < 1e-5 * want.max()
        assert (moments == moments.T).all()


def test_an_input_is_what_its_weight_is_multiplied_with(gpt2: Path, text: Path) -> None:
    """The output of the first layer's product, by the inputs seen, is what the book's forward pass has."""
    x = inputs_seen(gpt2, text, 48)["transformer.wte.weight"][:20]
    weights = read_tensors(gpt2)
    tokens = list(text.read_bytes()[:20])
    logits = tiny_gpt2.naive_logits(weights, tiny_gpt2.config(), tokens)
    assert abs(x @ weights["transformer.wte.weight"].T - logits).max() < 1e-3 * abs(logits).max()


def test_the_same_bytes_on_every_run_whatever_fits_in_memory(
    gpt2: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str) -> tuple[bytes, int]:
        done = calibrate(str(gpt2), tmp_path / name, text=text, moments=True, limit=300, context=20)
        return (tmp_path / name).read_bytes(), done.passes

    first, passes = run("a.safetensors")
    assert passes == 2
    assert run("b.safetensors")[0] == first
    monkeypatch.setattr(operation, "MOMENTS_AT_ONCE", 1)
    one_by_one, passes = run("c.safetensors")
    assert one_by_one == first
    assert passes == 10


def test_metadata_says_what_it_was_made_from(gpt2: Path, text: Path, tmp_path: Path) -> None:
    import hashlib

    calibrate(str(gpt2), tmp_path / "i.safetensors", text=text, limit=500)
    with safe_open(tmp_path / "i.safetensors", "np") as file:
        metadata = file.metadata()
    weights = hashlib.sha256((gpt2 / "model.safetensors").read_bytes()).hexdigest()
    assert metadata["tokens"] == "500"
    assert metadata["text_sha256"] == hashlib.sha256(text.read_bytes()).hexdigest()
    assert json.loads(metadata["source_sha256"]) == {"model.safetensors": weights}
    assert "shared" not in metadata


@pytest.mark.parametrize(("sizes", "limit"), [([5] * 20, 30), ([5] * 20, 33), ([7, 1, 9, 2, 2, 8] * 9, 100), ([4], 9)])
def test_a_part_of_a_text_is_from_everywhere_in_it(sizes: list[int], limit: int) -> None:
    texts = [np.full(size, i) for i, size in enumerate(sizes)]
    taken = np.concatenate(spread(texts, limit))
    longest = max(sizes)
    assert min(limit, sum(sizes)) - longest < taken.size <= limit
    for i in range(1, len(sizes)):
        part = np.count_nonzero(taken < i)
        assert abs(part - min(1, limit / sum(sizes)) * sum(sizes[:i])) <= longest


def test_the_shipped_model_has_a_text_of_its_own(rbe: Run, tmp_path: Path) -> None:
    shipped = models.calibration_text()
    held_out = set((models.path() / "heldout.txt").read_bytes().splitlines())
    assert not {line for line in shipped.read_bytes().splitlines() if line} & held_out
    done = rbe("calibrate", "mini-gpt2", "-o", tmp_path / "i.safetensors", "--tokens", 1000, "--json", "-q")
    assert done.code == 0, done.err
    document = done.json()
    assert (document["tokens"], document["passes"], len(document["weights"])) == (1000, 1, 21)
    assert document["bytes"] == (tmp_path / "i.safetensors").stat().st_size
    assert all(0 < weight["gain_db"] < 30 for weight in document["weights"])


def test_the_table(rbe: Run, gpt2: Path, text: Path, tmp_path: Path) -> None:
    done = rbe("calibrate", gpt2, "--text", text, "--tokens", 100, "-o", tmp_path / "i.safetensors", "--moments")
    assert done.code == 0, done.err
    assert "transformer.h.1.mlp.c_proj.weight" in done.out
    assert "100 tokens, read 2 times" in done.out


def test_the_output_is_called_what_it_is(rbe: Run, gpt2: Path, tmp_path: Path) -> None:
    done = rbe("calibrate", gpt2, "-o", tmp_path / "i.txt")
    assert done.code == 2
    assert done.complaint().endswith("i.txt: end it in .safetensors")
    assert not (tmp_path / "i.txt").exists()


def test_what_cannot_be_calibrated(gpt2: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "i.safetensors"
    with pytest.raises(UsageError, match="give a text to calibrate on with --text"):
        calibrate(str(gpt2), out)
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(RBEError, match="has no text to calibrate on"):
        calibrate(str(gpt2), out, text=tmp_path / "empty")
    with pytest.raises(RBEError, match=r"no config\.json beside the weights"):
        calibrate(str(gpt2 / "model.safetensors"), out, text=text)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(CorruptFile, match=r"bad/model.safetensors"):
        calibrate(str(tmp_path / "bad"), out, text=text)
    assert not out.exists()
    assert list(tmp_path.glob(".*")) == []


def test_a_compressed_folder_is_not_a_source(gpt2: Path, text: Path, tmp_path: Path) -> None:
    from tests.synthetic import compress_to

    compress_to(gpt2, tmp_path / "m.rbe", lossless=True)
    with pytest.raises(UsageError, match="calibrate the original"):
        calibrate(str(tmp_path / "m.rbe"), tmp_path / "i.safetensors", text=text)


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed")
def test_other_models_need_transformers(gpt2: Path, text: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(gpt2, tmp_path / "model"))
    (folder / "config.json").write_text(json.dumps(tiny_gpt2.config(model_type="llama")))
    with pytest.raises(RBEError, match=r"pip install 'rbe-cli\[transformers\]'"):
        calibrate(str(folder), tmp_path / "i.safetensors", text=text)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, 3e38])
def test_inputs_that_are_not_finite(value: float, gpt2: Path, text: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(gpt2, broken)
    tensors = read_tensors(broken)
    name = "transformer.h.0.ln_1.weight"
    tensors[name] = np.full_like(tensors[name], value)
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(RBEError, match=r"transformer\.h\.0\..*not finite"):
        calibrate(str(broken), tmp_path / "i.safetensors", text=text)
    assert not (tmp_path / "i.safetensors").exists()
