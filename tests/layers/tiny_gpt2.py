"""Small GPT-2 checkpoints of any shape, and the forward pass written out in float64 by the book."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.synthetic import scaled_normal


def config(**changes: Any) -> dict[str, Any]:
    """A config.json; by default bytes, 48 positions, 2 layers of width 40 with 5 heads."""
    made = {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 256, "n_positions": 48,
        "n_embd": 40, "n_layer": 2, "n_head": 5, "n_inner": None, "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": None,
        "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
    }  # fmt: skip
    return made | changes


def tensors(settings: dict[str, Any], prefix: str = "transformer.", seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights, large enough that every part of the network matters."""
    rng = np.random.default_rng(seed)
    hidden = settings["n_embd"]
    inner = settings["n_inner"] or 4 * hidden
    made: dict[str, np.ndarray] = {}

    def vector(name: str, size: int, mean: float = 0.0) -> None:
        made[name] = (mean + 0.3 * rng.standard_normal(size)).astype(np.float32)

    def matrix(name: str, rows: int, columns: int) -> None:
        made[name] = 4 * scaled_normal((rows, columns), int(rng.integers(1 << 30)), 0.3)

    matrix("wte.weight", settings["vocab_size"], hidden)
    matrix("wpe.weight", settings["n_positions"], hidden)
    for i in range(settings["n_layer"]):
        for norm in ("ln_1", "ln_2"):
            vector(f"h.{i}.{norm}.weight", hidden, 1.0)
            vector(f"h.{i}.{norm}.bias", hidden)
        for layer, inputs, outputs in (
            ("attn.c_attn", hidden, 3 * hidden), ("attn.c_proj", hidden, hidden),
            ("mlp.c_fc", hidden, inner), ("mlp.c_proj", inner, hidden),
        ):  # fmt: skip
            matrix(f"h.{i}.{layer}.weight", inputs, outputs)
            vector(f"h.{i}.{layer}.bias", outputs)
    vector("ln_f.weight", hidden, 1.0)
    vector("ln_f.bias", hidden)
    named = {prefix + name: tensor for name, tensor in made.items()}
    if not settings["tie_word_embeddings"]:
        named["lm_head.weight"] = 4 * scaled_normal((settings["vocab_size"], hidden), seed + 1, 0.3)
    return named


def write(folder: Path, prefix: str = "transformer.", seed: int = 0, **changes: Any) -> Path:
    """A checkpoint folder with config.json and a text of bytes beside the weights."""
    folder.mkdir(parents=True)
    settings = config(**changes)
    save_file(tensors(settings, prefix, seed), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "heldout.txt").write_bytes(b"In the beginning was the Word, and the Word was with God. " * 4)
    return folder


def naive_logits(weights: dict[str, np.ndarray], settings: dict[str, Any], tokens: list[int]) -> np.ndarray:
    """Logits of one text, float64[positions, vocabulary]: one position, one head, one key at a time."""
    w = {name.removeprefix("transformer."): tensor.astype(np.float64) for name, tensor in weights.items()}
    heads, eps = settings["n_head"], settings["layer_norm_epsilon"]
    size = settings["n_embd"] // heads
    x = [w["wte.weight"][token] + w["wpe.weight"][i] for i, token in enumerate(tokens)]

    def norm(v: np.ndarray, name: str) -> np.ndarray:
        return (v - v.mean()) / math.sqrt(v.var() + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(v: np.ndarray, name: str) -> np.ndarray:
        return v @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def activation(v: np.ndarray) -> np.ndarray:
        if settings["activation_function"] == "gelu":
            return np.array([a * 0.5 * (1 + math.erf(a / math.sqrt(2))) for a in v])
        return 0.5 * v * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))

    for layer in range(settings["n_layer"]):
        at = f"h.{layer}"
        qkv = [np.split(linear(norm(v, f"{at}.ln_1"), f"{at}.attn.c_attn"), 3) for v in x]
        for i in reversed(range(len(x))):
            mixed = []
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                scores = np.array([qkv[i][0][part] @ qkv[j][1][part] / math.sqrt(size) for j in range(i + 1)])
                weight = np.exp(scores - scores.max())
                mixed.append(sum(weight[j] / weight.sum() * qkv[j][2][part] for j in range(i + 1)))
            x[i] = x[i] + linear(np.concatenate(mixed), f"{at}.attn.c_proj")
            x[i] = x[i] + linear(activation(linear(norm(x[i], f"{at}.ln_2"), f"{at}.mlp.c_fc")), f"{at}.mlp.c_proj")
    head_matrix = w["wte.weight"] if settings["tie_word_embeddings"] else w["lm_head.weight"]
    return np.stack([head_matrix @ norm(v, "ln_f") for v in x])
