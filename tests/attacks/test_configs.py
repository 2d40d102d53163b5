"""Hostile configurations beside the weights, for the commands that look into them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rbe_cli.checkpoint.reader import open_checkpoint
from rbe_cli.errors import CorruptFile, RBEError
from rbe_cli.layers.gpt2_config import GPT2Config
from rbe_cli.layers.model_files import ModelFiles
from rbe_cli.operations.layer_subjects import model_subjects

ATTENTION = {
    f"h.0.attn.{name}.weight": np.ones((64, width), np.float32) for name, width in (("c_attn", 192), ("c_proj", 64))
}


def checkpoint(folder: Path, config: Any, **tensors: np.ndarray) -> ModelFiles:
    save_file(tensors or ATTENTION, folder / "model.safetensors")
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_text(text)
    return ModelFiles("model", checkpoint=open_checkpoint(folder))


@pytest.mark.parametrize(
    "config",
    ["[" * 100_000, "[1]", "\0", '{"n_head": 1e400}', f'{{"n_head": {"9" * 5000}}}', {"n_head": "12"}, {"n_head": -1},
     {"n_head": 10**30}, {"num_attention_heads": [1]}, {"n_head": True}],
)  # fmt: skip
def test_configuration_of_layers(tmp_path: Path, config: Any) -> None:
    files = checkpoint(tmp_path, config)
    assert files.checkpoint is not None
    with pytest.raises(CorruptFile, match=r"config.json"):
        model_subjects(files.checkpoint)


def test_layers_of_vectors(tmp_path: Path) -> None:
    """What is called like a matrix and is none; then there is no matrix at all."""
    files = checkpoint(tmp_path, {}, **{"h.0.attn.c_attn.weight": np.ones(64, np.float32)})
    assert files.checkpoint is not None
    with pytest.raises(RBEError, match="has no matrix to make a layer of"):
        model_subjects(files.checkpoint)


@pytest.mark.parametrize("change", [{"model_type": ["gpt2"]}, {"activation_function": ["relu"]}, {"n_layer": 1 << 40}])
def test_configuration_of_a_gpt2(change: dict[str, Any]) -> None:
    with pytest.raises(RBEError, match=r"config\.json"):
        GPT2Config.from_json({"model_type": "gpt2"} | change, "config.json")


def test_configuration_that_is_a_pipe(tmp_path: Path) -> None:
    """It is there when the checkpoint is opened, and another thing when it is read."""
    files = checkpoint(tmp_path, {})
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CorruptFile, match=r"config\.json: is not a plain file"):
        files.json("config.json")


def test_no_code_comes_with_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would ask, on a terminal, whether to run it."""
    pytest.importorskip("transformers")
    from rbe_cli.layers.transformers_model import empty_model, load_checkpoint

    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\nclass C: pass\n")
    code = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"}
    files = checkpoint(tmp_path, {"model_type": "evil", "auto_map": code})
    for load in (empty_model, load_checkpoint):
        with pytest.raises(RBEError, match="transformers cannot"):
            load(files)
    assert not (tmp_path / "run").exists()
