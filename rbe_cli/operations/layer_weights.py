"""The matrices of a model that the layers are made of, found by their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rbe_cli.checkpoint.reader import Checkpoint
from rbe_cli.errors import RBEError
from rbe_cli.layers.checkpoint_weights import CheckpointWeights
from rbe_cli.layers.gpt2_config import config_count
from rbe_cli.layers.model_files import ModelFiles

Matrix = NDArray[np.float32]
_CONFIG = "config.json"
#: Names of the layers by family: projections and output, up, down and gate, table, and whether stored in x out.
_FAMILIES = (
    (("attn.c_attn", "attn.c_proj"), ("mlp.c_fc", "mlp.c_proj"), ("wte",), True),
    (
        ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
        ("intermediate.dense", "output.dense"),
        ("word_embeddings",),
        False,
    ),
    (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
        ("mlp.up_proj", "mlp.down_proj", "mlp.gate_proj"),
        ("embed_tokens",),
        False,
    ),
)


@dataclass(frozen=True)
class Weights:
    """The matrices of a model the layers are made of; an empty tuple where a source has none of a kind.

    Attributes
    ----------
    linear, table : (str, float32[rows, columns])
    attention : tuple of such
        The projections, the output's last.
    ffn : tuple of such
        Up, down, and a gate if there is one.
    in_by_out : bool
        How all but the table are stored.
    """

    linear: tuple[str, Matrix]
    table: tuple[str, Matrix] | tuple[()]
    attention: tuple[tuple[str, Matrix], ...]
    ffn: tuple[tuple[str, Matrix], ...]
    in_by_out: bool = False
    heads: int = 12
    activation: str = "gelu_new"


def weights_of(checkpoint: Checkpoint) -> Weights:
    """The first layer of each kind, by the names of GPT-2, of BERT or of Llama; else the largest matrix alone."""
    source = CheckpointWeights(checkpoint)
    shapes = {name: shape for name, shape in source.shapes().items() if len(shape) == 2 and all(shape)}
    if not shapes:
        raise RBEError(f"{checkpoint.name}: has no matrix to make a layer of")

    def found(layers: Sequence[str]) -> tuple[tuple[str, Matrix], ...]:
        first = next((name for name in shapes if name.endswith(f"{layers[0]}.weight")), None)
        if first is None:
            return ()
        prefix = first.removesuffix(f"{layers[0]}.weight")
        names = [f"{prefix}{layer}.weight" for layer in layers]
        return tuple((name, source.matrix(name).values) for name in names) if all(n in shapes for n in names) else ()

    files = ModelFiles(checkpoint.name, checkpoint=checkpoint)
    config = files.json(_CONFIG) if files.file(_CONFIG) else {}
    where = f"{checkpoint.name}: {_CONFIG}"
    for attention, ffn, table, in_by_out in _FAMILIES:
        projections = found(attention)
        if not projections:
            continue
        hidden = projections[-1][1].shape[1]
        heads = config_count(config, "num_attention_heads", max(hidden // 64, 1), where)
        heads = config_count(config, "n_head", heads, where)
        # Heads that share keys and values are no layer of ours.
        alike = all(matrix.shape in ((hidden, hidden), (hidden, 3 * hidden)) for _, matrix in projections)
        activation = str(config.get("activation_function") or config.get("hidden_act") or "gelu_new")
        tables = found(table)
        return Weights(
            projections[-1], tables[0] if tables else (), projections if alike else (), found(ffn), in_by_out, heads,
            activation,
        )  # fmt: skip
    largest = max(shapes, key=lambda name: shapes[name][0] * shapes[name][1])
    return Weights((largest, source.matrix(largest).values), (), (), ())
